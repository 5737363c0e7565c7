//! The end of a group. The kernel lets pass whoever waits in a group whose last descriptor is closed, and a
//! process that ends closes it. So before that:
//!
//! 1. The marks end: no new event comes into being.
//! 2. Every event that was handed out, and is neither answered nor in somebody's table any more, is denied
//!    by its number: the kernel knows an event by the number of its descriptor in whichever process read it.
//! 3. What is queued is read here and denied, whether or not anybody else reads the group.
//! 4. All of that again, until the queue is empty and nobody is between reading an event and answering it
//!    ([`Turns`]).
//!
//! There is no time limit: as long as this does not succeed the group stays open and its waiters wait, which
//! is told, and a reader is denied later instead of being let through now. Reading an event may wait for
//! somebody's lease, for `lease-break-time` (45 s) at most.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::run::MAX_WAITING;
use crate::sys::fanotify::{EVENT_BUFFER, Group, Verdict, events, take_event_fd};
use crate::sys::process::{descriptors, raise_descriptor_limit};

/// The holder lets at most [`MAX_WAITING`] events wait and has few other descriptors; the kernel
/// gives the lowest free number.
const MAX_NUMBER: i32 = MAX_WAITING as i32 + 4096;
/// How often it is told that a group cannot be closed.
const TELL: Duration = Duration::from_secs(5);
/// A program that had found the mark before it went may take so long to queue its event.
const STRAGGLERS: Duration = Duration::from_millis(20);

/// Counts the threads that read a group's events and have not yet answered what they read, or noted it in a
/// table. The group's descriptor must be non-blocking: a thread that waits in `read` would count for ever.
#[derive(Debug, Default)]
pub struct Turns(AtomicUsize);

/// One thread's turn, from before it reads until it has answered.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// Nobody reads yet.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// To be called before an event is read.
    pub fn begin(&self) -> Turn<'_> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Turn(self)
    }

    fn is_none(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whose descriptors name the events that were handed out.
#[derive(Debug, Clone, Copy)]
pub enum Numbers {
    /// This process's: it has them open as long as they are unanswered.
    Own,
    /// Those of a process that is dead, and perhaps our own.
    Any,
}

/// A group that is to end.
#[derive(Debug)]
pub struct Ending<'a> {
    /// For people.
    pub name: &'a str,
    /// The group.
    pub group: &'a Group,
    /// Those who read it. From now on they deny.
    pub turns: &'a Turns,
    /// How the kernel knows what was handed out.
    pub numbers: Numbers,
}

impl Ending<'_> {
    /// Denies whoever waits, and returns when nobody does and nobody will: the group may be closed.
    /// `deny` denies what is in a table; `is_own` tells the processes that a denial is not for. Returns
    /// how many were denied here. A group that fails closed keeps its marks: the kernel denies what waits,
    /// and goes on denying.
    pub fn deny_all(&self, deny: impl Fn(), is_own: impl Fn(i32) -> bool) -> usize {
        if self.group.fails_closed() {
            deny();
            return 0;
        }
        let (mut denied, mut quiet, mut told) = (0, false, Instant::now());
        loop {
            let ended = end_marks(self.group);
            let idle = self.turns.is_none();
            deny();
            // Before anything is read: our descriptors may have the numbers of a dead process.
            denied += deny_numbers(self.group, self.numbers);
            denied += self.deny_queued(&is_own);
            let was_quiet = quiet;
            quiet = ended.is_ok() && idle && self.turns.is_none() && !self.group.has_events();
            if quiet && was_quiet {
                return denied;
            }
            if told.elapsed() > TELL {
                told = Instant::now();
                let (name, marks) = (self.name, ended.err());
                tracing::error!(
                    name,
                    ?marks,
                    readers = !idle,
                    "the watch cannot be closed yet: the kernel would let pass who waits in it; it stays \
                     open, and they wait"
                );
            }
            std::thread::sleep(if quiet { STRAGGLERS } else { Duration::from_millis(1) });
        }
    }

    fn deny_queued(&self, is_own: impl Fn(i32) -> bool) -> usize {
        let mut buf = [0u8; EVENT_BUFFER];
        let mut denied = 0;
        while self.group.has_events() {
            match self.group.read(&mut buf) {
                Ok(n) => {
                    for event in events(&buf[..n]).flatten() {
                        let Some(_fd) = take_event_fd(&event) else { continue };
                        let own = is_own(event.pid);
                        let verdict =
                            if own { Verdict::Allow } else { Verdict::Deny(libc::EAGAIN) };
                        denied += usize::from(self.group.answer(event.fd, verdict).is_ok() && !own);
                    }
                }
                // Somebody else was faster.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::error!(%error, name = self.name, "events of a watch that ends cannot be read");
                    std::thread::sleep(Duration::from_millis(10));
                    break;
                }
            }
        }
        denied
    }
}

/// No new event comes into being.
pub(super) fn end_marks(group: &Group) -> io::Result<()> {
    // First the whole file system: ignore marks must not go before what they are taken from.
    group.flush_filesystem_marks()?;
    group.flush_inode_marks()
}

/// Denies every event that was handed out as one of these numbers, and counts them.
pub fn deny_numbers(group: &Group, numbers: Numbers) -> usize {
    // `NotFound` is the rule.
    let deny = |n: &i32| group.answer(*n, Verdict::Deny(libc::EIO)).is_ok();
    match numbers {
        Numbers::Own => match descriptors() {
            Ok(open) => open.iter().filter(|n| deny(n)).count(),
            Err(error) => {
                tracing::debug!(%error, "own descriptors unknown: every number is tried");
                deny_numbers(group, Numbers::Any)
            }
        },
        Numbers::Any => {
            // A dead process had the same limit.
            let limit = i32::try_from(raise_descriptor_limit()).unwrap_or(i32::MAX);
            (0..limit.min(MAX_NUMBER)).filter(deny).count()
        }
    }
}
