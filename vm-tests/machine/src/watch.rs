//! Decides from what is heard, and from silence, whether the guest goes on.
//!
//! ```text
//! booting ──Up──► mounting ──Started──► running ──Ended──► powering off ──QEMU ends──► done
//!    │ boot limit     │ boot limit         │ job limit          │ POWER_OFF_LIMIT
//!    └────────────────┴── killed ──────────┘                    └── killed, but has ended
//! ```
//! In any state a fatal complaint of the kernel ends it, a little later, so that the whole report
//! is heard. Time is counted from QEMU's start and handed in.

use std::time::Duration;

use hsm_vm_init::Event;

use crate::console::{Complaint, Console};

/// A report's backtrace follows its first line.
const REPORT_LIMIT: Duration = Duration::from_secs(5);

/// From the job's end to QEMU's.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);

/// How long a guest may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until user space runs, and again until everything is mounted.
    pub boot: Duration,
    /// From the job's start to its end.
    pub job: Duration,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The job ran to its end.
    Ended {
        /// Its exit code.
        code: i32,
        /// How long it took by the guest's clock.
        ran: Duration,
    },
    /// User space did not appear in time.
    NoUserSpace,
    /// The guest could not be set up.
    Failed(String),
    /// The guest was gone before it reported the job's end.
    Crashed,
    /// The job took too long.
    TimedOut(Duration),
    /// Somebody asked for the end (Ctrl-C).
    Interrupted,
}

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// From QEMU's start to the first process of the guest, and to the job's start.
    pub boot: Option<(Duration, Duration)>,
    /// What the kernel complained about.
    pub complaint: Option<Complaint>,
    /// The guest did not power off by itself.
    pub power_off_failed: bool,
}

impl Outcome {
    /// The job succeeded, and so did its kernel.
    pub fn ok(&self) -> bool {
        matches!(self.end, End::Ended { code: 0, .. }) && self.is_clean()
    }

    /// The kernel has nothing to complain about, whatever the job's exit code.
    pub fn is_clean(&self) -> bool {
        self.complaint.is_none() && !self.power_off_failed
    }
}

/// The state of a run.
#[derive(Debug)]
pub struct Watch {
    limits: Limits,
    phase: Phase,
    boot: Option<(Duration, Duration)>,
    console: Console,
    fatal_since: Option<Duration>,
    power_off_failed: bool,
}

#[derive(Debug)]
enum Phase {
    Booting,
    Mounting { since: Duration },
    Running { since: Duration },
    Ended { end: End, since: Duration },
}

impl Watch {
    /// QEMU starts now.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Booting,
            boot: None,
            console: Console::default(),
            fatal_since: None,
            power_off_failed: false,
        }
    }

    /// The guest reported something.
    pub fn event(&mut self, event: Event, now: Duration) {
        self.phase = match event {
            Event::Up => Phase::Mounting { since: now },
            Event::Started => {
                let up = if let Phase::Mounting { since } = self.phase { since } else { now };
                self.boot = Some((up, now));
                Phase::Running { since: now }
            }
            Event::Failed(why) => Phase::Ended { end: End::Failed(why), since: now },
            Event::Ended { code, millis } => {
                let ran = Duration::from_millis(millis);
                Phase::Ended { end: End::Ended { code, ran }, since: now }
            }
        };
    }

    /// The guest's kernel said something.
    pub fn console(&mut self, line: &str, now: Duration) {
        self.console.line(line);
        if self.console.is_fatal() && self.fatal_since.is_none() {
            self.fatal_since = Some(now);
        }
    }

    /// Whether the guest must be killed now; [`finish`](Self::finish) tells why.
    pub fn must_kill(&mut self, now: Duration) -> bool {
        let over = |since: Duration, limit: Duration| now.saturating_sub(since) > limit;
        if self.fatal_since.is_some_and(|since| over(since, REPORT_LIMIT)) {
            return true;
        }
        match self.phase {
            Phase::Booting => over(Duration::ZERO, self.limits.boot),
            Phase::Mounting { since } => over(since, self.limits.boot),
            Phase::Running { since } => over(since, self.limits.job),
            Phase::Ended { since, .. } => {
                self.power_off_failed |= over(since, POWER_OFF_LIMIT);
                self.power_off_failed
            }
        }
    }

    /// QEMU is gone, killed by us or not.
    pub fn finish(self, killed: bool, interrupted: bool) -> Outcome {
        let fatal = self.console.is_fatal();
        let end = match self.phase {
            Phase::Ended { end, .. } => end,
            _ if interrupted => End::Interrupted,
            _ if fatal => End::Crashed,
            Phase::Booting if killed => End::NoUserSpace,
            Phase::Mounting { .. } if killed => {
                End::Failed("user space runs, but its mounts did not come to an end".to_owned())
            }
            Phase::Running { .. } if killed => End::TimedOut(self.limits.job),
            _ => End::Crashed,
        };
        let complaint = self.console.complaint().cloned();
        Outcome { end, boot: self.boot, complaint, power_off_failed: self.power_off_failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> Watch {
        Watch::new(Limits { boot: 30 * SECOND, job: 100 * SECOND })
    }

    #[test]
    fn a_whole_run() {
        let mut watch = watch();
        watch.event(Event::Up, 2 * SECOND);
        watch.event(Event::Started, 3 * SECOND);
        assert!(!watch.must_kill(90 * SECOND));
        watch.event(Event::Ended { code: 0, millis: 50_000 }, 91 * SECOND);
        assert!(!watch.must_kill(92 * SECOND));
        let outcome = watch.finish(false, false);
        assert_eq!(outcome.end, End::Ended { code: 0, ran: 50 * SECOND });
        assert_eq!(outcome.boot, Some((2 * SECOND, 3 * SECOND)));
        assert!(outcome.ok());
    }

    #[test]
    fn silence_is_never_success() {
        assert_eq!(watch().finish(false, false).end, End::Crashed);
        let mut watch = watch();
        watch.event(Event::Up, SECOND);
        watch.event(Event::Started, SECOND);
        assert_eq!(watch.finish(false, false).end, End::Crashed);
    }

    #[test]
    fn each_limit_has_its_own_end() {
        let mut booting = watch();
        assert!(!booting.must_kill(30 * SECOND));
        assert!(booting.must_kill(31 * SECOND));
        assert_eq!(booting.finish(true, false).end, End::NoUserSpace);

        let mut running = watch();
        running.event(Event::Up, SECOND);
        running.event(Event::Started, SECOND);
        assert!(running.must_kill(102 * SECOND));
        assert_eq!(running.finish(true, false).end, End::TimedOut(100 * SECOND));
    }

    #[test]
    fn a_guest_that_does_not_power_off_has_a_result_but_is_not_ok() {
        let mut watch = watch();
        watch.event(Event::Ended { code: 0, millis: 1 }, SECOND);
        assert!(!watch.must_kill(2 * SECOND));
        assert!(watch.must_kill(60 * SECOND));
        let outcome = watch.finish(true, false);
        assert!(matches!(outcome.end, End::Ended { code: 0, .. }) && !outcome.ok());
    }

    #[test]
    fn a_warning_fails_a_job_that_succeeded() {
        let mut watch = watch();
        watch.event(Event::Started, SECOND);
        watch.console("WARNING: suspicious RCU usage", SECOND);
        watch.event(Event::Ended { code: 0, millis: 1 }, 2 * SECOND);
        assert!(!watch.must_kill(3 * SECOND));
        assert!(!watch.finish(false, false).ok());
    }

    #[test]
    fn a_fatal_report_is_heard_to_its_end_and_then_ends_the_run() {
        let mut watch = watch();
        watch.event(Event::Started, SECOND);
        watch.console("BUG: kernel NULL pointer dereference", 2 * SECOND);
        assert!(!watch.must_kill(3 * SECOND));
        watch.console("Call Trace:", 3 * SECOND);
        assert!(watch.must_kill(8 * SECOND));
        let outcome = watch.finish(true, false);
        assert_eq!(outcome.end, End::Crashed);
        assert_eq!(outcome.complaint.unwrap().excerpt.len(), 2);
    }

    #[test]
    fn an_interrupted_run_says_so() {
        assert_eq!(watch().finish(true, true).end, End::Interrupted);
    }
}
