//! The residency map of a partial file: one bit per chunk, set once the chunk's bytes are durable.
//!
//! The map binds itself to one release by epoch, size and chunk shift, all checked against the
//! marker: a map that was left over from an earlier release, or copied from another file, is
//! refused, and without a valid map nothing counts as resident.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use bytemuck::{Pod, Zeroable, pod_read_unaligned};
use hsm_common::chunk::{MAX_CHUNKS, chunk_count};

use crate::marker::Marker;
use crate::marker::wire::crc_around;

const MAGIC: [u8; 4] = *b"HSMP";
const VERSION: u8 = 1;

/// Start of the stored map; the bitmap follows, chunk 0 in the lowest bit of the first byte.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MapHeader {
    magic: [u8; 4],
    version: u8,
    chunk_shift: u8,
    reserved: [u8; 2],
    epoch: [u8; 8],
    size: [u8; 8],
    chunks: [u8; 4],
    crc32c: [u8; 4],
}

const HEADER_LEN: usize = size_of::<MapHeader>();
const CRC_OFFSET: usize = offset_of!(MapHeader, crc32c);

/// Most bytes that an encoded map takes.
pub const MAX_MAP_LEN: usize = HEADER_LEN + MAX_CHUNKS as usize / 8;

const _: () = {
    assert!(HEADER_LEN == 32);
    assert!(offset_of!(MapHeader, chunk_shift) == 5);
    assert!(offset_of!(MapHeader, epoch) == 8);
    assert!(offset_of!(MapHeader, size) == 16);
    assert!(offset_of!(MapHeader, chunks) == 24);
    assert!(CRC_OFFSET == 28);
    assert!(MAX_MAP_LEN == 2080);
};

/// Which chunks of a file are local.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidencyMap {
    epoch: u64,
    size: u64,
    chunk_shift: u8,
    chunks: u32,
    bits: Box<[u8]>,
}

/// Why bytes are not the map of a file. Nothing of the file may count as resident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Not the size of a map of that many chunks.
    #[error("residency map is {0} bytes long, which fits no map of this file")]
    Length(usize),
    /// Written by something else.
    #[error("residency map does not begin with HSMP")]
    Magic,
    /// Written by another version of hsm.
    #[error("residency map has version {0}, this hsm knows version {VERSION}")]
    Version(u8),
    /// Damaged.
    #[error("residency map checksum is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// The stored sum.
        found: u32,
        /// The sum of the bytes.
        computed: u32,
    },
    /// Of another release of this file, or of another file.
    #[error("residency map is of release {found:016x}, the marker of {expected:016x}")]
    Epoch {
        /// Epoch of the map.
        found: u64,
        /// Epoch of the marker.
        expected: u64,
    },
    /// Cut differently from what the marker says.
    #[error("residency map is for {size} bytes with chunk shift {chunk_shift}, the marker is not")]
    Geometry {
        /// File size according to the map.
        size: u64,
        /// Chunk shift according to the map.
        chunk_shift: u8,
    },
    /// Bits behind the last chunk, or reserved bytes, are set.
    #[error("residency map has bits that no chunk owns")]
    StrayBits,
    /// File size and chunk shift that no map can describe.
    #[error("{size} bytes with chunk shift {chunk_shift} do not fit a residency map")]
    TooLarge {
        /// File size in bytes.
        size: u64,
        /// Chunk size as a power of two.
        chunk_shift: u8,
    },
}

impl ResidencyMap {
    /// The map of a file that was just released: nothing is local.
    pub fn empty(epoch: u64, size: u64, chunk_shift: u8) -> Result<Self, MapError> {
        let chunks =
            chunk_count(size, chunk_shift).ok_or(MapError::TooLarge { size, chunk_shift })?;
        let bits = vec![0; bitmap_len(chunks)].into();
        Ok(Self { epoch, size, chunk_shift, chunks, bits })
    }

    /// Size of the file in bytes, when it was released.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Chunk size as a power of two.
    pub fn chunk_shift(&self) -> u8 {
        self.chunk_shift
    }

    /// Number of chunks of the file.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Marks a chunk as local. The chunk's bytes must be durable before the map is stored.
    /// A chunk behind the end of the file is not there to be marked: nothing happens.
    pub fn set(&mut self, chunk: u32) {
        if chunk < self.chunks {
            self.bits[chunk as usize / 8] |= 1 << (chunk % 8);
        }
    }

    /// [`ResidencyMap::set`] for each chunk of a range of chunk indices.
    pub fn set_range(&mut self, chunks: Range<u32>) {
        (chunks.start..chunks.end.min(self.chunks)).for_each(|chunk| self.set(chunk));
    }

    /// Whether a chunk is local.
    pub fn contains(&self, chunk: u32) -> bool {
        chunk < self.chunks && self.bits[chunk as usize / 8] >> (chunk % 8) & 1 == 1
    }

    /// Whether every byte of a byte range is local. Bytes behind the end of the file need nothing.
    /// An empty range says nothing about what will be read and counts as the whole file.
    pub fn is_resident(&self, bytes: Range<u64>) -> bool {
        self.missing_chunks(bytes).next().is_none()
    }

    /// The chunks that a byte range needs and that are not local, ascending; ranges as in
    /// [`ResidencyMap::is_resident`].
    pub fn missing_chunks(&self, bytes: Range<u64>) -> impl Iterator<Item = u32> + '_ {
        self.chunks_of(bytes).filter(|chunk| !self.contains(*chunk))
    }

    /// Whether the whole file is local.
    pub fn is_complete(&self) -> bool {
        self.is_resident(0..self.size)
    }

    /// The chunk indices that a byte range touches.
    fn chunks_of(&self, bytes: Range<u64>) -> Range<u32> {
        if bytes.is_empty() {
            return 0..self.chunks;
        }
        let chunk = |offset: u64| (offset.min(self.size) >> self.chunk_shift) as u32;
        let end = bytes.end.min(self.size).div_ceil(1 << self.chunk_shift) as u32;
        if bytes.start >= self.size { end..end } else { chunk(bytes.start)..end }
    }

    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        let header = MapHeader {
            magic: MAGIC,
            version: VERSION,
            chunk_shift: self.chunk_shift,
            reserved: [0; 2],
            epoch: self.epoch.to_le_bytes(),
            size: self.size.to_le_bytes(),
            chunks: self.chunks.to_le_bytes(),
            crc32c: [0; 4],
        };
        let mut bytes = [bytemuck::bytes_of(&header), &self.bits].concat();
        let crc = crc_around(&bytes, CRC_OFFSET).to_le_bytes();
        bytes[CRC_OFFSET..HEADER_LEN].copy_from_slice(&crc);
        bytes
    }

    /// Reads the map of the file that carries `marker`, or says which rule the bytes break.
    pub fn decode(bytes: &[u8], marker: &Marker) -> Result<Self, MapError> {
        let (header, bits) = checked(bytes)?;
        let (found, expected) = (u64::from_le_bytes(header.epoch), marker.epoch);
        if found != expected {
            return Err(MapError::Epoch { found, expected });
        }
        let (size, chunk_shift) = (u64::from_le_bytes(header.size), header.chunk_shift);
        let mut map = Self::empty(marker.epoch, marker.size, marker.chunk_shift)?;
        let same = (size, chunk_shift) == (marker.size, marker.chunk_shift);
        if !same || u32::from_le_bytes(header.chunks) != map.chunks {
            return Err(MapError::Geometry { size, chunk_shift });
        }
        if bits.len() != map.bits.len() {
            return Err(MapError::Length(bytes.len()));
        }
        if header.reserved != [0; 2] || has_stray_bits(bits, map.chunks) {
            return Err(MapError::StrayBits);
        }
        map.bits = bits.into();
        Ok(map)
    }
}

/// Header and bitmap once length, magic, version and checksum hold.
fn checked(bytes: &[u8]) -> Result<(MapHeader, &[u8]), MapError> {
    let Some((head, bits)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(MapError::Length(bytes.len()));
    };
    let header: MapHeader = pod_read_unaligned(head);
    if header.magic != MAGIC {
        return Err(MapError::Magic);
    }
    if header.version != VERSION {
        return Err(MapError::Version(header.version));
    }
    let (found, computed) = (u32::from_le_bytes(header.crc32c), crc_around(bytes, CRC_OFFSET));
    if found != computed {
        return Err(MapError::Checksum { found, computed });
    }
    Ok((header, bits))
}

fn bitmap_len(chunks: u32) -> usize {
    chunks.div_ceil(8) as usize
}

/// Whether the last byte has bits behind the last chunk.
fn has_stray_bits(bits: &[u8], chunks: u32) -> bool {
    let used = chunks % 8;
    used != 0 && bits.last().is_some_and(|last| last >> used != 0)
}

#[cfg(test)]
#[path = "map_tests.rs"]
mod tests;
