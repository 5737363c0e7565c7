//! Walker, workers, reports.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use globset::{Glob, GlobSet, GlobSetBuilder};
use tokio::sync::mpsc::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::ops;
use crate::config::PoolConfig;
use crate::control::Peer;
use crate::control::types::{FileReport, JobEvent, JobRequest, Op, Reason};
use crate::control::{ApiError, ApiErrorKind};
use crate::core::{FileKey, Subtrees};
use crate::daemon::outcome::{Candidate, FileOutcome};
use crate::daemon::pool::{FileRef, Pool};
use crate::scanner::{Found, Walker, relative_to};
use crate::sys::inode;

/// Candidates that may wait between walker and workers, if there are places for so many ([`super::places`]); and other
/// names that may wait for the end.
const QUEUE: usize = 4096;
/// Pause between two progress reports.
const PROGRESS_PAUSE: Duration = Duration::from_millis(200);

/// A job and its surroundings.
pub(crate) struct Job {
    /// What to do.
    pub request: JobRequest,
    /// Who asks.
    pub peer: Peer,
    /// All pools of this agent.
    pub pools: Vec<Arc<Pool>>,
    /// Where reports go.
    pub events: Sender<JobEvent>,
    /// Stops the job between files.
    pub cancel: CancellationToken,
    /// Worker threads unless the request says otherwise.
    pub default_jobs: usize,
    /// Files per release batch.
    pub release_batch: usize,
    /// A place for each file that it has in its hands.
    pub places: Arc<Semaphore>,
}

#[derive(Default)]
struct Progress {
    files: AtomicU64,
    bytes: AtomicU64,
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    walked: AtomicBool,
    last: Mutex<Option<Instant>>,
}

struct Item {
    pool: Arc<Pool>,
    candidate: Candidate,
    /// Given back when it is done.
    place: OwnedSemaphorePermit,
}

/// What a worker finds in the queue.
enum Next {
    Item(Item),
    /// No place is free for more: work off what there is.
    NoMore,
}

/// Other names of files that this job has met already. They come last, when the first name is
/// done: two workers must not meet at one inode.
#[derive(Default)]
struct OtherNames {
    seen: HashSet<(String, FileKey)>,
    later: Vec<Later>,
}

/// Another name, without a descriptor.
struct Later {
    pool: Arc<Pool>,
    file: FileRef,
    name: PathBuf,
    named: bool,
}

impl Later {
    /// Looks at the file again.
    fn candidate(self) -> Result<Candidate, (PathBuf, FileOutcome)> {
        let Self { pool, file, name, named } = self;
        let opened = pool.open_path(&file).and_then(|path| Ok((inode::stat(&path)?, path)));
        match opened {
            Ok((stat, path)) => Ok(Candidate { file, path, name, stat, named }),
            Err(error) => Err((name, FileOutcome::io("it cannot be looked at", &error))),
        }
    }
}

/// Runs the job on this thread and a few more.
pub(crate) fn run(job: &Job) -> Result<(), ApiError> {
    if job.request.op == Op::Scan {
        return super::scan::run(job);
    }
    let include = globs(&job.request.include)?;
    let exclude = globs(&job.request.exclude)?;
    let progress = Progress::default();
    let (queue, items) = sync_channel(QUEUE);
    let items = Mutex::new(items);
    let workers = job.request.jobs.unwrap_or(job.default_jobs).clamp(1, 64);
    let mut names = OtherNames::default();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| work(job, &items, &progress));
        }
        let mut finder = Finder { job, queue, progress: &progress, names: &mut names };
        finder.find(&include, &exclude);
        progress.walked.store(true, Ordering::Relaxed);
    });
    for later in names.later {
        if job.cancelled() {
            break;
        }
        let pool = Arc::clone(&later.pool);
        match later.candidate() {
            Ok(candidate) => run_batch(job, &pool, vec![candidate], &progress),
            Err((name, outcome)) => job.report(&name, outcome),
        }
    }
    Ok(())
}

fn globs(list: &[String]) -> Result<GlobSet, ApiError> {
    let bad = |e: globset::Error| ApiError::new(ApiErrorKind::BadRequest, e.to_string());
    let mut builder = GlobSetBuilder::new();
    for glob in list {
        builder.add(Glob::new(glob).map_err(bad)?);
    }
    builder.build().map_err(bad)
}

impl Job {
    /// Whether to stop.
    pub(super) fn cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.events.is_closed()
    }

    /// Tells about one file.
    pub(super) fn report(&self, path: &Path, outcome: FileOutcome) {
        let report = FileReport {
            path: path.into(),
            op: self.request.op,
            outcome: outcome.outcome,
            reason: outcome.reason,
            detail: outcome.detail,
            bytes: outcome.bytes,
        };
        let _ = self.events.blocking_send(JobEvent::File(report));
    }

    /// What is made offline is limited to the pool's directories. What brings data back, or keeps it
    /// local, is not: files may have been moved out of them since.
    fn subtrees<'a>(&self, pool: &'a PoolConfig) -> &'a Subtrees {
        const EVERYTHING: &Subtrees = &Subtrees::everything();
        match self.request.op {
            Op::Archive | Op::Release | Op::Migrate => &pool.directories,
            Op::Recall | Op::Pin | Op::Unpin | Op::Scan => EVERYTHING,
        }
    }

    /// The pool that a path belongs to, and the path as that pool knows it.
    fn pool_of(&self, path: &Path) -> Option<(Arc<Pool>, PathBuf)> {
        let lexical = self.longest_mount(path).map(|pool| (pool, path.to_path_buf()));
        // Through symbolic links above the mount point only for root: what others may not see,
        // the agent must not tell them.
        lexical.or_else(|| {
            let (parent, name) = (path.parent()?, path.file_name()?);
            let real = self.peer.is_root().then(|| parent.canonicalize().ok())??.join(name);
            self.longest_mount(&real).map(|pool| (pool, real))
        })
    }

    fn longest_mount(&self, path: &Path) -> Option<Arc<Pool>> {
        let below = |pool: &&Arc<Pool>| relative_to(path, pool.mount()).is_some();
        self.pools.iter().filter(below).max_by_key(|p| p.mount().as_os_str().len()).cloned()
    }
}

struct Finder<'a> {
    job: &'a Job,
    queue: SyncSender<Next>,
    progress: &'a Progress,
    names: &'a mut OtherNames,
}

impl Finder<'_> {
    fn find(&mut self, include: &GlobSet, exclude: &GlobSet) {
        for path in &self.job.request.paths {
            let path = path.0.clone();
            let Some((pool, path)) = self.job.pool_of(&path) else {
                let detail = "on no managed file system; `hsm status` lists them";
                self.job.report(&path, FileOutcome::failed(Reason::NotManaged, detail));
                continue;
            };
            let walker = Walker {
                root: pool.root.as_fd(),
                mount: pool.mount(),
                recursive: self.job.request.recursive,
                subtrees: self.job.subtrees(&pool.config),
                include,
                exclude,
            };
            let flow = walker.walk(&path, &mut |found| {
                if self.job.cancelled() {
                    return ControlFlow::Break(());
                }
                self.take(&pool, found)
            });
            if flow.is_break() {
                return;
            }
        }
    }

    fn take(&mut self, pool: &Arc<Pool>, found: Found) -> ControlFlow<()> {
        match found {
            Found::File(candidate) => return self.file(pool, candidate),
            Found::Directory(path) => {
                let detail = "a directory; use --recursive";
                self.job.report(&path, FileOutcome::failed(Reason::IsDirectory, detail));
            }
            Found::Outside(path) => {
                let detail = "outside the pool's `directories`; `hsm config explain` shows them";
                self.job.report(&path, FileOutcome::failed(Reason::NotManaged, detail));
            }
            Found::Error(e) => {
                let outcome = match e.error.raw_os_error() {
                    Some(libc::ELOOP | libc::EXDEV) => FileOutcome::failed(
                        Reason::NotManaged,
                        "it leads through a symbolic link or out of the file system",
                    ),
                    _ => FileOutcome::io("it cannot be looked at", &e.error),
                };
                self.job.report(&e.path, outcome);
            }
        }
        ControlFlow::Continue(())
    }

    fn file(&mut self, pool: &Arc<Pool>, candidate: Candidate) -> ControlFlow<()> {
        self.progress.found_files.fetch_add(1, Ordering::Relaxed);
        self.progress.found_bytes.fetch_add(candidate.stat.size, Ordering::Relaxed);
        let identity = || (pool.config.name.clone(), candidate.file.key.clone());
        let several = candidate.stat.links > 1 || candidate.named;
        // Past the limit the worst that happens is "busy".
        let again =
            several && !self.names.seen.insert(identity()) && self.names.later.len() < QUEUE;
        let pool = Arc::clone(pool);
        if again {
            let Candidate { file, name, named, .. } = candidate;
            self.names.later.push(Later { pool, file, name, named });
            return ControlFlow::Continue(());
        }
        let Some(place) = self.place(&pool) else { return ControlFlow::Break(()) };
        match self.queue.send(Next::Item(Item { pool, candidate, place })) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// Waits for a place. Meanwhile no worker waits for more files with some in his hands: their places would
    /// never be free. `None`: the job is over.
    fn place(&self, pool: &Pool) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = Arc::clone(&self.job.places).try_acquire_owned() {
            return Some(place);
        }
        self.queue.send(Next::NoMore).ok()?;
        let place = Arc::clone(&self.job.places).acquire_owned();
        pool.runtime.block_on(async {
            tokio::select! {
                place = place => place.ok(),
                () = self.job.cancel.cancelled() => None,
                () = self.job.events.closed() => None,
            }
        })
    }
}

fn work(job: &Job, items: &Mutex<Receiver<Next>>, progress: &Progress) {
    let limit = ops::batch_limit(job);
    loop {
        let batch = fill(items, limit);
        if batch.is_empty() {
            return;
        }
        if job.cancelled() {
            // The walker is let go by emptying the queue.
            continue;
        }
        let pool = Arc::clone(&batch[0].pool);
        let (same, other): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|i| Arc::ptr_eq(&i.pool, &pool));
        let (same, places): (Vec<_>, Vec<_>) =
            same.into_iter().map(|item| (item.candidate, item.place)).unzip();
        run_batch(job, &pool, same, progress);
        drop(places);
        for item in other {
            run_batch(job, &item.pool, vec![item.candidate], progress);
        }
    }
}

/// Files and bytes of a batch, at most.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimit {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

/// The next batch; an empty one: there is nothing more.
fn fill(items: &Mutex<Receiver<Next>>, limit: BatchLimit) -> Vec<Item> {
    let items = items.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < limit.files && bytes < limit.bytes {
        match items.recv() {
            Ok(Next::Item(item)) => {
                bytes += item.candidate.stat.size;
                batch.push(item);
            }
            Ok(Next::NoMore) if batch.is_empty() => {}
            Ok(Next::NoMore) | Err(_) => break,
        }
    }
    batch
}

fn run_batch(job: &Job, pool: &Arc<Pool>, candidates: Vec<Candidate>, progress: &Progress) {
    let (mine, foreign): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|c| job.peer.is_root() || c.stat.uid == job.peer.uid);
    for candidate in foreign {
        let detail = "not your file";
        job.report(&candidate.name, FileOutcome::failed(Reason::Permission, detail));
    }
    let outcomes = ops::run(job, pool, &mine);
    for (candidate, outcome) in mine.iter().zip(outcomes) {
        if outcome.is_not_begun() {
            continue;
        }
        progress.files.fetch_add(1, Ordering::Relaxed);
        progress.bytes.fetch_add(candidate.stat.size, Ordering::Relaxed);
        job.report(&candidate.name, outcome);
    }
    tell(job, progress);
}

fn tell(job: &Job, progress: &Progress) {
    let mut last = progress.last.lock().unwrap_or_else(PoisonError::into_inner);
    if last.is_some_and(|l| l.elapsed() < PROGRESS_PAUSE) {
        return;
    }
    *last = Some(Instant::now());
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let walked = progress.walked.load(Ordering::Relaxed);
    let _ = job.events.blocking_send(JobEvent::Progress {
        files: get(&progress.files),
        bytes: get(&progress.bytes),
        total_files: walked.then(|| get(&progress.found_files)),
        total_bytes: walked.then(|| get(&progress.found_bytes)),
    });
}
