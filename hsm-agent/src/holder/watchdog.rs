//! Notices an engine that lives and does nothing. Pure.
//!
//! A dead engine is noticed by its death. One that hangs (a deadlock, a stopped process) would let
//! its readers wait for ever. So the holder asks it at intervals; the question takes the way of an
//! event through the socket and the engine's dispatcher, and the answer comes from its runtime. Any
//! other message of the engine counts as well. A long recall is no hang: it keeps neither busy.
//!
//! An engine is given up after two looks in a row without a word, half the limit apart, and each
//! asks again. One silent look alone proves nothing: if the whole agent was stopped or frozen, the
//! first look after it comes before the engine could say anything. A suspended machine does not
//! count at all, because `Instant` (CLOCK_MONOTONIC) stands still. `docs/adr/0005-hung-engine.md`.

use std::time::{Duration, Instant};

/// An engine that was silent for so long, and for half as long again at most, is killed. The slowest
/// thing that its dispatcher waits for is one attribute from a busy disk.
const LIMIT: Duration = Duration::from_secs(60);

/// Another limit, in milliseconds, for tests and debuggers.
const LIMIT_VARIABLE: &str = "HSM_ENGINE_HANG_LIMIT_MS";

/// Silent looks in a row until the engine is given up.
const LOOKS: u32 = 2;

/// What the holder is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing yet.
    Wait,
    /// Ask the engine whether it is there.
    Ask,
    /// Kill it.
    Hung,
}

/// Watches one engine after the other.
#[derive(Debug)]
pub(super) struct Watchdog {
    limit: Duration,
    /// When to look; `None`: no engine serves.
    next: Option<Instant>,
    heard: bool,
    silent: u32,
}

impl Watchdog {
    /// With the limit of [`LIMIT_VARIABLE`], if it says one.
    pub(super) fn from_environment() -> Self {
        let said = std::env::var(LIMIT_VARIABLE).ok().and_then(|text| text.parse().ok());
        Self::new(said.filter(|ms| *ms > 0).map_or(LIMIT, Duration::from_millis))
    }

    fn new(limit: Duration) -> Self {
        Self { limit, next: None, heard: false, silent: 0 }
    }

    /// Silence that costs an engine its life.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// An engine serves from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        *self = Self { next: Some(now), heard: true, ..Self::new(self.limit) };
    }

    /// There is no engine, or none whose silence means anything.
    pub(super) fn end(&mut self) {
        self.next = None;
    }

    /// The engine said something.
    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    /// Called often; says what is due.
    pub(super) fn look(&mut self, now: Instant) -> Look {
        if self.next.is_none_or(|next| now < next) {
            return Look::Wait;
        }
        self.silent = if std::mem::take(&mut self.heard) { 0 } else { self.silent + 1 };
        if self.silent >= LOOKS {
            self.end();
            return Look::Hung;
        }
        self.next = Some(now + self.limit / LOOKS);
        Look::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(250);

    fn watching() -> (Watchdog, Instant) {
        let now = Instant::now();
        let mut dog = Watchdog::new(LIMIT);
        assert_eq!(dog.look(now), Look::Wait, "no engine yet");
        dog.begin(now);
        (dog, now)
    }

    /// Looks every [`STEP`] until it is given up.
    fn given_up_after(dog: &mut Watchdog, from: Instant) -> Duration {
        let mut now = from;
        while dog.look(now) != Look::Hung {
            now += STEP;
            assert!(now < from + LIMIT * 10, "never");
        }
        now - from
    }

    #[test]
    fn silence_is_noticed_between_the_limit_and_half_as_much_again() {
        let (mut dog, now) = watching();
        let silent = given_up_after(&mut dog, now);
        assert!((LIMIT..=LIMIT * 3 / 2 + STEP).contains(&silent), "{silent:?}");
        assert_eq!(dog.look(now + LIMIT * 9), Look::Wait, "killed once");
        // The worst moment: right after it was heard.
        let (mut dog, now) = watching();
        assert_eq!(dog.look(now), Look::Ask);
        dog.heard();
        let silent = given_up_after(&mut dog, now + STEP);
        assert!((LIMIT..=LIMIT * 3 / 2 + STEP).contains(&silent), "{silent:?}");
    }

    #[test]
    fn an_engine_that_answers_lives_for_ever() {
        let (mut dog, mut now) = watching();
        for _ in 0..10_000 {
            match dog.look(now) {
                Look::Ask => dog.heard(),
                Look::Wait => {}
                Look::Hung => panic!("it had answered"),
            }
            now += STEP;
        }
    }

    #[test]
    fn who_stood_still_with_the_engine_gives_it_another_chance() {
        let (mut dog, now) = watching();
        assert_eq!(dog.look(now), Look::Ask);
        // Both stopped for an hour, the answer on its way.
        let later = now + Duration::from_secs(3600);
        assert_eq!(dog.look(later), Look::Ask);
        dog.heard();
        assert_eq!(dog.look(later + LIMIT / 2), Look::Ask);
        assert_eq!(dog.look(later + LIMIT), Look::Ask);
        assert_eq!(dog.look(later + LIMIT * 3 / 2), Look::Hung);
    }

    #[test]
    fn every_engine_begins_anew() {
        let (mut dog, now) = watching();
        assert_eq!(dog.look(now), Look::Ask);
        assert_eq!(dog.look(now + LIMIT), Look::Ask);
        dog.end();
        assert_eq!(dog.look(now + LIMIT * 9), Look::Wait);
        dog.begin(now + LIMIT * 10);
        assert_eq!(dog.look(now + LIMIT * 10), Look::Ask);
        assert_eq!(dog.look(now + LIMIT * 11), Look::Ask);
    }
}
