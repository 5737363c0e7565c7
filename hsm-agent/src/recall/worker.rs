//! Carries out one recall, on a thread that may block.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::error::{RecallError, local};
use super::plan;
use super::progress::Underway;
use super::settle::{Settle, Stage};
use crate::core::{Recalled, Want};
use crate::daemon::pool::{FileRef, Pool};
use crate::failpoint::{Point, reach};
use crate::marker::{InodeFd, Marker, MarkerState, Owner, ResidencyMap};
use crate::release::read_full;
use crate::store::StoreError;
use crate::store::object::{Chunk, ObjectReader};
use crate::sys::inode::Stat;
use crate::sys::{inode, lease, space};

/// A recall of more bytes begins to write them to the device while others are still fetched, in pieces
/// of this size; the sync at its end, for which its readers wait, then has little left to do.
const WRITE_BACK: u64 = 8 << 20;

/// One recall to do.
#[derive(Debug)]
pub struct Recall {
    /// Which file.
    pub file: FileRef,
    /// How much of it.
    pub want: Want,
}

/// What came of it.
#[derive(Debug)]
pub struct RecallOutcome {
    /// For the state machine.
    pub recalled: Recalled,
    /// The file's data is in place and waits for its sync.
    pub settle: Option<Settle>,
    /// Bytes that were written.
    pub bytes: u64,
}

/// Brings the data back. On error the file is as offline as before.
pub fn recall(pool: &Pool, job: &Recall) -> Result<RecallOutcome, RecallError> {
    let path = pool.open_path(&job.file).map_err(local("the file cannot be opened"))?;
    let Some(marker) = pool.attributes.marker(InodeFd::Path(path.as_fd()))? else {
        return Ok(RecallOutcome { recalled: Recalled::Complete, settle: None, bytes: 0 });
    };
    let before = inode::stat(&path).map_err(local("the file cannot be examined"))?;
    // Again, with a descriptor that keeps the inode in memory: the watch could have gone with it since
    // somebody looked.
    pool.keep_watch(InodeFd::Path(path.as_fd())).map_err(local("the file cannot be watched"))?;
    let fd = pool.open_invisible(path.as_fd()).map_err(local("the file cannot be written"))?;
    // The generation takes a descriptor that is open for IO.
    let generation = inode::generation(&fd).map_err(local("the file has no generation"))?;
    if marker.owner != Owner::of(before.ino, generation) {
        return Err(RecallError::Foreign { name: pool.config.marker.clone() });
    }
    if before.size == 0 && marker.size > 0 {
        return truncated(pool, path.as_fd());
    }
    if before.size != marker.size {
        return Err(RecallError::SizeChanged { found: before.size, expected: marker.size });
    }
    let object = open_object(pool, &marker)?;
    let map = pool.attributes.map(InodeFd::Path(path.as_fd()), &marker)?;
    let chunks = plan::chunks(object.manifest(), &map, &job.want);
    let leftovers =
        space::data_extents(&fd, before.size).map_err(local("the file's holes cannot be found"))?;
    let underway = pool.progress.begin(&job.file.key);
    let filling = Filling { pool, object: &object, fd: fd.as_fd(), progress: &underway };
    let before = match filling.compare(&leftovers, &map)? {
        true => before_the_crash(pool, path.as_fd(), &marker, before)?,
        false => before,
    };
    reach(Point::RecallOpened);
    let bytes = match filling.run(&chunks) {
        Ok(bytes) => bytes,
        Err(e) => {
            // Only from a file that had nothing: readers of a partial file may have ranges mapped.
            if leftovers.is_empty() {
                take_back(&fd, &before);
            }
            return Err(e);
        }
    };
    reach(Point::RecallFilled);
    inode::restore_times(&fd, &before).map_err(local("the times cannot be restored"))?;
    reach(Point::RecallTimed);
    if bytes > WRITE_BACK {
        // A write error that was met early is told to descriptors that were open then. The one that
        // the file settles with may be younger: so this one, which wrote, asks.
        rustix::fs::fdatasync(&fd)
            .map_err(|e| local("the data cannot be made durable")(e.into()))?;
    }
    match &job.want {
        Want::Range(_) => partial(pool, job, &marker, map, fd, path, bytes),
        Want::Whole => whole(pool, job, fd, path, bytes),
    }
}

/// Somebody has truncated the file to nothing past the watch (`O_RDONLY|O_TRUNC` raises no write
/// count, and a truncation may have been on its way when the file was released). An empty file needs
/// no bytes: it is ordinary.
fn truncated(pool: &Pool, path: BorrowedFd<'_>) -> Result<RecallOutcome, RecallError> {
    // A crash from here on finds the file still empty, and the marker or not.
    pool.attributes.remove_marker(InodeFd::Path(path))?;
    reach(Point::EmptiedUnmarked);
    pool.attributes.remove_map(InodeFd::Path(path))?;
    reach(Point::EmptiedUnmapped);
    let fd = inode::reopen(path, rustix::fs::OFlags::RDONLY)
        .map_err(local("the file cannot be opened"))?;
    rustix::fs::fsync(&fd)
        .map_err(|e| local("the marker's removal cannot be made durable")(e.into()))?;
    Ok(RecallOutcome { recalled: Recalled::Complete, settle: None, bytes: 0 })
}

/// The times to restore where an earlier recall was cut off: its writes moved the mtime, and it did not
/// come to put it back. The data is that of the copy, so the copy's mtime is the file's. (That of
/// somebody who touched the file since it was released is lost, but only if a crash came in between.)
fn before_the_crash(
    pool: &Pool,
    path: BorrowedFd<'_>,
    marker: &Marker,
    found: Stat,
) -> Result<Stat, RecallError> {
    let record = pool.attributes.record(InodeFd::Path(path))?;
    let copy = record.and_then(|record| record.archived).filter(|c| c.object == marker.object);
    Ok(Stat { mtime_ns: copy.map_or(found.mtime_ns, |copy| copy.version.mtime_ns), ..found })
}

/// Opens the object and checks that it is the one that the marker means.
fn open_object(pool: &Pool, marker: &Marker) -> Result<ObjectReader, RecallError> {
    let store = || Arc::clone(&pool.store);
    let object = match ObjectReader::open_blocking(store(), marker.object) {
        // One attempt without a runtime; what may pass with time is retried by the async side.
        Some(Err(e)) if e.is_retryable() => {
            pool.runtime.block_on(ObjectReader::open(store(), marker.object))?
        }
        Some(result) => result?,
        None => pool.runtime.block_on(ObjectReader::open(store(), marker.object))?,
    };
    let manifest = object.manifest();
    if manifest.size != marker.size || manifest.chunk_shift != marker.chunk_shift {
        return Err(RecallError::Mismatch {
            object: marker.object,
            found: manifest.size,
            expected: marker.size,
        });
    }
    Ok(object)
}

/// Fetches, verifies and writes chunks.
struct Filling<'a> {
    pool: &'a Pool,
    object: &'a ObjectReader,
    fd: BorrowedFd<'a>,
    progress: &'a Underway<'a>,
}

impl Filling<'_> {
    /// Data that is there although the marker says that it is not. If a recall or a release was cut
    /// off, it is the object's data. Otherwise somebody wrote while nobody watched, and recalling
    /// would undo that: which bytes are right is then not for us to say. Returns whether there is any.
    fn compare(&self, leftovers: &[Range<u64>], map: &ResidencyMap) -> Result<bool, RecallError> {
        let touched = leftovers.iter().flat_map(|r| map.missing_chunks(r.clone()));
        let touched = touched.map(u64::from).collect::<BTreeSet<_>>();
        let mut found = Vec::new();
        for &index in &touched {
            let Some(chunk) = self.object.manifest().chunk_range(index) else { continue };
            let _share = self.pool.budget.take(chunk.end - chunk.start);
            let plain = self.fetch(index)?;
            for range in leftovers {
                let range = range.start.max(chunk.start)..range.end.min(chunk.end);
                if range.is_empty() {
                    continue;
                }
                found.resize((range.end - range.start) as usize, 0);
                let whole = read_full(self.fd, &mut found, range.start)
                    .map_err(local("the file cannot be read"))?;
                let place =
                    (range.start - chunk.start) as usize..(range.end - chunk.start) as usize;
                let same = match &plain {
                    Chunk::Data(plain) => plain.get(place) == Some(&found[..]),
                    Chunk::Hole => found.iter().all(|b| *b == 0),
                };
                if !whole || !same {
                    return Err(RecallError::WrittenUnseen { offset: range.start });
                }
            }
        }
        Ok(!touched.is_empty())
    }

    /// All chunks, a few at a time. Returns the bytes written.
    fn run(&self, chunks: &[u64]) -> Result<u64, RecallError> {
        let threads = self.pool.recall_parallel.min(chunks.len());
        if threads <= 1 {
            return chunks.iter().map(|i| self.one(*i)).sum();
        }
        // In chunks, and no fewer than are in work at once: when the last chunk of a piece is there,
        // the piece before is complete, as a rule. What is missed is left to the sync.
        let piece = (WRITE_BACK >> self.object.manifest().chunk_shift).max(threads as u64) as usize;
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let written = AtomicU64::new(0);
        let work = || -> Result<(), RecallError> {
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(index) = chunks.get(place) else { break };
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let bytes =
                    self.one(*index).inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                written.fetch_add(bytes, Ordering::Relaxed);
                if place % piece == piece - 1
                    && let Some(last) = place.checked_sub(piece)
                {
                    self.write_back(chunks, last + 1 - piece..=last);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            others.into_iter().fold(mine, |result, thread| {
                let theirs = thread.join().unwrap_or(Err(RecallError::Local {
                    what: "a recall thread died",
                    source: std::io::ErrorKind::Other.into(),
                }));
                result.and(theirs)
            })
        })?;
        Ok(written.into_inner())
    }

    /// Starts the write-back of the chunks in these places of the list.
    fn write_back(&self, chunks: &[u64], places: RangeInclusive<usize>) {
        let bytes = |place: &usize| {
            chunks.get(*place).and_then(|index| self.object.manifest().chunk_range(*index))
        };
        if let (Some(first), Some(last)) = (bytes(places.start()), bytes(places.end())) {
            space::write_back(self.fd, first.start..last.end);
        }
    }

    fn one(&self, index: u64) -> Result<u64, RecallError> {
        if self.progress.idle() > self.pool.recall_deadline {
            return Err(RecallError::Deadline);
        }
        let _share = self.pool.budget.take(1 << self.object.manifest().chunk_shift);
        let Chunk::Data(plain) = self.fetch(index)? else { return Ok(0) };
        let mut bytes = 0;
        for (offset, piece) in plan::pieces(self.object.manifest(), index) {
            // The manifest was validated: pieces lie inside the chunk.
            let Some(piece) = plain.get(piece) else { continue };
            write_all_at(self.fd, piece, offset).map_err(local("the data cannot be written"))?;
            bytes += piece.len() as u64;
        }
        self.progress.step(bytes);
        reach(Point::RecallChunk);
        Ok(bytes)
    }

    fn fetch(&self, index: u64) -> Result<Chunk, StoreError> {
        let asynchronous = || self.pool.runtime.block_on(self.object.chunk(index));
        if self.pool.store.blocking().is_none() {
            return asynchronous();
        }
        match self.object.chunk_blocking(index) {
            Err(e) if e.is_retryable() => asynchronous(),
            result => result,
        }
    }
}

fn write_all_at(fd: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], offset + done as u64) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Frees what a failed recall has written: it counts for nothing, and room may be what is short. All of
/// it, also the block in which the file ends: zeros that stay there would be taken for somebody's writing.
fn take_back(fd: &OwnedFd, before: &Stat) {
    if let Err(error) = space::punch_all(fd, before.size) {
        tracing::debug!(%error, "a failed recall leaves data behind");
    }
    // A crash here leaves a stub whose mtime has moved, and nothing that tells.
    reach(Point::RecallTakenBack);
    let _ = inode::restore_times(fd, before);
}

/// All data is there. If nobody can be writing, readers may go on before it is durable.
fn whole(
    pool: &Pool,
    job: &Recall,
    fd: OwnedFd,
    path: OwnedFd,
    bytes: u64,
) -> Result<RecallOutcome, RecallError> {
    let reader = match &job.file.event {
        Some(event) => Arc::clone(event),
        None => Arc::new(
            inode::reopen(path.as_fd(), rustix::fs::OFlags::RDONLY)
                .map_err(local("the file cannot be opened"))?,
        ),
    };
    // Our own writable descriptor would count as a writer.
    drop(fd);
    let stage = Stage::Placed;
    let mut settle = Settle { file: job.file.clone(), lease: reader, path, stage };
    // A user's job waits for the sync anyway, and shares one with others. A reader's open must
    // not return before ctime has moved for the last time, unless his pool wants it so: tar takes
    // a ctime that moves while it reads for a change of the file.
    let early = job.file.event.is_none() || pool.config.early_answer;
    if !early {
        clear_durably(pool, &mut settle)?;
    }
    // From here on a writer has to wait in the kernel until the lease goes, which is when nothing can
    // bring the marker back. Writers who are past that point already make it fail.
    if lease::set(settle.lease.as_fd(), lease::LeaseKind::Read).unwrap_or(false) {
        reach(Point::RecallLeased);
        return Ok(RecallOutcome { recalled: Recalled::Settling, settle: Some(settle), bytes });
    }
    clear_durably(pool, &mut settle)?;
    settle.sync().map_err(local("the marker's removal cannot be made durable"))?;
    reach(Point::RecallDurable);
    // The state machine still says "recalling": no release can start before the readers go on.
    pool.pass_over(InodeFd::Open(settle.lease.as_fd()));
    pool.settler.note(settle.take_row());
    Ok(RecallOutcome { recalled: Recalled::Complete, settle: None, bytes })
}

fn clear_durably(pool: &Pool, settle: &mut Settle) -> Result<(), RecallError> {
    if matches!(settle.stage, Stage::Placed) {
        settle.sync().map_err(local("the data cannot be made durable"))?;
        reach(Point::RecallSynced);
        settle.clear(pool)?;
    }
    Ok(())
}

/// Some chunks are there: durable first, then their bits, then the readers.
fn partial(
    pool: &Pool,
    job: &Recall,
    marker: &Marker,
    mut map: ResidencyMap,
    fd: OwnedFd,
    path: OwnedFd,
    bytes: u64,
) -> Result<RecallOutcome, RecallError> {
    let covered = plan::covered(marker.size, marker.chunk_shift, &job.want);
    let first = (covered.start >> marker.chunk_shift) as u32;
    let last = (covered.end.min(marker.size).div_ceil(1 << marker.chunk_shift)) as u32;
    map.set_range(first..last);
    if map.is_complete() {
        return whole(pool, job, fd, path, bytes);
    }
    rustix::fs::fdatasync(&fd).map_err(|e| local("the data cannot be made durable")(e.into()))?;
    // A crash here leaves resident chunks that the map does not know: they are recalled again.
    reach(Point::PartialSynced);
    let open = InodeFd::Open(fd.as_fd());
    pool.attributes.set_map(open, &map)?;
    // A crash here leaves a marker that says offline, and beside it a map that is true.
    reach(Point::PartialMapped);
    if marker.state != MarkerState::Partial {
        pool.attributes.set_marker(open, &Marker { state: MarkerState::Partial, ..*marker })?;
    }
    reach(Point::PartialMarked);
    pool.resident(open, &map);
    Ok(RecallOutcome { recalled: Recalled::Partial(covered), settle: None, bytes })
}
