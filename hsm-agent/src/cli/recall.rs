//! `hsm recall`

use crate::control::Op;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job::{self, FileArgs};

/// Bring the data of released files back
///
/// Reading a file does the same; this does it ahead of time, and in parallel. Owners may recall
/// their own files.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm recall /srv/media/a.mkv",
    "hsm recall -r -v /srv/media/2019",
))]
pub(super) struct Args {
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    job::run(context, Op::Recall, &args.files)
}
