//! Who the agent is.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

/// What a process is trusted with. It belongs to the process's first thread in the kernel itself,
/// which user space names by a pidfd: it cannot be forged, a child does not inherit it, another
/// process that gets the same number does not have it, and it is gone with the process. Nobody needs to know the
/// kernel's own number of a process for it, so that it works from inside any PID namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Trust {
    /// [`TRUST_EXEMPT`], [`TRUST_SERVER`].
    pub flags: u32,
    /// The kernel's own number of the process, put down by the program at the end of its threads. Zero: none has
    /// ended since there is an entry.
    pub number: u32,
    /// With [`TRUST_SERVER`]: as which [`Server`].
    pub serial: u64,
    /// And as which before: while it registers anew, the entry there still has this one.
    pub previous: u64,
}

impl Trust {
    /// Whether the process is the server with this serial number.
    pub fn is_server(&self, serial: u64) -> bool {
        self.flags & TRUST_SERVER != 0 && (self.serial == serial || self.previous == serial)
    }
}

/// Opens marked files as it likes, changes hsm's attributes, and is never asked about.
pub const TRUST_EXEMPT: u32 = 1;
/// Serves requests.
pub const TRUST_SERVER: u32 = 2;

/// Who serves requests, as long as that process lives.
///
/// A program at its end clears the entry. It can be left out, since the kernel runs none that interrupts itself on
/// the same processor, as at the end of another thread; so the programs look at the process itself: it has the
/// number, is [trusted](Trust) with the serial number, and has not begun to end. The kernel says the latter before
/// it closes any of its files, and so before fanotify forgets whom it asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Server {
    /// Random and not zero, another one for each registration. Zero: nobody serves.
    pub serial: u64,
    /// Process number as its registrar knew it.
    pub pid: u32,
    /// The kernel's own number of the process.
    pub number: u32,
    /// Which PID namespace its registrar belonged to: the inode number of its `/proc/self/ns/pid`.
    pub namespace: u64,
}

const _: () = {
    assert!(size_of::<Trust>() == 24);
    assert!(offset_of!(Trust, flags) == 0);
    assert!(offset_of!(Trust, number) == 4);
    assert!(offset_of!(Trust, serial) == 8);
    assert!(size_of::<Server>() == 24);
    assert!(offset_of!(Server, serial) == 0);
    assert!(offset_of!(Server, pid) == 8);
    assert!(offset_of!(Server, number) == 12);
};
