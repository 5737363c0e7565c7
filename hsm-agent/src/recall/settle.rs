//! Makes recalled files ordinary again, in batches: the data durable, the marker gone, and that
//! durable too.
//!
//! A settling file has all its data in place and a read lease of ours on it. It comes here in one of
//! two stages: *placed* (data not durable yet, marker still set) or *cleared* (data durable, marker
//! removed, which is not durable yet). Crash order:
//!
//! 1. power cut before the data is durable: the marker is still there, the data is recalled anew.
//! 2. power cut after that, before the marker's removal is durable: the marker is back, and the same
//!    bytes are recalled over themselves. That is right only as long as nobody has written: a writer's
//!    own `fdatasync` does not make the removal durable (ext4 commits for it only what the data
//!    needs; measured). So writers wait, for our answer or for the lease, until it is.
//! 3. the agent dies: the lease goes with it. No writer was answered while the file settled
//!    ([`crate::core::Effect::Judge`]), so each one's event goes to the next engine, which syncs the
//!    file system before it answers anything.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use crate::catalog::{Batch, FileRow, Note};
use crate::core::{Event, FileKey, FileState};
use crate::daemon::pool::{FileRef, Pool};
use crate::failpoint::{Point, reach};
use crate::marker::{InodeError, InodeFd};
use crate::sys::{inode, lease};

/// Up to this many files are synced one by one; more are synced with one `syncfs`.
const SINGLY: usize = 8;
/// Nobody but a writer who comes right now waits for a cleared file: so many are gathered for one
/// sync, which would otherwise stand in the way of the next recall's.
const GATHER: Duration = Duration::from_millis(30);
/// Most files in one batch.
const MAX_BATCH: usize = 1024;

/// How far a recalled file has come.
#[derive(Debug)]
pub enum Stage {
    /// The data is in place.
    Placed,
    /// The data is durable, the marker removed. The row is for the catalogue.
    Cleared(Option<FileRow>),
}

/// A recalled file that is not ordinary yet.
#[derive(Debug)]
pub struct Settle {
    /// Which file.
    pub file: FileRef,
    /// Read-only descriptor that holds the read lease.
    pub lease: Arc<OwnedFd>,
    /// `O_PATH` descriptor on the pool's own mount.
    pub path: OwnedFd,
    /// How far it is.
    pub stage: Stage,
}

/// Why a file did not settle.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Data or marker cannot be made durable.
    #[error("not durable: {0}")]
    Sync(#[from] io::Error),
    /// The marker cannot be removed.
    #[error(transparent)]
    Inode(#[from] InodeError),
}

impl Settle {
    /// Syncs the data (placed) or the marker's removal (cleared).
    pub fn sync(&self) -> io::Result<()> {
        Ok(match self.stage {
            Stage::Placed => rustix::fs::fdatasync(&*self.lease),
            Stage::Cleared(_) => rustix::fs::fsync(&*self.lease),
        }?)
    }

    /// From placed and synced to cleared: the marker goes, then the map, which means nothing without
    /// it. The catalogue follows; it is only an index.
    pub fn clear(&mut self, pool: &Pool) -> Result<(), InodeError> {
        if matches!(self.stage, Stage::Cleared(_)) {
            return Ok(());
        }
        let fd = InodeFd::Path(self.path.as_fd());
        pool.attributes.remove_marker(fd)?;
        reach(Point::RecallUnmarked);
        pool.attributes.remove_map(fd)?;
        reach(Point::RecallUnmapped);
        self.stage = Stage::Cleared(self.row(pool));
        Ok(())
    }

    /// The row for the catalogue, once cleared.
    pub fn take_row(&mut self) -> Option<FileRow> {
        match &mut self.stage {
            Stage::Placed => None,
            Stage::Cleared(row) => row.take(),
        }
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
    leases: Mutex<HashMap<FileKey, Settling>>,
}

/// What accesses to a settling file are judged by.
#[derive(Debug, Clone)]
struct Settling {
    lease: Arc<OwnedFd>,
    cleared: bool,
}

impl Settler {
    /// The queue; its other end goes to [`run`].
    pub fn new() -> (Self, mpsc::Receiver<Work>) {
        let (queue, receiver) = mpsc::channel();
        (Self { queue, leases: Mutex::default() }, receiver)
    }

    fn leases(&self) -> MutexGuard<'_, HashMap<FileKey, Settling>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the state machine hears of it: from then on accesses are judged.
    pub fn announce(&self, settle: &Settle) {
        let cleared = matches!(settle.stage, Stage::Cleared(_));
        let settling = Settling { lease: Arc::clone(&settle.lease), cleared };
        self.leases().insert(settle.file.key.clone(), settling);
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

    /// Whether somebody who only reads may go on with this settling file: `early` or not, depending
    /// on its stage, and only if nobody has it open for writing, nor is about to. (Taking the lease
    /// again fails if anybody has raised the inode's write count.) `false` when in doubt.
    pub fn readers_may_go_on(&self, key: &FileKey, early: bool) -> bool {
        let settling = self.leases().get(key).cloned();
        settling.is_some_and(|s| {
            (early || s.cleared)
                && lease::set(s.lease.as_fd(), lease::LeaseKind::Read).unwrap_or(false)
        })
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

/// Settles files for ever, on a thread of its own. `device` is a descriptor of the mount point that
/// nobody else syncs: the kernel tells a write error once per open descriptor.
pub fn run(pool: &Arc<Pool>, device: &OwnedFd, queue: &mpsc::Receiver<Work>) {
    while let Ok(first) = queue.recv() {
        let mut batch = Vec::new();
        let mut catalogue = Batch::default();
        if !matches!(&first, Work::Settle(Settle { stage: Stage::Placed, .. })) {
            std::thread::sleep(GATHER);
        }
        for work in std::iter::once(first).chain(queue.try_iter().take(MAX_BATCH - 1)) {
            match work {
                Work::Settle(settle) => batch.push((settle, Ok(()))),
                Work::Note(row) => catalogue.notes.push(seen(row)),
            }
        }
        settle(pool, device, batch, catalogue);
    }
}

type Attempt = (Settle, Result<(), SettleError>);

fn settle(pool: &Arc<Pool>, device: &OwnedFd, mut batch: Vec<Attempt>, mut catalogue: Batch) {
    sync(device, &mut batch, |stage| matches!(stage, Stage::Placed));
    reach(Point::SettleSynced);
    for (settle, result) in &mut batch {
        if result.is_ok() {
            *result = settle.clear(pool).map_err(SettleError::from);
        }
    }
    sync(device, &mut batch, |stage| matches!(stage, Stage::Cleared(_)));
    reach(Point::SettleDurable);
    for (mut settle, result) in batch {
        catalogue.notes.extend(settle.take_row().map(seen));
        finish(pool, &settle, result);
    }
    if let Err(error) = pool.catalog.commit(&catalogue) {
        tracing::warn!(%error, "catalogue not updated; `hsm scan` will");
    }
    reach(Point::SettleCommitted);
}

/// A recall changes no object. By the time of its row the file may have been written to, and archived again.
fn seen(row: FileRow) -> Note {
    Note { known: row.object, row }
}

/// One by one if there are few, otherwise all at once.
fn sync(device: &OwnedFd, batch: &mut [Attempt], wanted: impl Fn(&Stage) -> bool) {
    let due = |(settle, result): &&mut Attempt| result.is_ok() && wanted(&settle.stage);
    let count = batch.iter_mut().filter(due).count();
    let all = if count > SINGLY { Some(rustix::fs::syncfs(device)) } else { None };
    for (settle, result) in batch.iter_mut().filter(due) {
        let synced = match all {
            Some(all) => all.map_err(io::Error::from),
            None => settle.sync(),
        };
        *result = synced.map_err(SettleError::from);
    }
}

fn finish(pool: &Arc<Pool>, settle: &Settle, result: Result<(), SettleError>) {
    // Still "settling": no release can start before the readers go on.
    if result.is_ok() {
        pool.pass_over(InodeFd::Path(settle.path.as_fd()));
    }
    // Dropped only now: a writer who waits for it finds no marker, for good.
    if let Err(error) = lease::unset(settle.lease.as_fd()) {
        tracing::warn!(%error, "read lease not dropped");
    }
    reach(Point::SettleUnleased);
    pool.settler.leases().remove(&settle.file.key);
    let errno = result.map_err(|error| {
        let file = pool.name_of(settle.path.as_fd());
        tracing::error!(%error, file = %file.display(), "recalled data could not be settled");
        libc::EIO
    });
    pool.apply(&settle.file, Event::Settled(errno));
}
