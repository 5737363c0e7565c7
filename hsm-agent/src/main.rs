//! The `hsm` command.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use hsm_agent::cli::{self, Daemon};
use hsm_agent::config::{Config, LogFormat};
use hsm_agent::{daemon, holder};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The process by which the agent proves its watch: as little in it as can be.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == daemon::CANARY) {
        return daemon::canary();
    }
    cli::main(Daemon { run_holder, run_engine })
}

/// The holder starts this program again as its engine. It reads the configuration only to know
/// how to log; the engine reads it for itself.
fn run_holder(config: &Path) -> anyhow::Result<i32> {
    start_log(&Config::load(config)?)?;
    let config = config.canonicalize().context("the configuration has no absolute path")?;
    let engine: [OsString; 4] =
        ["--config".into(), config.into(), "agent".into(), "--engine".into()];
    Ok(holder::run(&engine)?)
}

fn run_engine(config: &Path) -> anyhow::Result<i32> {
    daemon::run_engine(config, |config| start_log(config).map_err(std::io::Error::other))?;
    Ok(0)
}

fn start_log(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.agent.log).context("agent.log")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.agent.log_format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
