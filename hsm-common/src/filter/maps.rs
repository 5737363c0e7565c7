//! The maps that programs and agent share: their names, what each holds, their sizes.

use core::mem::size_of;

use super::Request;

/// Map of [`Coverage`](super::Coverage) by file system UUID, with a value for each processor, all the same: the
/// values of such a map are changed in their place. In another one the kernel puts a new element into the
/// place of one that is changed, and uses that again at once. A program in the middle of its look could find
/// another file system's coverage, or none.
pub const FILESYSTEMS: &str = "FILESYSTEMS";
/// Array of one `u64` for each [`class`](super::class) of UUIDs: zero where no file system of that class was ever
/// covered. Written before the entry in [`FILESYSTEMS`], and never taken back.
pub const CLASSES: &str = "CLASSES";
/// Task storage of [`Trust`](super::Trust): what a process may do that others may not.
pub const TRUSTED: &str = "TRUSTED";
/// Array of one [`Server`](super::Server): who serves the requests. All zero: nobody.
pub const SERVER: &str = "SERVER";
/// Ring buffer of [`Request`]s.
pub const REQUESTS: &str = "REQUESTS";
/// Map of those who wait: by request number a `u64`, the *beat*. Any change of it says that there is progress and
/// renews the opener's patience. The agent changes it while the opener is there (`BPF_EXIST`). The kernel puts
/// another element into the place of the one that is changed, and uses that again at once, so an opener may see
/// another's beat, or none: of one who does not see his own, nothing is to be concluded.
pub const WAITS: &str = "WAITS";
/// Map of [`Reply`](super::Reply)s by request number. The agent inserts one for who is in [`WAITS`], and never changes
/// it; the opener takes it away, after his entry there. What the agent has inserted for one who is
/// not there any more by then, it takes away itself. So who finds a reply finds his own.
pub const ANSWERS: &str = "ANSWERS";
/// Inode storage of [`Cached`](super::Cached) verdicts.
pub const VERDICTS: &str = "VERDICTS";
/// Per-CPU array with one `u64` for each [`Counter`](super::Counter).
pub const COUNTERS: &str = "COUNTERS";
/// Array of one `u64`: the number of the last request.
pub const NUMBERS: &str = "NUMBERS";
/// Inode storage of a `u64`, whose presence counts: there is no marker, and the agent is to be asked as if
/// there were one.
///
/// *Recall*: the marker is gone, but that is not durable.
/// The agent sets it before it removes the marker, and deletes it when the removal is durable. It is
/// looked for after the marker was found absent, so that it costs an online file nothing, and before
/// that is cached ([`Cached`](super::Cached)). No valid verdict "online" stands beside it: while the marker was set,
/// none could be; the removal is counted, so that a look from before it caches nothing that is valid;
/// and a look that began after the removal finds this entry, which was there first.
///
/// *Release*: the marker is about to be set, and who comes is to wait for the release's end instead of its lease.
/// The agent sets it, and then deletes the inode's [`Cached`](super::Cached): a look that found nothing here has
/// either stored its verdict where nobody finds it any more, or has yet to store it there. The count begins anew with the
/// next look; the marker comes later, by the same thread of the agent, and is counted there. The entry stays
/// until the agent is asked, and finds the file online.
///
/// It goes with the inode: the agent keeps the file open meanwhile.
pub const HELD: &str = "HELD";
/// Inode storage of [`Resident`](crate::resident::Resident).
pub const RESIDENT: &str = "RESIDENT";
/// Task storage of [`UnderWay`](super::UnderWay): a thread's open of a file that is not known to be online.
pub const UNDER_WAY: &str = "UNDER_WAY";
/// Array of one `u64`: how many threads have such an open. See [`UnderWay`](super::UnderWay).
pub const IN_FLIGHT: &str = "IN_FLIGHT";
/// Array of one `u64`, not zero while `guard_post_open` is attached for sure. See [`UnderWay`](super::UnderWay).
pub const ARMED: &str = "ARMED";
/// Array of 64 bytes: where the kernel puts a marker that nobody reads.
pub const SCRATCH: &str = "SCRATCH";
/// The read-only global of type [`Settings`](super::Settings).
pub const SETTINGS: &str = "SETTINGS";

/// File systems that can be covered at a time.
pub const MAX_FILESYSTEMS: u32 = 1024;
/// Openers that can wait in a hook at a time. One more is refused with `EAGAIN`.
pub const MAX_WAITS: u32 = 16 * 1024;
/// Room for the replies of all who wait, and of those who are about to take theirs away.
pub const MAX_ANSWERS: u32 = MAX_WAITS + 1024;
/// Bytes of the request ring: a power of two and of pages, room for [`MAX_WAITS`] requests with
/// the 8 bytes that the kernel puts before each.
pub const RING_BYTES: u32 = 1024 * 1024;

const _: () = assert!(RING_BYTES as usize >= MAX_WAITS as usize * (size_of::<Request>() + 8));
