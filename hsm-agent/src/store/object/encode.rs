//! From a file's bytes to an object, as a stream or in one buffer. No IO.

use bytes::Bytes;

use super::chunks::{chunk_count, chunk_range};
use super::manifest::{ChunkEntry, Extent, FileAttributes, Frame, Manifest};
use super::trailer::{TRAILER_LEN, Trailer};
use super::{FormatError, MAX_CHUNK_SHIFT, MAX_CHUNKS, MIN_CHUNK_SHIFT, chunk_shift_for};
use crate::core::ObjectId;

/// Whether chunks are compressed where that makes them smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Raw frames only.
    #[default]
    None,
    /// zstd at this level.
    Zstd {
        /// 1 to 22; the library clamps.
        level: i32,
    },
}

/// The object cannot be encoded. All but `Zstd` mean that the caller or the file did not keep to
/// what was announced, for example because the file changed while it was read.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// More than any object holds.
    #[error("a file of {size} bytes is too large for chunks of 2^{chunk_shift} bytes")]
    TooLarge {
        /// Size of the file.
        size: u64,
        /// Chunk size that was chosen.
        chunk_shift: u8,
    },
    /// A chunk came twice, or does not exist.
    #[error("chunk {0} was not expected")]
    UnexpectedChunk(u64),
    /// A chunk has another length than its place in the file allows.
    #[error("chunk {index} has {got} bytes instead of {want}")]
    WrongLength {
        /// The chunk.
        index: u64,
        /// Its length.
        got: usize,
        /// The length that it should have.
        want: u64,
    },
    /// The object was finished too early.
    #[error("chunk {0} is missing")]
    MissingChunk(u64),
    /// Extents, chunks and size contradict each other.
    #[error(transparent)]
    Inconsistent(#[from] FormatError),
    /// The compressor failed.
    #[error("zstd: {0}")]
    Zstd(#[source] std::io::Error),
}

/// Makes the frames of an object one by one, and its end. Append what it returns, in that order.
pub struct ObjectEncoder {
    id: ObjectId,
    size: u64,
    chunk_shift: u8,
    chunks: Vec<Option<ChunkEntry>>,
    offset: u64,
    compressor: Option<Compressor>,
}

struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    buffer: Vec<u8>,
}

impl Compressor {
    fn new(compression: Compression) -> Result<Option<Self>, EncodeError> {
        let Compression::Zstd { level } = compression else { return Ok(None) };
        let zstd = zstd::bulk::Compressor::new(level).map_err(EncodeError::Zstd)?;
        Ok(Some(Self { zstd, buffer: Vec::new() }))
    }

    /// The compressed form if it is smaller.
    fn smaller(&mut self, plain: &[u8]) -> Result<Option<&[u8]>, EncodeError> {
        self.buffer.clear();
        self.buffer.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let compressed = self.zstd.compress_to_buffer(plain, &mut self.buffer);
        compressed.map_err(EncodeError::Zstd)?;
        Ok((self.buffer.len() < plain.len()).then_some(&self.buffer[..]))
    }
}

impl ObjectEncoder {
    /// Begins the object `id` of a file of `size` bytes.
    pub fn new(
        id: ObjectId,
        size: u64,
        chunk_shift: u8,
        compression: Compression,
    ) -> Result<Self, EncodeError> {
        let known = (MIN_CHUNK_SHIFT..=MAX_CHUNK_SHIFT).contains(&chunk_shift);
        if !known || chunk_count(size, chunk_shift) > MAX_CHUNKS {
            return Err(EncodeError::TooLarge { size, chunk_shift });
        }
        let chunks = vec![None; chunk_count(size, chunk_shift) as usize];
        let compressor = Compressor::new(compression)?;
        Ok(Self { id, size, chunk_shift, chunks, offset: 0, compressor })
    }

    /// Takes the plain bytes of a chunk and gives the frame to append: `plain` itself or its
    /// compressed form in a buffer of the encoder. Chunks may come in any order.
    pub fn encode_chunk<'a>(
        &'a mut self,
        index: u64,
        plain: &'a [u8],
    ) -> Result<&'a [u8], EncodeError> {
        self.expect_chunk(index)?;
        let range = chunk_range(self.size, self.chunk_shift, index);
        let want = range.map_or(0, |r| r.end - r.start);
        if plain.len() as u64 != want {
            return Err(EncodeError::WrongLength { index, got: plain.len(), want });
        }
        let hash = *blake3::hash(plain).as_bytes();
        let compressed = match &mut self.compressor {
            Some(compressor) => compressor.smaller(plain)?,
            None => None,
        };
        let bytes = compressed.unwrap_or(plain);
        // At most 2^MAX_CHUNK_SHIFT, which fits.
        let frame = Frame { offset: self.offset, len: bytes.len() as u32, hash };
        let entry =
            if compressed.is_some() { ChunkEntry::Zstd(frame) } else { ChunkEntry::Raw(frame) };
        self.chunks[index as usize] = Some(entry);
        self.offset += bytes.len() as u64;
        Ok(bytes)
    }

    /// As [`encode_chunk`](Self::encode_chunk) for shared buffers: a raw frame is `plain` itself, not a copy.
    pub fn push_chunk(&mut self, index: u64, plain: Bytes) -> Result<Bytes, EncodeError> {
        let frame = self.encode_chunk(index, &plain)?;
        if frame.len() < plain.len() {
            return Ok(Bytes::copy_from_slice(frame));
        }
        Ok(plain)
    }

    /// Notes a chunk that has no data at all. There is nothing to append for it.
    pub fn push_hole(&mut self, index: u64) -> Result<(), EncodeError> {
        self.expect_chunk(index)?;
        self.chunks[index as usize] = Some(ChunkEntry::Hole);
        Ok(())
    }

    fn expect_chunk(&self, index: u64) -> Result<(), EncodeError> {
        let slot = usize::try_from(index).ok().and_then(|i| self.chunks.get(i));
        match slot {
            Some(None) => Ok(()),
            _ => Err(EncodeError::UnexpectedChunk(index)),
        }
    }

    /// Manifest and trailer, to append after all frames. `extents` are the ranges that have data:
    /// sorted, not empty, not overlapping; they must touch every pushed chunk and no hole.
    pub fn finish(
        self,
        attributes: FileAttributes,
        extents: Vec<Extent>,
    ) -> Result<Bytes, EncodeError> {
        let mut end = Vec::new();
        self.finish_into(attributes, extents, &mut end)?;
        Ok(end.into())
    }

    fn finish_into(
        self,
        attributes: FileAttributes,
        extents: Vec<Extent>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let missing = |index| EncodeError::MissingChunk(index as u64);
        let chunks = self.chunks.into_iter().enumerate();
        let chunks = chunks.map(|(i, c)| c.ok_or_else(|| missing(i))).collect::<Result<_, _>>()?;
        let (size, chunk_shift) = (self.size, self.chunk_shift);
        let manifest = Manifest { size, chunk_shift, attributes, extents, chunks };
        manifest.validate(self.offset)?;
        let bytes = manifest.encode()?;
        let trailer = Trailer {
            object_id: self.id,
            object_len: self.offset + (bytes.len() + TRAILER_LEN) as u64,
            manifest_len: bytes.len() as u32,
            manifest_hash: *blake3::hash(&bytes).as_bytes(),
        };
        out.reserve(bytes.len() + TRAILER_LEN);
        out.extend_from_slice(&bytes);
        out.extend_from_slice(&trailer.encode());
        Ok(())
    }
}

/// A whole object of a file of one chunk at most, in one buffer: `content` itself, grown by the
/// manifest and the trailer. Some 500 bytes of spare capacity (plus xattrs) save its moving.
/// Without any extent `content` must be all hole; its bytes are then left out.
pub fn encode_whole(
    id: ObjectId,
    mut content: Vec<u8>,
    attributes: FileAttributes,
    extents: Vec<Extent>,
    compression: Compression,
) -> Result<Bytes, EncodeError> {
    let size = content.len() as u64;
    let chunk_shift = chunk_shift_for(size).unwrap_or(MAX_CHUNK_SHIFT);
    let mut encoder = ObjectEncoder::new(id, size, chunk_shift, compression)?;
    if extents.is_empty() && size > 0 {
        encoder.push_hole(0)?;
        content.clear();
    } else if size > 0 {
        let frame = encoder.encode_chunk(0, &content)?;
        if frame.len() < content.len() {
            content = frame.to_vec();
        }
    }
    encoder.finish_into(attributes, extents, &mut content)?;
    Ok(content.into())
}

impl std::fmt::Debug for ObjectEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectEncoder")
            .field("id", &self.id)
            .field("size", &self.size)
            .field("chunk_shift", &self.chunk_shift)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}
