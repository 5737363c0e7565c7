//! Re-reads the inodes of a pool into the catalogue.

use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;

use globset::GlobSet;
use rustix::fs::OFlags;

use super::runner::Job;
use crate::catalog::{Batch, CatalogError, FileRow, Note};
use crate::control::types::{JobEvent, Reason};
use crate::control::{ApiError, ApiErrorKind};
use crate::core::{FileState, Subtrees};
use crate::daemon::outcome::{Candidate, FileOutcome};
use crate::daemon::pool::{Pool, now_ns};
use crate::failpoint::{Point, reach};
use crate::marker::InodeFd;
use crate::scanner::{Found, Walker};
use crate::sys::handle;

/// Rows per transaction.
const BATCH: usize = 1024;

pub(super) fn run(job: &Job) -> Result<(), ApiError> {
    let wanted = job.request.pool.as_deref();
    let pools: Vec<_> =
        job.pools.iter().filter(|p| wanted.is_none_or(|name| p.config.name == name)).collect();
    if pools.is_empty() {
        let text = format!("there is no pool {:?}", wanted.unwrap_or_default());
        return Err(ApiError::new(ApiErrorKind::NotFound, text).with_reason(Reason::NoSuchPool));
    }
    for pool in pools {
        let failed = |e: CatalogError| ApiError::new(ApiErrorKind::Internal, e.to_string());
        Scan { job, pool, batch: Batch::default(), files: 0, bytes: 0 }.run().map_err(failed)?;
    }
    Ok(())
}

struct Scan<'a> {
    job: &'a Job,
    pool: &'a Arc<Pool>,
    batch: Batch,
    files: u64,
    bytes: u64,
}

impl Scan<'_> {
    fn run(mut self) -> Result<(), CatalogError> {
        if self.job.request.rebuild && !self.job.request.dry_run {
            // From here on the index does not count as complete: a crash deletes no object.
            self.pool.catalog.clear_files()?;
            reach(Point::ScanEmptied);
        }
        let all = GlobSet::empty();
        let mount = self.pool.mount();
        let walker = Walker {
            root: self.pool.root.as_fd(),
            mount,
            recursive: true,
            subtrees: &Subtrees::everything(),
            include: &all,
            exclude: &all,
        };
        let mut result = Ok(());
        let flow = walker.walk(mount, &mut |found| {
            if self.job.cancelled() {
                return ControlFlow::Break(());
            }
            match self.take(found) {
                Ok(()) => ControlFlow::Continue(()),
                Err(e) => {
                    result = Err(e);
                    ControlFlow::Break(())
                }
            }
        });
        result?;
        self.write()?;
        reach(Point::ScanWritten);
        if flow.is_continue() && !self.job.request.dry_run {
            self.forget_the_gone()?;
            reach(Point::ScanForgotten);
            self.pool.catalog.set_complete(true)?;
        }
        Ok(())
    }

    fn take(&mut self, found: Found) -> Result<(), CatalogError> {
        match found {
            Found::File(candidate) if candidate.stat.is_file() => self.file(&candidate)?,
            Found::File(_) | Found::Directory(_) | Found::Outside(_) => {}
            Found::Error(e) => {
                self.job.report(&e.path, FileOutcome::io("it cannot be looked at", &e.error));
            }
        }
        if self.batch.notes.len() >= BATCH {
            self.write()?;
        }
        Ok(())
    }

    fn file(&mut self, candidate: &Candidate) -> Result<(), CatalogError> {
        self.files += 1;
        self.bytes += candidate.stat.size;
        // Before the inode: see `note`.
        let known = self.pool.catalog.get(&candidate.file.key).ok().flatten();
        match note(self.pool, candidate, known.as_ref(), &mut self.batch) {
            Ok(true) => self.job.report(&candidate.name, FileOutcome::done(candidate.stat.size)),
            Ok(false) => {}
            Err(outcome) => {
                if outcome.reason == Some(Reason::ForeignMarker) {
                    // An earlier scan may have taken it for offline.
                    self.batch.gone.extend(known.map(|known| (known.key, known.object)));
                }
                self.job.report(&candidate.name, outcome);
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), CatalogError> {
        let batch = std::mem::take(&mut self.batch);
        if !self.job.request.dry_run {
            self.pool.catalog.commit(&batch)?;
        }
        let _ = self.job.events.blocking_send(JobEvent::Progress {
            files: self.files,
            bytes: self.bytes,
            total_files: None,
            total_bytes: None,
        });
        Ok(())
    }

    /// Rows of files that do not exist any more, or have lost what hsm wrote on them (a power cut may take
    /// the record of an archive back): their objects begin their retention time.
    fn forget_the_gone(&mut self) -> Result<(), CatalogError> {
        let mut gone = Batch::default();
        self.pool.catalog.for_each(&[], |row| {
            let is_gone = match handle::open(&self.pool.root, &row.key, OFlags::PATH) {
                Ok(file) => self.is_unknown(InodeFd::Path(file.as_fd())),
                Err(e) => handle::is_stale(&e),
            };
            if is_gone {
                gone.retired.extend(row.object.map(|object| (object, now_ns())));
                // It may be archived meanwhile.
                gone.gone.push((row.key, row.object));
            }
            ControlFlow::Continue(())
        })?;
        self.pool.catalog.commit(&gone)
    }

    /// Whether the inode names no object. In doubt it does.
    fn is_unknown(&self, fd: InodeFd<'_>) -> bool {
        let seen = self.pool.attributes.seen(fd);
        seen.is_ok_and(|s| s.marker.is_none() && s.record.is_none_or(|r| r.archived.is_none()))
    }
}

/// What the inode says, for the catalogue. `false`: hsm has written nothing on this inode. An object that the
/// catalogue knows for it and the inode does not name begins its retention time: nobody else knows it.
///
/// `known`: the catalogue's row, read before this looks at the inode. Whatever is archived from then on shows in the
/// inode, or overrules this note.
pub(in crate::daemon) fn note(
    pool: &Pool,
    candidate: &Candidate,
    known: Option<&FileRow>,
    batch: &mut Batch,
) -> Result<bool, FileOutcome> {
    let (fd, key) = (InodeFd::Path(candidate.path.as_fd()), &candidate.file.key);
    let facts = pool.attributes.facts(fd, &candidate.stat, Some(key))?;
    if facts.state == FileState::Resident {
        return Ok(false);
    }
    let recorded = facts.copy.map_or(0, |c| c.version.generation);
    let mut version = candidate.stat.version(key.generation().unwrap_or(recorded));
    let vouched = known.is_some_and(|k| k.version.ctime_ns == version.ctime_ns);
    if !vouched {
        // A scan does not know whether the data changed behind it: it must not vouch for it.
        version.ctime_ns = FileRow::UNKNOWN_CTIME;
    }
    let row = FileRow {
        key: candidate.file.key.clone(),
        object: facts.object,
        state: facts.state,
        version,
        local_bytes: Some(candidate.stat.allocated),
        path_hint: pool.relative(&candidate.name),
        archived_at_ns: facts.copy.map(|c| c.archived_at_ns),
    };
    batch.notes.push(Note { known: known.and_then(|k| k.object), row });
    Ok(true)
}
