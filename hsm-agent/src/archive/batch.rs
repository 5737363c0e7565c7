//! The protocol, for many files at once: one flush of the store serves them all.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::attributes;
use super::upload::{Upload, UploadError};
use crate::catalog::{Batch, FileRow, IntentId, IntentOp, NewIntent};
use crate::control::types::Reason;
use crate::core::{FileState, Job, ObjectId};
use crate::daemon::dispatch::Claim;
use crate::daemon::metrics::add;
use crate::daemon::outcome::{Candidate, FileOutcome, Stop};
use crate::daemon::pool::{Pool, now_ns};
use crate::failpoint::{Point, reach};
use crate::marker::{ArchivedCopy, InodeFd, PolicyFlags, Record, Seen};
use crate::recall::store_reason;
use crate::release::same_content;
use crate::store::object::ObjectReader;
use crate::store::{ObjectKey, StoreError};
use crate::sys::inode;
use crate::sys::inode::Stat;
use crate::sys::lease::{Lease, LeaseKind};

/// How long a batch waits for files that are still open for writing, all of them together: mostly a
/// descriptor that a forked child closes at its exec.
const PATIENCE: Duration = Duration::from_millis(300);

/// Archives files. One outcome per candidate, in order.
pub fn archive(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    dry_run: bool,
    stop: Stop<'_>,
) -> Vec<FileOutcome> {
    let mut outcomes: Vec<Option<FileOutcome>> = batch.iter().map(|_| None).collect();
    let mut ready = Vec::new();
    let patience = Instant::now() + PATIENCE;
    // Neighbours in the store: one directory, one run of inodes and of bitmaps to make durable.
    let shard = rand::random();
    for (index, candidate) in batch.iter().enumerate() {
        match prepare(pool, candidate, dry_run, patience, shard) {
            Ok(file) => ready.push((index, file)),
            Err(outcome) => outcomes[index] = Some(outcome),
        }
    }
    for (index, outcome) in store_all(pool, batch, ready, stop) {
        outcomes[index] = Some(outcome);
    }
    let missing = || FileOutcome::failed(Reason::Internal, "no outcome");
    outcomes.into_iter().map(|o| o.unwrap_or_else(missing)).collect()
}

/// A file that nobody writes.
struct Ready {
    // Dropped in this order.
    lease: Lease,
    fd: Arc<OwnedFd>,
    stat: Stat,
    generation: u64,
    id: ObjectId,
    record: Record,
    /// Names of the attributes that go into the object.
    names: Vec<CString>,
    claim: Claim,
}

fn prepare(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    dry_run: bool,
    patience: Instant,
    shard: u8,
) -> Result<Ready, FileOutcome> {
    let path = InodeFd::Path(candidate.path.as_fd());
    if !candidate.stat.is_file() {
        let detail = "not a regular file";
        return Err(FileOutcome::policy(candidate.named, Reason::NotRegular, detail));
    }
    if candidate.stat.size == 0 {
        return Err(FileOutcome::skipped(Reason::Empty, "it has no data"));
    }
    if candidate.stat.size < pool.config.min_size.as_u64() {
        return Err(FileOutcome::skipped(Reason::TooSmall, "smaller than min_size of its pool"));
    }
    // What the claim finds stays so: neither a release nor a recall can begin while it holds.
    let claim =
        if dry_run { None } else { pool.claim_patiently(&candidate.file, Job::Archive, patience) };
    let seen = pool.attributes.seen(path)?;
    if seen.marker.is_some() {
        return Err(FileOutcome::already("offline"));
    }
    let record = seen.record.unwrap_or_default();
    if record.policy.contains(PolicyFlags::NOARCHIVE) {
        return Err(FileOutcome::policy(candidate.named, Reason::Noarchive, "marked noarchive"));
    }
    if is_current(pool, candidate, &record) {
        return Err(FileOutcome::already("archived"));
    }
    if dry_run {
        return Err(FileOutcome::would(candidate.stat.size));
    }
    let busy =
        || FileOutcome::failed(Reason::Busy, "being archived, released or recalled right now");
    acquire(pool, candidate, claim.ok_or_else(busy)?, seen, patience, shard)
}

/// Archived, and certainly unchanged since: only then there is nothing to do. When ctime moved,
/// archiving again is the way to be sure.
fn is_current(pool: &Pool, candidate: &Candidate, record: &Record) -> bool {
    let Some(copy) = record.archived else { return false };
    let now = candidate.stat.version(copy.version.generation);
    if !now.same_data_times(&copy.version) {
        return false;
    }
    let row = pool.catalog.get(&candidate.file.key).ok().flatten();
    row.is_some_and(|r| {
        now.is_vouched_by(Some(r.version.ctime_ns)) && r.object == Some(copy.object)
    })
}

/// `seen`: read under the claim, with no marker in it.
fn acquire(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    claim: Claim,
    seen: Seen,
    patience: Instant,
    shard: u8,
) -> Result<Ready, FileOutcome> {
    // It is online, and the claim keeps it so: neither our own open nor our reads need answers.
    pool.pass_over(InodeFd::Path(candidate.path.as_fd()));
    let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK;
    let fd = inode::reopen(candidate.path.as_fd(), flags)
        .map_err(|e| FileOutcome::io("the file cannot be opened", &e))?;
    let fd = Arc::new(fd);
    let lease = Lease::take_patiently(&fd, LeaseKind::Read, &pool.breaks, patience)
        .map_err(|e| FileOutcome::io("no lease on the file", &e))?
        .ok_or_else(|| {
            FileOutcome::failed(Reason::OpenElsewhere, "open for writing; try again later")
        })?;
    let stat = inode::stat(&*fd).map_err(|e| FileOutcome::io("the file cannot be examined", &e))?;
    let generation =
        inode::generation(&*fd).map_err(|e| FileOutcome::io("the file has no generation", &e))?;
    let id = ObjectId::random_in(shard);
    reach(Point::ArchiveLeased);
    let (record, names) = (seen.record.unwrap_or_default(), seen.others);
    let file = Ready { lease, fd, stat, generation, id, record, names, claim };
    if vouch_again(pool, candidate, &file) {
        return Err(FileOutcome::already("archived; its content was compared"));
    }
    Ok(file)
}

/// After a rebuilt catalogue, chmod or rename, only the content can tell whether the copy is still
/// good. If it is, nothing needs to be stored again.
fn vouch_again(pool: &Pool, candidate: &Candidate, file: &Ready) -> bool {
    let Some(copy) = file.record.archived else { return false };
    let version = file.stat.version(file.generation);
    if !version.same_data_times(&copy.version) {
        return false;
    }
    let same = same_content(pool, file.fd.as_fd(), copy.object, file.stat.size);
    if !same.unwrap_or(false) || !file.lease.intact() {
        return false;
    }
    let row = FileRow {
        key: candidate.file.key.clone(),
        object: Some(copy.object),
        state: FileState::Archived,
        version,
        local_bytes: Some(file.stat.allocated),
        path_hint: pool.relative(&candidate.name),
        archived_at_ns: Some(copy.archived_at_ns),
    };
    pool.catalog.commit(&Batch { upserts: vec![row], ..Batch::default() }).is_ok()
}

fn store_all(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    ready: Vec<(usize, Ready)>,
    stop: Stop<'_>,
) -> Vec<(usize, FileOutcome)> {
    if ready.is_empty() {
        return Vec::new();
    }
    // Durable before the first byte goes out: after a crash the next start knows which objects
    // may lie in the store without a record, and retires them.
    let intents = ready.iter().map(|(i, file)| intent(&batch[*i], file)).collect::<Vec<_>>();
    let intents = match pool.catalog.begin(&intents) {
        Ok(intents) => intents,
        Err(e) => {
            let failed = |(i, _)| (i, FileOutcome::failed(Reason::Io, e.to_string()));
            return ready.into_iter().map(failed).collect();
        }
    };
    reach(Point::ArchiveIntended);
    let one = |(i, file): &(usize, Ready)| {
        if stop() { Err(FileOutcome::not_begun().into()) } else { upload(pool, &batch[*i], file) }
    };
    let uploaded: Vec<_> = ready.iter().map(one).collect();
    let flushed = flush(pool);
    reach(Point::ArchiveFlushed);
    let mut catalogue = Batch::default();
    let mut outcomes = Vec::new();
    let mut claims = Vec::new();
    for (((index, file), uploaded), intent) in ready.into_iter().zip(uploaded).zip(intents) {
        // The object is durable before the record says so.
        let result = uploaded.and_then(|()| {
            flushed.clone()?;
            verify(pool, &file)?;
            Ok(write_record(pool, &batch[index], &file)?)
        });
        outcomes.push((index, finish(pool, &batch[index], &file, result, intent, &mut catalogue)));
        claims.push(file.claim);
    }
    if let Err(error) = pool.catalog.commit(&catalogue) {
        tracing::warn!(%error, "catalogue not updated; the next start will");
    }
    reach(Point::ArchiveCommitted);
    // Not before the rows are in, as in a release: a file that were changed and archived again meanwhile would
    // get this older row back, and lose its newer copy.
    drop(claims);
    outcomes
}

fn intent(candidate: &Candidate, file: &Ready) -> NewIntent {
    NewIntent {
        op: IntentOp::Archive,
        key: candidate.file.key.clone(),
        object: file.id,
        started_ns: now_ns(),
        path_hint: candidate.name.as_os_str().as_encoded_bytes().to_vec(),
    }
}

/// Why a file is not archived.
struct Failure {
    outcome: FileOutcome,
    /// The store may still be about to make the object: it was told to, and has not said how that went.
    under_way: bool,
}

impl From<FileOutcome> for Failure {
    fn from(outcome: FileOutcome) -> Self {
        Self { outcome, under_way: false }
    }
}

fn upload(pool: &Pool, candidate: &Candidate, file: &Ready) -> Result<(), Failure> {
    let hint = pool.relative(&candidate.name);
    let attributes = attributes::read(file.fd.as_fd(), &file.stat, &file.names, hint)
        .map_err(|e| FileOutcome::io("the attributes cannot be read", &e))?;
    let (fd, size) = (file.fd.as_fd(), file.stat.size);
    let upload = Upload { pool, id: file.id, fd, size, lease: &file.lease };
    upload.run(attributes).map_err(|e| match e {
        UploadError::Store(e) => Failure { outcome: store_failed(&e), under_way: true },
        UploadError::Changed => FileOutcome::failed(Reason::Changed, e.to_string()).into(),
        UploadError::Read(_) | UploadError::Encode(_) => {
            FileOutcome::failed(Reason::Io, e.to_string()).into()
        }
    })?;
    reach(Point::ArchiveStored);
    Ok(())
}

fn store_failed(error: &StoreError) -> FileOutcome {
    FileOutcome::failed(store_reason(error), error.to_string())
}

fn flush(pool: &Pool) -> Result<(), FileOutcome> {
    match pool.store.blocking() {
        Some(store) => store.flush(),
        None => pool.runtime.block_on(pool.store.flush()),
    }
    .map_err(|e| store_failed(&e))
}

fn verify(pool: &Pool, file: &Ready) -> Result<(), FileOutcome> {
    if !pool.verifies() {
        return Ok(());
    }
    let read_back =
        async { ObjectReader::open(Arc::clone(&pool.store), file.id).await?.verify_all().await };
    pool.runtime.block_on(read_back).map_err(|e| store_failed(&e))?;
    reach(Point::ArchiveVerified);
    Ok(())
}

/// The lease has held all the time and the version is the same: the object is this data.
fn write_record(pool: &Pool, candidate: &Candidate, file: &Ready) -> Result<FileRow, FileOutcome> {
    let io = |e: std::io::Error| FileOutcome::io("the file cannot be examined", &e);
    let changed = || FileOutcome::failed(Reason::Changed, "opened for writing while archived");
    let version = file.stat.version(file.generation);
    let record = Record {
        archived: Some(ArchivedCopy { object: file.id, version, archived_at_ns: now_ns() }),
        policy: file.record.policy,
    };
    let now = inode::stat(&*file.fd).map_err(io)?;
    if !now.version(file.generation).same_data_times(&version) {
        return Err(changed());
    }
    // The object is durable. A crash after this finds the intent, and in the record the object's name.
    pool.attributes.set_record(InodeFd::Open(file.fd.as_fd()), &record)?;
    reach(Point::ArchiveRecorded);
    // ctime as our own write of the record left it, seen before anybody could write: while it
    // stays so, the data is unchanged.
    let after = inode::stat(&*file.fd).map_err(io)?;
    if !file.lease.intact() || !after.version(file.generation).same_data_times(&version) {
        // The record with this version may stay: whoever wrote has moved mtime, or is about to.
        // But without the ctime nothing vouches for it, so a release will compare the content.
        return Err(changed());
    }
    Ok(FileRow {
        key: candidate.file.key.clone(),
        object: Some(file.id),
        state: FileState::Archived,
        version: after.version(file.generation),
        local_bytes: Some(after.allocated),
        path_hint: pool.relative(&candidate.name),
        archived_at_ns: record.archived.map(|a| a.archived_at_ns),
    })
}

fn finish(
    pool: &Pool,
    candidate: &Candidate,
    file: &Ready,
    result: Result<FileRow, Failure>,
    intent: IntentId,
    catalogue: &mut Batch,
) -> FileOutcome {
    match result {
        Ok(row) => {
            add(&pool.metrics.archived, 1);
            add(&pool.metrics.bytes_archived, file.stat.size);
            // The copy of the previous version has served.
            let old = file.record.archived.map(|a| a.object);
            catalogue.retired.extend(old.map(|object| (object, now_ns())));
            catalogue.upserts.push(row);
            catalogue.finished.push(intent);
            FileOutcome::done(file.stat.size)
        }
        Err(Failure { outcome, under_way }) => {
            give_up(pool, candidate, file, under_way, intent, catalogue);
            outcome
        }
    }
}

/// The object is of no use, unless the record already names it. One that is `under_way` may come into being after it
/// was deleted, so it is deleted once more when its retention is over.
fn give_up(
    pool: &Pool,
    candidate: &Candidate,
    file: &Ready,
    under_way: bool,
    intent: IntentId,
    catalogue: &mut Batch,
) {
    let named = match pool.attributes.record(InodeFd::Open(file.fd.as_fd())) {
        Ok(record) => record.and_then(|r| r.archived),
        Err(error) => {
            // The intent stays: the next start finds out whether anything names the object.
            tracing::warn!(%error, file = %candidate.name.display(), "the record of an archive that failed cannot be read");
            return;
        }
    };
    if let Some(copy) = named.filter(|copy| copy.object == file.id) {
        // The copy of the previous version has served: nothing names it any more.
        let old = file.record.archived.map(|a| a.object);
        catalogue.retired.extend(old.map(|object| (object, now_ns())));
        // Nobody vouches for the new one, but the inode names it: so must the index, or the object would be
        // forgotten together with the file.
        let mut version = file.stat.version(file.generation);
        version.ctime_ns = FileRow::UNKNOWN_CTIME;
        catalogue.upserts.push(FileRow {
            key: candidate.file.key.clone(),
            object: Some(copy.object),
            state: FileState::Dirty,
            version,
            local_bytes: Some(file.stat.allocated),
            path_hint: pool.relative(&candidate.name),
            archived_at_ns: Some(copy.archived_at_ns),
        });
        catalogue.finished.push(intent);
        return;
    }
    let key = ObjectKey::new(file.id);
    let deleted = match pool.store.blocking() {
        Some(store) => store.delete(&key),
        None => pool.runtime.block_on(pool.store.delete(&key)),
    };
    // A crash here finds the intent of an object that does not exist: it is retired in vain.
    reach(Point::ArchiveUndone);
    if let Err(error) = &deleted {
        tracing::warn!(%error, "an unused object is left in the store for now");
    }
    if under_way || deleted.is_err() {
        catalogue.retired.push((file.id, now_ns()));
    }
    catalogue.finished.push(intent);
}
