//! One file's bytes into one object.

use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;

use crate::core::ObjectId;
use crate::daemon::pool::Pool;
use crate::failpoint::{Point, reach};
use crate::release::read_full;
use crate::store::object::{
    EncodeError, Extent, FileAttributes, MIN_CHUNK_SHIFT, ObjectEncoder, chunk_shift_for,
    encode_whole,
};
use crate::store::{ObjectKey, ObjectSink, StoreError};
use crate::sys::lease::Lease;
use crate::sys::space;

/// Room for manifest and trailer behind the content of a small file.
const TAIL_ROOM: usize = 1024;

/// Why there is no object.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the file cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("the file changed while it was read")]
    Changed,
    #[error("the object cannot be made: {0}")]
    Encode(#[from] EncodeError),
}

/// What to upload.
pub(super) struct Upload<'a> {
    pub(super) pool: &'a Pool,
    pub(super) id: ObjectId,
    pub(super) fd: BorrowedFd<'a>,
    pub(super) size: u64,
    pub(super) lease: &'a Lease,
}

impl Upload<'_> {
    /// Writes the object; it is durable only after the store was flushed.
    pub(super) fn run(&self, attributes: FileAttributes) -> Result<(), UploadError> {
        if self.size <= 1 << MIN_CHUNK_SHIFT {
            self.small(attributes)
        } else {
            self.large(attributes, self.extents()?)
        }
    }

    fn extents(&self) -> std::io::Result<Vec<Extent>> {
        let extents = space::data_extents(self.fd, self.size)?;
        Ok(extents.into_iter().map(|r| Extent { offset: r.start, len: r.end - r.start }).collect())
    }

    fn small(&self, attributes: FileAttributes) -> Result<(), UploadError> {
        let mut content = Vec::with_capacity(self.size as usize + TAIL_ROOM);
        content.resize(self.size as usize, 0);
        if !read_full(self.fd, &mut content, 0)? {
            return Err(UploadError::Changed);
        }
        // Holes read as zeros, so where there are none there is no hole to ask for.
        let extents = if has_no_hole(&content) {
            vec![Extent { offset: 0, len: self.size }]
        } else {
            self.extents()?
        };
        let object = encode_whole(self.id, content, attributes, extents, self.pool.compression())?;
        let key = ObjectKey::new(self.id);
        if let Some(store) = self.pool.store.blocking() {
            match store.put(&key, &object) {
                Err(e) if e.is_retryable() => {}
                result => return Ok(result?),
            }
        }
        Ok(self.pool.runtime.block_on(self.pool.store.put(&key, object))?)
    }

    fn large(&self, attributes: FileAttributes, extents: Vec<Extent>) -> Result<(), UploadError> {
        let key = ObjectKey::new(self.id);
        let mut sink = match self.pool.store.blocking() {
            Some(store) => Sink::Blocking(store.writer(&key)?),
            None => Sink::Async(self.pool.runtime.block_on(self.pool.store.writer(&key))?),
        };
        match self.stream(&mut sink, attributes, extents) {
            Ok(()) => Ok(sink.finish(self.pool)?),
            Err(e) => {
                sink.abort(self.pool);
                Err(e)
            }
        }
    }

    fn stream(
        &self,
        sink: &mut Sink,
        attributes: FileAttributes,
        extents: Vec<Extent>,
    ) -> Result<(), UploadError> {
        let shift = chunk_shift_for(self.size).ok_or(UploadError::Changed)?;
        let chunk = 1u64 << shift;
        let mut encoder = ObjectEncoder::new(self.id, self.size, shift, self.pool.compression())?;
        let mut buf = Vec::new();
        for index in 0..self.size.div_ceil(chunk) {
            // Whoever waits to write has been let through; what was read so far is worthless.
            if !self.lease.intact() {
                return Err(UploadError::Changed);
            }
            let start = index * chunk;
            let end = (start + chunk).min(self.size);
            if !extents.iter().any(|e| e.offset < end && start < e.offset + e.len) {
                encoder.push_hole(index)?;
                continue;
            }
            buf.resize((end - start) as usize, 0);
            if !read_full(self.fd.as_fd(), &mut buf, start)? {
                return Err(UploadError::Changed);
            }
            sink.write(self.pool, encoder.encode_chunk(index, &buf)?)?;
            reach(Point::ArchiveChunk);
        }
        let end = encoder.finish(attributes, extents)?;
        Ok(sink.write(self.pool, &end)?)
    }
}

/// Whether no block of the smallest size that there is consists of zeros. A last, shorter one counts
/// as one.
fn has_no_hole(content: &[u8]) -> bool {
    const SMALLEST_BLOCK: usize = 512;
    content.chunks(SMALLEST_BLOCK).all(|block| block.iter().any(|byte| *byte != 0))
}

enum Sink {
    Blocking(Box<dyn crate::store::BlockingSink>),
    Async(Box<dyn ObjectSink>),
}

impl Sink {
    fn write(&mut self, pool: &Pool, bytes: &[u8]) -> Result<(), StoreError> {
        match self {
            Self::Blocking(sink) => sink.write(bytes),
            Self::Async(sink) => pool.runtime.block_on(sink.write(Bytes::copy_from_slice(bytes))),
        }
    }

    fn finish(self, pool: &Pool) -> Result<(), StoreError> {
        match self {
            Self::Blocking(sink) => sink.finish(),
            Self::Async(sink) => pool.runtime.block_on(sink.finish()),
        }
    }

    fn abort(self, pool: &Pool) {
        if let Self::Async(sink) = self
            && let Err(error) = pool.runtime.block_on(sink.abort())
        {
            tracing::warn!(%error, "an unfinished object is left in the store");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_zeros_may_be_a_hole() {
        let mut content = vec![1u8; 1300];
        assert!(has_no_hole(&content));
        content[512..1023].fill(0);
        assert!(has_no_hole(&content), "its last byte is data");
        content[1023] = 0;
        assert!(!has_no_hole(&content));
        assert!(!has_no_hole(&[0; 7]));
    }
}
