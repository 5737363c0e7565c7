//! `hsm debug`: for those who test hsm.

use serde::Serialize;

use crate::failpoint::{BUILT_IN, Point, VARIABLE};

use super::context::Context;
use super::exit::{Exit, Failure};

/// For those who test hsm
#[derive(Debug, clap::Args)]
#[command(hide = true, after_help = super::after_help!("hsm debug failpoints"))]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List the places at which a test can let the agent die, and what is done by then
    ///
    /// A point is armed by a file of its name in the directory that HSM_FAILPOINTS names, for engine
    /// and holder: "kill-engine", "kill-holder", "kill-both" or "pause", and a number (2: at the
    /// second passage). Release builds have none.
    #[command(after_help = super::after_help!(
        "hsm debug failpoints",
        "HSM_FAILPOINTS=/run/fail hsm agent & echo 'kill-both 2' > /run/fail/release.punched",
    ))]
    Failpoints,
}

/// A line of `failpoints --json`.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    process: &'static str,
    what: &'static str,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    match args.verb {
        Verb::Failpoints => failpoints(context),
    }
}

fn failpoints(context: &Context) -> Result<Exit, Failure> {
    let out = &context.out;
    for point in Point::ALL {
        let (name, process, what) = (point.name(), point.process().name(), point.what());
        if out.json {
            out.json_line(&Line { name, process, what })?;
        } else {
            out.line(format!("{name:<20}  {process}  {what}"))?;
        }
    }
    if !BUILT_IN {
        out.note(format!(
            "this build passes them all, whatever {VARIABLE} says: cargo build --features failpoints"
        ));
    }
    Ok(Exit::Done)
}
