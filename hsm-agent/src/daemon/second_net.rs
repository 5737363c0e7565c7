//! When the kernel programs' second net is attached: from the start on, while files are released, and as long as
//! programs open offline files; not in the quiet between, because it costs every open on the machine.
//!
//! `hsm_common::filter::UnderWay` says why that is right. The engine alone disarms: it knows of releases. The holder arms
//! too, when an opener asks for it.
//!
//! Detaching waits for the kernel: it is done by a thread of its own, and under a mutex that a release takes before
//! it begins.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hsm_common::filter::Counter;
use tokio_util::sync::CancellationToken;

use super::pool::Pool;
use crate::bpf::{self, BpfError, Disarmed, Maps};
use crate::catalog::IntentOp;
use crate::sys::process;

/// So long nobody has opened an offline file and nothing was released, when it is taken away.
const QUIET: Duration = Duration::from_secs(30);

/// Another time, in milliseconds, for tests and measurements.
const QUIET_VARIABLE: &str = "HSM_SECOND_NET_QUIET_MS";

/// How often it is looked, in a time of quiet.
const LOOKS: u32 = 5;

/// The second net, as releases and the thread that takes it away see it.
#[derive(Debug)]
pub struct SecondNet {
    /// `None`: no programs.
    maps: Option<Arc<Maps>>,
    quiet: Mutex<Quiet>,
}

impl SecondNet {
    /// That of the programs with these maps, which are armed.
    pub(super) fn new(maps: Option<Arc<Maps>>) -> Self {
        Self { maps, quiet: Mutex::new(Quiet::new(limit(), Instant::now())) }
    }

    /// Keeps it attached. To be called before the first lease of a release is asked for.
    pub fn hold(&self) -> Result<Held<'_>, BpfError> {
        let mut quiet = self.quiet();
        if let Some(maps) = &self.maps {
            maps.arm()?;
        }
        quiet.users += 1;
        Ok(Held(self))
    }

    fn quiet(&self) -> MutexGuard<'_, Quiet> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it away when it is quiet, until `stop`. The pools are recovered.
    pub(super) fn watch(
        self: &Arc<Self>,
        pools: Vec<Arc<Pool>>,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Some(maps) = self.maps.clone() else { return Ok(()) };
        let this = Arc::clone(self);
        let holder = std::os::unix::process::parent_id();
        let look = move || {
            let can = bpf::can_disarm();
            // What reading the kernel's type information took is not needed again.
            process::give_back_memory();
            if !can {
                tracing::info!(
                    "this kernel takes long to detach a program: the second one stays attached"
                );
                return;
            }
            let pause = this.quiet().limit / LOOKS;
            while !stop.is_cancelled() {
                std::thread::sleep(pause);
                if let Err(error) = this.look(&maps, &pools, holder) {
                    tracing::warn!(%error, "the second kernel program stays attached, or cannot be looked at");
                }
            }
        };
        std::thread::Builder::new().name("second-net".into()).spawn(look).map(drop)
    }

    fn look(&self, maps: &Maps, pools: &[Arc<Pool>], holder: u32) -> Result<(), BpfError> {
        if !maps.is_armed()? {
            return Ok(());
        }
        let counts = maps.counters()?;
        let opens = [Counter::Requested, Counter::PassedWatched, Counter::PassedAnswered];
        let opens = opens.iter().map(|counter| counts.get(*counter)).sum();
        // Until it is done nothing is released.
        let mut quiet = self.quiet();
        if !quiet.is_over(opens, Instant::now()) || !pools.iter().all(|pool| is_settled(pool)) {
            return Ok(());
        }
        match maps.disarm(holder)? {
            Disarmed::Yes => tracing::debug!("the second kernel program is detached"),
            Disarmed::InFlight(count) => {
                tracing::debug!(count, "the second kernel program stays attached");
            }
            Disarmed::NotServing => tracing::debug!("the holder does not serve the programs"),
        }
        quiet.since = Instant::now();
        Ok(())
    }
}

/// Whether no release of the pool is left open: its marker may stand over a file that somebody is about to have open.
fn is_settled(pool: &Pool) -> bool {
    match pool.catalog.open_intents() {
        Ok(open) => open.iter().all(|intent| intent.what.op != IntentOp::Release),
        Err(error) => {
            tracing::debug!(%error, "the second kernel program stays attached");
            false
        }
    }
}

/// As long as it lives, the second net is attached.
#[derive(Debug)]
pub struct Held<'a>(&'a SecondNet);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut quiet = self.0.quiet();
        quiet.users -= 1;
        quiet.since = Instant::now();
    }
}

fn limit() -> Duration {
    let said = std::env::var(QUIET_VARIABLE).ok().and_then(|text| text.parse().ok());
    said.filter(|ms| *ms > 0).map_or(QUIET, Duration::from_millis)
}

/// How long it has been quiet. Pure.
#[derive(Debug)]
struct Quiet {
    limit: Duration,
    /// Releases under way.
    users: usize,
    /// Opens of offline files so far.
    opens: u64,
    /// Since when there were no others, and no release.
    since: Instant,
}

impl Quiet {
    fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, users: 0, opens: 0, since: now }
    }

    /// Called often; whether it was quiet for long enough.
    fn is_over(&mut self, opens: u64, now: Instant) -> bool {
        if opens != self.opens {
            (self.opens, self.since) = (opens, now);
        }
        self.users == 0 && now.duration_since(self.since) >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_when_nobody_opens_an_offline_file() {
        let (limit, mut now) = (Duration::from_secs(30), Instant::now());
        let mut quiet = Quiet::new(limit, now);
        assert!(!quiet.is_over(0, now), "just started");
        for opens in 1..100 {
            now += limit - Duration::from_millis(1);
            assert!(!quiet.is_over(opens, now), "somebody did");
        }
        assert!(!quiet.is_over(99, now + limit - Duration::from_millis(1)));
        assert!(quiet.is_over(99, now + limit));
    }

    #[test]
    fn nothing_is_taken_away_while_files_are_released() {
        let limit = Duration::from_millis(1);
        let net = SecondNet { maps: None, quiet: Mutex::new(Quiet::new(limit, Instant::now())) };
        let later = |n| Instant::now() + limit * n;
        let (first, second) = (net.hold().expect("no programs"), net.hold().expect("nor now"));
        assert!(!net.quiet().is_over(0, later(100)));
        drop(first);
        assert!(!net.quiet().is_over(0, later(100)), "one is left");
        drop(second);
        let ended = net.quiet().since;
        assert!(!net.quiet().is_over(0, ended), "it has just ended");
        assert!(net.quiet().is_over(0, later(100)));
    }
}
