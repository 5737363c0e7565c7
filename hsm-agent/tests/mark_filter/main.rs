//! The filter of tier `mark-filter`, in a kernel that has filters: loaded, pinned, replaced, and tried
//! on real file systems.
//!
//! Needs root, BPF LSM, and a kernel with the patches of docs/KERNEL-PATCHES.md:
//! `cargo xtask vm run --kernel patched -- TEST`. A machine that cannot run them says so in capitals, and every test counts
//! as ignored; `HSM_REQUIRE_FILTER=1` makes that a failure.
//!
//! The suite pins into a directory of its own, and runs in a mount and pid namespace of its own.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use hsm_agent::bpf;
use hsm_lab::FsKind;
use hsm_lab::sandbox::{self, Role};
use libtest_mimic::{Arguments, Failed, Trial};

mod cases;
mod cost;
mod fixture;
mod watch;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--helper") {
        return watch::main(&args[1..]);
    }
    let cost = args.first().is_some_and(|arg| arg == "--cost");
    let arguments = if cost { Arguments::default() } else { Arguments::from_args() };
    let missing = missing();
    if arguments.list || missing.is_some() {
        return without(&arguments, missing.as_deref());
    }
    match sandbox::enter() {
        Ok(Role::Inside(dir)) if cost => done(&cost::main(&dir)),
        Ok(Role::Inside(dir)) => run(arguments, &dir),
        Ok(Role::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(101)),
        Err(error) => {
            eprintln!("the suite could not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn done(result: &anyhow::Result<()>) -> ExitCode {
    if let Err(error) = result {
        eprintln!("{error:#}");
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Why the filter cannot be tried here.
fn missing() -> Option<String> {
    if !sandbox::is_root() {
        return Some("it needs root".into());
    }
    if bpf::object().is_none() {
        return Some("built without kernel programs; run `cargo xtask build` first".into());
    }
    bpf::filter_probe().err()
}

fn without(arguments: &Arguments, missing: Option<&str>) -> ExitCode {
    if let Some(why) = missing {
        eprintln!("\nTHE FILTER'S SUITE DOES NOT RUN ON THIS MACHINE: {why}.");
        eprintln!("In a guest it runs: cargo xtask vm run --kernel patched -- {}\n", program());
        if std::env::var_os("HSM_REQUIRE_FILTER").is_some() && !arguments.list {
            return ExitCode::FAILURE;
        }
    }
    let trials = trials(Path::new("/nonexistent"));
    let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(missing.is_some()));
    libtest_mimic::run(arguments, trials.collect()).exit_code()
}

fn program() -> String {
    std::env::current_exe().map_or_else(|_| "mark_filter".into(), |path| path.display().to_string())
}

fn run(mut arguments: Arguments, dir: &Path) -> ExitCode {
    // The cases replace programs, and count events.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials(dir)).exit_code()
}

fn trials(dir: &Path) -> Vec<Trial> {
    let mut trials = Vec::new();
    for fs in FsKind::ALL {
        for case in cases::ALL {
            let dir = dir.to_path_buf();
            trials.push(Trial::test(format!("{fs}::{}", case.name), move || {
                fixture::run(*case, fs, &dir).map_err(|error| Failed::from(format!("{error:#}")))
            }));
        }
    }
    trials
}
