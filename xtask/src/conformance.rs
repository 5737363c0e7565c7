//! `cargo xtask conformance`: `docs/SEMANTICS.md`, paragraph by paragraph, on every tier and file system.
//!
//! ```text
//! cell      tier x file system: the end-to-end suite on it, natively or in the guest whose kernel has the tier
//! results   what the suite says about each case: passed, failed, not applicable and why
//! document  docs/CONFORMANCE.md: read, the cells that were run replaced, written
//! ```
//! A cell is run whole or not at all, so each stands for one commit and one day. The document is
//! written after every cell: an interrupted run keeps what it has.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hsm_lab::{FsKind, Tier};

use crate::process::{cargo, root, tee};
use crate::report::Verdict;
use crate::{setup, vm};

mod document;
mod results;

use document::{Cell, Document};
use results::Results;

/// Options of `cargo xtask conformance`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask conformance                               # all nine cells: more than an hour without KVM\n  \
    cargo xtask conformance --tier lsm-filter --fs xfs    # one cell; the others keep what they say\n\n\
    Natively for user-filter (as root), in the guest for lsm-filter (stock kernel) and mark-filter\n\
    (patched kernel). The table goes to docs/CONFORMANCE.md.")]
pub(crate) struct Options {
    /// Only this tier (user-filter, lsm-filter, mark-filter)
    #[arg(long)]
    tier: Option<Tier>,
    /// Only this file system (ext4, xfs, btrfs)
    #[arg(long)]
    fs: Option<FsKind>,
}

/// Runs the cells, writes the document, prints the counts.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    let semantics = root().join("docs/SEMANTICS.md");
    let text = fs::read_to_string(&semantics).with_context(|| semantics.display().to_string())?;
    let paragraphs: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut whole = true;
    let mut table = String::new();
    for tier in Tier::ALL.into_iter().filter(|tier| options.tier.is_none_or(|t| t == *tier)) {
        for fs in FsKind::ALL.into_iter().filter(|fs| options.fs.is_none_or(|f| f == *fs)) {
            match cell(tier, fs) {
                Ok(cell) => {
                    whole &= cell.outcomes.values().all(results::Outcome::is_good);
                    table = record((tier, fs), cell, &paragraphs)?;
                }
                Err(error) => {
                    whole = false;
                    eprintln!("CELL {tier} x {fs} DID NOT RUN: {error:#}");
                }
            }
        }
    }
    println!("\n{table}");
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Puts a cell into the document as it is now: another run may have changed other cells.
fn record(key: (Tier, FsKind), cell: Cell, paragraphs: &[&str]) -> Result<String> {
    let path = root().join("docs/CONFORMANCE.md");
    let old = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut document = Document::read(&old).with_context(|| path.display().to_string())?;
    document.cells.insert(document::place(key), cell);
    fs::write(&path, document.render(paragraphs)).with_context(|| path.display().to_string())?;
    Ok(document.counts())
}

fn cell(tier: Tier, fs: FsKind) -> Result<Cell> {
    println!("\n==> conformance: tier {tier} on {fs}");
    let commit = commit()?;
    let begin = Instant::now();
    let mut results = Results::default();
    if tier.has_programs() {
        in_guest(tier, fs, &mut results)
    } else {
        native(tier, fs, &mut results)
    }?;
    ensure!(!results.outcomes.is_empty(), "no case was run");
    Ok(Cell {
        kernel: results.kernel.context("the suite did not say which kernel it ran on")?,
        commit,
        date: answer(Command::new("date").args(["-u", "+%F"]))?,
        took: Duration::from_secs(begin.elapsed().as_secs()),
        outcomes: results.outcomes,
    })
}

/// Of each fail point's four deaths: without KVM all of them would take an hour per cell.
/// (`cargo xtask vm --tier T --fs F -- failpoints` walks them all, `cargo xtask test --all` natively.)
const DEATHS_IN_GUEST: &str = "one";

fn native(tier: Tier, fs: FsKind, results: &mut Results) -> Result<()> {
    hsm_lab::sandbox::require_root("-E env \"PATH=$PATH\" cargo xtask conformance")?;
    let mut suite = cargo();
    suite.env("HSM_TIER", tier.name()).env("HSM_CASES", fs.name());
    suite.args(["test", "--quiet", "--workspace", "--test", "e2e", "--", "--color=never"]);
    let ok = tee(&mut suite, |line| results.line(line))?;
    ensure!(ok || results.has_failures(), "the suite failed, and no case of it did");
    Ok(())
}

fn in_guest(tier: Tier, fs: FsKind, results: &mut Results) -> Result<()> {
    let part = vm::Part {
        test: "e2e",
        name: &format!("tier {tier} on {fs}"),
        tier,
        arguments: vec!["--color=never".to_owned()],
        selection: Some(fs.name()),
    };
    let deaths = [("HSM_DEATHS".to_owned(), DEATHS_IN_GUEST.to_owned())];
    match part.run_telling(vm::Machine::ordinary(), &deaths, &mut |line| results.line(line))? {
        Some(Verdict::Ran { ok, .. }) => {
            ensure!(ok || results.has_failures(), "the guest failed, and no case did");
            Ok(())
        }
        Some(Verdict::NotRun(why) | Verdict::NotAsked(why)) => anyhow::bail!("{why}"),
        None => anyhow::bail!("interrupted"),
    }
}

/// The commit, with a `+` when the tree has changes (the document itself apart).
fn commit() -> Result<String> {
    let git = |args: &[&str]| answer(Command::new("git").args(args).current_dir(root()));
    let head = git(&["rev-parse", "--short=9", "HEAD"])?;
    let changes = git(&[
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        ":!docs/CONFORMANCE.md",
    ])?;
    Ok(if changes.is_empty() { head } else { head + "+" })
}

fn answer(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
