//! A running `hsm agent`: started, waited for, watched, stopped, killed, measured.
//!
//! Like a service manager, this waits until it is ready, and keeps the descriptors that it hands over.
//!
//! It has a process group of its own, so that one signal reaches holder and engine. Killing the
//! whole group frees everybody who waits for an answer (the kernel releases the fanotify group),
//! which is why the watchdog does that before anything else when a test takes too long.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;

use crate::census;
use crate::pace::patience;
use crate::run::{kill, kill_group};
use crate::threads;

/// How long an agent may take until it says that it is ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    dir: PathBuf,
    log: PathBuf,
    stopped: bool,
    /// `None`: closed at once, as by a manager that keeps nothing.
    kept: Option<Vec<Kept>>,
}

/// What the service manager does for an agent.
#[derive(Debug, Default)]
pub struct Manager<'a> {
    /// Environment variables.
    pub environment: &'a [(String, String)],
    /// Keep the descriptors that the agent hands over until it is ready. As long as somebody has
    /// them, killing the agent frees nobody who waits.
    pub keeps: bool,
    /// What an earlier agent gave to be kept.
    pub kept: Option<Kept>,
}

/// A descriptor that an agent gave its service manager to keep, and its name.
pub type Kept = (String, OwnedFd);

/// The memory of the agent's two processes, in KiB (`VmHWM`, the most it ever was).
#[derive(Debug, Clone, Copy, Default)]
pub struct PeakMemory {
    /// The holder.
    pub holder: u64,
    /// The engine.
    pub engine: u64,
}

impl Agent {
    /// Starts `exe --config dir/hsm.toml agent` and waits until it is ready.
    pub fn start(exe: &Path, dir: &Path) -> Result<Self> {
        Self::start_by(Manager::default(), exe, dir)
    }

    /// [`start`](Self::start) with more than the least that a service manager does.
    pub fn start_by(manager: Manager<'_>, exe: &Path, dir: &Path) -> Result<Self> {
        let Manager { environment, keeps, kept } = manager;
        let log = dir.join("agent.log");
        let out = File::options().create(true).append(true).open(&log)?;
        let notify = dir.join("notify.sock");
        drop(fs::remove_file(&notify));
        let socket = UnixDatagram::bind(&notify)?;
        let child = start_as_manager(exe, kept)
            .arg("--config")
            .arg(dir.join("hsm.toml"))
            .arg("agent")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("NOTIFY_SOCKET", &notify)
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", exe.display()))?;
        let mut agent =
            Self { child, dir: dir.to_path_buf(), log, stopped: false, kept: keeps.then(Vec::new) };
        agent.wait_ready(&socket).with_context(|| agent.log_tail())?;
        Ok(agent)
    }

    fn wait_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let limit = patience(START_LIMIT);
        let end = Instant::now() + limit;
        let mut message = [0; 4096];
        while Instant::now() < end {
            if let Ok(n) = self.receive(socket, &mut message)
                && message[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                self.stopped = true;
                bail!("the agent ended before it was ready: {status}");
            }
        }
        bail!("the agent was not ready after {limit:?}");
    }

    fn receive(&mut self, socket: &UnixDatagram, message: &mut [u8]) -> Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut io = [IoSliceMut::new(message)];
        let n = recvmsg(socket, &mut io, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let text = String::from_utf8_lossy(&message[..n]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or_default();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part
                && let Some(kept) = &mut self.kept
            {
                kept.extend(fds.map(|fd| (name.to_owned(), fd)));
            }
        }
        Ok(n)
    }

    /// Takes what the agent gave to be kept.
    pub fn take_kept(&mut self) -> Vec<Kept> {
        self.kept.take().unwrap_or_default()
    }

    /// The holder's process id.
    pub fn holder(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(i32::MAX)
    }

    /// The engine's process ids (one, or none while it is being started again).
    pub fn engines(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.holder());
        let mut found = children(&path);
        // Threads other than the first may have forked it.
        if let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.holder())) {
            for task in tasks.flatten() {
                found.extend(children(&task.path().join("children").display().to_string()));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// SIGKILL to the engine only. Returns the number of processes killed.
    pub fn kill_engine(&self) -> usize {
        let engines = self.engines();
        engines.iter().for_each(|pid| kill(*pid, Signal::KILL));
        engines.len()
    }

    /// SIGKILL to the holder only. The engine may live on as an orphan that denies; the next agent
    /// takes over from it.
    pub fn kill_holder(&mut self) -> Result<()> {
        kill(self.holder(), Signal::KILL);
        self.child.wait()?;
        self.stopped = true;
        Ok(())
    }

    /// SIGTERM, then waits; an agent that does not stop in time ([`patience`]) is killed, and that is
    /// an error.
    pub fn stop(&mut self, limit: Duration) -> Result<Duration> {
        if self.stopped {
            return Ok(Duration::ZERO);
        }
        let (begin, limit) = (Instant::now(), patience(limit));
        kill(self.holder(), Signal::TERM);
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.stopped = true;
                let left = census::processes(&self.dir);
                self.kill_everything();
                if !status.success() {
                    bail!("the agent stopped with {status}\n{}", self.log_tail());
                }
                if !left.is_empty() {
                    bail!("the agent stopped but left {left:?}");
                }
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > limit {
                self.kill_everything();
                bail!("the agent did not stop within {limit:?}\n{}", self.log_tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the holder still runs.
    pub fn is_running(&mut self) -> bool {
        !self.stopped && matches!(self.child.try_wait(), Ok(None))
    }

    fn kill_everything(&mut self) {
        self.stopped = true;
        Killer { group: self.child.id(), dir: self.dir.clone() }.kill();
        drop(self.child.wait());
    }

    /// Something that can kill this agent from another thread.
    pub fn killer(&self) -> Killer {
        Killer { group: self.child.id(), dir: self.dir.clone() }
    }

    /// The most memory the two processes ever had.
    pub fn peak_memory(&self) -> PeakMemory {
        let engine = self.engines().into_iter().map(peak_kib).max().unwrap_or(0);
        PeakMemory { holder: peak_kib(self.holder()), engine }
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// All of its log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// Starts the program as a service manager does that kept a descriptor: it is number 3, and
/// LISTEN_PID is the program's own process.
fn start_as_manager(exe: &Path, kept: Option<Kept>) -> Command {
    const SCRIPT: &str = r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ exec "$0" "$@""#;
    let Some((name, fd)) = kept else {
        let mut command = Command::new(exe);
        command.stdin(Stdio::null());
        return command;
    };
    let mut command = Command::new("bash");
    command.args(["-c", SCRIPT]).arg(exe).stdin(fd);
    command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", name);
    command
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !self.stopped {
            self.kill_everything();
        }
    }
}

/// Kills an agent's processes, all of them.
#[derive(Debug, Clone)]
pub struct Killer {
    group: u32,
    dir: PathBuf,
}

impl Killer {
    /// SIGKILL to the group and to whoever left it but still has the agent's configuration.
    pub fn kill(&self) {
        kill_group(self.group);
        for (pid, _) in census::processes(&self.dir) {
            kill(pid, Signal::KILL);
        }
    }
}

/// Kills everything below a directory when time is up; disarmed when dropped.
#[derive(Debug)]
pub struct Watchdog {
    state: Arc<(Mutex<WatchState>, Condvar)>,
}

#[derive(Debug, Default)]
struct WatchState {
    disarmed: bool,
    barked: bool,
}

impl Watchdog {
    /// After `limit` ([`patience`]), every agent whose command line names `dir` is killed.
    pub fn new(dir: &Path, limit: Duration) -> Self {
        let limit = patience(limit);
        let state = Arc::new((Mutex::new(WatchState::default()), Condvar::new()));
        let (shared, dir) = (Arc::clone(&state), dir.to_path_buf());
        thread::spawn(move || {
            let (lock, changed) = &*shared;
            let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = changed.wait_timeout_while(guard, limit, |state| !state.disarmed);
            let (mut guard, result) = wait.unwrap_or_else(PoisonError::into_inner);
            if result.timed_out() && !guard.disarmed {
                guard.barked = true;
                drop(guard);
                bark(&dir, limit);
            }
        });
        Self { state }
    }

    /// Whether it had to kill.
    pub fn barked(&self) -> bool {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).barked
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).disarmed = true;
        self.state.1.notify_all();
    }
}

fn bark(dir: &Path, limit: Duration) {
    eprintln!("WATCHDOG: not finished after {limit:?}; killing the agent of {}", dir.display());
    eprintln!("{}", threads::standing(dir));
    // An agent may be started again by the test in the meantime: until nobody is left.
    for _ in 0..100 {
        let processes = census::processes(dir);
        processes.iter().for_each(|(pid, _)| kill(*pid, Signal::KILL));
        if processes.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    eprintln!("{}", tail(&dir.join("agent.log")));
}

fn children(path: &str) -> Vec<i32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn peak_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Lines at the end of a log that are told whatever they say.
const TAIL: usize = 60;
/// Errors before these that are told at most: the last ones. (Engines that were killed are none of ours.)
const ERRORS: usize = 40;

fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let (before, end) = lines.split_at(lines.len().saturating_sub(TAIL));
    let is_error = |line: &&&str| line.contains(" ERROR ") && !line.contains("the engine ended;");
    let errors: Vec<&str> = before.iter().filter(is_error).copied().collect();
    let errors = &errors[errors.len().saturating_sub(ERRORS)..];
    let mut told = String::new();
    if !errors.is_empty() {
        told = format!("--- errors in the agent's log before its end ---\n{}\n", errors.join("\n"));
    }
    told + &format!("--- end of the agent's log ---\n{}\n---", end.join("\n"))
}
