//! `hsm scan`

use crate::control::{JobRequest, Op};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::job;

/// Read the inodes of a pool into the catalogue
///
/// The inodes are the truth; the catalogue is an index of them. A scan finds what changed while no
/// agent looked. With --rebuild the catalogue is emptied first.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm scan --pool media",
    "hsm scan --pool media --rebuild",
))]
pub(super) struct Args {
    /// The pool
    #[arg(long, value_name = "NAME")]
    pool: String,
    /// Empty the catalogue of the pool first
    #[arg(long)]
    rebuild: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut request = JobRequest::new(Op::Scan, Vec::new());
    request.pool = Some(args.pool.clone());
    request.rebuild = args.rebuild;
    request.verbose = context.out.verbosity > 0;
    job::drive(context, Op::Scan, Vec::new(), std::iter::once(request))
}
