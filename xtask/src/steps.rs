//! Progress: what is done, why, and how long it took.

use std::time::Instant;

use anyhow::Result;

/// Runs one step between two lines.
pub(crate) fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {what}");
    let begin = Instant::now();
    let result = work();
    let seconds = begin.elapsed().as_secs_f64();
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    println!("    {verdict} in {seconds:.1} s");
    result
}

/// An explanation between steps.
pub(crate) fn note(text: &str) {
    println!("    {text}");
}
