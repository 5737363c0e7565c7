//! `hsm release`

use crate::control::Op;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job::{self, FileArgs};

/// Drop the local data of archived files
///
/// Names, sizes, times and permissions stay. Whoever opens a released file gets its bytes back and
/// notices nothing but time. Refused, with the reason: files that are open or mapped anywhere,
/// changed since they were archived, not archived, or pinned.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm release /srv/media/a.mkv",
    "hsm release -r --include '*.mkv' /srv/media",
    "hsm release -r --json /srv/media | jq -r 'select(.reason==\"open-elsewhere\").path'",
))]
pub(super) struct Args {
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    job::run(context, Op::Release, &args.files)
}
