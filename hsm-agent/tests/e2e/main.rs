//! The privileged end-to-end suite: a real agent, real file systems, real programs.
//!
//! Every case runs once per file system under the name `ext4::cat_reads_identical_bytes`, each on
//! a pool of its own ([`fixture`]). `docs/SEMANTICS.md` has a paragraph of the same name for every
//! case; the test `semantics_document_matches_the_cases` keeps it so.
//!
//! The whole suite runs in a mount and pid namespace of its own (`hsm_lab::sandbox`), so nothing
//! that it mounts or starts can outlive it. This program is also its own helper: see [`helper`].

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use hsm_lab::sandbox::{self, Role};
use hsm_lab::{FsKind, Tier, census};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::fixture::Case;

mod cases;
mod document;
mod fixture;
mod helper;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "--helper") {
        return helper::main(&args[1..]);
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(Path::new("/nonexistent"))).exit_code();
    }
    if !sandbox::is_root() {
        return refuse();
    }
    match sandbox::enter() {
        Ok(Role::Inside(dir)) => run(arguments, &dir),
        Ok(Role::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(101)),
        Err(error) => {
            eprintln!("the suite could not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A suite that did not run has failed.
fn refuse() -> ExitCode {
    eprintln!("\nTHE PRIVILEGED END-TO-END SUITE DID NOT RUN: it needs root.");
    eprintln!("It mounts file systems over loop devices and listens with fanotify. Run:\n");
    eprintln!("    sudo -E env \"PATH=$PATH\" cargo test -p hsm-agent --test e2e\n");
    ExitCode::FAILURE
}

fn run(mut arguments: Arguments, dir: &Path) -> ExitCode {
    tell_what_is_not_applicable(&arguments);
    arguments.test_threads.get_or_insert_with(hsm_lab::cases_at_once);
    let conclusion = libtest_mimic::run(&arguments, trials(dir));
    if conclusion.num_ignored > 0 {
        eprintln!(
            "{} CASES DID NOT RUN: they need another tier than {} (HSM_TIER=TIER where the kernel has \
             it, `cargo xtask vm --tier TIER` in a guest), or the guest; the lines above say why",
            conclusion.num_ignored,
            Tier::of_this_run()
        );
    }
    let left = census::leftovers_after(dir, Duration::from_secs(5));
    for line in &left {
        eprintln!("LEFT BEHIND: {line}");
    }
    if conclusion.has_failed() || !left.is_empty() {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}

/// Names the part of the suite that is wanted, where time is short: `ext4,xfs:guarded,btrfs:guarded` is
/// everything on ext4 and one subject (a file of `cases/`) on the others; a case's name selects it alone.
/// `!xfs:torture` leaves out; where nothing else is named, everything else is wanted.
const SELECTION: &str = "HSM_CASES";

fn is_selected(selection: &str, fs: &str, subject: &str, case: &str) -> bool {
    let means = |part: &str| match part.split_once(':') {
        Some((wanted_fs, wanted)) => wanted_fs == fs && [subject, case].contains(&wanted),
        None => part == fs,
    };
    let parts = || selection.split(',').filter(|part| !part.is_empty());
    let mut left_out = parts().filter_map(|part| part.strip_prefix('!'));
    let mut wanted = parts().filter(|part| !part.starts_with('!')).peekable();
    !left_out.any(means) && (wanted.peek().is_none() || wanted.any(means))
}

fn trials(dir: &Path) -> Vec<Trial> {
    let mut trials = vec![Trial::test("semantics_document_matches_the_cases", || {
        document::check(&cases::names()).map_err(Failed::from)
    })];
    for (fs, case, why) in selected() {
        if case.only.is_some_and(|only| only != fs) {
            continue;
        }
        let dir = dir.to_path_buf();
        let trial = Trial::test(format!("{fs}::{}", case.name), move || {
            fixture::run(&case, fs, &dir).map_err(|error| Failed::from(format!("{error:#}")))
        });
        trials.push(trial.with_ignored_flag(why.is_some()));
    }
    trials
}

/// Each case, and why it is not applicable here, if so.
fn selected() -> Vec<(FsKind, Case, Option<String>)> {
    let selection = std::env::var(SELECTION).unwrap_or_default();
    let mut found = Vec::new();
    for fs in FsKind::ALL {
        for (subject, case) in cases::all() {
            if is_selected(&selection, fs.name(), subject, case.name) {
                let only =
                    case.only.filter(|only| *only != fs).map(|only| format!("only on {only}"));
                let why = only.or_else(|| case.needs.lacking().map(str::to_owned));
                found.push((fs, case, why));
            }
        }
    }
    found
}

/// What `cargo xtask conformance` puts into its table besides the cases' results.
fn tell_what_is_not_applicable(arguments: &Arguments) {
    println!("kernel: Linux {}", hsm_agent::sys::probe::kernel_release());
    let wanted = |name: &str| {
        arguments.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
            && !arguments.skip.iter().any(|skip| name.contains(skip.as_str()))
    };
    for (fs, case, why) in selected() {
        let name = format!("{fs}::{}", case.name);
        if let Some(why) = why.filter(|_| wanted(&name)) {
            println!("not applicable: {name}: {why}");
        }
    }
}
