//! One agent per state directory, and the changing of the guard.
//!
//! A dead holder leaves its engine behind as a sentinel that keeps offline files closed. A new
//! agent first puts its own watch in place and only then ends the sentinel: there is no moment
//! without a watch.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use crate::config::AgentConfig;

/// How long an orphan may take to end. It denies whoever waits in its groups first, and reading an event may
/// wait for somebody's lease, for 45 s; killed before that, the kernel would let them pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long an engine may take to notice that its holder is dead, after which it gives up its control socket.
/// It is a matter of milliseconds, but a service manager may start the next agent as soon.
const NOTICE: Duration = Duration::from_secs(3);

/// Why the state directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// An agent serves already.
    #[error("an agent is already running (process {pid}, state directory {directory})")]
    Running {
        /// Its engine.
        pid: i32,
        /// The directory that both want.
        directory: PathBuf,
    },
    /// The lock file.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// The lock: held, or with an orphan that must go first.
#[derive(Debug)]
pub(super) struct AgentLock {
    file: File,
    path: PathBuf,
    orphan: Option<Pid>,
}

impl AgentLock {
    /// Tries to take it. A POSIX record lock, because the kernel tells who holds it.
    pub(super) fn look(agent: &AgentConfig) -> Result<Self, LockError> {
        let path = agent.state_dir.join("agent.lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let end = Instant::now() + NOTICE;
        loop {
            let orphan = try_lock(&file).map_err(failed)?;
            let Some(pid) = orphan.filter(|_| UnixStream::connect(&agent.socket).is_ok()) else {
                return Ok(Self { file, path, orphan });
            };
            if Instant::now() > end {
                let pid = pid.as_raw_nonzero().get();
                return Err(LockError::Running { pid, directory: agent.state_dir.clone() });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Process id of the orphan, if there is one.
    pub(super) fn orphan(&self) -> Option<i32> {
        self.orphan.map(|pid| pid.as_raw_nonzero().get())
    }

    /// Ends the orphan, if there is one.
    pub(super) fn take_over(mut self) -> Result<Self, LockError> {
        let deadline = Instant::now() + PATIENCE;
        if let Some(pid) = self.orphan {
            tracing::warn!(
                pid = pid.as_raw_nonzero(),
                "taking over from the orphan of a dead agent"
            );
        }
        while let Some(pid) = self.orphan {
            let late = Instant::now() > deadline;
            let signal = if late { Signal::KILL } else { Signal::TERM };
            let _ = rustix::process::kill_process(pid, signal);
            std::thread::sleep(Duration::from_millis(100));
            let failed = |source| LockError::Io { path: self.path.clone(), source };
            self.orphan = try_lock(&self.file).map_err(failed)?;
        }
        Ok(self)
    }
}

/// `Some`: the process that has it.
fn try_lock(file: &File) -> io::Result<Option<Pid>> {
    match rustix::fs::fcntl_lock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            use rustix::process::{Flock, FlockType, fcntl_getlk};
            let holder = fcntl_getlk(file, &Flock::from(FlockType::WriteLock))?;
            Ok(holder.and_then(|f| f.pid))
        }
        Err(e) => Err(e.into()),
    }
}
