//! `hsm archive`

use crate::control::Op;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job::{self, FileArgs};

/// Copy files to the store; their data stays local too
///
/// After this a file is "archived": a verified, identical copy exists, and `hsm release` may drop
/// the local data. A file that changes while it is copied is left for the next time.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm archive /srv/media/a.mkv",
    "hsm archive -r --exclude '*.part' /srv/media",
    "find /srv/media -mtime +90 -type f -print0 | hsm archive -0 --files-from -",
    "hsm archive -r -n /srv/media        what would be copied?",
))]
pub(super) struct Args {
    #[command(flatten)]
    files: FileArgs,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    job::run(context, Op::Archive, &args.files)
}
