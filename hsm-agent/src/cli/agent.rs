//! `hsm agent`

use std::path::Path;

use crate::config::Config;
use crate::sys::process;

use super::context::Context;
use super::exit::{Exit, Failure};

/// The processes that the command can become. Functions, because they fork: no runtime and no
/// thread may exist before they are called.
#[derive(Debug, Clone, Copy)]
pub struct Daemon {
    /// Runs the holder, which starts the engine, until it is told to stop. Returns the exit code.
    pub run_holder: fn(config: &Path) -> anyhow::Result<i32>,
    /// Runs the engine; only the holder starts it. Returns the exit code.
    pub run_engine: fn(config: &Path) -> anyhow::Result<i32>,
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
    let config = context.config_path();
    process::leave_no_dump()
        .map_err(|e| Failure::new(Exit::Failed, format!("core dumps cannot be turned off: {e}")))?;
    let result = if args.engine {
        // It must touch no file before the holder knows it, not even the configuration.
        (daemon.run_engine)(config)
    } else {
        // Before anything is started: a mistake in the file is the user's to mend.
        Config::load(config).map_err(Failure::usage)?;
        (daemon.run_holder)(config)
    };
    match result {
        Ok(code) => Ok(exit_of(code)),
        Err(error) => Err(Failure::new(Exit::Failed, format!("{error:#}"))),
    }
}

/// The engine's code is the agent's, as far as it has a meaning for users.
fn exit_of(code: i32) -> Exit {
    [Exit::Done, Exit::Usage, Exit::NotPermitted]
        .into_iter()
        .find(|exit| *exit as i32 == code)
        .unwrap_or(Exit::Failed)
}
