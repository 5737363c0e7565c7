//! Who has passed the first program and not yet the second.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

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
/// such opens it begins, and is counted off at its next one that succeeds, or when it ends (which the kernel may leave
/// out). Until then the second program stays attached, which costs time and nothing else. An open inside of another one (overlayfs) does not
/// disturb: those wait in the first program until the file is online, and are not counted.
///
/// *Who cannot disarm.* Attached means pinned: it outlives the agent, and a dead one disarms nobody. If it dies while it is
/// disarmed, an opener finds that nobody serves and is refused. Programs that replace others of the same layout
/// share count and word with them, and are armed before the others are removed. Of another layout nothing is
/// known: whoever may be under way there is counted for ever, and the programs stay armed until the machine is started again.
///
/// [`ARMED`]: super::ARMED
/// [`IN_FLIGHT`]: super::IN_FLIGHT
/// [`Cached`]: super::Cached
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UnderWay {
    /// Address of the `struct file`; zero: the thread is not counted.
    pub file: u64,
    /// Guard mode: serial number of the [`Server`](super::Server) when the open passed.
    pub serial: u64,
}

const _: () = {
    assert!(size_of::<UnderWay>() == 16);
    assert!(offset_of!(UnderWay, file) == 0);
    assert!(offset_of!(UnderWay, serial) == 8);
};
