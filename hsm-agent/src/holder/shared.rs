//! State that the holder's threads share.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::end::Turns;
use super::pace::{Answer, Pace};
use super::pending::{Origin, Pending, Unanswered};
use super::protocol::ToEngine;
use super::requests::Programs;
use crate::failpoint::{Point, reach};
use crate::sys::fanotify::{Group, Verdict};

/// What readers, main loop and engine starter have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pending: Mutex<Pending>,
    pub(super) groups: Mutex<Vec<(String, Arc<Group>)>>,
    /// Answers that are to be written.
    pub(super) pace: Pace,
    /// Readers that have not yet answered or noted down what they read.
    pub(super) turns: Turns,
    /// The kernel programs, if they are served.
    pub(super) programs: Programs,
    /// Our end of the socket pair with the present engine.
    pub(super) engine: Mutex<Option<Arc<OwnedFd>>>,
    /// Process id of the present engine; 0: there is none, nobody is exempt.
    pub(super) engine_pid: AtomicI32,
    /// Process id of an engine that is to end before the present one serves ([`ToHolder::Refuse`]); 0: there is none.
    ///
    /// [`ToHolder::Refuse`]: super::protocol::ToHolder::Refuse
    pub(super) refused_pid: AtomicI32,
    /// The present engine takes events. Until then it is told no events: it asks for its groups first,
    /// and the answer to that must find room in the socket.
    pub(super) serving: AtomicBool,
    /// The main loop is to wait for room in the engine's socket.
    pub(super) wants_room: AtomicBool,
    /// Deny instead of queueing: the agent is stopping, or has had no engine for too long.
    pub(super) denying: AtomicBool,
    /// Wakes the main loop.
    pub(super) wake: OwnedFd,
    /// Unanswered events that the descriptor limit has room for.
    pub(super) capacity: usize,
}

impl Shared {
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        Ok(Self {
            pending: Mutex::default(),
            groups: Mutex::default(),
            pace: Pace::new(),
            turns: Turns::new(),
            programs: Programs::default(),
            engine: Mutex::default(),
            engine_pid: AtomicI32::new(0),
            refused_pid: AtomicI32::new(0),
            serving: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            denying: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            capacity,
        })
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn groups(&self) -> MutexGuard<'_, Vec<(String, Arc<Group>)>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> Option<Arc<OwnedFd>> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_engine(&self, socket: Option<OwnedFd>) {
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = socket.map(Arc::new);
    }

    /// Tells the engine what it has not been told, as far as the socket has room. The rest is
    /// sent when the main loop sees room.
    pub(super) fn send_pending(&self) {
        if !self.serving.load(Ordering::SeqCst) {
            return;
        }
        let Some(engine) = self.engine() else { return };
        let mut pending = self.pending();
        while let Some(event) = pending.next_unsent() {
            match ToEngine::Event(event.frame).send(&*engine, Some(event.fd.as_fd())) {
                Ok(()) => {
                    pending.sent();
                    reach(Point::HolderSent);
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // ETOOMANYREFS passes with time; a dead engine is replaced.
                        tracing::debug!(%error, "event not handed over yet");
                    }
                    break;
                }
            }
        }
        let more = pending.has_unsent();
        drop(pending);
        // Once is enough: the main loop then waits for room.
        if more && !self.wants_room.swap(true, Ordering::SeqCst) {
            self.wake_main_loop();
        }
    }

    pub(super) fn wake_main_loop(&self) {
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Answers, with others where many wait ([`super::pace`]).
    pub(super) fn answer(&self, event: Unanswered, verdict: Verdict, urgent: bool) {
        let Some(answer) = self.prepare(event, verdict) else { return };
        // A group that fails closed wakes the one whose answer it was.
        if answer.group.fails_closed() || self.is_denying() {
            answer.write();
        } else {
            self.pace.answer(answer, urgent, self.waiting());
        }
    }

    /// Answers when this returns.
    pub(super) fn answer_now(&self, event: Unanswered, verdict: Verdict) {
        self.prepare(event, verdict).into_iter().for_each(Answer::write);
    }

    /// The answer for fanotify; others are given here.
    fn prepare(&self, event: Unanswered, verdict: Verdict) -> Option<Answer> {
        let Unanswered { frame, fd, origin, .. } = event;
        match origin {
            Origin::Fanotify => {}
            Origin::Program(question) => {
                self.programs.answer(question, verdict);
                return None;
            }
            Origin::Wanted(_) => return None,
        }
        let group = self.groups().get(frame.group as usize).map(|(_, g)| Arc::clone(g));
        let Some(group) = group else {
            tracing::error!(pid = frame.pid, group = frame.group, "an answer for no known group");
            return None;
        };
        Some(Answer { group, fd, number: frame.event_fd, pid: frame.pid, verdict })
    }

    /// Events that are unanswered, or whose answer is not written yet.
    pub(super) fn waiting(&self) -> usize {
        self.pending().len() + self.pace.len()
    }

    /// Denies everything that waits.
    pub(super) fn deny_all(&self, errno: i32) {
        self.pace.flush(|| 0);
        let waiting = self.pending().drain();
        if !waiting.is_empty() {
            tracing::warn!(count = waiting.len(), errno, "denying all waiting accesses");
        }
        waiting.into_iter().for_each(|e| self.answer_now(e, Verdict::Deny(errno)));
    }

    /// From now on this process is denied whatever it asks, also what it waits for already. 0: nobody is; who waits
    /// under that number is in another pid namespace.
    pub(super) fn refuse(&self, pid: i32) {
        self.refused_pid.store(pid, Ordering::SeqCst);
        if pid == 0 {
            return;
        }
        let waiting = self.pending().take_of(pid);
        waiting.into_iter().for_each(|e| self.answer_now(e, Verdict::Deny(libc::EIO)));
    }

    /// Lists what the engine is to answer, unless nobody would get to it.
    pub(super) fn list(&self, event: Unanswered) {
        // Under the lock of the table: who is listed before `refuse` looks is found by it.
        let mut pending = self.pending();
        let pid = event.frame.pid;
        if pid > 0 && pid == self.refused_pid.load(Ordering::SeqCst) {
            drop(pending);
            self.answer_now(event, Verdict::Deny(libc::EIO));
        } else {
            pending.insert(event);
        }
    }

    pub(super) fn is_denying(&self) -> bool {
        self.denying.load(Ordering::SeqCst)
    }
}
