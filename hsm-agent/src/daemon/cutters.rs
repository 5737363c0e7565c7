//! Callers of `truncate(2)` who may cut a file at any moment, though nothing shows them (tier `user-filter`).
//!
//! The kernel asks about a `truncate(2)` before it counts the caller, and until he is counted no lease meets him.
//! Once he has our answer he only needs a processor: on a busy machine that takes long enough for a whole release, and
//! he would cut the stub. So nothing is released while he waits, nor for [`GRACE`] after his answer. After an engine's
//! death the next one does not know whom it had answered, and takes every file for one of theirs that long.
//!
//! This makes it rare. It does not close the gap for a caller whom nobody was asked about, or who takes
//! longer: see docs/PROTOCOL-MODEL.md, "What no rule closes". With kernel programs there is none: `guard_setattr`
//! refuses him.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::core::FileKey;

/// Where many wait, an answer reaches the kernel up to 0.1 s after it was given (`holder::pace`).
/// A thread that can run waits for a processor for milliseconds, times the number of those who are busy.
const GRACE: Duration = Duration::from_secs(1);

/// Those of one pool.
#[derive(Debug)]
pub struct Cutters {
    /// Until then anybody may be on his way, to any file.
    unknown_until: Option<Instant>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Who waits for an answer.
    asking: HashMap<FileKey, usize>,
    /// Who got one, and when; oldest first, none older than [`GRACE`].
    answered: VecDeque<(Instant, FileKey)>,
}

impl Cutters {
    /// Nobody is known; an engine may have answered somebody just before (`now`) it died.
    pub fn new(after_a_death: Option<Instant>) -> Self {
        Self { unknown_until: after_a_death.map(|now| now + GRACE), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody waits for an answer. To be called before the file's state says so.
    pub fn asks(&self, key: &FileKey) {
        *self.state().asking.entry(key.clone()).or_default() += 1;
    }

    /// He has one. To be called after it was given.
    pub fn answered(&self, key: &FileKey, now: Instant) {
        let mut state = self.state();
        if let Some(asking) = state.asking.get_mut(key) {
            *asking -= 1;
            if *asking == 0 {
                state.asking.remove(key);
            }
        }
        state.forget(now);
        state.answered.push_back((now, key.clone()));
    }

    /// How long the file must not be released from now on. `None`: nobody is on his way.
    pub fn may_come(&self, key: &FileKey, now: Instant) -> Option<Duration> {
        let mut state = self.state();
        state.forget(now);
        let last =
            state.answered.iter().rev().find(|(_, k)| k == key).map(|(then, _)| *then + GRACE);
        let asking = state.asking.contains_key(key).then(|| now + GRACE);
        let until = [self.unknown_until, last, asking].into_iter().flatten().max()?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

impl State {
    fn forget(&mut self, now: Instant) {
        while self.answered.front().is_some_and(|(then, _)| *then + GRACE <= now) {
            self.answered.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> FileKey {
        FileKey { kind: 0, bytes: Box::new([n]) }
    }

    #[test]
    fn from_the_question_until_a_grace_after_the_answer() {
        let (cutters, begin) = (Cutters::new(None), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(cutters.may_come(&key(1), at(0)), None);
        cutters.asks(&key(1));
        cutters.asks(&key(1));
        assert_eq!(cutters.may_come(&key(1), at(5000)), Some(GRACE), "however long he waits");
        cutters.answered(&key(1), at(5000));
        cutters.answered(&key(1), at(5300));
        assert_eq!(cutters.may_come(&key(1), at(5500)), Some(Duration::from_millis(800)));
        assert_eq!(cutters.may_come(&key(2), at(5500)), None);
        assert_eq!(cutters.may_come(&key(1), at(6300)), None);
        let state = cutters.state();
        assert!(state.asking.is_empty() && state.answered.is_empty(), "nothing is kept");
    }

    #[test]
    fn after_a_death_it_may_be_any_file() {
        let begin = Instant::now();
        let cutters = Cutters::new(Some(begin));
        assert_eq!(cutters.may_come(&key(1), begin), Some(GRACE));
        assert_eq!(cutters.may_come(&key(1), begin + GRACE), None);
    }
}
