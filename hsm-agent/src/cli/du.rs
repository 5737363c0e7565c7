//! `hsm du`

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use crate::control::{StateEntry, WirePath};
use crate::core::FileState;

use super::context::Context;
use super::exit::{Exit, Failure};
use super::inspect::Source;
use super::output::{self, Output, Tone, tone_of};
use super::paths::Found;
use super::state;
use super::walk::{self, Options, Step, Visit};

/// Local space against logical size, by state
///
/// One line per directory (contents included): LOCAL SIZE PATH, then a table by state for each
/// PATH. A file with several names counts once. Other file systems are left out.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help!(
    "hsm du -s /srv/media",
    "hsm du --json /srv/media | jq -r 'select(.local > 1e9).path'",
))]
pub(super) struct Args {
    /// Files and directories
    #[arg(value_name = "PATH", default_value = ".")]
    paths: Vec<OsString>,
    /// Only the table of each PATH
    #[arg(short, long)]
    summarize: bool,
}

/// Files, their logical and their local bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct Amount {
    files: u64,
    size: u64,
    local: u64,
}

impl Amount {
    fn add(&mut self, other: Self) {
        self.files += other.files;
        self.size += other.size;
        self.local += other.local;
    }
}

/// The order of the table.
const STATES: [FileState; 6] = [
    FileState::Resident,
    FileState::Archived,
    FileState::Dirty,
    FileState::Partial,
    FileState::Offline,
    FileState::Lost,
];

/// Amounts by state, in the order of [`STATES`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Usage([Amount; STATES.len()]);

impl Usage {
    fn count(&mut self, state: FileState, amount: Amount) {
        if let Some(at) = STATES.iter().position(|s| *s == state) {
            self.0[at].add(amount);
        }
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(mine, theirs)| mine.add(theirs));
    }

    fn total(&self) -> Amount {
        let mut total = Amount::default();
        self.0.iter().for_each(|amount| total.add(*amount));
        total
    }

    /// The states that occur.
    fn present(&self) -> impl Iterator<Item = (FileState, Amount)> {
        STATES.into_iter().zip(self.0).filter(|(_, amount)| amount.files > 0)
    }
}

/// Sums on the way up: one level per directory that is open in the walk.
#[derive(Debug, Default)]
struct Sums {
    levels: Vec<Usage>,
    seen: HashSet<(u64, u64)>,
}

impl Sums {
    fn level(&mut self, depth: usize) -> &mut Usage {
        if self.levels.len() <= depth {
            self.levels.resize(depth + 1, Usage::default());
        }
        &mut self.levels[depth]
    }

    /// A file at `depth`.
    fn file(&mut self, depth: usize, state: FileState, meta: &Metadata) {
        if meta.nlink() > 1 && !self.seen.insert((meta.dev(), meta.ino())) {
            return;
        }
        let amount = Amount { files: 1, size: meta.len(), local: meta.blocks() * 512 };
        self.level(depth).count(state, amount);
    }

    /// The directory at `depth` is complete: its sum, which now also counts for its parent.
    fn directory(&mut self, depth: usize) -> Usage {
        let usage = std::mem::take(self.level(depth + 1));
        self.level(depth).add(&usage);
        usage
    }
}

pub(super) fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut found = Found::default();
    args.paths.iter().for_each(|path| found.add(path));
    let source = Source::new(context)?;
    let mut exit = Exit::Done;
    for error in &found.errors {
        exit = state::print_error(&context.out, error)?;
    }
    let mut seen = HashSet::new();
    for path in &found.paths {
        let mut sums = Sums { levels: Vec::new(), seen };
        let options = Options { max_depth: usize::MAX, contents_first: true };
        walk::walk(context, &source, path, options, |visit| {
            exit = step(&context.out, &mut sums, &visit, args.summarize)?.unwrap_or(exit);
            Ok(())
        })?;
        table(&context.out, path, sums.level(0))?;
        seen = sums.seen;
    }
    Ok(exit)
}

fn step(
    out: &Output,
    sums: &mut Sums,
    visit: &Visit,
    summarize: bool,
) -> Result<Option<Exit>, Failure> {
    match (&visit.step, &visit.meta) {
        (Step::File(StateEntry::File(report)), Some(meta)) => {
            sums.file(visit.depth, report.state, meta);
        }
        (Step::File(StateEntry::Error(error)) | Step::Error(error), _) => {
            return state::print_error(out, error).map(Some);
        }
        (Step::File(StateEntry::File(_)), None) => {}
        (Step::Directory(path), _) => {
            let usage = sums.directory(visit.depth);
            if !summarize && visit.depth > 0 {
                directory(out, path, &usage)?;
            }
        }
    }
    Ok(None)
}

fn directory(out: &Output, path: &Path, usage: &Usage) -> Result<(), Failure> {
    if out.json {
        return json(out, path, usage);
    }
    let total = usage.total();
    let name = output::path(path);
    let (local, size) = (output::size(total.local), output::size(total.size));
    Ok(out.line(format!("{local:>10}  {size:>10}  {name}"))?)
}

fn table(out: &Output, path: &Path, usage: &Usage) -> Result<(), Failure> {
    if out.json {
        return json(out, path, usage);
    }
    out.line(out.paint(Tone::Head, output::path(path)))?;
    let head = format!("  {:<8}  {:>9}  {:>10}  {:>10}", "STATE", "FILES", "SIZE", "LOCAL");
    out.line(out.paint(Tone::Head, head))?;
    for (state, amount) in usage.present() {
        out.line(row(&out.paint(tone_of(state), format!("{state:<8}")), amount))?;
    }
    Ok(out.line(row(&format!("{:<8}", "total"), usage.total()))?)
}

fn row(name: &str, amount: Amount) -> String {
    let (size, local) = (output::size(amount.size), output::size(amount.local));
    format!("  {name}  {:>9}  {size:>10}  {local:>10}", amount.files)
}

#[derive(Serialize)]
struct Json {
    #[serde(flatten)]
    path: WirePath,
    #[serde(flatten)]
    total: Amount,
    states: Vec<JsonState>,
}

#[derive(Serialize)]
struct JsonState {
    state: FileState,
    #[serde(flatten)]
    amount: Amount,
}

fn json(out: &Output, path: &Path, usage: &Usage) -> Result<(), Failure> {
    let states = usage.present().map(|(state, amount)| JsonState { state, amount }).collect();
    Ok(out.json_line(&Json { path: path.into(), total: usage.total(), states })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_up_and_hard_links_count_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("a");
        std::fs::write(&file, vec![1; 5000]).expect("write");
        std::fs::hard_link(&file, dir.path().join("b")).expect("link");
        let meta = file.metadata().expect("stat");
        let mut sums = Sums::default();
        // root/x/{a,b} and root/c, contents first
        sums.file(2, FileState::Offline, &meta);
        sums.file(2, FileState::Offline, &meta);
        let inner = sums.directory(1);
        assert_eq!(inner.total().files, 1);
        assert_eq!(inner.total().size, 5000);
        let single = dir.path().join("c");
        std::fs::write(&single, "x").expect("write");
        sums.file(1, FileState::Resident, &single.metadata().expect("stat"));
        let all = sums.directory(0);
        assert_eq!(all.total().files, 2);
        assert_eq!(sums.level(0).total(), all.total());
        assert_eq!(all.present().count(), 2);
    }
}
