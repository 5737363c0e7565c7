//! What the kernel programs and the agent tell each other: the layout of every shared map.
//!
//! An open of a marked file asks for a watch in three steps. The program inserts an entry under
//! a new request number into [`WAITS`], submits a [`Request`] with that number through the ring
//! buffer [`REQUESTS`], and looks at both the inode's fsnotify mask and for a [`Reply`] in [`ANSWERS`] until one
//! of them answers. A reply is inserted and never changed: the kernel puts another element into the place of one that
//! is changed in a hash map, and uses that again for whatever is changed next, while somebody may still read it.
//!
//! The integers are of the machine's own byte order: nothing here leaves the machine.

use core::mem::size_of;

use crate::resident::Resident;

mod counter;
mod coverage;
mod maps;
mod request;
mod settings;
mod trust;
mod under_way;
mod verdict;

pub use counter::*;
pub use coverage::*;
pub use maps::*;
pub use request::*;
pub use settings::*;
pub use trust::*;
pub use under_way::*;
pub use verdict::*;

/// Version of everything in this module. It is part of the pin directory's name: programs and an
/// agent of different versions never share a map.
pub const ABI_VERSION: u32 = 6;

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
        size_of::<Reply>(),
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
