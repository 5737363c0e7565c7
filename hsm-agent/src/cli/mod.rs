//! The `hsm` command line: parse, do one verb, print, exit.
//!
//! One file per verb. A verb gets a `Context` (global options, output, configuration, client)
//! and returns an `Exit`; what stops it altogether is a `Failure`, which carries its own exit
//! code. Verbs that work on files ask the agent; verbs that only look read the inodes themselves
//! when they may, so that they answer while no agent runs.

mod agent;
mod archive;
mod config;
mod context;
mod debug;
mod doctor;
mod du;
mod exit;
mod generate;
mod guard;
mod inspect;
mod job;
mod ls;
mod migrate;
mod output;
mod paths;
mod pin;
mod progress;
mod recall;
mod release;
mod scan;
mod state;
mod status;
mod waiters;
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgAction, Args, Parser, Subcommand};

pub use agent::Daemon;
use context::Context;
use exit::{Exit, Failure};

/// Where the configuration is, unless `--config` or `HSM_CONFIG` says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/hsm/hsm.toml";

/// The part of every verb's help that comes last.
macro_rules! after_help {
    ($($example:literal),+ $(,)?) => {
        concat!(
            "Examples:\n", $("  ", $example, "\n",)+
            "\nExit codes:\n",
            "  0    all done, or so already\n",
            "  1    at least one file failed or was refused\n",
            "  2    wrong usage or configuration\n",
            "  3    the agent cannot be reached\n",
            "  4    not permitted\n",
            "  130  interrupted; every file is whole, done or untouched"
        )
    };
}
use after_help;

/// Hierarchical storage manager: names stay, cold bytes live in an object store, reading a cold
/// file brings them back.
#[derive(Debug, Parser)]
#[command(
    name = "hsm",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = after_help!(
        "hsm archive -r /srv/media     copy everything to the store; it stays local too",
        "hsm release -r /srv/media     drop the local data of what is archived",
        "hsm state /srv/media/a.mkv    where is its data?",
        "hsm doctor                    what can this machine do?",
    )
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
struct Global {
    /// Configuration file
    #[arg(
        long,
        global = true,
        env = "HSM_CONFIG",
        default_value = DEFAULT_CONFIG,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: PathBuf,
    /// Print JSON, one object per line
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Say more: a line per file
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    verbose: u8,
    /// Say only what went wrong
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(agent::Args),
    Archive(archive::Args),
    Release(release::Args),
    Migrate(migrate::Args),
    Recall(recall::Args),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    State(state::Args),
    Ls(ls::Args),
    Du(du::Args),
    Status(status::Args),
    Waiters(waiters::Args),
    Scan(scan::Args),
    Doctor(doctor::Args),
    Guard(guard::Args),
    Config(config::Args),
    Debug(debug::Args),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
}

/// Parses the command line, does what it says, and returns the exit code.
///
/// `daemon` is what `hsm agent` calls: the command line knows nothing about processes.
pub fn main(daemon: Daemon) -> ExitCode {
    let cli = Cli::parse();
    let context = Context::new(cli.global);
    let result = run(&context, cli.verb, daemon)
        .and_then(|exit| context.out.flush().map(|()| exit).map_err(Failure::from));
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            failure.print(&context.out);
            failure.exit.into()
        }
    }
}

fn run(context: &Context, verb: Verb, daemon: Daemon) -> Result<Exit, Failure> {
    match verb {
        Verb::Agent(args) => agent::run(context, &args, daemon),
        Verb::Archive(args) => archive::run(context, &args),
        Verb::Release(args) => release::run(context, &args),
        Verb::Migrate(args) => migrate::run(context, &args),
        Verb::Recall(args) => recall::run(context, &args),
        Verb::Pin(args) => pin::run_pin(context, &args),
        Verb::Unpin(args) => pin::run_unpin(context, &args),
        Verb::State(args) => state::run(context, &args),
        Verb::Ls(args) => ls::run(context, &args),
        Verb::Du(args) => du::run(context, &args),
        Verb::Status(args) => status::run(context, &args),
        Verb::Waiters(args) => waiters::run(context, &args),
        Verb::Scan(args) => scan::run(context, &args),
        Verb::Doctor(args) => doctor::run(context, &args),
        Verb::Guard(args) => guard::run(context, &args),
        Verb::Config(args) => config::run(context, &args),
        Verb::Debug(args) => debug::run(context, &args),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
    }
}

#[cfg(test)]
mod tests;
