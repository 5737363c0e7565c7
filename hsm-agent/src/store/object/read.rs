//! Reading an object back, with everything verified before it is handed out.
//!
//! The first request asks for the last [`TAIL_LEN`] bytes: trailer, manifest, and for a small file
//! all its data, so a small recall is one request. The bytes are kept and serve chunks that lie in
//! them. The planning is shared by the async and the blocking side, which only fetch.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::manifest::{ChunkEntry, Manifest, parse_manifest};
use super::trailer::{TRAILER_LEN, Trailer, parse_trailer};
use super::{FormatError, ensure};
use crate::core::ObjectId;
use crate::store::{BlockingStore, ObjectKey, Result, Store, StoreError, Tail};

/// What the first request asks for. 64 KiB hold the manifest of a file of 1 GiB, cost no more time
/// than one byte on any store, and most small files are smaller.
pub const TAIL_LEN: u64 = 64 << 10;

/// The plain content of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// No data: the range of the file is a hole.
    Hole,
    /// The chunk's bytes, verified.
    Data(Bytes),
}

/// An open object: its verified manifest, and access to its chunks.
#[derive(Debug, Clone)]
pub struct ObjectReader {
    store: Arc<dyn Store>,
    key: ObjectKey,
    manifest: Arc<Manifest>,
    /// The end of the frames, as far as it came with the first request, and where it begins.
    near: Bytes,
    near_start: u64,
}

/// What the tail says about the rest of the object.
struct Opening {
    trailer: Trailer,
    /// Where the manifest begins in the object.
    manifest_start: u64,
    /// Where the fetched tail begins in the object.
    tail_start: u64,
}

impl Opening {
    fn new(id: ObjectId, tail: &Tail) -> Result<Self, FormatError> {
        let trailer = parse_trailer(&tail.bytes)?;
        let found = trailer.object_id;
        ensure!(found == id, "the store served object {found} in its place");
        let (len, size) = (trailer.object_len, tail.object_size);
        ensure!(len == size, "it has {size} bytes instead of {len}");
        let fetched = tail.bytes.len() as u64;
        ensure!(fetched <= size, "the store's answer is longer than the object");
        let manifest_start = trailer.data_len();
        Ok(Self { trailer, manifest_start, tail_start: size - fetched })
    }

    /// The part of the manifest that the tail does not hold.
    fn missing(&self) -> Option<Range<u64>> {
        (self.manifest_start < self.tail_start).then_some(self.manifest_start..self.tail_start)
    }

    /// Splits the tail, with what was missing in front of it, into (near frames, manifest).
    fn manifest(&self, tail: &Bytes, missing: Option<Bytes>) -> Result<Manifest, FormatError> {
        let end = tail.len() - TRAILER_LEN;
        let bytes = match missing {
            Some(front) => Bytes::from([&front[..], &tail[..end]].concat()),
            None => tail.slice((self.manifest_start - self.tail_start) as usize..end),
        };
        let hash = *blake3::hash(&bytes).as_bytes();
        ensure!(hash == self.trailer.manifest_hash, "the manifest does not match its hash");
        parse_manifest(&bytes, self.manifest_start)
    }
}

impl ObjectReader {
    /// Opens the object `id`: one request, or two if the manifest is longer than [`TAIL_LEN`].
    pub async fn open(store: Arc<dyn Store>, id: ObjectId) -> Result<Self> {
        let key = ObjectKey::new(id);
        let tail = store.get_tail(&key, TAIL_LEN).await?;
        let opening = Opening::new(id, &tail).map_err(corrupt(&key))?;
        let missing = match opening.missing() {
            Some(range) => Some(store.get_range(&key, range).await?),
            None => None,
        };
        Self::build(store, key, &opening, &tail, missing)
    }

    /// [`open`](Self::open) on a thread that may block. `None` if the store has no blocking side.
    pub fn open_blocking(store: Arc<dyn Store>, id: ObjectId) -> Option<Result<Self>> {
        store.blocking()?;
        Some(Self::open_with(store, id))
    }

    fn open_with(store: Arc<dyn Store>, id: ObjectId) -> Result<Self> {
        let key = ObjectKey::new(id);
        let blocking = blocking(&store, &key)?;
        let tail = blocking.get_tail(&key, TAIL_LEN)?;
        let opening = Opening::new(id, &tail).map_err(corrupt(&key))?;
        let missing = opening.missing().map(|range| blocking.get_range(&key, range)).transpose()?;
        Self::build(store, key, &opening, &tail, missing)
    }

    fn build(
        store: Arc<dyn Store>,
        key: ObjectKey,
        opening: &Opening,
        tail: &Tail,
        missing: Option<Bytes>,
    ) -> Result<Self> {
        let manifest = opening.manifest(&tail.bytes, missing).map_err(corrupt(&key))?;
        let near_start = opening.tail_start.min(opening.manifest_start);
        let near = tail.bytes.slice(..(opening.manifest_start - near_start) as usize);
        Ok(Self { store, key, manifest: Arc::new(manifest), near, near_start })
    }

    /// The verified manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The object that is open.
    pub fn key(&self) -> ObjectKey {
        self.key
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> u64 {
        self.manifest.chunks.len() as u64
    }

    /// Would [`chunk`](Self::chunk) answer without a request to the store?
    pub fn is_near(&self, index: u64) -> bool {
        let frame = self.entry(index).ok().and_then(|entry| entry.frame());
        frame.is_none_or(|f| f.offset >= self.near_start)
    }

    /// One chunk, verified against its hash.
    pub async fn chunk(&self, index: u64) -> Result<Chunk> {
        let entry = *self.entry(index)?;
        let Some(frame) = entry.frame() else { return Ok(Chunk::Hole) };
        let range = frame.offset..frame.offset + u64::from(frame.len);
        let stored = match self.near(&range) {
            Some(bytes) => bytes,
            None => self.store.get_range(&self.key, range).await?,
        };
        self.open_frame(index, &entry, stored)
    }

    /// [`chunk`](Self::chunk) on a thread that may block. Fails for a store without a blocking side.
    pub fn chunk_blocking(&self, index: u64) -> Result<Chunk> {
        let entry = *self.entry(index)?;
        let Some(frame) = entry.frame() else { return Ok(Chunk::Hole) };
        let range = frame.offset..frame.offset + u64::from(frame.len);
        let stored = match self.near(&range) {
            Some(bytes) => bytes,
            None => blocking(&self.store, &self.key)?.get_range(&self.key, range)?,
        };
        self.open_frame(index, &entry, stored)
    }

    /// Reads and verifies every chunk.
    pub async fn verify_all(&self) -> Result<()> {
        for index in 0..self.chunk_count() {
            self.chunk(index).await?;
        }
        Ok(())
    }

    /// [`verify_all`](Self::verify_all) on a thread that may block.
    pub fn verify_all_blocking(&self) -> Result<()> {
        (0..self.chunk_count()).try_for_each(|index| self.chunk_blocking(index).map(drop))
    }

    fn entry(&self, index: u64) -> Result<&ChunkEntry> {
        let entry = usize::try_from(index).ok().and_then(|i| self.manifest.chunks.get(i));
        entry.ok_or_else(|| StoreError::invalid(&self.key, format!("it has no chunk {index}")))
    }

    fn near(&self, range: &Range<u64>) -> Option<Bytes> {
        let start = range.start.checked_sub(self.near_start)? as usize;
        let end = start + (range.end - range.start) as usize;
        (end <= self.near.len()).then(|| self.near.slice(start..end))
    }

    fn open_frame(&self, index: u64, entry: &ChunkEntry, stored: Bytes) -> Result<Chunk> {
        let plain = plain_bytes(&self.manifest, index, entry, stored);
        plain.map(Chunk::Data).map_err(corrupt(&self.key))
    }
}

/// From a frame's stored bytes to the chunk's verified plain bytes.
fn plain_bytes(
    manifest: &Manifest,
    index: u64,
    entry: &ChunkEntry,
    stored: Bytes,
) -> Result<Bytes, FormatError> {
    let range = manifest.chunk_range(index).unwrap_or(0..0);
    let len = (range.end - range.start) as usize;
    let (plain, frame) = match entry {
        ChunkEntry::Hole => return Err(FormatError(format!("chunk {index} is a hole"))),
        ChunkEntry::Raw(frame) => (stored, frame),
        ChunkEntry::Zstd(frame) => {
            let plain = zstd::bulk::decompress(&stored, len);
            (plain.map_err(|e| FormatError(format!("chunk {index}: {e}")))?.into(), frame)
        }
    };
    let intact = plain.len() == len && *blake3::hash(&plain).as_bytes() == frame.hash;
    ensure!(intact, "chunk {index} does not match its hash");
    let sparse = holes_are_zero(manifest, index, &plain, range.start);
    ensure!(sparse, "chunk {index} has data where the extents say there is none");
    Ok(plain)
}

/// A recall may write only the extents, so bytes outside them must be zeros, or data would be lost.
fn holes_are_zero(manifest: &Manifest, index: u64, plain: &[u8], chunk_start: u64) -> bool {
    let mut at = 0;
    let zeros = |bytes: &[u8]| bytes.iter().all(|&b| b == 0);
    for part in manifest.data_in_chunk(index) {
        if !zeros(&plain[at..(part.start - chunk_start) as usize]) {
            return false;
        }
        at = (part.end - chunk_start) as usize;
    }
    zeros(&plain[at..])
}

fn blocking<'a>(store: &'a Arc<dyn Store>, key: &ObjectKey) -> Result<&'a dyn BlockingStore> {
    store.blocking().ok_or_else(|| StoreError::invalid(key, "the store has no blocking side"))
}

fn corrupt(key: &ObjectKey) -> impl Fn(FormatError) -> StoreError + use<> {
    let key = *key;
    move |e| StoreError::Corrupt { subject: (&key).into(), source: Arc::new(e) }
}
