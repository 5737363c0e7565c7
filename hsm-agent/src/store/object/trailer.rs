//! The last 80 bytes of an object.

use std::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use super::manifest::MAX_MANIFEST_LEN;
use super::{FormatError, ensure};
use crate::core::ObjectId;

/// First bytes of a trailer. The control character makes text tools keep their hands off.
const MAGIC: [u8; 8] = *b"HSMOBJ\x1a\n";
/// The version that this code writes, and the only one that it reads.
pub const FORMAT_VERSION: u16 = 1;
/// Length of a trailer in bytes.
pub const TRAILER_LEN: usize = size_of::<RawTrailer>();

/// The bytes as stored; all numbers little-endian.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct RawTrailer {
    magic: [u8; 8],
    version: [u8; 2],
    /// Zero. A reader that finds anything else does not know this format.
    reserved: [u8; 2],
    manifest_len: [u8; 4],
    object_len: [u8; 8],
    object_id: [u8; 16],
    manifest_hash: [u8; 32],
    /// Zero.
    reserved2: [u8; 4],
    /// CRC-32C of all bytes before it.
    crc: [u8; 4],
}

const _: () = {
    assert!(size_of::<RawTrailer>() == 80);
    assert!(align_of::<RawTrailer>() == 1);
    assert!(offset_of!(RawTrailer, version) == 8);
    assert!(offset_of!(RawTrailer, reserved) == 10);
    assert!(offset_of!(RawTrailer, manifest_len) == 12);
    assert!(offset_of!(RawTrailer, object_len) == 16);
    assert!(offset_of!(RawTrailer, object_id) == 24);
    assert!(offset_of!(RawTrailer, manifest_hash) == 40);
    assert!(offset_of!(RawTrailer, reserved2) == 72);
    assert!(offset_of!(RawTrailer, crc) == 76);
};

/// What the trailer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Identity of the object that the trailer belongs to.
    pub object_id: ObjectId,
    /// Length of the whole object, trailer included.
    pub object_len: u64,
    /// Length of the manifest, which ends where the trailer begins.
    pub manifest_len: u32,
    /// BLAKE3 of the manifest's bytes.
    pub manifest_hash: [u8; 32],
}

impl Trailer {
    /// The stored form.
    pub fn encode(&self) -> [u8; TRAILER_LEN] {
        let mut raw = RawTrailer {
            magic: MAGIC,
            version: FORMAT_VERSION.to_le_bytes(),
            reserved: [0; 2],
            manifest_len: self.manifest_len.to_le_bytes(),
            object_len: self.object_len.to_le_bytes(),
            object_id: self.object_id.0,
            manifest_hash: self.manifest_hash,
            reserved2: [0; 4],
            crc: [0; 4],
        };
        raw.crc = checksum(&raw).to_le_bytes();
        bytemuck::cast(raw)
    }

    /// Length of the frames: everything before the manifest.
    pub fn data_len(&self) -> u64 {
        self.object_len - u64::from(self.manifest_len) - TRAILER_LEN as u64
    }
}

fn checksum(raw: &RawTrailer) -> u32 {
    crc32c::crc32c(&bytemuck::bytes_of(raw)[..offset_of!(RawTrailer, crc)])
}

/// Reads the trailer that ends `tail`. `Ok` means: intact, of a known version, and its lengths
/// fit each other. Whether it is the trailer of the object that was asked for, and of an object of
/// this length, is for the caller to compare.
pub fn parse_trailer(tail: &[u8]) -> Result<Trailer, FormatError> {
    let start = tail.len().checked_sub(TRAILER_LEN);
    let bytes = start.map(|start| &tail[start..]);
    let bytes = bytes.ok_or_else(|| FormatError("too short for an object".into()))?;
    let raw: RawTrailer = bytemuck::pod_read_unaligned(bytes);
    ensure!(raw.magic == MAGIC, "not an object: it does not end in a trailer");
    ensure!(checksum(&raw) == u32::from_le_bytes(raw.crc), "bad checksum of the trailer");
    let version = u16::from_le_bytes(raw.version);
    ensure!(version == FORMAT_VERSION, "object format {version} is not known to this version");
    let zero = raw.reserved == [0; 2] && raw.reserved2 == [0; 4];
    ensure!(zero, "reserved bytes of the trailer are in use");
    let trailer = Trailer {
        object_id: ObjectId(raw.object_id),
        object_len: u64::from_le_bytes(raw.object_len),
        manifest_len: u32::from_le_bytes(raw.manifest_len),
        manifest_hash: raw.manifest_hash,
    };
    let manifest_len = trailer.manifest_len;
    ensure!(manifest_len <= MAX_MANIFEST_LEN, "a manifest of {manifest_len} bytes is too long");
    let least = u64::from(manifest_len) + TRAILER_LEN as u64;
    ensure!(trailer.object_len >= least, "the manifest is longer than the object");
    Ok(trailer)
}
