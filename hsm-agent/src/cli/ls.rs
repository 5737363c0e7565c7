//! `hsm ls`

use std::ffi::OsString;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::inspect::Source;
use super::output;
use super::paths::Found;
use super::state;
use super::walk::{self, Options, Step};

/// List files with the place of their data
///
/// The lines are those of `hsm state`. Directories are listed one level deep, with -r wholly (but
/// not into other file systems).
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm ls /srv/media",
    "hsm ls -r /srv/media | grep ^lost",
))]
pub(super) struct Args {
    /// Files and directories
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<OsString>,
    /// Go down directories
    #[arg(short, long)]
    recursive: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let out = &context.out;
    let mut found = Found::default();
    args.paths.iter().for_each(|path| found.add(path));
    let source = Source::new(context)?;
    let mut exit = Exit::Done;
    for error in &found.errors {
        exit = state::print_error(out, error)?;
    }
    let max_depth = if args.recursive { usize::MAX } else { 1 };
    let options = Options { max_depth, contents_first: false };
    for path in &found.paths {
        walk::walk(context, &source, path, options, |visit| {
            match &visit.step {
                Step::File(entry) => exit = state::print(out, entry)?.unwrap_or(exit),
                Step::Error(error) => exit = state::print_error(out, error)?,
                Step::Directory(path) if visit.depth > 0 && !args.recursive && !out.json => {
                    let name = output::path(path);
                    out.line(format!(
                        "{:<8}  {:>2}  {:>10}  {:>10}  {name}/",
                        "-", "--", "-", "-"
                    ))?;
                }
                Step::Directory(_) => {}
            }
            Ok(())
        })?;
    }
    Ok(exit)
}
