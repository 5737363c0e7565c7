//! The manifest: the file and its frames.
//!
//! Serialised with postcard; field order and types are the format (see `docs/formats/objects.md`),
//! so any change of them needs a new format version.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::chunks::{MAX_CHUNK_SHIFT, MAX_CHUNKS, MIN_CHUNK_SHIFT, chunk_count, chunk_range};
use super::{FormatError, ensure};

/// No manifest is longer. 16,384 chunks need 720 KiB and 64 KiB of xattrs are the kernel's limit;
/// the rest is room for the extents of very fragmented sparse files.
pub const MAX_MANIFEST_LEN: u32 = 16 << 20;

/// Everything that is known about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Size of the file in bytes.
    pub size: u64,
    /// Chunks are `1 << chunk_shift` bytes.
    pub chunk_shift: u8,
    /// What a rebuilt stub gets.
    pub attributes: FileAttributes,
    /// Where the file has data: sorted, not empty, not overlapping. The rest are holes.
    pub extents: Vec<Extent>,
    /// One entry per chunk.
    pub chunks: Vec<ChunkEntry>,
}

/// Metadata of the file at archive time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAttributes {
    /// Where the file was, as bytes, relative to its file system. A hint: files move.
    pub path_hint: Vec<u8>,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Access time, nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Extended attributes, access control lists among them, in the kernel's raw form.
    pub xattrs: Vec<Xattr>,
}

/// One extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Full name, namespace included.
    pub name: Vec<u8>,
    /// Raw value.
    pub value: Vec<u8>,
}

/// A range of the file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Length, not zero.
    pub len: u64,
}

impl Extent {
    /// First byte after it; `None` beyond 64 bits.
    fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
}

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkEntry {
    /// Not at all: no byte of it is data.
    Hole,
    /// As it is.
    Raw(Frame),
    /// As one zstd frame.
    Zstd(Frame),
}

/// Where a chunk's bytes are within the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Offset from the beginning of the object.
    pub offset: u64,
    /// Length in the object.
    pub len: u32,
    /// BLAKE3 of the chunk's plain bytes.
    pub hash: [u8; 32],
}

impl ChunkEntry {
    /// The frame, if there is one.
    pub fn frame(&self) -> Option<&Frame> {
        match self {
            Self::Hole => None,
            Self::Raw(frame) | Self::Zstd(frame) => Some(frame),
        }
    }
}

impl Manifest {
    /// Bytes of the file that chunk `index` covers, or `None` beyond the end.
    pub fn chunk_range(&self, index: u64) -> Option<Range<u64>> {
        chunk_range(self.size, self.chunk_shift, index)
    }

    /// The parts of chunk `index` that have data, as ranges of the file.
    pub fn data_in_chunk(&self, index: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let chunk = self.chunk_range(index).unwrap_or(0..0);
        let first = self.extents.partition_point(|e| e.offset + e.len <= chunk.start);
        let clip = move |e: &Extent| {
            let part = e.offset.max(chunk.start)..(e.offset + e.len).min(chunk.end);
            (!part.is_empty()).then_some(part)
        };
        self.extents[first..].iter().map_while(clip)
    }

    /// The stored form.
    pub(super) fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let bytes = postcard::to_stdvec(self).map_err(|e| FormatError(e.to_string()))?;
        let len = bytes.len();
        ensure!(len <= MAX_MANIFEST_LEN as usize, "a manifest of {len} bytes is too long");
        Ok(bytes)
    }

    /// Do all numbers fit each other, for an object with `data_len` bytes of frames?
    pub(super) fn validate(&self, data_len: u64) -> Result<(), FormatError> {
        let shift = self.chunk_shift;
        let known = (MIN_CHUNK_SHIFT..=MAX_CHUNK_SHIFT).contains(&shift);
        ensure!(known, "chunk size 2^{shift} is out of bounds");
        let count = chunk_count(self.size, shift);
        ensure!(count <= MAX_CHUNKS, "{count} chunks are too many");
        let listed = self.chunks.len();
        ensure!(listed as u64 == count, "{listed} chunks listed where there must be {count}");
        self.validate_extents()?;
        let mut frames = 0u64;
        for (index, entry) in self.chunks.iter().enumerate() {
            frames += self.validate_chunk(index as u64, entry, data_len)?;
        }
        ensure!(frames == data_len, "the frames take {frames} bytes of {data_len}");
        Ok(())
    }

    fn validate_extents(&self) -> Result<(), FormatError> {
        let mut end = 0;
        for extent in &self.extents {
            ensure!(extent.len > 0 && extent.offset >= end, "the extents are not in order");
            let fits = extent.end().filter(|&end| end <= self.size);
            end = fits.ok_or_else(|| FormatError("an extent exceeds the file".into()))?;
        }
        Ok(())
    }

    /// Gives the length of the chunk's frame.
    fn validate_chunk(
        &self,
        index: u64,
        entry: &ChunkEntry,
        data_len: u64,
    ) -> Result<u64, FormatError> {
        let plain = self.chunk_range(index).map_or(0, |r| r.end - r.start);
        let has_data = self.data_in_chunk(index).next().is_some();
        let stored = entry.frame().is_some();
        ensure!(stored == has_data, "chunk {index} and the extents contradict each other");
        let Some(frame) = entry.frame() else { return Ok(0) };
        let len = u64::from(frame.len);
        let fits = match entry {
            ChunkEntry::Zstd(_) => len > 0 && len < plain,
            _ => len == plain,
        };
        ensure!(fits, "the frame of chunk {index} has an impossible length");
        let inside = frame.offset.checked_add(len).is_some_and(|end| end <= data_len);
        ensure!(inside, "the frame of chunk {index} lies outside the object");
        Ok(len)
    }
}

/// Reads a manifest of an object with `data_len` bytes of frames and checks that all its numbers
/// fit each other. Vectors grow with the bytes that are there, not with the lengths they claim.
pub fn parse_manifest(bytes: &[u8], data_len: u64) -> Result<Manifest, FormatError> {
    let parsed = postcard::take_from_bytes::<Manifest>(bytes);
    let (manifest, rest) = parsed.map_err(|e| FormatError(format!("bad manifest: {e}")))?;
    ensure!(rest.is_empty(), "{} bytes after the manifest", rest.len());
    manifest.validate(data_len)?;
    Ok(manifest)
}
