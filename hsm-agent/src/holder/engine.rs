//! Starting the engine process and noticing its end.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::Ordering;

use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::protocol::{RESTARTS_VARIABLE, SOCKET_VARIABLE, ToEngine};
use super::shared::Shared;
use crate::failpoint::{Point, reach};
use crate::sys::fanotify::Verdict;
use crate::sys::message;

/// The present engine process.
#[derive(Debug)]
pub(super) struct Engine {
    child: Child,
}

impl Engine {
    /// Starts an engine and greets it. The greeting comes after its process id is known to the
    /// readers: before that it must not touch a managed file system, because its accesses would
    /// be sent to itself.
    pub(super) fn start(
        shared: &Shared,
        arguments: &[std::ffi::OsString],
        earlier: u64,
    ) -> io::Result<Self> {
        let (ours, theirs) = message::pair()?;
        message::keep_on_exec(&theirs)?;
        let child = Command::new(Path::new("/proc/self/exe"))
            .args(arguments)
            .env(SOCKET_VARIABLE, theirs.as_raw_fd().to_string())
            .env(RESTARTS_VARIABLE, earlier.to_string())
            .env_remove("NOTIFY_SOCKET")
            .env_remove("LISTEN_FDS")
            .spawn()?;
        drop(theirs);
        // It waits for our greeting, and ends if that never comes.
        reach(Point::HolderSpawned);
        shared.engine_pid.store(pid_of(&child), Ordering::SeqCst);
        shared.serving.store(false, Ordering::SeqCst);
        shared.refused_pid.store(0, Ordering::SeqCst);
        shared.programs.exempt(pid_of(&child))?;
        let deadly = shared.pending().forget_sent();
        for event in deadly {
            tracing::error!(
                pid = event.frame.pid,
                "too many engines died over this access; denied"
            );
            shared.answer_now(event, Verdict::Deny(libc::EIO));
        }
        ToEngine::Hello.send(&ours, None)?;
        shared.set_engine(Some(ours));
        Ok(Self { child })
    }

    pub(super) fn pid(&self) -> i32 {
        pid_of(&self.child)
    }

    /// The exit status if the engine has ended. Its process id stays reserved until the
    /// exemption is withdrawn; only then is it reaped.
    pub(super) fn ended(&mut self, shared: &Shared) -> io::Result<Option<ExitStatus>> {
        let Some(pid) = rustix::process::Pid::from_raw(self.pid()) else { return Ok(None) };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::Pid(pid), look)?.is_none() {
            return Ok(None);
        }
        shared.engine_pid.store(0, Ordering::SeqCst);
        shared.set_engine(None);
        self.child.wait().map(Some)
    }

    /// SIGKILL. It cannot meet another process: the id is not free before [`Self::ended`] reaps it.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    pub(super) fn terminate(&self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }
}

#[expect(clippy::cast_possible_wrap, reason = "process ids are below 2^22")]
fn pid_of(child: &Child) -> i32 {
    child.id() as i32
}
