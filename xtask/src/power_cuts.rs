//! `cargo xtask power-cuts`: the power fails at every flush of a mixed workload, and between flushes.
//!
//! How it is done is told in `vm-tests/powercut`; natively, in tier `user-filter`. With the development build:
//! its assertions count, too.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;
use hsm_lab::FsKind;
use hsm_lab::sandbox::{self, Role};
use hsm_powercut::Outcome;

use crate::process::{cargo, must, target_dir};
use crate::setup;
use crate::steps::{note, step};

/// Options of `cargo xtask power-cuts`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask power-cuts                           # every flush, all three file systems: half an hour\n  \
    cargo xtask power-cuts --fs xfs --cuts 50        # a minute\n  \
    cargo xtask power-cuts --seed 7 --keep /var/tmp/cuts\n\n\
    Exit code 1: after some cut a file had wrong bytes, was lost, or could not be archived or released again.")]
pub(crate) struct Options {
    /// Only this file system (ext4, xfs, btrfs)
    #[arg(long)]
    fs: Option<FsKind>,
    /// Another workload and other cuts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps of the workload
    #[arg(long, default_value_t = 150)]
    steps: usize,
    /// At most so many cuts per file system, evenly spread over the workload
    #[arg(long)]
    cuts: Option<usize>,
    /// Keep the disks' images of cuts that failed in this directory
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Cuts the power on one file system after the other.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if !sandbox::is_inside() {
        sandbox::require_root("-E env \"PATH=$PATH\" cargo xtask power-cuts")?;
        setup::packages()?;
        step("building hsm", || must(cargo().args(["build", "--workspace", "--bin", "hsm"])))?;
    }
    match sandbox::enter()? {
        Role::Done(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        Role::Inside(dir) => inside(options, &dir),
    }
}

fn inside(options: &Options, dir: &Path) -> Result<ExitCode> {
    let exe = exe()?;
    let mut wrong = 0;
    for fs in FsKind::ALL.into_iter().filter(|fs| options.fs.is_none_or(|only| only == *fs)) {
        let dir = dir.join(fs.name());
        std::fs::create_dir(&dir)?;
        let wanted = hsm_powercut::Options {
            fs,
            seed: options.seed,
            steps: options.steps,
            cuts: options.cuts,
            keep: options.keep.clone(),
            lying_store: false,
        };
        let outcome = step(&format!("{fs}: workload and cuts, seed {}", options.seed), || {
            hsm_powercut::run(&wanted, &exe, &dir, &|line| note(line))
        })?;
        std::fs::remove_dir_all(&dir)?;
        tell(fs, &outcome);
        wrong += outcome.wrong.len();
    }
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As docs/RELIABILITY.md has it.
fn tell(fs: FsKind, outcome: &Outcome) {
    let Outcome { writes, flushes, at_flushes, between, files, missing, wrong, .. } = outcome;
    let [archived, released, recalled, changed] = outcome.work;
    note(&format!(
        "{archived} archived, {released} released, {recalled} recalled by command, {changed} changed"
    ));
    note(
        "| file system | writes | flushes | cuts at flushes | between | files checked | offline | wrong | seconds |",
    );
    let seconds = outcome.elapsed.as_secs();
    note(&format!(
        "| {fs} | {writes} | {flushes} | {at_flushes} | {between} | {files} | {missing} | {} | {seconds} |",
        wrong.len()
    ));
}

/// The development build.
fn exe() -> Result<PathBuf> {
    let exe = target_dir()?.join("debug/hsm");
    ensure!(exe.is_file(), "{} was not built", exe.display());
    Ok(exe)
}
