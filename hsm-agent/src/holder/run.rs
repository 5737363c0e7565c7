//! The holder's main loop: signals, the engine's messages, starting the engine again.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use super::end::{Ending, Numbers};
use super::engine::Engine;
use super::keep;
use super::protocol::{ToEngine, ToHolder};
use super::shared::Shared;
use super::watchdog::{Look, Watchdog};
use super::{reader, requests};
use crate::failpoint::{Point, reach};
use crate::sys::fanotify::{Class, Group, GroupOptions};
use crate::sys::process::{self, raise_descriptor_limit};
use crate::sys::signal::SignalFd;

/// How long a stopping engine may take to answer what waits before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// A killed engine that is still there after so long hangs in the kernel.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Accesses wait this long for an engine that does not come back; then they are denied.
const NO_ENGINE_LIMIT: Duration = Duration::from_secs(60);
/// Longest pause between two attempts to start the engine.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Descriptors that are not for waiting accesses: 64, and one for each recall that may run, whose own access may
/// wait for a burst.
const SPARE_DESCRIPTORS: u64 = 64 + 256;
/// Most accesses that may wait at once, whatever the descriptor limit is.
pub const MAX_WAITING: u64 = 262_144;

/// Why the agent could not run.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// A system call that the holder cannot do without.
    #[error("the agent cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> HolderError {
    move |source| HolderError::System { what, source }
}

/// Runs the agent until it is told to stop (SIGTERM, SIGINT). `arguments` start the engine.
/// Returns the engine's exit code if it gave up before it ever served, otherwise 0.
pub fn run(arguments: &[OsString]) -> Result<i32, HolderError> {
    let signals = SignalFd::new(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD], true)
        .map_err(system("receive signals"))?;
    let kept = keep::kept();
    let room = raise_descriptor_limit().saturating_sub(SPARE_DESCRIPTORS).min(MAX_WAITING);
    let shared = Arc::new(Shared::new(room as usize).map_err(system("make an eventfd"))?);
    write_answers(&shared).map_err(system("start a thread"))?;
    let engine = Engine::start(&shared, arguments, 0).map_err(system("start its engine"))?;
    let mut holder = Holder {
        shared,
        arguments,
        engine: Some(engine),
        served: false,
        stopping: None,
        restart: Restart::default(),
        watchdog: Watchdog::from_environment(),
        kept,
    };
    let code = holder.main_loop(&signals)?;
    holder.leave();
    Ok(code)
}

/// Ends the process when its thread does.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// A thread that writes what [`Shared::answer`] has gathered, until the process ends.
fn write_answers(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::clone(shared);
    let writer = move || {
        // Without this thread nobody would be answered; without this process everybody is denied.
        let _end = AbortOnPanic;
        // Whom a burst wakes must not take the processor from it.
        if let Err(error) = process::run_before_others() {
            tracing::warn!(%error, "no real-time priority; many readers at once are served slowly");
        }
        shared.pace.write_bursts(|| shared.waiting())
    };
    std::thread::Builder::new().name("answers".into()).spawn(writer)?;
    Ok(())
}

#[derive(Debug, Default)]
struct Restart {
    count: u64,
    at: Option<Instant>,
    backoff: Duration,
    without_engine_since: Option<Instant>,
}

struct Holder<'a> {
    shared: Arc<Shared>,
    arguments: &'a [OsString],
    engine: Option<Engine>,
    served: bool,
    stopping: Option<Instant>,
    restart: Restart,
    watchdog: Watchdog,
    /// Groups of an earlier agent, until an engine of ours serves.
    kept: Vec<(String, Group)>,
}

impl Holder<'_> {
    fn main_loop(&mut self, signals: &SignalFd) -> Result<i32, HolderError> {
        loop {
            self.wait(signals).map_err(system("wait for events"))?;
            while let Ok(signal) = signals.read() {
                if signal.number != libc::SIGCHLD {
                    self.stop();
                }
            }
            self.engine_messages();
            if let Some(status) = self.engine_end().map_err(system("wait for its engine"))? {
                let code = status.code().unwrap_or(1);
                if self.stopping.is_some() {
                    return Ok(0);
                }
                if !self.served {
                    return Ok(if code == 0 { 1 } else { code });
                }
                self.schedule_restart(status);
            }
            self.timers();
            let stuck = STOP_GRACE + KILL_GRACE;
            if self.stopping.is_some_and(|since| since.elapsed() > stuck) {
                tracing::error!("the engine cannot even be killed; leaving without it");
                return Ok(1);
            }
        }
    }

    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let engine = self.shared.engine();
        let mut fds = vec![
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.shared.wake.as_fd(), PollFlags::IN),
        ];
        if let Some(engine) = &engine {
            let mut want = PollFlags::IN;
            if self.shared.wants_room.swap(false, Ordering::SeqCst) {
                want |= PollFlags::OUT;
            }
            fds.push(PollFd::from_borrowed_fd(engine.as_fd(), want));
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        Ok(())
    }

    fn engine_messages(&mut self) {
        let Some(engine) = self.shared.engine() else { return };
        loop {
            let message = ToHolder::receive(&*engine);
            if matches!(message, Ok(Some(_))) {
                self.watchdog.heard();
            }
            match message {
                Ok(Some((ToHolder::Answer { id, verdict, urgent }, _))) => {
                    let event = self.shared.pending().remove(id);
                    match event {
                        Some(event) => {
                            reach(Point::HolderAnswering);
                            self.shared.answer(event, verdict, urgent);
                            reach(Point::HolderAnswered);
                        }
                        None => tracing::warn!(id, "the engine answered an event that nobody has"),
                    }
                }
                Ok(Some((ToHolder::OpenGroup { name, fail_closed }, _))) => {
                    let class = if fail_closed { Class::FailClosed } else { Class::PreContent };
                    self.open_group(&name, class, &engine);
                }
                Ok(Some((ToHolder::Programs, directory))) => {
                    done(&engine, &self.serve_programs(directory));
                }
                Ok(Some((ToHolder::Cover { group, marker }, root))) => {
                    done(&engine, &self.shared.programs.cover(&self.shared, group, &marker, root));
                }
                Ok(Some((ToHolder::Serving, _))) => {
                    self.shared.serving.store(true, Ordering::SeqCst);
                }
                Ok(Some((ToHolder::Ready, _))) => self.ready(),
                Ok(Some((ToHolder::Alive, _))) => {}
                Ok(Some((ToHolder::Refuse { pid }, _))) => self.shared.refuse(pid),
                // Its end is noticed by SIGCHLD.
                Ok(None) => {
                    self.shared.set_engine(None);
                    self.restart.without_engine_since.get_or_insert_with(Instant::now);
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // It died with messages unread. Its end is noticed by SIGCHLD.
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => {
                    tracing::error!(%error, "message of the engine not understood");
                    break;
                }
            }
        }
        self.shared.send_pending();
    }

    fn serve_programs(&self, directory: Option<OwnedFd>) -> io::Result<()> {
        let engine = self.engine.as_ref().map_or(0, Engine::pid);
        requests::serve(&self.shared, directory, engine)
    }

    fn open_group(&self, name: &[u8], class: Class, engine: &impl AsFd) {
        let text = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        let known = self.shared.groups().iter().position(|(n, _)| *n == text);
        let number = match known {
            Some(number) => number,
            None => match self.make_group(text, class) {
                Ok(number) => number,
                Err(error) => {
                    tracing::error!(%error, "no fanotify group");
                    return;
                }
            },
        };
        let group = Arc::clone(&self.shared.groups()[number].1);
        let reply = ToEngine::Group { group: number as u32 };
        if let Err(error) = reply.send(engine, Some(group.as_fd())) {
            tracing::error!(%error, "the group could not be handed over");
        }
    }

    fn make_group(&self, name: String, class: Class) -> io::Result<usize> {
        let group = Arc::new(Group::new(GroupOptions { class, nonblock: true })?);
        keep::keep(&group);
        let mut groups = self.shared.groups();
        groups.push((name, Arc::clone(&group)));
        let number = groups.len() - 1;
        drop(groups);
        reader::start(&self.shared, number as u32, &group)?;
        Ok(number)
    }

    fn ready(&mut self) {
        keep::retire(&self.shared, std::mem::take(&mut self.kept));
        self.restart = Restart { count: self.restart.count, ..Restart::default() };
        self.shared.denying.store(false, Ordering::SeqCst);
        self.watchdog.begin(Instant::now());
        if !self.served {
            tracing::info!("ready");
        }
        self.served = true;
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            tracing::debug!(%error, "no service manager to tell");
        }
    }

    fn engine_end(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(engine) = &mut self.engine else { return Ok(None) };
        let ended = engine.ended(&self.shared)?;
        if ended.is_some() {
            self.engine = None;
            self.watchdog.end();
        }
        Ok(ended)
    }

    fn schedule_restart(&mut self, status: ExitStatus) {
        let waiting = self.shared.pending().len();
        tracing::error!(%status, waiting, "the engine ended; it is started again");
        let now = Instant::now();
        self.restart.without_engine_since.get_or_insert(now);
        self.restart.at = Some(now + self.restart.backoff);
        let next = (self.restart.backoff * 2).max(Duration::from_millis(50));
        self.restart.backoff = next.min(MAX_BACKOFF);
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.restart.at.is_some_and(|at| at <= now) && self.stopping.is_none() {
            self.restart.at = None;
            self.restart.count += 1;
            match Engine::start(&self.shared, self.arguments, self.restart.count) {
                Ok(engine) => self.engine = Some(engine),
                Err(error) => {
                    tracing::error!(%error, "the engine could not be started");
                    self.restart.at = Some(now + MAX_BACKOFF);
                }
            }
        }
        self.shared.programs.beat(self.shared.pending().questions());
        self.watch(now);
        let absent = self.restart.without_engine_since;
        if absent.is_some_and(|since| now - since > NO_ENGINE_LIMIT) && !self.shared.is_denying() {
            self.shared.denying.store(true, Ordering::SeqCst);
            self.shared.deny_all(libc::EAGAIN);
        }
        if self.stopping.is_some_and(|since| now - since > STOP_GRACE)
            && let Some(engine) = &mut self.engine
        {
            tracing::error!("the engine does not stop; killing it");
            engine.kill();
        }
    }

    fn watch(&mut self, now: Instant) {
        match self.watchdog.look(now) {
            Look::Wait => {}
            Look::Ask => {
                let Some(engine) = self.shared.engine() else { return };
                // No room in its socket: then it has events to take, and answers them or hangs.
                if let Err(error) = ToEngine::Ping.send(&*engine, None) {
                    tracing::debug!(%error, "the engine could not be asked whether it is there");
                }
            }
            Look::Hung => self.kill_hung(now),
        }
    }

    /// From here on it is an engine that died, except that its end may be long in coming: then
    /// those who wait are denied as if there were none.
    fn kill_hung(&mut self, now: Instant) {
        let Some(engine) = &mut self.engine else { return };
        let waiting = self.shared.pending().len();
        tracing::error!(
            pid = engine.pid(), waiting, limit = ?self.watchdog.limit(),
            "the engine hangs: it lives but has said nothing for longer than the limit; killing it"
        );
        self.shared.serving.store(false, Ordering::SeqCst);
        self.restart.without_engine_since.get_or_insert(now);
        engine.kill();
    }

    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        tracing::info!("stopping");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        self.stopping = Some(Instant::now());
        self.watchdog.end();
        match &self.engine {
            Some(engine) => engine.terminate(),
            // Between two engines: the next one is not started any more.
            None => std::process::exit({
                self.leave();
                0
            }),
        }
    }

    /// Ends the watch without letting anybody through ([`super::end`]). Afterwards the process may end.
    fn leave(&self) {
        self.shared.denying.store(true, Ordering::SeqCst);
        self.shared.deny_all(libc::EAGAIN);
        // Readers that deny look the group up.
        let groups = self.shared.groups().clone();
        for (name, group) in &groups {
            let turns = &self.shared.turns;
            let ending = Ending { name, group, turns, numbers: Numbers::Own };
            ending.deny_all(|| self.shared.deny_all(libc::EAGAIN), |_| false);
        }
    }
}

/// Tells the engine how it went.
fn done(engine: &impl AsFd, result: &io::Result<()>) {
    let errno = result.as_ref().err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
    if let Err(error) = result {
        tracing::error!(%error, "the kernel programs cannot be served");
    }
    if let Err(error) = (ToEngine::Done { errno }).send(engine, None) {
        tracing::error!(%error, "the engine does not hear");
    }
}
