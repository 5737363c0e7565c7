//! Makes recalled files ordinary again: sync, then remove the marker, in batches.
//!
//! Until then a settling file has all its data in the page cache, its marker, and a read lease of
//! ours on it. Crash order:
//!
//! 1. power cut before the sync: the marker is still there, the data is recalled anew. Nobody
//!    can have written: writers wait for the lease, or for our answer.
//! 2. after the sync, before the marker's removal is durable: the same, over identical bytes.
//! 3. the agent dies: the lease goes with it, and the marker is still there. No writer was
//!    allowed while the file settled ([`crate::core::Effect::Judge`]), so each one's event is
//!    unanswered and goes to the next engine, which recalls first.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use crate::catalog::{Batch, FileRow};
use crate::core::{Event, FileKey, FileState};
use crate::daemon::pool::{FileRef, Pool};
use crate::marker::{InodeError, InodeFd};
use crate::sys::{inode, lease};

/// Up to this many files are synced one by one; more are synced with one `syncfs`.
const SINGLY: usize = 8;
/// Most files in one batch.
const MAX_BATCH: usize = 1024;

/// A recalled file that is not durable yet.
#[derive(Debug)]
pub struct Settle {
    /// Which file.
    pub file: FileRef,
    /// Read-only descriptor that holds the read lease.
    pub lease: Arc<OwnedFd>,
    /// `O_PATH` descriptor on the pool's own mount.
    pub path: OwnedFd,
}

impl Settle {
    /// Step 1.
    pub fn make_durable(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(&*self.lease)?)
    }

    /// Step 2: the marker goes, then the map, which means nothing without it. The catalogue
    /// follows; it is only an index.
    pub fn clear(&self, pool: &Pool) -> Result<Option<FileRow>, InodeError> {
        let fd = InodeFd::Path(self.path.as_fd());
        pool.attributes.remove_marker(fd)?;
        pool.attributes.remove_map(fd)?;
        let row = self.row(pool);
        if row.is_none() {
            tracing::debug!(key = ?self.file.key, "recalled file has no usable record");
        }
        Ok(row)
    }

    fn row(&self, pool: &Pool) -> Option<FileRow> {
        let record = pool.attributes.record(InodeFd::Path(self.path.as_fd())).ok()??;
        let copy = record.archived?;
        let stat = inode::stat(&self.path).ok()?;
        Some(FileRow {
            key: self.file.key.clone(),
            object: Some(copy.object),
            state: FileState::Archived,
            version: stat.version(copy.version.generation),
            local_bytes: Some(stat.allocated),
            path_hint: pool.hint(self.path.as_fd()),
            archived_at_ns: Some(copy.archived_at_ns),
        })
    }
}

/// What the thread of a pool is asked to do.
#[derive(Debug)]
pub enum Work {
    /// Make a file durable and ordinary.
    Settle(Settle),
    /// Tell the catalogue of a file that is ordinary already.
    Note(FileRow),
}

/// The queue of one pool, and the leases of the files in it.
#[derive(Debug)]
pub struct Settler {
    queue: mpsc::Sender<Work>,
    leases: Mutex<HashMap<FileKey, Arc<OwnedFd>>>,
}

impl Settler {
    /// The queue; its other end goes to [`run`].
    pub fn new() -> (Self, mpsc::Receiver<Work>) {
        let (queue, receiver) = mpsc::channel();
        (Self { queue, leases: Mutex::default() }, receiver)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<FileKey, Arc<OwnedFd>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the state machine hears of it: from then on accesses are judged.
    pub fn announce(&self, settle: &Settle) {
        self.leases().insert(settle.file.key.clone(), Arc::clone(&settle.lease));
    }

    /// After the state machine heard of it.
    pub fn submit(&self, settle: Settle) {
        // The receiver lives as long as the pool.
        let _ = self.queue.send(Work::Settle(settle));
    }

    /// Takes a row for the catalogue, to be written soon, with others.
    pub fn note(&self, row: Option<FileRow>) {
        if let Some(row) = row {
            let _ = self.queue.send(Work::Note(row));
        }
    }

    /// Whether nobody has this settling file open for writing, nor is about to: taking the lease
    /// again fails if anybody has raised the inode's write count. `false` when in doubt.
    pub fn nobody_writes(&self, key: &FileKey) -> bool {
        let lease = self.leases().get(key).cloned();
        lease.is_some_and(|fd| lease::set(fd.as_fd(), lease::LeaseKind::Read).unwrap_or(false))
    }

    /// Files that wait for their sync.
    pub fn len(&self) -> usize {
        self.leases().len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.leases().is_empty()
    }
}

/// Settles files for ever, on a thread of its own.
pub fn run(pool: &Arc<Pool>, queue: &mpsc::Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let mut batch = Vec::new();
        let mut catalogue = Batch::default();
        for work in std::iter::once(first).chain(queue.try_iter().take(MAX_BATCH - 1)) {
            match work {
                Work::Settle(settle) => batch.push(settle),
                Work::Note(row) => catalogue.upserts.push(row),
            }
        }
        settle(pool, batch, catalogue);
    }
}

fn settle(pool: &Arc<Pool>, batch: Vec<Settle>, mut catalogue: Batch) {
    let synced: Vec<io::Result<()>> = if batch.len() <= SINGLY {
        batch.iter().map(Settle::make_durable).collect()
    } else {
        let all = rustix::fs::syncfs(&pool.root);
        batch.iter().map(|_| all.map_err(io::Error::from)).collect()
    };
    for (settle, synced) in batch.into_iter().zip(synced) {
        let result = match synced {
            Ok(()) => settle.clear(pool).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        // Dropped only now: a writer who waits for it finds no marker.
        let unleased = lease::unset(settle.lease.as_fd());
        pool.settler.leases().remove(&settle.file.key);
        if let Err(error) = unleased {
            tracing::warn!(%error, "read lease not dropped");
        }
        let event = match result {
            Ok(row) => {
                catalogue.upserts.extend(row);
                Event::Settled(Ok(()))
            }
            Err(error) => {
                let file = pool.name_of(settle.path.as_fd());
                tracing::error!(%error, file = %file.display(), "recalled data could not be settled; the file stays offline");
                Event::Settled(Err(libc::EIO))
            }
        };
        pool.apply(&settle.file, event);
    }
    if let Err(error) = pool.catalog.commit(&catalogue) {
        tracing::warn!(%error, "catalogue not updated; `hsm scan` will");
    }
}
