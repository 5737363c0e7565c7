//! Is the file's content that of its object? For files whose ctime moved for reasons unknown, and for what
//! an interrupted release left.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::core::ObjectId;
use crate::daemon::pool::Pool;
use crate::store::StoreError;
use crate::store::object::{Chunk, ChunkEntry, ObjectReader};
use crate::sys::space;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the file cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// Hashes the file chunk by chunk against the manifest. Needs the exclusive lease.
pub(crate) fn same_content(
    pool: &Pool,
    fd: BorrowedFd<'_>,
    object: ObjectId,
    size: u64,
) -> Result<bool, CompareError> {
    let Some(object) = object_of(pool, object, size)? else { return Ok(false) };
    let manifest = object.manifest();
    let mut buf = Vec::new();
    for (index, entry) in (0u64..).zip(&manifest.chunks) {
        let Some(chunk) = manifest.chunk_range(index) else { return Ok(false) };
        if !read_range(fd, &chunk, &mut buf)? || !is_same(entry, &buf) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether what is left of a file's data is the object's: after a punch that was cut off there may be
/// holes anywhere. Needs the exclusive lease.
pub(crate) fn same_remains(
    pool: &Pool,
    fd: BorrowedFd<'_>,
    object: ObjectId,
    size: u64,
) -> Result<bool, CompareError> {
    let extents = space::data_extents(fd, size)?;
    if extents.is_empty() {
        return Ok(true);
    }
    let Some(object) = object_of(pool, object, size)? else { return Ok(false) };
    let manifest = object.manifest();
    let mut buf = Vec::new();
    for (index, entry) in (0u64..).zip(&manifest.chunks) {
        let Some(chunk) = manifest.chunk_range(index) else { return Ok(false) };
        let parts: Vec<_> = extents.iter().filter_map(|extent| within(extent, &chunk)).collect();
        if parts.is_empty() {
            continue;
        }
        if !read_range(fd, &chunk, &mut buf)? {
            return Ok(false);
        }
        // Mostly the chunk is whole; only if not, the object's bytes are needed.
        if is_same(entry, &buf) {
            continue;
        }
        let Chunk::Data(bytes) = pool.runtime.block_on(object.chunk(index))? else {
            return Ok(false);
        };
        if parts.into_iter().any(|part| buf.get(part.clone()) != bytes.get(part)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The object, if it is of a file of this size.
fn object_of(pool: &Pool, id: ObjectId, size: u64) -> Result<Option<ObjectReader>, StoreError> {
    let object = pool.runtime.block_on(ObjectReader::open(Arc::clone(&pool.store), id))?;
    let fits = object.manifest().size == size;
    Ok(fits.then_some(object))
}

/// Fills the buffer with a range of the file. `false`: the file ends before.
fn read_range(fd: BorrowedFd<'_>, range: &Range<u64>, buf: &mut Vec<u8>) -> io::Result<bool> {
    buf.resize((range.end - range.start) as usize, 0);
    read_full(fd, buf, range.start)
}

/// The part of an extent that lies in a chunk, counted from the chunk's begin.
fn within(extent: &Range<u64>, chunk: &Range<u64>) -> Option<Range<usize>> {
    let (start, end) = (extent.start.max(chunk.start), extent.end.min(chunk.end));
    (start < end).then(|| (start - chunk.start) as usize..(end - chunk.start) as usize)
}

/// Whether a chunk's bytes are those that the manifest tells of.
fn is_same(entry: &ChunkEntry, bytes: &[u8]) -> bool {
    match entry {
        ChunkEntry::Hole => bytes.iter().all(|b| *b == 0),
        ChunkEntry::Raw(f) | ChunkEntry::Zstd(f) => *blake3::hash(bytes).as_bytes() == f.hash,
    }
}

/// `false`: the file ends before the buffer is full.
pub(crate) fn read_full(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<bool> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(fd, &mut buf[done..], offset + done as u64) {
            Ok(0) => return Ok(false),
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_chunks() {
        let chunk = 100..200;
        assert_eq!(within(&(0..100), &chunk), None);
        assert_eq!(within(&(0..101), &chunk), Some(0..1));
        assert_eq!(within(&(120..150), &chunk), Some(20..50));
        assert_eq!(within(&(150..900), &chunk), Some(50..100));
        assert_eq!(within(&(200..300), &chunk), None);
    }
}
