//! A command of this program's own, done in the guest: what it needs was built and fetched on the host.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use hsm_lab::Tier;
use hsm_machine::run::Output;

use super::Machine;
use super::guest::{Guest, job};
use crate::steps::note;

/// Runs `xtask ARGUMENTS` in a guest whose kernel has the tier.
pub(crate) fn again(tier: Tier, arguments: &[&str]) -> Result<ExitCode> {
    let machine = Machine::ordinary().for_tier(tier);
    let mut guest = Guest::new(&machine)?;
    let program = std::env::current_exe()?.display().to_string();
    let mut command = vec![program];
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    let outcome = guest.run(&job(command)?, None, &mut |which, bytes| {
        // A closed pipe of ours ends nothing in the guest.
        let _ = match which {
            Output::Stdout => std::io::stdout().write_all(bytes),
            Output::Stderr => std::io::stderr().write_all(bytes),
            Output::Console => Ok(()),
        };
    })?;
    note(&format!("guest: {}", guest.explain(&outcome)));
    Ok(if outcome.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
