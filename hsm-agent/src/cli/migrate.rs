//! `hsm migrate`

use crate::control::Op;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job::{self, FileArgs};

/// Archive files, then release them
///
/// The same as `hsm archive` and `hsm release` one after the other for each file.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm migrate -r /srv/media/2019",
    "hsm migrate --files-from cold.txt",
))]
pub(super) struct Args {
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    job::run(context, Op::Migrate, &args.files)
}
