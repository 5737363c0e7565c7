//! The `hsm` command.

use std::path::Path;
use std::process::ExitCode;

use hsm_agent::cli::{self, Daemon};

fn main() -> ExitCode {
    cli::main(Daemon { run_holder: not_wired, run_engine: not_wired })
}

fn not_wired(_: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no agent")
}
