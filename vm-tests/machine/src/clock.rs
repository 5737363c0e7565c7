//! The frequency of the time stamp counter, which a translated guest shares with its host.
//!
//! The guest's kernel would measure it against emulated timers. On a busy host such a measurement
//! was seen to be wrong by a factor of ten, and then the guest's clock is wrong, or it hangs.

use std::time::{Duration, Instant};

/// How long is measured: the two readings are a microsecond apart at most, one part in 50,000.
const SPAN: Duration = Duration::from_millis(50);

/// Tries; the one that was interrupted least counts.
const TRIES: u32 = 20;

/// Thousands of ticks per second.
pub fn tsc_khz() -> u64 {
    let (begin, from) = reading();
    std::thread::sleep(SPAN);
    let (end, to) = reading();
    let nanos = end.duration_since(begin).as_nanos().max(1);
    let khz = u128::from(to.saturating_sub(from)) * 1_000_000 / nanos;
    u64::try_from(khz).unwrap_or(u64::MAX)
}

/// The time, and the counter at that time.
fn reading() -> (Instant, u64) {
    let one = || {
        let before = ticks();
        let now = Instant::now();
        (ticks() - before, now, before)
    };
    let all = (0..TRIES).map(|_| one());
    let best = all.min_by_key(|(window, _, _)| *window);
    let (window, now, before) = best.unwrap_or_else(one);
    (now, before + window / 2)
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "there is no safe way to the counter")]
fn ticks() -> u64 {
    // SAFETY: the instruction reads a register; every x86_64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The guest exists for x86_64 only; what it is told elsewhere does not matter.
#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    0
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (one, two) = (tsc_khz(), tsc_khz());
        assert!(one.abs_diff(two) < one / 500, "{one} and {two}");
        assert!((100_000..10_000_000).contains(&one), "{one}");
    }
}
