//! Checks of the machine, whatever the pools.

use std::io;
use std::path::Path;

use crate::cli::inspect::effective_capabilities;
use crate::cli::output;
use crate::cli::paths::describe;
use crate::control::Status;
use crate::control::client::ClientError;
use crate::sys::probe;

use super::mounts;
use super::report::Check;

/// What the agent needs, with the reason. Numbers from linux/capability.h.
const CAPABILITIES: [(u32, &str); 5] = [
    (1, "CAP_DAC_OVERRIDE"),
    (2, "CAP_DAC_READ_SEARCH"),
    (3, "CAP_FOWNER"),
    (21, "CAP_SYS_ADMIN"),
    (28, "CAP_LEASE"),
];

/// Longer than this an opener should not hang because of a release that went wrong.
const LONGEST_LEASE_BREAK: u64 = 60;

pub(super) fn kernel() -> Check {
    Check::ok("kernel", format!("Linux {}", probe::kernel_release()))
}

pub(super) fn privileges() -> Check {
    let Some(have) = effective_capabilities() else {
        return Check::fail("privileges", "cannot be read from /proc", "mount /proc");
    };
    missing_privileges(have)
}

fn missing_privileges(have: u64) -> Check {
    let missing = CAPABILITIES.iter().filter(|(bit, _)| have >> bit & 1 == 0);
    let missing: Vec<&str> = missing.map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return Check::ok("privileges", "all that the agent needs");
    }
    let fact = format!("without {}", missing.join(", "));
    Check::fail("privileges", fact, "run `hsm doctor` and the agent as root, outside containers")
}

pub(super) fn lease_break_time() -> Check {
    judge_lease_break_time(probe::lease_break_time())
}

fn judge_lease_break_time(seconds: io::Result<u64>) -> Check {
    const NAME: &str = "lease-break";
    const SET: &str = "sysctl fs.lease-break-time=45";
    match seconds {
        Ok(0) => Check::warn(NAME, "0 s: the kernel breaks leases at once", SET),
        Ok(s) if s > LONGEST_LEASE_BREAK => {
            Check::warn(NAME, format!("{s} s: an opener may hang that long"), SET)
        }
        Ok(s) => Check::ok(NAME, format!("{s} s")),
        Err(error) => {
            let fact = format!("/proc/sys/fs/lease-break-time: {}", describe(&error));
            Check::fail(NAME, fact, "use a kernel with file locking (CONFIG_FILE_LOCKING)")
        }
    }
}

/// The directory of the catalogues.
pub(super) fn state_dir(dir: &Path) -> Check {
    const NAME: &str = "state-dir";
    let shown = output::path(dir);
    let place = mounts::existing(dir);
    if let Err(error) = rustix::fs::access(place, rustix::fs::Access::WRITE_OK) {
        let fact = format!("{}: {}", output::path(place), describe(&error.into()));
        return Check::fail(NAME, fact, "set [agent] state_dir to a directory that root can write");
    }
    if !place.is_dir() {
        let fact = format!("{} is not a directory", output::path(place));
        return Check::fail(NAME, fact, "set [agent] state_dir to a directory");
    }
    match place == dir {
        true => Check::ok(NAME, shown),
        false => Check::ok(NAME, format!("{shown} (the agent will make it)")),
    }
}

/// Whether an agent answers on the socket.
pub(super) fn agent(socket: &Path, status: &Result<Status, ClientError>) -> Check {
    const NAME: &str = "agent";
    match status {
        Ok(status) => {
            let up = output::duration(status.uptime_seconds);
            let tiers: Vec<_> =
                status.pools.iter().map(|p| format!("{} in tier {}", p.name, p.tier)).collect();
            let tiers = tiers.join(", ");
            Check::ok(NAME, format!("version {} runs, up {up}; {tiers}", status.version))
        }
        Err(ClientError::NotRunning(_)) => {
            let fact = format!("not running (socket {})", output::path(socket));
            Check::warn(NAME, fact, "start it with `hsm agent` or `systemctl start hsm`")
        }
        Err(error) => Check::fail(NAME, error.to_string(), "look at the agent's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::report::Verdict;

    #[test]
    fn every_missing_capability_is_named() {
        assert_eq!(missing_privileges(u64::MAX).verdict, Verdict::Ok);
        let check = missing_privileges(!(1 << 28 | 1 << 21));
        assert_eq!(check.fact, "without CAP_SYS_ADMIN, CAP_LEASE");
        assert_eq!(check.verdict, Verdict::Fail);
    }

    #[test]
    fn lease_break_times() {
        let verdict = |time| judge_lease_break_time(time).verdict;
        assert_eq!(verdict(Ok(45)), Verdict::Ok);
        assert_eq!(verdict(Ok(0)), Verdict::Warn);
        assert_eq!(verdict(Ok(600)), Verdict::Warn);
        assert_eq!(verdict(Err(io::ErrorKind::NotFound.into())), Verdict::Fail);
    }

    #[test]
    fn a_state_dir_that_is_a_file_fails() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(state_dir(&dir.path().join("new/er")).verdict, Verdict::Ok);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("write");
        assert_eq!(state_dir(&file).verdict, Verdict::Fail);
    }

    #[test]
    fn an_agent_that_does_not_run_is_a_warning() {
        let socket = Path::new("/run/x");
        let check = agent(socket, &Err(ClientError::NotRunning(socket.into())));
        assert_eq!(check.verdict, Verdict::Warn);
        let check = agent(socket, &Err(ClientError::CutOff("x".into())));
        assert_eq!(check.verdict, Verdict::Fail);
    }
}
