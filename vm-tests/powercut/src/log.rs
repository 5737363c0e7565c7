//! What disks were told, in the order in which it arrived, over all disks of a run.
//!
//! A position counts entries: what is before position `n` had arrived when the power failed there. A
//! disk with a cache keeps what it had before its last flush; of what came since it may keep any part.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many entries had arrived.
pub type Position = usize;

/// One of the disks of a run, by number.
pub type Disk = usize;

/// What a disk was told.
#[derive(Debug, Clone)]
pub enum Entry {
    /// To change a range.
    Write(Disk, Write),
    /// To keep all that it was told before.
    Flush(Disk),
}

/// A range with its new content.
#[derive(Debug, Clone)]
pub struct Write {
    /// First byte.
    pub offset: u64,
    /// From there on.
    pub change: Change,
}

/// The new content of a range.
#[derive(Debug, Clone)]
pub enum Change {
    /// These bytes.
    Data(Arc<[u8]>),
    /// So many zeros (discarded, or written as such).
    Zeros(u64),
}

impl Write {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match &self.change {
            Change::Data(bytes) => bytes.len() as u64,
            Change::Zeros(length) => *length,
        }
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The log of a run, written by its disks.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Entry>>>);

impl Log {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an entry before its disk answers.
    pub fn push(&self, entry: Entry) {
        self.entries().push(entry);
    }

    /// Where the log is now.
    pub fn position(&self) -> Position {
        self.entries().len()
    }

    /// All of it so far. (The bytes are shared.)
    pub fn snapshot(&self) -> Vec<Entry> {
        self.entries().clone()
    }
}
