//! A file under `tmp/` that becomes an object by its renaming.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::dir::Dir;
use super::errno::error;
use crate::store::{BlockingSink, ObjectKey, Result};
use crate::sys::space;

/// So much is written between two starts of write-back, which saves the flush at the end most of its
/// waiting. Smaller pieces would cost requests and fragment the object.
const WRITE_BACK: u64 = 8 << 20;

/// Drop removes the temporary file unless `finish` renamed it.
#[derive(Debug)]
pub(super) struct LocalSink {
    dir: Arc<Dir>,
    key: ObjectKey,
    temp: String,
    file: OwnedFd,
    /// Written, but its write-back is not begun.
    dirty: Range<u64>,
    finished: bool,
    failed: bool,
}

impl LocalSink {
    pub(super) fn create(dir: Arc<Dir>, key: ObjectKey) -> Result<Self> {
        let (temp, file) = dir.create_temp(&key)?;
        Ok(Self { dir, key, temp, file, dirty: 0..0, finished: false, failed: false })
    }
}

impl BlockingSink for LocalSink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = write_all(&self.file, bytes);
        self.failed |= written.is_err();
        self.dirty.end += bytes.len() as u64;
        if self.dirty.end - self.dirty.start >= WRITE_BACK {
            space::write_back(&self.file, self.dirty.clone());
            self.dirty.start = self.dirty.end;
        }
        written.map_err(|e| error(&self.key, e))
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if self.failed {
            let why = "a write to this object has failed before";
            return Err(crate::store::StoreError::invalid(&self.key, why));
        }
        self.dir.publish(&self.key, &self.temp)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for LocalSink {
    fn drop(&mut self) {
        if !self.finished {
            self.dir.remove_temp(&self.temp);
        }
    }
}

/// Writes everything, however many calls it takes.
pub(super) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), rustix::io::Errno> {
    while !bytes.is_empty() {
        match rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))? {
            0 => return Err(rustix::io::Errno::IO),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}
