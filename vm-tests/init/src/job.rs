//! The job: started with the host's environment, waited for together with every orphan.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use hsm_vm_init::{Job, STDERR, STDOUT, Terminal};
use rustix::io::Errno;
use rustix::process::WaitOptions;
use rustix::termios::{Winsize, tcsetwinsize};

use crate::port;

/// The virtio console that the host connects to a person's terminal.
const TERMINAL: &str = "/dev/hvc0";

/// Starts the job's command.
pub(crate) fn start(job: &Job) -> Result<Child> {
    let Some((program, args)) = job.command.split_first() else { bail!("the job has no command") };
    let mut command = match &job.terminal {
        Some(size) => on_terminal(program, *size)?,
        None => {
            let mut command = Command::new(program);
            command.stdin(Stdio::null()).stdout(port(STDOUT)?).stderr(port(STDERR)?);
            command
        }
    };
    command.args(args).current_dir(&job.dir).env_clear();
    command.envs(job.env.iter().map(|(key, value)| (key, value)));
    command.spawn().with_context(|| format!("starting {program} in {}", job.dir))
}

/// In a session of its own with the terminal as its controlling one, so that Ctrl-C and job control
/// work.
fn on_terminal(program: &str, size: Terminal) -> Result<Command> {
    let open = || File::options().read(true).write(true).open(TERMINAL).context(TERMINAL);
    let terminal = open()?;
    let (ws_row, ws_col) = (size.rows, size.columns);
    tcsetwinsize(&terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait", program]);
    command.stdin(open()?).stdout(open()?).stderr(terminal);
    Ok(command)
}

/// Waits for the job; the first process also inherits every orphan.
pub(crate) fn wait(child: &Child) -> Result<i32> {
    let job = i32::try_from(child.id())?;
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == job => {
                return Ok(code(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the job"),
        }
    }
}

/// As a shell says it.
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_apart_from_a_code() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
    }
}
