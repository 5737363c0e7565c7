//! A program's question to the agent, and the answer.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use super::Uuid;

/// One question to the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Request {
    /// Number of the request, under which it waits in [`WAITS`](super::WAITS), if anybody waits, and gets its
    /// [`Reply`]. Never zero, never given out twice while the maps live.
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
/// in the hook, so let its beat ([`WAITS`](super::WAITS)) grow while the recall makes progress.
pub const KIND_RECALL: u32 = 3;
/// Recall the file; nobody waits, and it is not in [`WAITS`](super::WAITS). Whoever wants it was refused with
/// `EAGAIN` where a wait is not possible: the size is changed with the inode locked, which a recall needs itself. He comes
/// again (an NFS client does so by itself) and finds the file online.
pub const KIND_WANTED: u32 = 4;
/// Attach `guard_post_open`: a marked file is about to pass on to fanotify. Answered [`ANSWER_WATCHED`]; what
/// the program goes by is [`ARMED`](super::ARMED).
pub const KIND_ARM: u32 = 5;

/// The agent's answer: the verdict in the lower half, and in the upper one the lower half of the number of the
/// request that it answers. Whoever reads an element of a map that the kernel uses for another
/// request by then sees it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Reply(u64);

impl Reply {
    /// `verdict`: [`ANSWER_ONLINE`], [`ANSWER_WATCHED`], or a negative error number, which the opener gets. Any
    /// other value refuses with `EAGAIN`.
    pub const fn new(request: u64, verdict: i32) -> Self {
        Self(request << 32 | verdict.cast_unsigned() as u64)
    }

    /// The verdict, if it is an answer to this request.
    #[inline(always)]
    pub const fn verdict(self, request: u64) -> Option<i32> {
        if self.0 >> 32 == request & 0xffff_ffff {
            Some((self.0 as u32).cast_signed())
        } else {
            None
        }
    }
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
    assert!(size_of::<Reply>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_for_its_own_request_only() {
        for request in [1, 0xffff_ffff, 0x1_0000_0000, 0x1234_5678_9abc_def0] {
            for verdict in [ANSWER_ONLINE, ANSWER_WATCHED, -1, -4095, i32::MIN] {
                let reply = Reply::new(request, verdict);
                assert_eq!(reply.verdict(request), Some(verdict));
                assert_eq!(reply.verdict(request + 1), None);
                assert_eq!(reply.verdict(request - 1), None);
            }
        }
    }
}
