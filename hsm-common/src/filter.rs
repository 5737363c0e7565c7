//! What the kernel programs and the agent tell each other: the layout of every shared map.
//!
//! An open of a marked file asks for a watch in three steps. The program inserts a [`Wait`] under
//! a new request number into `WAITS`, submits a [`Request`] with that number through the ring
//! buffer `REQUESTS`, and looks at both the inode's fsnotify mask and its `Wait` until one of them
//! answers. The agent may only *update* a `Wait` that is there (`BPF_EXIST`): an answer that comes
//! after the program has left finds no entry and changes nothing, and because a number is never
//! given out twice it cannot reach another opener.
//!
//! The integers are of the machine's own byte order: nothing here leaves the machine.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::resident::Resident;

/// Version of everything in this module. It is part of the pin directory's name: programs and an
/// agent of different versions never share a map.
pub const ABI_VERSION: u32 = 4;

/// The read-only global of type `u64` that holds the [`FINGERPRINT`] of the object.
pub const LAYOUT: &str = "LAYOUT";

/// Tells one state of this module's layout from another while it changes between versions: an object
/// of programs and an agent that were not built from the same source do not belong together.
pub const FINGERPRINT: u64 = {
    // FNV-1a over the names and sizes.
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut at = 0;
    while at < Offsets::MEMBERS.len() {
        hash = mix(hash, Offsets::MEMBERS[at].path);
        at += 1;
    }
    at = 0;
    while at < Counter::ALL.len() {
        hash = mix(hash, Counter::ALL[at].name());
        at += 1;
    }
    let sizes = [
        ABI_VERSION as usize,
        size_of::<Settings>(),
        size_of::<Request>(),
        size_of::<Wait>(),
        size_of::<Trust>(),
        size_of::<Server>(),
        size_of::<Cached>(),
        size_of::<UnderWay>(),
        size_of::<Coverage>(),
        size_of::<Resident>(),
    ];
    at = 0;
    while at < sizes.len() {
        hash = (hash ^ sizes[at] as u64).wrapping_mul(FNV_PRIME);
        at += 1;
    }
    hash
};

/// Of the FNV hash.
const FNV_PRIME: u64 = 0x0100_0000_01b3;

const fn mix(mut hash: u64, text: &str) -> u64 {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
        at += 1;
    }
    (hash ^ 0xff).wrapping_mul(FNV_PRIME)
}

/// Map of [`Coverage`] by file system UUID.
pub const FILESYSTEMS: &str = "FILESYSTEMS";
/// Array of one `u64` for each [`class`] of UUIDs: zero where no file system of that class was ever
/// covered. Written before the entry in [`FILESYSTEMS`], and never taken back.
pub const CLASSES: &str = "CLASSES";
/// Task storage of [`Trust`]: what a process may do that others may not.
pub const TRUSTED: &str = "TRUSTED";
/// Array of one [`Server`]: who serves the requests. All zero: nobody.
pub const SERVER: &str = "SERVER";
/// Ring buffer of [`Request`]s.
pub const REQUESTS: &str = "REQUESTS";
/// Map of [`Wait`]s by request number.
pub const WAITS: &str = "WAITS";
/// Inode storage of [`Cached`] verdicts.
pub const VERDICTS: &str = "VERDICTS";
/// Per-CPU array with one `u64` for each [`Counter`].
pub const COUNTERS: &str = "COUNTERS";
/// Array of one `u64`: the number of the last request.
pub const NUMBERS: &str = "NUMBERS";
/// Inode storage of a `u64`, whose presence counts: there is no marker, and the agent is to be asked as if
/// there were one.
///
/// *Recall*: the marker is gone, but that is not durable.
/// The agent sets it before it removes the marker, and deletes it when the removal is durable. It is
/// looked for after the marker was found absent, so that it costs an online file nothing, and before
/// that is cached ([`Cached`]). No valid verdict "online" stands beside it: while the marker was set,
/// none could be; the removal is counted, so that a look from before it caches nothing that is valid;
/// and a look that began after the removal finds this entry, which was there first.
///
/// *Release*: the marker is about to be set, and who comes is to wait for the release's end instead of its lease.
/// The agent sets it, and then deletes the inode's [`Cached`]: a look that found nothing here has either stored its
/// verdict where nobody finds it any more, or has yet to store it there. The count begins anew with the
/// next look; the marker comes later, by the same thread of the agent, and is counted there. The entry stays
/// until the agent is asked, and finds the file online.
///
/// It goes with the inode: the agent keeps the file open meanwhile.
pub const HELD: &str = "HELD";
/// Inode storage of [`Resident`].
pub const RESIDENT: &str = "RESIDENT";
/// Task storage of [`UnderWay`]: a thread's open of a file that is not known to be online.
pub const UNDER_WAY: &str = "UNDER_WAY";
/// Array of one `u64`: how many threads have such an open. See [`UnderWay`].
pub const IN_FLIGHT: &str = "IN_FLIGHT";
/// Array of one `u64`, not zero while `guard_post_open` is attached for sure. See [`UnderWay`].
pub const ARMED: &str = "ARMED";
/// Array of 64 bytes: where the kernel puts a marker that nobody reads.
pub const SCRATCH: &str = "SCRATCH";
/// The read-only global of type [`Settings`].
pub const SETTINGS: &str = "SETTINGS";

/// File systems that can be covered at a time.
pub const MAX_FILESYSTEMS: u32 = 1024;
/// Openers that can wait in a hook at a time. One more is refused with `EAGAIN`.
pub const MAX_WAITS: u32 = 16 * 1024;
/// Bytes of the request ring: a power of two and of pages, room for [`MAX_WAITS`] requests with
/// the 8 bytes that the kernel puts before each.
pub const RING_BYTES: u32 = 1024 * 1024;

const _: () = assert!(RING_BYTES as usize >= MAX_WAITS as usize * (size_of::<Request>() + 8));

/// A file system's UUID as in `super_block.s_uuid` and as `FS_IOC_GETFSUUID` tells it.
///
/// Not the device number: coverage can be installed before the file system is mounted, it outlives
/// an unmount, and a mounted snapshot of a covered file system is covered too.
pub type Uuid = [u8; 16];

/// Classes of UUIDs.
pub const UUID_CLASSES: u32 = 256;

/// The class of a UUID: its first byte, which is random. File systems without a UUID are in class
/// zero. Most opens on a machine are of file systems that nobody covers, and nearly all of these
/// are known by their class alone.
#[inline(always)]
pub const fn class(uuid: &Uuid) -> u32 {
    uuid[0] as u32
}

/// What a covered file system's programs do about a marked file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Coverage {
    /// [`MODE_GUARD`], [`MODE_FILTER`] or [`MODE_MARK`]. Any other value is treated as [`MODE_GUARD`].
    pub mode: u32,
}

/// Refuse what is marked and unwatched; never wait for anybody.
pub const MODE_GUARD: u32 = 1;
/// Ask the server for a watch.
pub const MODE_FILTER: u32 = 2;
/// A group that fails closed watches the content of the whole file system: pass what it is asked about,
/// whether anybody serves or not, and refuse what it is not asked about. Ask the server to have a file
/// recalled where no event would be raised in time: `O_TRUNC`, and opens by other file systems.
pub const MODE_MARK: u32 = 3;

/// What a process is trusted with. It belongs to the process's first thread in the kernel itself,
/// which user space names by a pidfd: it cannot be forged, a child does not inherit it, another
/// process that gets the same number does not have it, and it is gone with the process. No process
/// number is involved, so that it works from inside any PID namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Trust {
    /// [`TRUST_EXEMPT`], [`TRUST_SERVER`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
    /// With [`TRUST_SERVER`]: as which [`Server`].
    pub serial: u64,
}

/// Opens marked files as it likes, changes hsm's attributes, and is never asked about.
pub const TRUST_EXEMPT: u32 = 1;
/// Serves requests: when it ends, the entry with its serial number is cleared.
pub const TRUST_SERVER: u32 = 2;

/// Who serves requests.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Server {
    /// Random and not zero, another one for each registration. Zero: nobody serves.
    pub serial: u64,
    /// Process number as its registrar knew it, for people.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

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
/// the program goes by is [`ARMED`].
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

/// An inode's cached verdict (inode storage).
///
/// The programs behind `inode_post_setxattr` and `inode_post_removexattr` add 1 to `seq` whenever
/// the marker or the record changed. An opener makes sure that the storage exists, reads `seq`,
/// *then* reads the marker, and stores what it saw together with that `seq`. Whoever finds a word
/// of another `seq` looks at the marker again. So a word "online" that is valid after a marker was
/// set and counted cannot exist: its opener has read `seq` after the count, hence the marker after
/// it was set. While the marker is set and not yet counted, an old word still passes openers; they
/// have raised the inode's open count before, and the second lease of a release, which is asked for
/// after `setxattr` has returned (and so counted), finds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Cached {
    /// Changes of marker and record so far. Wraps after 2^62.
    pub seq: u64,
    /// `seq` as the opener saw it, shifted left by [`VERDICT_BITS`], and [`VERDICT_ONLINE`] or
    /// [`VERDICT_MARKED`]. Zero: nothing known.
    pub word: u64,
}

/// Low bits of [`Cached::word`] that hold the verdict.
pub const VERDICT_BITS: u32 = 2;
/// The marker was absent.
pub const VERDICT_ONLINE: u64 = 1;
/// The marker was there.
pub const VERDICT_MARKED: u64 = 2;

impl Cached {
    /// The word for a verdict that was seen after `seq` had been read.
    #[inline(always)]
    pub const fn word(seq: u64, verdict: u64) -> u64 {
        (seq << VERDICT_BITS) | verdict
    }

    /// Whether this says, validly, `verdict`.
    #[inline(always)]
    pub const fn says(&self, verdict: u64) -> bool {
        self.word == Self::word(self.seq, verdict)
    }
}

/// An open that has passed `guard_open` although the file was not known to be online (marked and watched, or asked
/// about), and has not come to `guard_post_open` (task storage).
///
/// # When the second program is needed
///
/// `guard_post_open`, the second net, costs every open on the machine a trampoline. It is attached only while
/// somebody can be between the two programs whom it would refuse, and those are two kinds:
///
/// - *Who passed a file that is not known to be online.* If the agent dies while fanotify asks it, the kernel lets him
///   pass. So `guard_open` counts him in [`IN_FLIGHT`], takes a full barrier, and looks at [`ARMED`]. He passes only if
///   that is set; if not, he has the agent arm, and still counts while he waits. `guard_post_open` counts him off.
///   The agent disarms in the opposite order: it clears [`ARMED`], takes a full barrier, and looks at
///   [`IN_FLIGHT`]. If anybody is counted it sets [`ARMED`] again (the program is still attached), and
///   otherwise detaches. Of two who write one word each and then read the other's, one at least sees the other: either
///   the agent sees the opener counted, or the opener sees that it is not armed.
/// - *Who passed as online, before a marker was set.* Only a release sets a marker on a file that has none. The agent
///   arms before the first lease of a release. An opener raised the inode's open count before either program ran.
///   Was he past the place of the second program when it was attached, then the count was raised before
///   the first lease was asked for, which fails. Else the second program looks at the file, at a time when the open
///   counts: it finds the marker, or a marker set later is found out by the second lease ([`Cached`]). If the
///   agent dies in between, the second net stays attached. The next agent does not disarm before it has recovered, and
///   never while a release is left open that could not be: its marker may stand over a file that an opener from
///   before the marker still counts for. Recovery finishes a release only under a lease, which proves that there is none.
///
/// *The count errs on one side only.* An open that fails on the way (denied by fanotify, killed, an error of the file system) never
/// comes to the second program. So the count belongs to the thread: a thread is counted once, however many
/// such opens it begins, and is counted off at its next one that succeeds, or when it ends. Until then the second
/// program stays attached, which costs time and nothing else. An open inside of another one (overlayfs) does not
/// disturb: those wait in the first program until the file is online, and are not counted.
///
/// *Who cannot disarm.* Attached means pinned: it outlives the agent, and a dead one disarms nobody. If it dies while it is
/// disarmed, an opener finds that nobody serves and is refused. Programs that replace others of the same layout
/// share count and word with them, and are armed before the others are removed. Of another layout nothing is
/// known: whoever may be under way there is counted for ever, and the programs stay armed until the machine is started again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UnderWay {
    /// Address of the `struct file`; zero: the thread is not counted.
    pub file: u64,
    /// Guard mode: serial number of the [`Server`] when the open passed.
    pub serial: u64,
}

/// Longest attribute name of [`Settings`], with its terminating NUL.
pub const NAME_LEN: usize = 64;

/// A NUL-terminated attribute name, filled up with NULs.
pub type Name = [u8; NAME_LEN];

/// `name` as the programs want it; `None` when it is empty, too long, or contains a NUL.
pub const fn name(name: &str) -> Option<Name> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= NAME_LEN {
        return None;
    }
    let mut padded = [0; NAME_LEN];
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == 0 {
            return None;
        }
        padded[at] = bytes[at];
        at += 1;
    }
    Some(padded)
}

/// What the programs are told when they are loaded (read-only data: constants to the verifier).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// Name of the marker attribute.
    pub marker: Name,
    /// Name of the record attribute.
    pub record: Name,
    /// Name of the residency map attribute.
    pub map: Name,
    /// Longest wait of an open without progress, in nanoseconds.
    pub open_limit: u64,
    /// Longest wait for a [`KIND_RECALL`] without progress, in nanoseconds.
    pub recall_limit: u64,
    /// Longest wait of a kernel thread, which cannot yield its CPU, in nanoseconds.
    pub spin_limit: u64,
    /// Where the running kernel keeps what the programs look at.
    pub offsets: Offsets,
    /// Zero: what an odd number of offsets leaves.
    pub reserved: [u32; Offsets::MEMBERS.len() % 2],
    /// Numbers of the system calls that read a range of a file and are over then; [`ABSENT`] where there
    /// are fewer.
    pub reads: [u32; READS],
}

/// Room in [`Settings::reads`].
pub const READS: usize = 10;

/// A structure member that the running kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $field:ident = $path:literal $need:ident,)*) => {
        /// Byte offsets of structure members in the running kernel, from its type information
        /// (Rust programs have no relocations for them).
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
        pub struct Offsets {
            $($(#[$doc])* pub $field: u32,)*
        }

        impl Offsets {
            /// Where each field comes from: `structure.member`, and whether the programs can do
            /// without it ([`ABSENT`]). In the order of the fields.
            pub const MEMBERS: &[Member] = &[
                $(Member { path: $path, needed: need!($need) },)*
            ];
        }
    };
}

macro_rules! need {
    (needed) => {
        true
    };
    (optional) => {
        false
    };
}

/// One entry of [`Offsets::MEMBERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Type and member, as in `inode.i_mode`.
    pub path: &'static str,
    /// Whether the programs cannot do without.
    pub needed: bool,
}

offsets! {
    /// The inode that was opened.
    file_inode = "file.f_inode" needed,
    /// Open mode.
    file_mode = "file.f_mode" needed,
    /// Flags of the open.
    file_flags = "file.f_flags" needed,
    /// Mount and directory entry of the opened file.
    file_path = "file.f_path" needed,
    /// Inode number.
    inode_ino = "inode.i_ino" needed,
    /// Type and permissions.
    inode_mode = "inode.i_mode" needed,
    /// Superblock.
    inode_sb = "inode.i_sb" needed,
    /// Generation.
    inode_generation = "inode.i_generation" needed,
    /// Size in bytes.
    inode_size = "inode.i_size" needed,
    /// Events that somebody watches this inode for.
    inode_mask = "inode.i_fsnotify_mask" needed,
    /// Device number.
    sb_device = "super_block.s_dev" needed,
    /// UUID.
    sb_uuid = "super_block.s_uuid" needed,
    /// Type of the file system.
    sb_magic = "super_block.s_magic" needed,
    /// Events that somebody watches the file system for.
    sb_mask = "super_block.s_fsnotify_mask" needed,
    /// Inode of a directory entry.
    dentry_inode = "dentry.d_inode" needed,
    /// Directory entry of a path.
    path_dentry = "path.dentry" needed,
    /// Mount of a path.
    path_mount = "path.mnt" needed,
    /// What of a mount its paths point to.
    mount_inside = "mount.mnt" needed,
    /// Namespace that a mount belongs to.
    mount_namespace = "mount.mnt_ns" needed,
    /// What an attribute change changes.
    iattr_valid = "iattr.ia_valid" needed,
    /// The new size.
    iattr_size = "iattr.ia_size" needed,
    /// First thread of the process.
    task_leader = "task_struct.group_leader" needed,
    /// Address space; null for a kernel thread.
    task_mm = "task_struct.mm" needed,
    /// Signals that wait for the thread.
    task_pending = "task_struct.pending" needed,
    /// Signals that the thread does not take now.
    task_blocked = "task_struct.blocked" needed,
    /// What the threads of the process share.
    task_signal = "task_struct.signal" needed,
    /// Signals that wait for the process.
    signal_pending = "signal_struct.shared_pending" needed,
    /// The set among pending signals.
    pending_set = "sigpending.signal" needed,
    /// The path that the thread is following; null when it follows none.
    task_walk = "task_struct.nameidata" needed,
    /// How far it has come: at last, what it opens.
    walk_path = "nameidata.path" needed,
    /// First byte of the process's arguments: an address that is mapped.
    mm_arg_start = "mm_struct.arg_start" needed,
    /// Number of the system call, on x86.
    regs_orig_ax = "pt_regs.orig_ax" optional,
    /// Number of the system call, on arm64.
    regs_syscallno = "pt_regs.syscallno" optional,
    /// The generic inode inside btrfs' own.
    btrfs_vfs_inode = "btrfs_inode.vfs_inode" optional,
    /// Subvolume of an inode.
    btrfs_inode_root = "btrfs_inode.root" optional,
    /// Key of a subvolume's root.
    btrfs_root_key = "btrfs_root.root_key" optional,
    /// Object id in a key.
    btrfs_key_objectid = "btrfs_key.objectid" optional,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What the programs count, each in one `u64` per CPU.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Counter] = &[$(Counter::$variant,)*];

            /// Name in reports and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)*
                }
            }

            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;
        }
    };
}

counters! {
    /// Opens that a cached verdict let pass.
    PassedCached = "open_passed_cached",
    /// Opens that passed because the marker attribute was absent.
    PassedAbsent = "open_passed_absent",
    /// Opens by an exempt process.
    PassedExempt = "open_passed_exempt",
    /// Opens of marked files that passed on to fanotify, which asks the agent.
    PassedWatched = "open_passed_watched",
    /// Opens that passed because the agent said that the file is online.
    PassedAnswered = "open_passed_answered",
    /// Opens whose marker could not be read.
    Unreadable = "open_unreadable",
    /// Requests that were submitted.
    Requested = "requests",
    /// Turns of all waits: how often a waiting caller looked and yielded.
    WaitTurns = "wait_turns",
    /// Opens refused in guard mode: marked and nobody watches.
    DeniedUnwatched = "open_denied_unwatched",
    /// Accesses refused because nobody serves requests.
    DeniedNoServer = "denied_no_server",
    /// Accesses refused because the request could not be submitted.
    DeniedFull = "denied_full",
    /// Accesses refused because the agent made no progress.
    DeniedTimeout = "denied_timeout",
    /// Accesses refused by the agent's own answer.
    DeniedAnswer = "denied_answer",
    /// Opens refused because fanotify would not have asked about them (event descriptors of
    /// somebody else's listener).
    DeniedSilent = "open_denied_silent",
    /// Opens refused by the second check, after the lease break.
    DeniedPostOpen = "open_denied_post_open",
    /// Waits that a signal ended; the system call restarts or fails with `EINTR`.
    Interrupted = "wait_interrupted",
    /// Truncations by path that were asked about.
    TruncateAsked = "truncate_asked",
    /// Truncations that were refused.
    TruncateDenied = "truncate_denied",
    /// Recalls that were asked for on behalf of somebody who was refused meanwhile.
    RecallWanted = "recall_wanted",
    /// Changes of marker, record or map by others that were refused.
    XattrDenied = "xattr_denied",
    /// `ioctl` calls that were refused.
    IoctlDenied = "ioctl_denied",
    /// Cached verdicts that a change of an attribute made invalid.
    Invalidated = "verdict_invalidated",
    /// Servers that ended.
    ServerGone = "server_gone",
    /// Accesses to resident ranges of partial files that the filter let pass.
    PassedResident = "access_passed_resident",
    /// Opens and accesses that the filter gave to fanotify.
    Notified = "filter_notified",
    /// Of those: marker gone, and that not durable yet.
    Held = "filter_held",
}

const _: () = {
    assert!(size_of::<Coverage>() == 4);

    assert!(size_of::<Trust>() == 16);
    assert!(offset_of!(Trust, flags) == 0);
    assert!(offset_of!(Trust, serial) == 8);

    assert!(size_of::<Server>() == 16);
    assert!(offset_of!(Server, serial) == 0);
    assert!(offset_of!(Server, pid) == 8);

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

    assert!(size_of::<Cached>() == 16);
    assert!(offset_of!(Cached, seq) == 0);
    assert!(offset_of!(Cached, word) == 8);

    assert!(size_of::<UnderWay>() == 16);
    assert!(offset_of!(UnderWay, file) == 0);
    assert!(offset_of!(UnderWay, serial) == 8);

    assert!(size_of::<Offsets>() == 4 * Offsets::MEMBERS.len());
    assert!(offset_of!(Settings, open_limit) == 3 * NAME_LEN);
    assert!(offset_of!(Settings, offsets) == 3 * NAME_LEN + 24);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_valid_for_its_own_seq_only() {
        let cached = Cached { seq: 5, word: Cached::word(5, VERDICT_ONLINE) };
        assert!(cached.says(VERDICT_ONLINE));
        assert!(!cached.says(VERDICT_MARKED));
        assert!(!Cached { seq: 6, ..cached }.says(VERDICT_ONLINE));
        assert!(!Cached::default().says(VERDICT_ONLINE), "nothing is known at first");
        assert!(!Cached::default().says(VERDICT_MARKED));
    }

    #[test]
    fn names_end_with_a_nul() {
        let padded = name("trusted.hsm").expect("valid");
        assert_eq!(&padded[..12], b"trusted.hsm\0");
        assert!(padded[12..].iter().all(|&byte| byte == 0));
        const LONG: &str = "x23456789012345678901234567890123456789012345678901234567890123x";
        assert_eq!(LONG.len(), NAME_LEN);
        assert!(name(&LONG[1..]).is_some());
        assert_eq!(name(LONG), None);
        assert_eq!(name(""), None);
        assert_eq!(name("a\0b"), None);
    }

    #[test]
    fn counters_are_numbered_in_order_and_named_apart() {
        for (at, &counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(counter as usize, at);
            assert!(Counter::ALL[at + 1..].iter().all(|other| other.name() != counter.name()));
        }
    }

    #[test]
    fn members_are_named_as_structure_and_member() {
        for member in Offsets::MEMBERS {
            assert_eq!(member.path.split('.').count(), 2, "{}", member.path);
        }
    }
}
