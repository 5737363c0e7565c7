//! One managed file system with its store, catalogue, watch and policy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::canary::Canary;
use super::crowd::Crowd;
use super::cutters::Cutters;
use super::failures::Failures;
use super::link::Link;
use super::metrics::Metrics;
use super::second_net::SecondNet;
use super::waiters::Waiters;
use super::work::Workers;
use crate::catalog::Catalog;
use crate::config::{PoolConfig, Verify};
use crate::core::{FileKey, Inflight};
use crate::intercept::Interceptor;
use crate::marker::{Attributes, InodeFd, ResidencyMap};
use crate::recall::{Budget, Progresses, Settler};
use crate::store::Store;
use crate::store::object::Compression;
use crate::sys::fanotify::{Group, MarkTarget};
use crate::sys::invisible::InvisibleOpener;
use crate::sys::lease::BreakWatch;
use crate::sys::{handle, inode};

/// A file, by its identity and, while somebody waits for it, by the descriptor of his event.
#[derive(Debug, Clone)]
pub struct FileRef {
    /// Identity within the pool.
    pub key: FileKey,
    /// Descriptor of an event, read-only. It also reaches files that have no name any more.
    pub event: Option<Arc<OwnedFd>>,
    /// The process whose event that is.
    pub pid: Option<i32>,
}

/// One managed file system.
#[derive(Debug)]
pub struct Pool {
    /// Number that its events carry.
    pub number: u32,
    /// Configuration.
    pub config: PoolConfig,
    /// The mount point, opened: all work is done relative to it.
    pub root: OwnedFd,
    /// Type of the file system, for people.
    pub fs_type: String,
    /// The kernel's side of the watch.
    pub interceptor: Box<dyn Interceptor>,
    /// Why it is this one and no better one.
    pub tier_reason: String,
    /// The same watch as a group, for the case that the holder dies.
    pub kernel: Group,
    /// Where the bytes of cold files are.
    pub store: Arc<dyn Store>,
    /// Index and intents.
    pub catalog: Catalog,
    /// Names of the attributes on inodes.
    pub attributes: Attributes,
    /// What is going on with each file.
    pub inflight: Mutex<Inflight<FileKey>>,
    /// Who waits.
    pub waiters: Waiters,
    /// Callers of `truncate(2)` who may be on their way.
    pub cutters: Cutters,
    /// How many wait, in all pools.
    pub crowd: Arc<Crowd>,
    /// Files that wait for their sync.
    pub settler: Settler,
    /// Memory for chunks, shared by all pools.
    pub budget: Arc<Budget>,
    /// Lease breaks.
    pub breaks: BreakWatch,
    /// The file that proves the watch.
    pub canary: Canary,
    /// Counters.
    pub metrics: Metrics,
    /// Bridge to asynchronous stores.
    pub runtime: tokio::runtime::Handle,
    /// Makers of invisible descriptors that nobody uses now.
    pub openers: Mutex<Vec<InvisibleOpener>>,
    /// Chunks in flight per recall.
    pub recall_parallel: usize,
    /// Recalls under way.
    pub progress: Progresses,
    /// How long a reader waits without progress at most.
    pub recall_deadline: Duration,
    /// Threads that carry out recalls.
    pub workers: Arc<Workers>,
    /// Must be held before files are released.
    pub second_net: Arc<SecondNet>,
    /// Way back to the kernel.
    pub link: Arc<Link>,
    /// Why recalls failed, for the jobs that asked for them.
    pub failures: Failures,
    /// Held by who makes room on the full file system.
    pub room: Mutex<()>,
    /// The agent is stopping: nothing new is begun.
    pub stopping: Arc<AtomicBool>,
}

impl Pool {
    /// The state machine, locked.
    pub fn inflight(&self) -> MutexGuard<'_, Inflight<FileKey>> {
        self.inflight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An `O_PATH` descriptor on the file, on the pool's own mount; a file without a name is
    /// reached through its event's descriptor.
    pub fn open_path(&self, file: &FileRef) -> io::Result<OwnedFd> {
        match (handle::open(&self.root, &file.key, OFlags::PATH), &file.event) {
            (Err(e), Some(event)) if handle::is_stale(&e) => {
                inode::reopen(event.as_fd(), OFlags::PATH)
            }
            (result, _) => result,
        }
    }

    /// A descriptor of the mount point that nobody else uses, for `syncfs`: errors of writing back
    /// are told once per open descriptor.
    pub fn own_root(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.root, c".", flags, Mode::empty())?)
    }

    /// A read-write descriptor whose IO nobody sees. See [`crate::sys::invisible`].
    pub fn open_invisible(&self, path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let spare = self.openers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let opener = match spare {
            Some(opener) => opener,
            None => InvisibleOpener::new()?,
        };
        let fd = opener.open(path);
        self.openers.lock().unwrap_or_else(PoisonError::into_inner).push(opener);
        fd
    }

    /// The file is online and nothing can make it offline now: the kernel need not ask.
    pub fn pass_over(&self, fd: InodeFd<'_>) {
        let result = self.interceptor.pass_over(target(fd));
        if let Err(error) = result {
            // Costs a question per access, nothing else.
            tracing::debug!(%error, "no ignore mark");
        }
    }

    /// The kernel must ask about this file from now on.
    pub fn watch(&self, fd: InodeFd<'_>) -> io::Result<()> {
        self.interceptor.watch(target(fd))
    }

    /// See [`Interceptor::keep_watch`].
    pub fn keep_watch(&self, fd: InodeFd<'_>) -> io::Result<()> {
        self.interceptor.keep_watch(target(fd))
    }

    /// See [`Interceptor::resident`]. Without it each read is asked about, and answered.
    pub fn resident(&self, fd: InodeFd<'_>, map: &ResidencyMap) {
        if let Err(error) = self.interceptor.resident(target(fd), map) {
            tracing::warn!(%error, "resident ranges stay unknown to the kernel");
        }
    }

    /// See [`Interceptor::nothing_resident`].
    pub fn nothing_resident(&self, fd: InodeFd<'_>) -> io::Result<()> {
        self.interceptor.nothing_resident(target(fd))
    }

    /// How chunks are compressed.
    pub fn compression(&self) -> Compression {
        self.config.compression
    }

    /// Whether objects are read back before a record names them.
    pub fn verifies(&self) -> bool {
        self.config.verify == Verify::Readback
    }

    /// Path for messages, below the mount point as it is now.
    pub fn name_of(&self, fd: BorrowedFd<'_>) -> PathBuf {
        inode::path_hint(fd)
    }

    /// The path below the mount point, as objects and the catalogue keep it.
    pub fn relative(&self, path: &Path) -> Vec<u8> {
        path.strip_prefix(self.mount()).unwrap_or(path).as_os_str().as_bytes().to_vec()
    }

    /// [`Self::relative`] of an open file, as far as the kernel knows a path.
    pub fn hint(&self, fd: BorrowedFd<'_>) -> Vec<u8> {
        self.relative(&self.name_of(fd))
    }

    /// The mount point.
    pub fn mount(&self) -> &Path {
        &self.config.mount
    }
}

fn target(fd: InodeFd<'_>) -> MarkTarget<'_> {
    match fd {
        InodeFd::Open(fd) => MarkTarget::Fd(fd),
        InodeFd::Path(fd) => MarkTarget::Path(fd),
    }
}

/// Nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
