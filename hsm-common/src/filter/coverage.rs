//! Which file systems the programs look at, and what they do there.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

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

const _: () = {
    assert!(size_of::<Coverage>() == 4);
};
