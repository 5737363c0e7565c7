//! `cargo xtask vm run` and `cargo xtask vm shell`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use hsm_machine::run::Output;
use hsm_machine::{End, Outcome, Terminal};

use super::Machine;
use super::guest::{self, Guest};
use crate::process::exists;
use crate::steps::note;

/// The exit code of a run that was interrupted, as shells have it.
pub(super) const INTERRUPTED: u8 = 130;

/// A command, its output passed through.
pub(crate) fn run(
    machine: &Machine,
    job_dir: Option<&Path>,
    command: &[String],
) -> Result<ExitCode> {
    let job_dir = job_dir.map(|dir| dir.canonicalize().with_context(|| dir.display().to_string()));
    let mut guest = Guest::new(machine)?;
    let job = guest::job(command.to_vec())?;
    let outcome = guest.run(&job, job_dir.transpose()?.as_deref(), &mut pass_through)?;
    eprintln!("==> guest: {}", guest.explain(&outcome));
    Ok(exit_code(&outcome))
}

/// A shell on a terminal of its own.
pub(crate) fn shell(machine: &Machine) -> Result<ExitCode> {
    let mut guest = Guest::new(machine)?.without_limit();
    let shell = if exists("bash") { "bash" } else { "sh" };
    let mut job = guest::job(vec![shell.to_owned()])?;
    job.terminal = Some(terminal_size());
    note("exit or Ctrl-D ends the guest, Ctrl-A X kills it");
    let outcome = guest.run(&job, None, &mut |_, _| {})?;
    println!("\n==> guest: {}", guest.explain(&outcome));
    // The shell's code is that of the last command; only the guest's own fate matters.
    if !outcome.is_clean() || !matches!(outcome.end, End::Ended { .. }) {
        bail!("the guest did not end well");
    }
    Ok(ExitCode::SUCCESS)
}

fn terminal_size() -> Terminal {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or(Terminal { rows: 24, columns: 80 }, |size| Terminal {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// A closed pipe of ours ends nothing in the guest.
pub(super) fn pass_through(which: Output, bytes: &[u8]) {
    match which {
        Output::Stdout => {
            let mut out = std::io::stdout().lock();
            drop(out.write_all(bytes).and_then(|()| out.flush()));
        }
        Output::Stderr => drop(std::io::stderr().lock().write_all(bytes)),
        Output::Console => {}
    }
}

/// The command's own code; a guest that did not end well is a failure, whatever the command said.
fn exit_code(outcome: &Outcome) -> ExitCode {
    match outcome.end {
        End::Interrupted => ExitCode::from(INTERRUPTED),
        End::Ended { code, .. } if code != 0 => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        End::Ended { .. } if outcome.is_clean() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
