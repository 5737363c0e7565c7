//! `hsm agent`

use std::path::Path;

use super::context::Context;
use super::exit::{Exit, Failure};

/// The processes that the command can become. Functions, because they fork: no runtime and no
/// thread may exist before they are called.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    /// Runs the holder, which starts the engine, until it is told to stop.
    pub run_holder: fn(config: &Path) -> anyhow::Result<()>,
    /// Runs the engine; only the holder starts it.
    pub run_engine: fn(config: &Path) -> anyhow::Result<()>,
}

/// Run the agent in the foreground
///
/// It watches the pools of the configuration, recalls what is read, and serves the other commands.
/// SIGTERM or SIGINT stops it cleanly. Under systemd it says when it is ready.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm agent",
    "hsm --config ./test.toml agent",
    "systemctl start hsm           the usual way",
))]
pub(super) struct Args {
    /// Run the engine (the holder starts it this way)
    #[arg(long, hide = true)]
    engine: bool,
}

pub(super) fn run(context: &Context, args: &Args, daemon: Daemon) -> Result<Exit, Failure> {
    let run = if args.engine { daemon.run_engine } else { daemon.run_holder };
    match run(context.config_path()) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Err(Failure::new(Exit::Failed, format!("{error:#}"))),
    }
}
