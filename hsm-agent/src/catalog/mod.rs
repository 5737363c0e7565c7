//! The catalogue: an index of what the inodes say, and a log of what is about to be done to them.
//!
//! One SQLite database per pool. The inode is the truth; every row here can be read from it again,
//! so the file may be deleted and rebuilt with `hsm scan --rebuild`. What the inode cannot tell is
//! that an operation was under way: that is the intent, written durably before the operation's
//! first step and deleted in the same transaction that records its outcome. After a crash the open
//! intents are exactly the files to look at.
//!
//! A row's ctime vouches for the content only while the kernel that moved it keeps running: after
//! `fdatasync` and a power cut, ext4 and XFS come back with the new bytes under the old mtime and
//! ctime (measured). Rows of an earlier boot therefore read as [`FileRow::UNKNOWN_CTIME`].
//!
//! Two connections: a writer behind one lock, and a reader that sees the last commit and is not
//! held up by it. [`Catalog::begin`] returns once its rows are on the device. [`Catalog::commit`]
//! is atomic, but a power cut may undo the latest commits: then the intents that they finished are
//! open again, and recovery finds the operation done. Only a commit that takes an object off the
//! garbage list waits for the device, because forgetting it could cost the object.

mod error;
mod gc;
mod instance;
mod intents;
mod query;
mod rows;
mod schema;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

pub use error::CatalogError;
pub use intents::{Intent, IntentId, IntentOp, NewIntent};
pub use query::{StateTotals, Totals};
pub use rows::FileRow;
pub use write::{Batch, Note};

/// Index and intent log of one pool. Blocking: call it from threads that may wait for a disk.
#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    /// Closed before the writer, which can fold the log into the database only as the last one.
    reader: Mutex<Connection>,
    writer: Mutex<Writer>,
    /// Number of the boot or mount whose ctimes count.
    instance: i64,
}

/// The writing connection and the number of the next intent (never reused while the process lives).
#[derive(Debug)]
struct Writer {
    conn: Connection,
    next_intent: i64,
}

impl Catalog {
    /// Opens the database at `path`, creating or upgrading it as needed. Ctimes of this boot count.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        Self::open_for(path, &instance::boot())
    }

    /// Like [`Catalog::open`], for a narrower span of time in which ctimes count: `instance` is
    /// different whenever the file system may have lost what it had in memory. Boot id and unique
    /// mount id together also cover a device that came off without a reboot.
    pub fn open_for(path: &Path, instance: &[u8]) -> Result<Self, CatalogError> {
        let conn = schema::open_writer(path)?;
        let instance =
            instance::number(&conn, instance).map_err(CatalogError::at(path, "opening"))?;
        let next_intent = intents::next_id(&conn).map_err(CatalogError::at(path, "reading"))?;
        let reader = schema::open_reader(path)?;
        Ok(Self {
            path: path.to_owned(),
            writer: Mutex::new(Writer { conn, next_intent }),
            reader: Mutex::new(reader),
            instance,
        })
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks the whole database, at the cost of reading it.
    pub fn check(&self) -> Result<(), CatalogError> {
        schema::integrity_check(&self.reader()).map_err(|error| error.into_error(&self.path))
    }

    /// A panic while the lock was held rolled its transaction back: the connection is still good.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> MutexGuard<'_, Connection> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns an SQLite error into one that names this catalogue and what was being done.
    fn failed(&self, doing: &'static str) -> impl Fn(rusqlite::Error) -> CatalogError {
        CatalogError::at(&self.path, doing)
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
