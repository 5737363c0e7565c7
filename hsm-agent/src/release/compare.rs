//! Is the file's content that of its object? For files whose ctime moved for reasons unknown.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::core::ObjectId;
use crate::daemon::pool::Pool;
use crate::store::StoreError;
use crate::store::object::{ChunkEntry, ObjectReader};

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
    let store = Arc::clone(&pool.store);
    let object = pool.runtime.block_on(ObjectReader::open(store, object))?;
    let manifest = object.manifest();
    if manifest.size != size {
        return Ok(false);
    }
    let mut buf = Vec::new();
    for (index, entry) in (0u64..).zip(&manifest.chunks) {
        let Some(range) = manifest.chunk_range(index) else { return Ok(false) };
        buf.resize((range.end - range.start) as usize, 0);
        if !read_full(fd, &mut buf, range.start)? {
            return Ok(false);
        }
        let same = match entry {
            ChunkEntry::Hole => buf.iter().all(|b| *b == 0),
            ChunkEntry::Raw(f) | ChunkEntry::Zstd(f) => *blake3::hash(&buf).as_bytes() == f.hash,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
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
