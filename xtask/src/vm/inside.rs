//! A command of this program's own, done in the guest: what it needs was built and fetched on the host.

use std::process::ExitCode;

use anyhow::Result;

use super::Machine;
use super::command::pass_through;
use super::guest::{Guest, job};
use crate::steps::note;

/// Runs `xtask ARGUMENTS` in a guest.
pub(crate) fn again(machine: &Machine, arguments: &[&str]) -> Result<ExitCode> {
    let mut guest = Guest::new(machine)?;
    let mut command = vec![std::env::current_exe()?.display().to_string()];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let outcome = guest.run(&job(command)?, None, &mut pass_through)?;
    note(&format!("guest: {}", guest.explain(&outcome)));
    Ok(if outcome.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
