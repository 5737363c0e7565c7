//! A program's question to the agent, and the answer.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use super::Uuid;

/// One question to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Request {
    /// Number of the request, and key of its [`Wait`], if it has one. Never zero, never given out twice while
    /// the maps live.
    pub id: u64,
    /// The file system.
    pub uuid: Uuid,
    /// Inode number.
    pub ino: u64,
    /// Btrfs: object id of the subvolume's root, without which an inode number says nothing there.
    /// Elsewhere, and where the kernel's type information does not tell, zero.
    pub subvolume: u64,
    /// Inode generation.
    pub generation: u32,
    /// Process that is waiting, as numbered in the initial PID namespace.
    pub tgid: u32,
    /// [`KIND_WATCH`], [`KIND_QUERY`], [`KIND_RECALL`], [`KIND_WANTED`] or [`KIND_ARM`].
    pub kind: u32,
    /// Device number of the superblock, `major << 20 | minor`: tells a mounted snapshot, which has the
    /// same UUID, from the file system itself.
    pub device: u32,
}

/// The inode carries the marker: put a watch on it. Answered [`ANSWER_WATCHED`], or
/// [`ANSWER_ONLINE`] where the marker is gone by now.
pub const KIND_WATCH: u32 = 1;
/// The program was not allowed to read the marker (`EACCES`: an opener for writing only, an
/// executable without read permission). Look: no marker is [`ANSWER_ONLINE`]; otherwise as
/// [`KIND_WATCH`].
pub const KIND_QUERY: u32 = 2;
/// No watch can help: `truncate(2)`, where fsnotify has looked already, or an open that
/// `file_post_open` does not follow. Recall the file now and answer [`ANSWER_ONLINE`]; the caller stays
/// in the hook, so let [`Wait::beat`] grow while the recall makes progress.
pub const KIND_RECALL: u32 = 3;
/// Recall the file; nobody waits, and there is no [`Wait`]. Whoever wants it was refused with `EAGAIN` where a
/// wait is not possible: the size is changed with the inode locked, which a recall needs itself. He comes
/// again (an NFS client does so by itself) and finds the file online.
pub const KIND_WANTED: u32 = 4;
/// Attach `guard_post_open`: a marked file is about to pass on to fanotify. Answered [`ANSWER_WATCHED`]; what
/// the program goes by is [`ARMED`](super::ARMED).
pub const KIND_ARM: u32 = 5;

/// The agent's side of a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Wait {
    /// Zero while the agent works; [`ANSWER_ONLINE`], [`ANSWER_WATCHED`]; or a negative error
    /// number, which the opener gets. Any other value refuses with `EAGAIN`.
    pub verdict: i32,
    /// Any change says that there is progress and renews the opener's patience.
    pub beat: u32,
}

/// All data is local (and for [`KIND_RECALL`]: the recall is done). The access passes.
pub const ANSWER_ONLINE: i32 = 1;
/// There is a watch now: look at the inode's mask again.
pub const ANSWER_WATCHED: i32 = 2;

const _: () = {
    assert!(size_of::<Request>() == 56);
    assert!(offset_of!(Request, id) == 0);
    assert!(offset_of!(Request, uuid) == 8);
    assert!(offset_of!(Request, ino) == 24);
    assert!(offset_of!(Request, subvolume) == 32);
    assert!(offset_of!(Request, generation) == 40);
    assert!(offset_of!(Request, tgid) == 44);
    assert!(offset_of!(Request, kind) == 48);
    assert!(offset_of!(Request, device) == 52);
    assert!(size_of::<Wait>() == 8);
    assert!(offset_of!(Wait, verdict) == 0);
    assert!(offset_of!(Wait, beat) == 4);
};
