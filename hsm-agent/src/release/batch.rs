//! The protocol, for many files at once.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::compare::{CompareError, same_content, same_remains};
use super::eligible::{Eligibility, eligible};
use crate::catalog::{Batch, FileRow, IntentId, IntentOp, NewIntent};
use crate::control::types::Reason;
use crate::core::{FileState, Job};
use crate::daemon::dispatch::Claim;
use crate::daemon::metrics::add;
use crate::daemon::outcome::{Candidate, FileOutcome, Stop};
use crate::daemon::pool::{Pool, now_ns};
use crate::failpoint::{Point, reach};
use crate::marker::{ArchivedCopy, InodeFd, Marker, MarkerFlags, MarkerState, Owner};
use crate::store::object::chunk_shift_for;
use crate::sys::inode::Stat;
use crate::sys::lease::{Lease, LeaseKind};
use crate::sys::{inode, space};

/// How long a batch waits for files that somebody else still has, all of them together: a recall that
/// is settling, a descriptor that a forked child closes at its exec. Whoever opens one of the files
/// that the batch has already waits as well.
pub const PATIENCE: Duration = Duration::from_millis(300);
/// How long a file has, however many come before it, until an event of our own is closed.
const OWN_EVENT: Duration = Duration::from_millis(30);
/// Up to this many files are synced one by one; more with one `syncfs`.
const SINGLY: usize = 4;

/// Releases files. One outcome per candidate, in order.
pub fn release(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    dry_run: bool,
    stop: Stop<'_>,
) -> Vec<FileOutcome> {
    // Until all of it is done or undone: whoever passed the kernel programs before a marker was set is looked at again.
    let _armed = match if dry_run { Ok(None) } else { pool.second_net.hold().map(Some) } {
        Ok(armed) => armed,
        Err(error) => {
            let failed = || FileOutcome::failed(Reason::Io, error.to_string());
            return batch.iter().map(|_| failed()).collect();
        }
    };
    let keys: Vec<_> = batch.iter().map(|c| c.file.key.clone()).collect();
    // Without the catalogue's word every file is compared with its object: slow, but safe.
    let rows = pool.catalog.get_many(&keys).unwrap_or_else(|error| {
        tracing::warn!(%error, "catalogue not readable; comparing contents instead");
        vec![None; keys.len()]
    });
    if !dry_run {
        let now = Instant::now();
        if let Some(left) = keys.iter().filter_map(|key| pool.cutters.may_come(key, now)).max() {
            std::thread::sleep(left);
        }
    }
    let mut outcomes: Vec<Option<FileOutcome>> = batch.iter().map(|_| None).collect();
    let mut ready = Vec::new();
    let patience = Instant::now() + PATIENCE;
    for (index, (candidate, row)) in batch.iter().zip(rows).enumerate() {
        if stop() {
            outcomes[index] = Some(FileOutcome::not_begun());
            continue;
        }
        match prepare(pool, candidate, row.as_ref(), dry_run, patience) {
            Ok(file) => ready.push((index, file)),
            Err(outcome) => outcomes[index] = Some(outcome),
        }
    }
    for (index, outcome) in commit(pool, batch, ready) {
        outcomes[index] = Some(outcome);
    }
    let missing = || FileOutcome::failed(Reason::Internal, "no outcome");
    outcomes.into_iter().map(|o| o.unwrap_or_else(missing)).collect()
}

/// A file whose data may go: nobody else has it open, it is watched, and its copy is good.
struct Ready {
    // Dropped in this order: the lease, the descriptor, and last the claim, which lets waiting
    // accesses look at the file.
    lease: Lease,
    fd: Arc<OwnedFd>,
    stat: Stat,
    copy: ArchivedCopy,
    generation: u64,
    /// Whether there is a residency map of an earlier time.
    map: bool,
    claim: Claim,
}

/// Steps 1 to 4: eligible, claimed, watched, leased, unchanged.
fn prepare(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    row: Option<&FileRow>,
    dry_run: bool,
    patience: Instant,
) -> Result<Ready, FileOutcome> {
    let path = InodeFd::Path(candidate.path.as_fd());
    if !candidate.stat.is_file() {
        let detail = "not a regular file";
        return Err(FileOutcome::policy(candidate.named, Reason::NotRegular, detail));
    }
    if candidate.stat.size == 0 {
        return Err(FileOutcome::skipped(Reason::Empty, "there is nothing to release"));
    }
    if pool.attributes.marker(path)?.is_some() {
        return Err(FileOutcome::already("offline"));
    }
    // A first look, before anything is touched. The generation is not known yet.
    let record = pool.attributes.record(path)?;
    let generation = row.map_or(0, |r| r.version.generation);
    let seen = row.map(|r| r.version.ctime_ns);
    let archived = record.as_ref().and_then(|r| r.archived);
    let assumed = archived.map_or(generation, |a| a.version.generation);
    if let Eligibility::Refused(reason, detail) =
        eligible(&candidate.stat.version(assumed), record.as_ref(), seen)
    {
        let policy = reason == Reason::Pinned;
        return Err(FileOutcome::policy(candidate.named || !policy, reason, detail));
    }
    if dry_run {
        return Err(FileOutcome::would(candidate.stat.allocated));
    }
    let busy = || FileOutcome::failed(Reason::Busy, "being read, archived or recalled right now");
    // A file that was recalled a moment ago may still be settling.
    let claim = pool.claim_patiently(&candidate.file, Job::Release, patience).ok_or_else(busy)?;
    acquire(pool, candidate, claim, seen, patience)
}

/// The claim holds: from here on no access to this file is answered until it is dropped.
fn acquire(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    claim: Claim,
    seen_ctime_ns: Option<i64>,
    patience: Instant,
) -> Result<Ready, FileOutcome> {
    // Somebody may have been let through since the batch waited for such callers; from the claim on nobody is.
    if pool.cutters.may_come(&candidate.file.key, Instant::now()).is_some() {
        let detail = "somebody may be about to cut it; try again in a second";
        return Err(FileOutcome::failed(Reason::Busy, detail));
    }
    let path = InodeFd::Path(candidate.path.as_fd());
    // Whatever was read before the claim may be old: an ignore mark on an offline file would let
    // everybody read zeros.
    let seen = pool.attributes.seen(path)?;
    if seen.marker.is_some() {
        return Err(FileOutcome::already("offline"));
    }
    // Step 2. Our own open needs no answer if the file is passed over; it is online, and claimed.
    pool.pass_over(path);
    let opened = pool.open_invisible(candidate.path.as_fd());
    // The watch must be in place before the lease: whoever opens the file after the lease was
    // taken must end up waiting for *our answer*, never merely for the lease. The lease dies with
    // this process, and with a marker set he would then go on over a stub.
    pool.watch(path).map_err(|e| FileOutcome::io("the file cannot be watched", &e))?;
    let fd = Arc::new(opened.map_err(|e| open_failed(&e))?);
    // Step 3.
    let lease = Lease::take_patiently(&fd, LeaseKind::Write, &pool.breaks, patience)
        .map_err(|e| FileOutcome::io("no lease on the file", &e))?
        .ok_or_else(open_elsewhere)?;
    // Step 4: everything again, now that nobody can change it.
    let stat = inode::stat(&*fd).map_err(|e| FileOutcome::io("the file cannot be examined", &e))?;
    let generation =
        inode::generation(&*fd).map_err(|e| FileOutcome::io("the file has no generation", &e))?;
    let record = pool.attributes.record(InodeFd::Open(fd.as_fd()))?;
    let copy = match eligible(&stat.version(generation), record.as_ref(), seen_ctime_ns) {
        Eligibility::Unchanged(copy) => copy,
        Eligibility::Compare(copy) => {
            compare(pool, &fd, &copy, &stat)?;
            copy
        }
        Eligibility::Refused(reason, detail) => return Err(FileOutcome::failed(reason, detail)),
    };
    let file = Ready { lease, fd, stat, copy, generation, map: seen.map, claim };
    let preallocated = space::is_preallocated(&*file.fd, stat.size, stat.allocated)
        .map_err(|e| FileOutcome::io("the file's holes cannot be found", &e))?;
    if preallocated {
        trim(pool, &file)?;
    }
    reach(Point::ReleaseLeased);
    Ok(file)
}

/// Gives back what is allocated behind the end. The truncation raises an event, and to deliver it the
/// kernel would wait for our own lease: so the file is passed over meanwhile. Whoever opens it in that
/// moment does not wait for our answer and must not find a marker later: the lease is taken again,
/// which fails if anybody has raised the open count.
fn trim(pool: &Pool, file: &Ready) -> Result<(), FileOutcome> {
    let open = InodeFd::Open(file.fd.as_fd());
    let failed = |e: std::io::Error| FileOutcome::io("preallocated blocks cannot be freed", &e);
    pool.pass_over(open);
    // A crash in between leaves a local file whose mtime has moved: it is archived again.
    let trimmed = space::trim(&*file.fd, file.stat.size)
        .inspect(|()| reach(Point::ReleaseTrimmed))
        .and_then(|()| inode::restore_times(&*file.fd, &file.stat));
    pool.watch(open).map_err(failed)?;
    trimmed.map_err(failed)?;
    if file.lease.retake().map_err(failed)? { Ok(()) } else { Err(opened_meanwhile()) }
}

fn open_failed(error: &std::io::Error) -> FileOutcome {
    match error.raw_os_error() {
        // A running program, an active swap file.
        Some(libc::ETXTBSY) => open_elsewhere(),
        Some(libc::EAGAIN) => FileOutcome::failed(
            Reason::OpenElsewhere,
            "a program has a lease on it; try again later",
        ),
        Some(libc::ETIMEDOUT) => {
            FileOutcome::failed(Reason::Busy, "the machine is too busy; try again later")
        }
        _ => FileOutcome::io("the file cannot be opened", error),
    }
}

fn open_elsewhere() -> FileOutcome {
    FileOutcome::failed(
        Reason::OpenElsewhere,
        "open or mapped by a program, in use as swap or by a loop device; `fuser -v` may tell which",
    )
}

fn opened_meanwhile() -> FileOutcome {
    FileOutcome::failed(Reason::OpenElsewhere, "opened while it was being released; try again")
}

fn compare(pool: &Pool, fd: &OwnedFd, copy: &ArchivedCopy, stat: &Stat) -> Result<(), FileOutcome> {
    match same_content(pool, fd.as_fd(), copy.object, stat.size) {
        Ok(true) => {
            inode::restore_times(fd, stat).map_err(|e| FileOutcome::io("times", &e))?;
            Ok(())
        }
        Ok(false) => Err(FileOutcome::failed(
            Reason::Dirty,
            "its content is not that of the archived copy; `hsm archive` it again",
        )),
        Err(CompareError::Store(e)) => {
            Err(FileOutcome::failed(crate::recall::store_reason(&e), e.to_string()))
        }
        Err(CompareError::Read(e)) => Err(FileOutcome::io("the file cannot be read", &e)),
    }
}

/// Steps 5 to 9.
fn commit(
    pool: &Arc<Pool>,
    batch: &[Candidate],
    ready: Vec<(usize, Ready)>,
) -> Vec<(usize, FileOutcome)> {
    if ready.is_empty() {
        return Vec::new();
    }
    // Step 5. A crash after this finds the intent and looks at the marker: present means offline
    // (the copy is good), absent means that nothing happened.
    let intents = ready.iter().map(|(i, file)| intent(&batch[*i], file)).collect::<Vec<_>>();
    let intents = match pool.catalog.begin(&intents) {
        Ok(intents) => intents,
        Err(e) => {
            let failed = |(i, _)| (i, FileOutcome::failed(Reason::Io, e.to_string()));
            return ready.into_iter().map(failed).collect();
        }
    };
    reach(Point::ReleaseIntended);
    // Step 6: the data, the markers, and only then the punch, each on the device before the next begins.
    // A crash between marker and punch leaves an offline file with its data still there:
    // the copy in the store is identical, and recall writes the same bytes over it.
    // The kernel tells a write error once per open descriptor: this one is ours alone, and older
    // than the writes that it must vouch for.
    let device =
        pool.own_root().map_err(|e| FileOutcome::io("the mount point cannot be opened", &e));
    let written =
        device.as_ref().map_err(Clone::clone).and_then(|device| write_out(device, &ready));
    reach(Point::ReleaseWritten);
    let mark = |(_, file): &(usize, Ready)| written.clone().and_then(|()| mark(pool, file));
    let marked: Vec<_> = ready.iter().map(mark).collect();
    let fds: Vec<_> = ready.iter().map(|(_, file)| &*file.fd).collect();
    let synced = device.and_then(|device| sync(&device, &fds, "the marker cannot be made durable"));
    reach(Point::ReleaseSynced);
    let mut catalogue = Batch::default();
    let mut outcomes = Vec::new();
    let mut claims = Vec::new();
    for (((index, file), marked), intent) in ready.into_iter().zip(marked).zip(intents) {
        let result = marked.and_then(|()| synced.clone()).map_err(Abort::Undo).and_then(|()| {
            take_away(pool, &file).map(|stat| row(pool, &batch[index], &file, &stat))
        });
        outcomes.push((index, finish(pool, &file, result, intent, &mut catalogue)));
        claims.push(file.claim);
    }
    if let Err(error) = pool.catalog.commit(&catalogue) {
        tracing::warn!(%error, "catalogue not updated; the next start will");
    }
    reach(Point::ReleaseCommitted);
    // Not before the rows are in. A file that were recalled, changed and archived again meanwhile would get
    // this older row back, and its only copy would be given to the garbage collection.
    drop(claims);
    outcomes
}

fn intent(candidate: &Candidate, file: &Ready) -> NewIntent {
    NewIntent {
        op: IntentOp::Release,
        key: candidate.file.key.clone(),
        object: file.copy.object,
        started_ns: now_ns(),
        path_hint: candidate.name.as_os_str().as_encoded_bytes().to_vec(),
    }
}

fn mark(pool: &Pool, file: &Ready) -> Result<(), FileOutcome> {
    let open = InodeFd::Open(file.fd.as_fd());
    let chunk_shift = chunk_shift_for(file.stat.size)
        .ok_or_else(|| FileOutcome::failed(Reason::Io, "the file is too large"))?;
    let marker = Marker {
        object: file.copy.object,
        size: file.stat.size,
        epoch: rand::random(),
        owner: Owner::of(file.stat.ino, file.generation),
        chunk_shift,
        state: MarkerState::Offline,
        flags: MarkerFlags::empty(),
    };
    if file.map {
        // It would not count (its epoch differs), but why keep it.
        pool.attributes.remove_map(open)?;
    }
    // Only over what was compared: somebody may have come for the lease since, been let through at once, and
    // changed the file (truncate(2) opens nothing, and may have passed the watch's place before the watch was
    // there). Died we then before the marker is taken back, it would stay over data that its object does
    // not have. Nor is the lease let go while the marker is being set. Who comes then finds it.
    let set = file.lease.while_intact(|| pool.attributes.set_marker(open, &marker));
    set.ok_or_else(opened_meanwhile)??;
    reach(Point::ReleaseMarked);
    Ok(())
}

/// The data is on the device before any marker is: a journal may commit the marker at once, and after a
/// power cut there must not be older data under it. Files that were written a while ago have nothing
/// left to write, and cost one system call.
fn write_out(device: &OwnedFd, ready: &[(usize, Ready)]) -> Result<(), FileOutcome> {
    let files = ready.iter().map(|(_, file)| &*file.fd);
    let dirty: Vec<_> = files.filter(|fd| space::is_dirty(fd)).collect();
    sync(device, &dirty, "its data cannot be written out")
}

/// What these files have, and (if there are many) all others of the file system, is on the device.
fn sync(device: &OwnedFd, files: &[&OwnedFd], failed: &'static str) -> Result<(), FileOutcome> {
    let result = if files.len() <= SINGLY {
        files.iter().try_for_each(rustix::fs::fsync)
    } else {
        rustix::fs::syncfs(device)
    };
    result.map_err(|e| FileOutcome::io(failed, &e.into()))
}

/// A release that stopped, and what is known of the data then.
enum Abort {
    /// Nothing was taken away: the marker may go again.
    Undo(FileOutcome),
    /// The punch was begun: the marker stays, for ever if need be. The copy is good.
    Keep(FileOutcome),
}

/// Steps 7 and 8: the lease again, then the punch. An opener who passed the kernel's check before
/// the watch was in place has raised the inode's open count by now, so that the lease fails; one
/// who broke the lease since is seen too. One who comes later waits for our answer.
fn take_away(pool: &Pool, file: &Ready) -> Result<Stat, Abort> {
    let again = file.lease.retake();
    let again = again.map_err(|e| Abort::Undo(FileOutcome::io("no lease on the file", &e)))?;
    if !again {
        return Err(Abort::Undo(opened_meanwhile()));
    }
    reach(Point::ReleaseRetaken);
    let punched = file.lease.while_intact(|| punch(pool, &file.fd, file.stat.size));
    let keep = |what: &'static str| move |e: std::io::Error| Abort::Keep(FileOutcome::io(what, &e));
    punched
        .ok_or_else(|| Abort::Undo(opened_meanwhile()))?
        .map_err(keep("the data cannot be taken away"))?;
    // A crash here leaves another mtime on a good stub. The record has the right one, and recovery
    // puts it back.
    reach(Point::ReleasePunched);
    inode::restore_times(&*file.fd, &file.stat).map_err(keep("the times cannot be restored"))?;
    reach(Point::ReleaseTimed);
    inode::stat(&*file.fd).map_err(keep("the file cannot be examined"))
}

/// What the kernel knows as resident must be forgotten before it is not; by whom it could be read, the
/// lease keeps out.
fn punch(pool: &Pool, fd: &OwnedFd, size: u64) -> std::io::Result<()> {
    pool.nothing_resident(InodeFd::Open(fd.as_fd()))?;
    space::punch_all(fd, size)
}

fn row(pool: &Pool, candidate: &Candidate, file: &Ready, stat: &Stat) -> FileRow {
    FileRow {
        key: candidate.file.key.clone(),
        object: Some(file.copy.object),
        state: FileState::Offline,
        version: stat.version(file.generation),
        local_bytes: Some(stat.allocated),
        path_hint: pool.relative(&candidate.name),
        archived_at_ns: Some(file.copy.archived_at_ns),
    }
}

/// Step 9, or the way back.
fn finish(
    pool: &Arc<Pool>,
    file: &Ready,
    result: Result<FileRow, Abort>,
    intent: IntentId,
    catalogue: &mut Batch,
) -> FileOutcome {
    match result {
        Ok(row) => {
            let bytes = file.stat.allocated;
            add(&pool.metrics.released, 1);
            add(&pool.metrics.bytes_released, bytes);
            catalogue.upserts.push(row);
            catalogue.finished.push(intent);
            FileOutcome::done(bytes)
        }
        Err(Abort::Undo(outcome)) => {
            // Durable before the claim goes: a writer's own fdatasync would not make it so (ext4
            // commits there only what the data needs), and a power cut would bring the marker back
            // over his bytes.
            let removed = pool.attributes.remove_marker(InodeFd::Open(file.fd.as_fd()));
            reach(Point::ReleaseUnmarked);
            let removed = removed
                .map_err(|e| e.to_string())
                .and_then(|_| rustix::fs::fsync(&*file.fd).map_err(|e| e.to_string()));
            reach(Point::ReleaseUndone);
            match removed {
                Ok(()) => catalogue.finished.push(intent),
                // The file is offline for everybody, and its data will be recalled.
                Err(error) => tracing::error!(%error, "the marker of an unreleased file stays"),
            }
            outcome
        }
        // The intent stays open: the next start finishes it.
        Err(Abort::Keep(outcome)) => outcome,
    }
}

/// Why a release that was cut off is not finished.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    /// Somebody uses the file now.
    #[error("{0}")]
    Busy(&'static str),
    /// Something else, which does not pass by itself.
    #[error("{0}")]
    Refused(String),
}

/// Recovery: finishes a release that stopped between marker and punch, if nobody uses the file.
/// Waits until `patience` for somebody who has it open. A partial file was released before, and stays.
/// Returns the row for the catalogue, with the claim under which it is to be noted, or why the release is
/// not finished.
pub fn repunch(
    pool: &Arc<Pool>,
    candidate: &Candidate,
    patience: Instant,
) -> Result<(FileRow, Claim), Unfinished> {
    use Unfinished::{Busy, Refused};
    let io = |what: &'static str| move |e: std::io::Error| Refused(format!("{what}: {e}"));
    let refused = |e: &dyn std::fmt::Display| Refused(e.to_string());
    let claim = pool.claim(&candidate.file, Job::Release);
    let claim = claim.ok_or(Busy("somebody waits for the file"))?;
    let opened = pool.open_invisible(candidate.path.as_fd());
    let fd = Arc::new(opened.map_err(io("the file cannot be opened"))?);
    // The holder closes the event of our own open a moment after it has answered it.
    let patience = patience.max(Instant::now() + OWN_EVENT);
    let lease = Lease::take_patiently(&fd, LeaseKind::Write, &pool.breaks, patience)
        .map_err(io("no lease on the file"))?
        .ok_or(Busy("somebody has the file open"))?;
    let open = InodeFd::Open(fd.as_fd());
    let marker = pool.attributes.marker(open).map_err(|e| refused(&e))?;
    let marker = marker.ok_or_else(|| refused(&"its marker is gone"))?;
    let record = pool.attributes.record(open).map_err(|e| refused(&e))?;
    let copy = record.and_then(|r| r.archived).filter(|c| c.object == marker.object);
    let copy = copy.ok_or_else(|| refused(&"its record does not name the marker's object"))?;
    let stat = inode::stat(&*fd).map_err(io("the file cannot be examined"))?;
    let generation = inode::generation(&*fd).map_err(io("the file has no generation"))?;
    // A marker that was copied here says nothing of this file's data, which may be the only copy.
    if marker.owner != Owner::of(stat.ino, generation) || stat.size != marker.size {
        return Err(refused(&"its marker is not that of this file and size"));
    }
    // Ranges have been recalled since: the release had come to its end, and a power cut took back only what
    // the catalogue knew of that. Punched now, they would be zeros that the map vouches for.
    let map = pool.attributes.map(open, &marker).map_err(|e| refused(&e))?;
    if (0..map.chunks()).any(|chunk| map.contains(chunk)) {
        let file = Ready { lease, fd, stat, copy, generation, map: true, claim };
        let row = FileRow { state: FileState::Partial, ..row(pool, candidate, &file, &stat) };
        return Ok((row, file.claim));
    }
    // The marker may have been set by a process that died before its sync.
    rustix::fs::fsync(&*fd).map_err(|e| io("the marker cannot be made durable")(e.into()))?;
    reach(Point::RecoverSynced);
    // Somebody may have written since: while nobody watched, or because the release had turned back and
    // its marker came back with a power cut. mtime cannot tell: an fdatasync makes bytes durable
    // without it. So what is there is taken away only if the object has it.
    if !same_remains(pool, fd.as_fd(), copy.object, stat.size).map_err(|e| refused(&e))? {
        return Err(refused(&"the file was written to without the agent"));
    }
    if !lease.retake().map_err(io("no lease on the file"))? {
        return Err(Busy("somebody has the file open"));
    }
    reach(Point::RecoverCompared);
    lease
        .while_intact(|| punch(pool, &fd, stat.size))
        .ok_or(Busy("somebody wants the file"))?
        .map_err(io("the data cannot be taken away"))?;
    reach(Point::RecoverPunched);
    // The times as they were: the crash may have come before they were restored.
    let before = Stat { mtime_ns: copy.version.mtime_ns, ..stat };
    inode::restore_times(&*fd, &before).map_err(io("the times cannot be restored"))?;
    reach(Point::RecoverTimed);
    let file = Ready { lease, fd, stat, copy, generation, map: false, claim };
    let now = inode::stat(&*file.fd).map_err(io("the file cannot be examined"))?;
    Ok((row(pool, candidate, &file, &now), file.claim))
}
