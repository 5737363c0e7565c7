//! The marker: the extended attribute whose presence means that data is missing.
//!
//! Kernel programs test only that the attribute is there; whoever looks inside must find every
//! field valid or deny the access. The agent's codec owns that check, this module the layout.

use core::mem::{align_of, offset_of, size_of};

use bytemuck::{Pod, Zeroable};

/// Default name of the marker attribute. `security.bpf.*` can be written only with
/// `CAP_SYS_ADMIN` and read by BPF programs.
pub const MARKER_XATTR: &str = "security.bpf.hsm";

/// Name of the record: object, data version at archive time, policy flags.
pub const RECORD_XATTR: &str = "trusted.hsm";

/// Name of the residency map of a partial file.
pub const MAP_XATTR: &str = "trusted.hsm.map";

/// First bytes of every marker.
pub const MARKER_MAGIC: [u8; 4] = *b"HSMM";

/// Version of the layout below. Another version means another layout: deny.
pub const MARKER_VERSION: u8 = 1;

/// Nothing of the file is local.
pub const STATE_OFFLINE: u8 = 1;
/// Some chunks are local; the residency map says which.
pub const STATE_PARTIAL: u8 = 2;
/// The store has no usable copy.
pub const STATE_LOST: u8 = 3;

/// The stored marker. Integers are little-endian on disk: convert with `to_le`/`from_le`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct MarkerBytes {
    /// [`MARKER_MAGIC`].
    pub magic: [u8; 4],
    /// [`MARKER_VERSION`].
    pub version: u8,
    /// [`STATE_OFFLINE`], [`STATE_PARTIAL`] or [`STATE_LOST`].
    pub state: u8,
    /// Chunk size as a power of two.
    pub chunk_shift: u8,
    /// Zero.
    pub reserved: u8,
    /// Identity of the store object that holds the data.
    pub object: [u8; 16],
    /// File size in bytes when the data was released.
    pub size: u64,
    /// Random number of this release. The residency map repeats it, so that the map of an earlier
    /// release never speaks for this one.
    pub epoch: u64,
    /// The file that the marker was written for: BLAKE3 of its inode number and generation, both
    /// as little-endian `u64`; of the hash the first 8 bytes, read as a little-endian integer. A
    /// privileged copier of attributes can put a valid marker on another file, whose data must
    /// neither be overwritten by a recall nor taken away.
    pub owner: u64,
    /// No flag is defined in version 1.
    pub flags: u32,
    /// CRC-32C of all bytes before this field.
    pub crc32c: u32,
}

/// Size of the stored marker in bytes.
pub const MARKER_LEN: usize = size_of::<MarkerBytes>();

/// Bytes that [`MarkerBytes::crc32c`] covers.
pub const MARKER_CRC_OFFSET: usize = offset_of!(MarkerBytes, crc32c);

const _: () = {
    assert!(MARKER_LEN == 56 && MARKER_LEN <= 64);
    assert!(align_of::<MarkerBytes>() == 8);
    assert!(offset_of!(MarkerBytes, magic) == 0);
    assert!(offset_of!(MarkerBytes, version) == 4);
    assert!(offset_of!(MarkerBytes, state) == 5);
    assert!(offset_of!(MarkerBytes, chunk_shift) == 6);
    assert!(offset_of!(MarkerBytes, reserved) == 7);
    assert!(offset_of!(MarkerBytes, object) == 8);
    assert!(offset_of!(MarkerBytes, size) == 24);
    assert!(offset_of!(MarkerBytes, epoch) == 32);
    assert!(offset_of!(MarkerBytes, owner) == 40);
    assert!(offset_of!(MarkerBytes, flags) == 48);
    assert!(MARKER_CRC_OFFSET == 52);
};
