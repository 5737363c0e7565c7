//! `cargo xtask fuzz`: every fuzz target for some minutes, with a corpus that is kept.
//!
//! `cargo xtask test` replays each target's seeds and 20,000 mutations of them on the stable compiler, which takes
//! seconds; this is for the night. It needs a nightly compiler and cargo-fuzz.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::process::{answers, cargo, must, root};
use crate::setup;
use crate::steps::{note, step};

/// Options of `cargo xtask fuzz`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask fuzz                                # all targets, ten minutes each\n  \
    cargo xtask fuzz --minutes 1 marker record      # two of them, a minute each\n\n\
    The corpus is kept in ~/.cache/hsm-dev/fuzz/TARGET, what failed in fuzz/artifacts/TARGET.")]
pub(crate) struct Options {
    /// Minutes per target
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// Only these targets (files of fuzz/fuzz_targets)
    targets: Vec<String>,
}

/// Memory that a target may take for one input, in MiB: what is parsed is far smaller.
const MEMORY_MIB: u32 = 512;

/// Fuzzes one target after the other; fails if one of them failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        answers("cargo", &["+nightly", "fuzz", "--version"]),
        "fuzzing needs a nightly compiler and cargo-fuzz. Run: rustup toolchain install nightly && \
         cargo install cargo-fuzz"
    );
    let known = targets()?;
    for target in &options.targets {
        ensure!(known.contains(target), "there is no fuzz target {target:?}, only {known:?}");
    }
    step("seeds", write_seeds)?;
    let mut failed = Vec::new();
    for target in known {
        if !options.targets.is_empty() && !options.targets.contains(&target) {
            continue;
        }
        if !step(&format!("{target} for {} min", options.minutes), || fuzz(&target, options))? {
            failed.push(target);
        }
    }
    if !failed.is_empty() {
        note(&format!("FAILED: {}", failed.join(", ")));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Cargo in the targets' workspace: one of its own, but with the same dependencies, which are compiled once.
pub(crate) fn workspace() -> Command {
    let mut command = cargo();
    command.current_dir(root().join("fuzz"));
    let target = std::env::var_os("CARGO_TARGET_DIR");
    command.env("CARGO_TARGET_DIR", target.unwrap_or_else(|| root().join("target").into()));
    command
}

/// Where the corpora are kept.
fn corpora() -> Result<PathBuf> {
    Ok(setup::cache_dir()?.join("fuzz"))
}

/// Without them libFuzzer has to find the formats by itself.
fn write_seeds() -> Result<()> {
    let mut write = workspace();
    must(write.args(["run", "--quiet", "--example", "write_seeds", "--"]).arg(corpora()?))
}

/// Whether it found nothing.
fn fuzz(target: &str, options: &Options) -> Result<bool> {
    let corpus = corpora()?.join(target);
    fs::create_dir_all(&corpus)?;
    let before = fs::read_dir(&corpus)?.count();
    let mut command = Command::new("cargo");
    command.current_dir(root().join("fuzz")).env_remove("CARGO_TARGET_DIR");
    command.args(["+nightly", "fuzz", "run", target]).arg(&corpus).arg("--");
    command.arg(format!("-max_total_time={}", u64::from(options.minutes) * 60));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB}")).arg("-print_final_stats=1");
    let found_nothing = command.status()?.success();
    note(&format!("{before} inputs in its corpus before, {} now", fs::read_dir(&corpus)?.count()));
    Ok(found_nothing)
}
