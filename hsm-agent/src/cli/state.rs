//! `hsm state`, and the lines that it shares with `hsm ls`.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::control::{PathError, StateEntry, StateReport};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::inspect::Source;
use super::output::{self, Output, tone_of};
use super::paths::{self, Found};

/// Where is the data of these files?
///
/// One line per file: STATE FLAGS SIZE LOCAL PATH, where LOCAL is what it takes on the local disk.
/// Flags: p pinned, n never archived. Looking recalls nothing. Root needs no running agent.
///
/// resident: local, no copy. archived: local, with a good copy. offline: only in the store.
/// partial: some of it is local. dirty: changed since it was archived. lost: not local, and the
/// store has no usable copy.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm state /srv/media/a.mkv",
    "hsm state --json '/srv/media/*.mkv' | jq -r 'select(.state==\\\"dirty\\\").path'",
))]
pub(super) struct Args {
    /// Files; a pattern is expanded if no file has that very name
    #[arg(value_name = "PATH", required_unless_present = "files_from")]
    paths: Vec<OsString>,
    /// Read more paths or patterns from FILE, or from stdin for "-", one a line
    #[arg(long, value_name = "FILE")]
    files_from: Option<PathBuf>,
    /// The list's entries end with NUL, as `find -print0` writes them
    #[arg(short = '0', long, requires = "files_from")]
    null: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut found = Found::default();
    args.paths.iter().for_each(|path| found.add(path));
    if let Some(list) = &args.files_from {
        paths::read_list(list, args.null)?.iter().for_each(|path| found.add(path));
    }
    let source = Source::new(context)?;
    let mut exit = Exit::Done;
    for error in found.errors.into_iter().map(StateEntry::Error) {
        exit = print(&context.out, &error)?.unwrap_or(exit);
    }
    for batch in found.paths.chunks(1024) {
        for entry in source.states(context, batch)? {
            exit = print(&context.out, &entry)?.unwrap_or(exit);
        }
    }
    Ok(exit)
}

/// Prints one entry; the exit code if it is an error.
pub(super) fn print(out: &Output, entry: &StateEntry) -> Result<Option<Exit>, Failure> {
    match entry {
        StateEntry::File(report) if out.json => out.json_line(report)?,
        StateEntry::File(report) => out.line(line(out, report))?,
        StateEntry::Error(error) => return print_error(out, error).map(Some),
    }
    Ok(None)
}

/// Prints a path that could not be looked at.
pub(super) fn print_error(out: &Output, error: &PathError) -> Result<Exit, Failure> {
    let path = output::path(error.path.as_path());
    out.error(format!("{path}: {} [{}]", error.detail, error.reason));
    if out.json {
        out.json_line(error)?;
    }
    Ok(Exit::Failed)
}

fn line(out: &Output, report: &StateReport) -> String {
    let state = out.paint(tone_of(report.state), format!("{:<8}", report.state));
    let flag = |set, letter| if set { letter } else { '-' };
    let note = match report.detail.as_str() {
        "" => String::new(),
        detail => format!("  ({detail})"),
    };
    format!(
        "{state}  {}{}  {:>10}  {:>10}  {}{note}",
        flag(report.pinned, 'p'),
        flag(report.noarchive, 'n'),
        output::size(report.size),
        output::size(report.local_bytes),
        output::path(report.path.as_path()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::FileState;

    #[test]
    fn lines_have_fixed_columns() {
        let out = Output::new(false, 0);
        let mut report = StateReport {
            path: "/a b".into(),
            state: FileState::Offline,
            pinned: true,
            noarchive: false,
            size: 1 << 30,
            local_bytes: 0,
            object: None,
            archived_at: None,
            detail: String::new(),
        };
        assert_eq!(line(&out, &report), "offline   p-     1.0 GiB         0 B  /a b");
        report.detail = "odd".into();
        assert!(line(&out, &report).ends_with("/a b  (odd)"));
    }
}
