//! What is going on with each file right now: the agent-side lock, and single flight.
//!
//! One [`Inflight`] per pool owns all of it. Somebody reports an [`Event`] for a file, [`Inflight::apply`]
//! changes the file's phase and returns the [`Effect`]s that must now be carried out, whose results
//! come back as events. No IO, no clock.
//!
//! ```text
//!            access                 offline                 data written, not yet durable
//!   (idle) ─────────▶ Looking ─────────────▶ Recalling ─────────────────────▶ Settling
//!     ▲                  │ online               │ complete and durable, or failed │ marker gone
//!     └──────────────────┴──────────────────────┴─────────────────────────────────┘
//!   (idle) ── release wanted ──▶ Releasing ── release ended ──▶ Looking if somebody waits, else (idle)
//! ```
//!
//! Invariants (see the tests):
//! - every access is answered exactly once;
//! - ALLOW follows only from "online", or from a recall that covers what the access wants;
//! - a release runs only while nothing else does, and no access is answered during it;
//! - during an archive job accesses to an online file go on as usual, but neither release nor recall
//!   starts, and the job does not begin before a recall is durable: it ends the watch, and whoever writes
//!   then must not find the marker back after a power cut.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Range;

use crate::sys::fanotify::Verdict;

/// Identifies one waiting access.
pub type Ticket = u64;

/// What an access needs to be local before it may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// The whole file.
    Whole,
    /// These bytes.
    Range(Range<u64>),
}

impl Want {
    fn covers(&self, other: &Want) -> bool {
        match (self, other) {
            (Self::Whole, _) => true,
            (Self::Range(_), Self::Whole) => false,
            (Self::Range(a), Self::Range(b)) => a.start <= b.start && b.end <= a.end,
        }
    }
}

/// Somebody waits in the kernel, or a user asked for a recall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Who.
    pub ticket: Ticket,
    /// What for.
    pub want: Want,
}

/// A bulk operation that claims a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Reads the file; excludes other jobs and recalls, not accesses to an online file.
    Archive,
    /// Takes the data away; excludes everything.
    Release,
}

/// What the marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// No marker: all data is local.
    Online,
    /// A valid marker.
    Offline,
    /// The marker could not be read or makes no sense: deny with this errno.
    Unreadable(i32),
}

/// How far a recall came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recalled {
    /// All data is durable, the marker is gone.
    Complete,
    /// All data is in place but not durable, the marker still set; a read lease keeps writers out
    /// until [`Event::Settled`].
    Settling,
    /// This range is local and durable; the marker stays.
    Partial(Range<u64>),
}

/// Something happened to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants at it.
    Access(Access),
    /// Result of [`Effect::Look`].
    Looked(Look),
    /// Result of [`Effect::Recall`]: errno on failure.
    Recalled(Result<Recalled, i32>),
    /// The data is durable and the marker gone; on failure the errno, and the marker stays.
    Settled(Result<(), i32>),
    /// [`Effect::Judge`] found that this access may write: it waits until the file has settled.
    Defer(Access),
    /// The waiter does not wait any more (aborted by the operator, or past its deadline).
    Abandon(Ticket, i32),
    /// The recall was taken back before it began, after [`Effect::Unwanted`].
    Withdrawn,
    /// A bulk worker wants the file.
    Claim(Job),
    /// The bulk worker is done with it.
    Unclaim(Job),
}

/// What must be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Read the marker, report [`Event::Looked`]. If it says online, the kernel may be told to
    /// pass over this file *before* the event is reported: that serialises it with releases.
    Look,
    /// Bring data back, report [`Event::Recalled`].
    Recall(Want),
    /// The data is there but not durable: allow this access if it provably only reads, otherwise
    /// report [`Event::Defer`].
    Judge(Access),
    /// Nobody waits for the recall any more: if it has not begun, take it back and report
    /// [`Event::Withdrawn`].
    Unwanted,
    /// Tell the kernel, or the user.
    Answer(Ticket, Verdict),
    /// The claim holds until [`Event::Unclaim`].
    Granted,
    /// Something else has the file.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Idle,
    Looking,
    Recalling(Want),
    Settling,
    Releasing,
}

#[derive(Debug)]
struct File {
    phase: Phase,
    waiters: Vec<Access>,
    archiving: bool,
}

/// All files of a pool with which something is going on.
#[derive(Debug)]
pub struct Inflight<K> {
    files: HashMap<K, File>,
}

impl<K: Hash + Eq + Clone> Default for Inflight<K> {
    fn default() -> Self {
        Self { files: HashMap::new() }
    }
}

impl<K: Hash + Eq + Clone> Inflight<K> {
    /// Takes note of an event and says what to do.
    #[must_use = "an effect that is not carried out leaves somebody waiting for ever"]
    pub fn apply(&mut self, key: &K, event: Event) -> Vec<Effect> {
        let file = self.files.entry(key.clone()).or_insert_with(|| File {
            phase: Phase::Idle,
            waiters: Vec::new(),
            archiving: false,
        });
        let effects = file.apply(event);
        if file.phase == Phase::Idle && !file.archiving && file.waiters.is_empty() {
            self.files.remove(key);
        }
        effects
    }

    /// Whether something is going on with this file.
    pub fn is_busy(&self, key: &K) -> bool {
        self.files.contains_key(key)
    }

    /// Files with which something is going on.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether nothing is going on.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }
}

impl File {
    fn apply(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Access(access) => self.access(access),
            Event::Looked(look) => self.looked(look),
            Event::Recalled(result) => self.recalled(result),
            Event::Settled(result) => self.settled(result),
            Event::Defer(access) => match self.phase {
                Phase::Settling => {
                    self.waiters.push(access);
                    Vec::new()
                }
                // It settled in between.
                _ => self.access(access),
            },
            Event::Abandon(ticket, errno) => self.abandon(ticket, errno),
            Event::Withdrawn => {
                debug_assert!(matches!(self.phase, Phase::Recalling(_)), "{:?}", self.phase);
                // Somebody may have come meanwhile.
                self.recall_next()
            }
            Event::Claim(job) => self.claim(job),
            Event::Unclaim(Job::Archive) => {
                self.archiving = false;
                if self.phase == Phase::Idle { self.look_if_somebody_waits() } else { Vec::new() }
            }
            Event::Unclaim(Job::Release) => {
                self.phase = Phase::Idle;
                self.look_if_somebody_waits()
            }
        }
    }

    fn access(&mut self, access: Access) -> Vec<Effect> {
        match self.phase {
            Phase::Idle => {
                self.waiters.push(access);
                self.look_if_somebody_waits()
            }
            Phase::Settling => vec![Effect::Judge(access)],
            Phase::Looking | Phase::Recalling(_) | Phase::Releasing => {
                self.waiters.push(access);
                Vec::new()
            }
        }
    }

    fn looked(&mut self, look: Look) -> Vec<Effect> {
        debug_assert_eq!(self.phase, Phase::Looking);
        match look {
            Look::Online => self.answer_all(Verdict::Allow),
            Look::Unreadable(errno) => self.answer_all(Verdict::Deny(errno)),
            // The job has not looked yet. It gives an offline file back at once.
            Look::Offline if self.archiving => {
                self.phase = Phase::Idle;
                Vec::new()
            }
            Look::Offline => self.recall_next(),
        }
    }

    fn recalled(&mut self, result: Result<Recalled, i32>) -> Vec<Effect> {
        debug_assert!(matches!(self.phase, Phase::Recalling(_)), "{:?}", self.phase);
        match result {
            Ok(Recalled::Complete) => self.answer_all(Verdict::Allow),
            Ok(Recalled::Settling) => {
                self.phase = Phase::Settling;
                // Also the first waiters are judged one by one: a late one may write.
                self.waiters.drain(..).map(Effect::Judge).collect()
            }
            Ok(Recalled::Partial(range)) => {
                let done = Want::Range(range);
                let (covered, rest) =
                    self.waiters.drain(..).partition(|w: &Access| done.covers(&w.want));
                self.waiters = rest;
                let unserved = |w: &Access| self.phase == Phase::Recalling(w.want.clone());
                if self.waiters.iter().any(unserved) {
                    // It was recalled for him, and does not cover him: trying again would not end.
                    let mut effects = answers(covered, Verdict::Allow);
                    effects.extend(self.answer_all(Verdict::Deny(libc::EIO)));
                    return effects;
                }
                let mut effects = answers(covered, Verdict::Allow);
                effects.extend(self.recall_next());
                effects
            }
            // All of them: whoever came while it failed can try again; nobody waits twice as long
            // as the deadline.
            Err(errno) => self.answer_all(Verdict::Deny(errno)),
        }
    }

    fn settled(&mut self, result: Result<(), i32>) -> Vec<Effect> {
        debug_assert_eq!(self.phase, Phase::Settling);
        match result {
            Ok(()) => self.answer_all(Verdict::Allow),
            Err(errno) => self.answer_all(Verdict::Deny(errno)),
        }
    }

    fn abandon(&mut self, ticket: Ticket, errno: i32) -> Vec<Effect> {
        let before = self.waiters.len();
        self.waiters.retain(|w| w.ticket != ticket);
        if self.waiters.len() == before {
            return Vec::new();
        }
        let mut effects = vec![Effect::Answer(ticket, Verdict::Deny(errno))];
        if self.waiters.is_empty() && matches!(self.phase, Phase::Recalling(_)) {
            effects.push(Effect::Unwanted);
        }
        effects
    }

    fn claim(&mut self, job: Job) -> Vec<Effect> {
        let free = !self.archiving
            && match job {
                Job::Archive => matches!(self.phase, Phase::Idle | Phase::Looking),
                Job::Release => self.phase == Phase::Idle,
            };
        match (free, job) {
            (false, _) => return vec![Effect::Refused],
            (true, Job::Archive) => self.archiving = true,
            (true, Job::Release) => self.phase = Phase::Releasing,
        }
        vec![Effect::Granted]
    }

    fn look_if_somebody_waits(&mut self) -> Vec<Effect> {
        if self.waiters.is_empty() {
            self.phase = Phase::Idle;
            return Vec::new();
        }
        self.phase = Phase::Looking;
        vec![Effect::Look]
    }

    /// The whole file if anybody wants it whole, otherwise the first range.
    fn recall_next(&mut self) -> Vec<Effect> {
        let whole = self.waiters.iter().any(|w| w.want == Want::Whole);
        let next =
            if whole { Some(Want::Whole) } else { self.waiters.first().map(|w| w.want.clone()) };
        match next {
            None => {
                self.phase = Phase::Idle;
                Vec::new()
            }
            Some(want) => {
                self.phase = Phase::Recalling(want.clone());
                vec![Effect::Recall(want)]
            }
        }
    }

    fn answer_all(&mut self, verdict: Verdict) -> Vec<Effect> {
        self.phase = Phase::Idle;
        answers(std::mem::take(&mut self.waiters), verdict)
    }
}

fn answers(waiters: Vec<Access>, verdict: Verdict) -> Vec<Effect> {
    waiters.into_iter().map(|w| Effect::Answer(w.ticket, verdict)).collect()
}

#[cfg(test)]
mod tests;
