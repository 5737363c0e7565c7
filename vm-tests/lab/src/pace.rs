//! How patient everything here is.
//!
//! Time limits are chosen for a busy machine. A guest whose instructions QEMU translates is several
//! times slower; the variable [`VARIABLE`] says how many. It stretches what is waited *at most*,
//! never what is measured, so nothing is allowed on an ordinary machine that was not before.

use std::num::NonZero;
use std::sync::OnceLock;
use std::time::Duration;

/// A whole number; without it 1.
pub const VARIABLE: &str = "HSM_SLOW";

/// A time limit, stretched for the machine that this runs on.
///
/// Panics when [`VARIABLE`] is not a number from 1 to 1000: a limit that nobody meant is worse.
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// How often something is repeated in the hope of bad luck: less often where each turn takes
/// longer, but some times anywhere.
pub fn turns(count: u32) -> u32 {
    (count / slowness()).max(10.min(count))
}

/// How many cases run beside each other. They wait for half of their time (for limits, deaths, programs), so two
/// per processor keep it busy; an emulated one has nothing to wait for. More than 8 gain nothing.
pub fn cases_at_once() -> usize {
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    let per_processor = if slowness() > 1 { 1 } else { 2 };
    (processors * per_processor).clamp(2, 8)
}

fn slowness() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| factor(std::env::var(VARIABLE).ok().as_deref()))
}

fn factor(value: Option<&str>) -> u32 {
    let Some(text) = value else { return 1 };
    match text.parse() {
        Ok(factor @ 1..=1000) => factor,
        _ => panic!("{VARIABLE}={text} is not a number from 1 to 1000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_variable_limits_are_as_written() {
        assert_eq!((factor(None), factor(Some("5"))), (1, 5));
    }

    #[test]
    #[should_panic(expected = "HSM_SLOW=0")]
    fn nonsense_is_refused() {
        factor(Some("0"));
    }
}
