//! Who the agent is.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

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

const _: () = {
    assert!(size_of::<Trust>() == 16);
    assert!(offset_of!(Trust, flags) == 0);
    assert!(offset_of!(Trust, serial) == 8);
    assert!(size_of::<Server>() == 16);
    assert!(offset_of!(Server, serial) == 0);
    assert!(offset_of!(Server, pid) == 8);
};
