//! When answers are written: in bursts, where many wait.
//!
//! A stock kernel wakes everybody who waits in a group for each answer, to look whether it was his; with hundreds of
//! them an answer costs milliseconds of the processors. Whom an earlier answer has woken, and who has not run
//! yet, needs no second wake-up: so answers gather, are written one directly after the other, and then there is a pause
//! in proportion to those who wait. Where few wait, every answer is written at once.
//!
//! Urgent answers (to the agent's own accesses, to users of whom hardly anybody waits) end a pause early, and the
//! others go with them. What was tried, and the figures: docs/adr/0014.
//!
//! If the holder dies, what gathers here is unanswered, as what the engine is about to answer: whoever ends the watch denies
//! it, by its number.
//!
//! Invariant: an answer that waits here is found by [`Pace::flush`], which returns when it is written. Who is about
//! to deny, or to end the watch, calls that first.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sys::fanotify::{Group, Verdict};

/// To wake one more who looks and sleeps again takes some 10 µs of one processor (190,000 changes of thread a second
/// on two that do nothing else, Linux 6.18 in a virtual machine). So on two of them those who look get a third
/// of the time.
const PER_WAITER: Duration = Duration::from_micros(10);
/// An urgent answer waits for this part of a pause: they too are not to take all of the time.
const URGENT: u32 = 4;
/// Whatever these cost, a pause would hold up more.
const FEW: usize = 8;
/// Nobody is kept longer than that for others' sake.
const LONGEST: Duration = Duration::from_millis(100);

/// An answer that can be written.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) group: Arc<Group>,
    /// Descriptor of the event, in whose number the kernel knows it: open until the answer is written.
    pub(super) fd: OwnedFd,
    /// That number.
    pub(super) number: i32,
    /// Who waits, for people.
    pub(super) pid: i32,
    pub(super) verdict: Verdict,
}

impl Answer {
    /// Answers and only then closes the event's descriptor.
    pub(super) fn write(self) {
        match self.group.answer(self.number, self.verdict) {
            Ok(()) => {}
            // The waiter was killed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%error, pid = self.pid, "answer not taken"),
        }
        drop(self.fd);
    }
}

/// What gathers until the next burst.
#[derive(Debug)]
struct Gathering<T> {
    answers: Vec<T>,
    /// One of them is urgent; the others go with it.
    urgent: bool,
    /// Answers of the burst that is being written.
    writing: usize,
    /// When the last burst ended, and for how long there is no other.
    pause: Option<(Instant, Duration)>,
}

/// Where an answer goes.
#[derive(Debug, PartialEq, Eq)]
enum Way<T> {
    /// It is to be written at once.
    Now(T),
    /// It gathers. `true`: whoever writes bursts has to know.
    Later(bool),
}

impl<T> Gathering<T> {
    const fn new() -> Self {
        Self { answers: Vec::new(), urgent: false, writing: 0, pause: None }
    }

    /// So many others wait.
    fn offer(&mut self, answer: T, urgent: bool, waiting: usize) -> Way<T> {
        if waiting <= FEW && self.len() == 0 {
            return Way::Now(answer);
        }
        let news = self.answers.is_empty() || (urgent && !self.urgent);
        self.answers.push(answer);
        self.urgent |= urgent;
        Way::Later(news)
    }

    /// Answers that are not written yet.
    fn len(&self) -> usize {
        self.answers.len() + self.writing
    }

    /// How long the pause still takes.
    fn left(&self, now: Instant) -> Option<Duration> {
        let (begin, pause) = self.pause?;
        let pause = if self.urgent { pause / URGENT } else { pause };
        let left = (begin + pause).checked_duration_since(now)?;
        (!left.is_zero()).then_some(left)
    }

    /// What is to be written until [`Self::wrote`].
    fn take(&mut self) -> Vec<T> {
        self.urgent = false;
        self.writing = self.answers.len();
        std::mem::take(&mut self.answers)
    }

    /// So many wait now.
    fn wrote(&mut self, now: Instant, waiting: usize) {
        self.writing = 0;
        self.pause = (waiting > FEW).then(|| {
            let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
            (now, PER_WAITER.saturating_mul(waiting).min(LONGEST))
        });
    }
}

/// The answers of all groups. (They have queues of their own in the kernel, and the processors in common.)
#[derive(Debug)]
pub(super) struct Pace {
    gathering: Mutex<Gathering<Answer>>,
    /// Something gathers, or is urgent.
    news: Condvar,
    /// Held from before answers leave `gathering` until they are written.
    burst: Mutex<()>,
}

impl Pace {
    pub(super) const fn new() -> Self {
        Self {
            gathering: Mutex::new(Gathering::new()),
            news: Condvar::new(),
            burst: Mutex::new(()),
        }
    }

    fn gathering(&self) -> MutexGuard<'_, Gathering<Answer>> {
        self.gathering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers that are not written yet.
    pub(super) fn len(&self) -> usize {
        self.gathering().len()
    }

    /// Writes an answer, now or with the next burst. So many others wait.
    pub(super) fn answer(&self, answer: Answer, urgent: bool, waiting: usize) {
        let way = self.gathering().offer(answer, urgent, waiting);
        match way {
            Way::Now(answer) => answer.write(),
            Way::Later(true) => self.news.notify_one(),
            Way::Later(false) => {}
        }
    }

    /// Writes what has gathered, and returns when nothing of it is under way. `waiting` tells how many wait then.
    pub(super) fn flush(&self, waiting: impl FnOnce() -> usize) {
        let _burst = self.burst.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = self.gathering().take();
        answers.into_iter().for_each(Answer::write);
        let waiting = waiting();
        self.gathering().wrote(Instant::now(), waiting);
    }

    /// Writes bursts for ever. `waiting` tells how many wait.
    pub(super) fn write_bursts(&self, waiting: impl Fn() -> usize) -> ! {
        loop {
            self.until_due();
            self.flush(&waiting);
        }
    }

    fn until_due(&self) {
        let mut gathering = self.gathering();
        loop {
            gathering = if gathering.answers.is_empty() {
                self.news.wait(gathering).unwrap_or_else(PoisonError::into_inner)
            } else if let Some(left) = gathering.left(Instant::now()) {
                let woken = self.news.wait_timeout(gathering, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            } else {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: usize = 800;

    #[test]
    fn where_few_wait_nothing_gathers() {
        let mut gathering = Gathering::new();
        for n in 0..100 {
            assert_eq!(gathering.offer(n, n % 2 == 0, FEW), Way::Now(n));
        }
        assert_eq!(gathering.offer(100, false, FEW + 1), Way::Later(true));
        // Nobody overtakes what gathers, nor what is being written.
        assert_eq!(gathering.offer(101, true, 0), Way::Later(true));
        assert_eq!(gathering.take(), [100, 101]);
        assert_eq!(gathering.len(), 2);
        assert_eq!(gathering.offer(102, false, 0), Way::Later(true));
        gathering.wrote(Instant::now(), 0);
        assert_eq!(gathering.take(), [102]);
        gathering.wrote(Instant::now(), 0);
        assert_eq!(gathering.offer(103, false, 0), Way::Now(103));
    }

    #[test]
    fn bursts_have_pauses_that_urgent_answers_shorten() {
        let (mut gathering, begin) = (Gathering::new(), Instant::now());
        let at = |micros| begin + Duration::from_micros(micros);
        assert_eq!(gathering.offer(1, false, MANY), Way::Later(true));
        assert_eq!(gathering.left(at(0)), None, "the first burst is at once");
        gathering.take();
        gathering.wrote(at(0), MANY);
        assert_eq!(gathering.offer(2, false, MANY), Way::Later(true));
        assert_eq!(gathering.offer(3, false, MANY), Way::Later(false));
        assert_eq!(gathering.left(at(500)), Some(Duration::from_micros(7500)));
        assert_eq!(gathering.offer(4, true, MANY), Way::Later(true));
        assert_eq!(gathering.offer(5, true, MANY), Way::Later(false));
        assert_eq!(gathering.left(at(600)), Some(Duration::from_micros(1400)));
        assert_eq!(gathering.left(at(2000)), None);
        assert_eq!(gathering.take(), [2, 3, 4, 5]);
        // One that comes while they are written shortens the next pause.
        assert_eq!(gathering.offer(6, true, MANY), Way::Later(true));
        gathering.wrote(at(2000), MANY);
        assert_eq!(gathering.left(at(2000)), Some(Duration::from_micros(2000)));
        gathering.take();
        gathering.wrote(at(4000), MANY);
        assert_eq!(gathering.left(at(4000)), Some(Duration::from_micros(8000)), "not for good");
    }

    #[test]
    fn a_pause_has_an_end_however_many_wait() {
        let (mut gathering, now) = (Gathering::<()>::new(), Instant::now());
        gathering.wrote(now, usize::MAX);
        assert_eq!(gathering.left(now), Some(LONGEST));
    }
}
