//! The `hsm` command.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use hsm_agent::cli::{self, Daemon};
use hsm_agent::holder;

fn main() -> ExitCode {
    cli::main(Daemon { run_holder, run_engine })
}

/// The holder starts this program again as its engine.
fn run_holder(config: &Path) -> anyhow::Result<i32> {
    let engine: [OsString; 4] =
        ["--config".into(), config.into(), "agent".into(), "--engine".into()];
    Ok(holder::run(&engine)?)
}

fn run_engine(_: &Path) -> anyhow::Result<i32> {
    anyhow::bail!("this build has no engine")
}
