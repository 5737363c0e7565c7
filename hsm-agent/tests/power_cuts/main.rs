//! Power cuts, a few per file system: `cargo xtask power-cuts` makes all of them.
//!
//! Needs root, and FUSE (`/dev/fuse`) for the recording disks. The suite runs in a mount and pid namespace
//! of its own. Only tier `user-filter`: the others differ in who asks the agent, not in what it writes.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use hsm_lab::FsKind;
use hsm_lab::sandbox::{self, Role};
use hsm_powercut::{Options, Outcome};
use libtest_mimic::{Arguments, Failed, Trial};

/// So many, so that all three file systems take less than a minute.
const CUTS: usize = 8;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(Path::new("/nonexistent"))).exit_code();
    }
    if !sandbox::is_root() {
        eprintln!("\nPOWER CUTS WERE NOT TRIED: it needs root (it mounts file systems).\n");
        return ExitCode::FAILURE;
    }
    match sandbox::enter() {
        Ok(Role::Inside(dir)) => libtest_mimic::run(&arguments, trials(&dir)).exit_code(),
        Ok(Role::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(101)),
        Err(error) => {
            eprintln!("the suite could not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials(dir: &Path) -> Vec<Trial> {
    let trial = |fs: FsKind| {
        let dir = dir.join(fs.name());
        Trial::test(format!("{fs}::power_cuts_lose_nothing"), move || {
            one(fs, &dir).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let lie = dir.join("lie");
    let lie = Trial::test("a_disk_that_lies_is_found_out", move || {
        found_out(&lie).map_err(|error| Failed::from(format!("{error:#}")))
    });
    FsKind::ALL.into_iter().map(trial).chain([lie]).collect()
}

fn cut(options: &Options, dir: &Path) -> Result<Outcome> {
    std::fs::create_dir(dir)?;
    let exe = Path::new(env!("CARGO_BIN_EXE_hsm"));
    let shown = dir.display();
    let say = |line: &str| {
        // What is wrong on purpose is nobody's business.
        if !options.lying_store {
            eprintln!("{shown}: {line}");
        }
    };
    hsm_powercut::run(options, exe, dir, &say)
}

fn options(fs: FsKind) -> Options {
    Options { fs, seed: 1, steps: 30, cuts: Some(CUTS), keep: None, lying_store: false }
}

fn one(fs: FsKind, dir: &Path) -> Result<()> {
    let outcome = cut(&options(fs), dir)?;
    ensure!(outcome.wrong.is_empty(), "{}", outcome.wrong.join("\n\n"));
    ensure!(outcome.at_flushes + outcome.between == CUTS, "{outcome:?}");
    ensure!(outcome.missing > 0, "no file was offline at any cut: {outcome:?}");
    Ok(())
}

/// A suite that finds nothing wrong must be able to.
fn found_out(dir: &Path) -> Result<()> {
    let outcome = cut(&Options { lying_store: true, ..options(FsKind::Ext4) }, dir)?;
    ensure!(!outcome.wrong.is_empty(), "objects were lost, and nobody noticed: {outcome:?}");
    Ok(())
}
