//! Runs this very program again inside a mount namespace and a pid namespace of its own.
//!
//! The process outside only waits. When the one inside ends, in whatever way (also SIGKILL, also
//! Ctrl-C outside), the kernel kills everything in its pid namespace; with the last process go the
//! mount namespace, its mounts and their loop devices. The one outside then removes the directory
//! and asks [`crate::census`] whether anything is left.
//!
//! ```text
//! outside ── setpriv --pdeathsig KILL ── unshare --mount --pid --kill-child ── inside (pid 1)
//! ```

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::census;

/// Tells the process inside which directory is the run's own.
const INSIDE: &str = "HSM_LAB_INSIDE";

/// Where the directory of a run is made; by default `/var/tmp`, which is on a disk.
pub const DIR_VARIABLE: &str = "HSM_LAB_DIR";

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Role {
    /// The work is to be done here, below this directory.
    Inside(PathBuf),
    /// The work was done by the process inside; exit with this code.
    Done(i32),
}

/// Whether this process may mount, which everything in the lab needs.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this is the process inside.
pub fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Splits into the two processes; returns in both.
pub fn enter() -> Result<Role> {
    if let Some(dir) = env::var_os(INSIDE) {
        return Ok(Role::Inside(dir.into()));
    }
    let base = env::var_os(DIR_VARIABLE).unwrap_or_else(|| OsString::from("/var/tmp"));
    let dir = tempfile::Builder::new()
        .prefix("hsm-lab-")
        .tempdir_in(&base)
        .with_context(|| format!("making a directory in {}", Path::new(&base).display()))?;
    let stop = stop_flag()?;
    let status = wait(spawn_inside(dir.path())?, &stop)?;
    let left = census::leftovers_after(dir.path(), Duration::from_secs(15));
    for line in &left {
        eprintln!("LEFT BEHIND: {line}");
    }
    if stop.load(Ordering::SeqCst) {
        eprintln!("interrupted: agent and mounts are gone, removing {}", dir.path().display());
    }
    dir.close().context("removing the run's directory")?;
    if stop.load(Ordering::SeqCst) {
        eprintln!("interrupted; everything that was set up is gone again");
        return Ok(Role::Done(130));
    }
    let code = status.code().unwrap_or(101);
    Ok(Role::Done(if code == 0 && !left.is_empty() { 1 } else { code }))
}

fn spawn_inside(dir: &Path) -> Result<Child> {
    // Tests ask for files as another user: the way to them must be open.
    rustix::fs::chmod(dir, rustix::fs::Mode::from_raw_mode(0o755))?;
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "--propagation", "private", "--"])
        .arg(env::current_exe()?)
        .args(env::args_os().skip(1))
        .env(INSIDE, dir)
        .stdin(Stdio::null())
        .spawn()
        .context("starting setpriv and unshare (package util-linux)")
}

fn stop_flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signal handler")?;
    }
    Ok(stop)
}

fn wait(mut child: Child, stop: &AtomicBool) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::SeqCst) {
            // unshare dies, and with it (--kill-child) everything inside.
            child.kill()?;
            return Ok(child.wait()?);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Refuses, with the command that works, when this is not root.
pub fn require_root(command: &str) -> Result<()> {
    if !is_root() {
        bail!("this needs root (it mounts file systems and starts an agent). Run: sudo {command}");
    }
    Ok(())
}
