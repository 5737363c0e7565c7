//! What each operation does with a batch.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::runner::{BatchLimit, Job};
use crate::archive::archive;
use crate::catalog::{Batch, FileRow, Note};
use crate::control::types::{Op, Outcome, Reason};
use crate::core;
use crate::daemon::outcome::{Candidate, FileOutcome, Stop};
use crate::daemon::pool::Pool;
use crate::failpoint::{Point, reach};
use crate::marker::{InodeFd, PolicyFlags};
use crate::release::release;
use crate::sys::fanotify::Verdict;
use crate::sys::inode;
use crate::sys::lease::{Lease, LeaseKind};

/// Files and bytes of an archive batch: the read leases of a batch are held until the store was
/// flushed, so it must not take long (whoever breaks one does not wait, but the copy is wasted).
/// Every batch costs a flush and dirties most pages of the catalogue: many small files go together.
const ARCHIVE_BATCH: BatchLimit = BatchLimit { files: 2048, bytes: 64 << 20 };
/// Recalls that a job has in work at once, per worker.
const RECALL_BATCH: BatchLimit = BatchLimit { files: 32, bytes: 64 << 20 };

/// How much one worker takes at once.
pub(super) fn batch_limit(job: &Job) -> BatchLimit {
    match job.request.op {
        Op::Archive | Op::Migrate => ARCHIVE_BATCH,
        Op::Release => BatchLimit { files: job.release_batch, bytes: u64::MAX },
        Op::Recall => RECALL_BATCH,
        Op::Pin | Op::Unpin | Op::Scan => BatchLimit { files: 64, bytes: u64::MAX },
    }
}

/// One outcome per candidate, in order.
pub(super) fn run(job: &Job, pool: &Arc<Pool>, batch: &[Candidate]) -> Vec<FileOutcome> {
    let dry_run = job.request.dry_run;
    let stop = || job.cancelled();
    match job.request.op {
        Op::Archive => archive(pool, batch, dry_run, &stop),
        Op::Release => release(pool, batch, dry_run, &stop),
        Op::Migrate => migrate(pool, batch, dry_run, &stop),
        Op::Recall => recall(pool, batch, dry_run, &stop),
        Op::Pin => batch.iter().map(|c| pin(pool, c, true, dry_run)).collect(),
        Op::Unpin => batch.iter().map(|c| pin(pool, c, false, dry_run)).collect(),
        Op::Scan => Vec::new(),
    }
}

/// Archive, then release what is archived by now.
fn migrate(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    dry_run: bool,
    stop: Stop<'_>,
) -> Vec<FileOutcome> {
    let archived = archive(pool, batch, dry_run, stop);
    if dry_run {
        return archived;
    }
    let good = |o: &FileOutcome| matches!(o.outcome, Outcome::Done | Outcome::Already);
    let release_one = |(candidate, outcome): (&Candidate, FileOutcome)| match duplicate(candidate) {
        _ if !good(&outcome) => Err(outcome),
        Ok(again) => Ok(again),
        Err(e) => Err(FileOutcome::io("the file cannot be examined", &e)),
    };
    let next: Vec<_> = batch.iter().zip(archived).map(release_one).collect();
    let (again, finished): (Vec<_>, Vec<_>) = next.into_iter().map(split).unzip();
    let again: Vec<_> = again.into_iter().flatten().collect();
    // What was archived is released even after a stop: a file that is half migrated serves nobody.
    let mut released = release(pool, &again, false, &|| false).into_iter();
    let missing = || FileOutcome::failed(Reason::Internal, "no outcome");
    finished.into_iter().map(|f| f.or_else(|| released.next()).unwrap_or_else(missing)).collect()
}

/// What goes on, and what has come to its end.
fn split(next: Result<Candidate, FileOutcome>) -> (Option<Candidate>, Option<FileOutcome>) {
    match next {
        Ok(candidate) => (Some(candidate), None),
        Err(outcome) => (None, Some(outcome)),
    }
}

/// The same file with a descriptor of its own, as it is now.
fn duplicate(candidate: &Candidate) -> std::io::Result<Candidate> {
    Ok(Candidate {
        file: candidate.file.clone(),
        path: candidate.path.try_clone()?,
        name: candidate.name.clone(),
        stat: inode::stat(&candidate.path)?,
        named: candidate.named,
    })
}

fn recall(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    dry_run: bool,
    stop: Stop<'_>,
) -> Vec<FileOutcome> {
    let start = |c| {
        if stop() { Err(FileOutcome::not_begun()) } else { start_recall(pool, c, dry_run) }
    };
    let started: Vec<_> = batch.iter().map(start).collect();
    let wait = |(candidate, started): (&Candidate, Result<_, FileOutcome>)| {
        let told: std::sync::mpsc::Receiver<Verdict> = match started {
            Ok(told) => told,
            Err(outcome) => return outcome,
        };
        match told.recv() {
            Ok(Verdict::Allow) => FileOutcome::done(candidate.stat.size),
            Ok(Verdict::Deny(errno)) => match pool.failures.take(&candidate.file.key) {
                Some((reason, detail)) => FileOutcome::failed(reason, detail),
                None => FileOutcome::io("recall failed", &std::io::Error::from_raw_os_error(errno)),
            },
            Err(_) => FileOutcome::failed(Reason::Interrupted, "the agent is stopping"),
        }
    };
    batch.iter().zip(started).map(wait).collect()
}

fn start_recall(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    dry_run: bool,
) -> Result<std::sync::mpsc::Receiver<Verdict>, FileOutcome> {
    if !candidate.stat.is_file() {
        let detail = "not a regular file";
        return Err(FileOutcome::policy(candidate.named, Reason::NotRegular, detail));
    }
    if pool.attributes.marker(InodeFd::Path(candidate.path.as_fd()))?.is_none() {
        return Err(FileOutcome::already("its data is local"));
    }
    if dry_run {
        return Err(FileOutcome::would(candidate.stat.size));
    }
    Ok(pool.recall_for_user(&candidate.file))
}

fn pin(pool: &Arc<Pool>, candidate: &Candidate, pinned: bool, dry_run: bool) -> FileOutcome {
    set_pin(pool, candidate, pinned, dry_run).unwrap_or_else(|outcome| outcome)
}

fn set_pin(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    pinned: bool,
    dry_run: bool,
) -> Result<FileOutcome, FileOutcome> {
    if !candidate.stat.is_file() {
        let detail = "not a regular file";
        return Err(FileOutcome::policy(candidate.named, Reason::NotRegular, detail));
    }
    let path = InodeFd::Path(candidate.path.as_fd());
    let busy = || FileOutcome::failed(Reason::Busy, "being archived or released right now");
    let _claim = pool.claim(&candidate.file, core::Job::Archive).ok_or_else(busy)?;
    let mut record = pool.attributes.record(path)?.unwrap_or_default();
    if record.policy.contains(PolicyFlags::PINNED) == pinned {
        return Ok(FileOutcome::already(if pinned { "pinned" } else { "not pinned" }));
    }
    if dry_run {
        return Ok(FileOutcome::would(0));
    }
    record.policy.set(PolicyFlags::PINNED, pinned);
    let quiet = Quiet::of(pool, candidate);
    pool.attributes.set_record(path, &record)?;
    // A crash here leaves a ctime that nobody vouches for: the next release compares the content.
    reach(Point::PinRecorded);
    quiet.keep_vouching(pool, candidate);
    Ok(FileOutcome::done(0))
}

/// Our own write of the record moves ctime. If the catalogue vouched for the data before, and
/// nobody can be writing, it may go on to.
struct Quiet {
    row: Option<(FileRow, Lease)>,
}

impl Quiet {
    fn of(pool: &Pool, candidate: &Candidate) -> Self {
        let none = Self { row: None };
        let Ok(Some(row)) = pool.catalog.get(&candidate.file.key) else { return none };
        if pool.attributes.marker(InodeFd::Path(candidate.path.as_fd())).is_ok_and(|m| m.is_some())
        {
            // Its recall will note the ctime.
            return none;
        }
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
        let Ok(fd) = inode::reopen(candidate.path.as_fd(), flags) else { return none };
        let lease = Lease::take(Arc::new(fd), LeaseKind::Read, &pool.breaks).ok().flatten();
        let unchanged =
            inode::stat(&candidate.path).is_ok_and(|s| s.ctime_ns == row.version.ctime_ns);
        match lease {
            Some(lease) if unchanged => Self { row: Some((row, lease)) },
            _ => none,
        }
    }

    fn keep_vouching(self, pool: &Pool, candidate: &Candidate) {
        let Some((mut row, lease)) = self.row else { return };
        let Ok(stat) = inode::stat(&candidate.path) else { return };
        row.version.ctime_ns = stat.ctime_ns;
        if lease.intact()
            && let Err(error) = pool
                .catalog
                .commit(&Batch { notes: vec![Note { known: row.object, row }], ..Batch::default() })
        {
            tracing::debug!(%error, "the next release compares the content");
        }
    }
}
