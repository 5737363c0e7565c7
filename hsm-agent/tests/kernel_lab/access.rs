//! Accesses by others than the agent.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_lab::pace::patience;
use hsm_lab::run::{Output, Run};

/// `EAGAIN` of `<errno.h>`.
pub(crate) const EAGAIN: i32 = 11;

/// A Python program with the path as its argument; its output.
pub(crate) fn python(program: &str, path: &Path) -> Result<Output> {
    Run::new("/usr/bin/python3").args(["-c", program]).args([path]).output()
}

/// Runs a Python statement on the file `p` in a process of its own; its error number, 0 when there was none.
pub(crate) fn errno(statement: &str, path: &Path) -> Result<i32> {
    let program = format!(
        "import fcntl, mmap, os, subprocess, sys\np = sys.argv[1]\ntry:\n    {statement}\n\
         except OSError as e:\n    print(e.errno)\nelse:\n    print(0)\n"
    );
    let output = python(&program, path)?;
    output.text().trim().parse().with_context(|| output.describe())
}

/// An access must fail with this error, or succeed (0).
pub(crate) fn assert_errno(statement: &str, path: &Path, wanted: i32) -> Result<()> {
    let got = errno(statement, path)?;
    ensure!(got == wanted, "{statement}: error {got}, not {wanted}");
    Ok(())
}

/// Waits for what others do.
pub(crate) fn wait_for(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = patience(Duration::from_secs(20));
    let end = Instant::now() + limit;
    while !done()? {
        ensure!(Instant::now() < end, "waited for {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
