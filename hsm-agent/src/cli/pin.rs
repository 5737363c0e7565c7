//! `hsm pin` and `hsm unpin`

use crate::control::Op;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job::{self, FileArgs};

/// Keep files local: never release them
///
/// A pin of a released file does not recall it; it holds from the next recall on. Owners may pin
/// their own files.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm pin /srv/media/index.db",
    "hsm pin -r /srv/media/current && hsm recall -r /srv/media/current",
))]
pub(super) struct PinArgs {
    #[command(flatten)]
    files: FileArgs,
}

/// Allow files to be released again
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!("hsm unpin -r /srv/media/current"))]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn run_pin(context: &Context, args: &PinArgs) -> Result<Exit, Failure> {
    job::run(context, Op::Pin, &args.files)
}

pub(super) fn run_unpin(context: &Context, args: &UnpinArgs) -> Result<Exit, Failure> {
    job::run(context, Op::Unpin, &args.files)
}
