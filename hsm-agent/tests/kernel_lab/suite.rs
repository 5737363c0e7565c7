//! The test program around the cases.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use hsm_agent::bpf;
use hsm_lab::FsKind;
use hsm_lab::sandbox::{self, Role};
use libtest_mimic::{Arguments, Failed, Trial};

use super::lab::Case;

/// A suite.
#[derive(Clone, Copy)]
pub(crate) struct Suite {
    /// Whose, for the words that say that it does not run.
    pub(crate) whose: &'static str,
    /// What runs it in a guest.
    pub(crate) in_guest: &'static str,
    /// The variable that makes it a failure not to run.
    pub(crate) required_by: &'static str,
    /// Why the kernel cannot run the programs, if it cannot.
    pub(crate) lacking: fn() -> Option<String>,
    /// What files have in them.
    pub(crate) content: fn() -> Vec<u8>,
    /// `--helper ARGUMENTS`: the suite's own program as another process.
    pub(crate) helper: fn(&[OsString]) -> ExitCode,
    pub(crate) cases: &'static [Case],
    /// What is no test, by the argument that asks for it; on ext4.
    pub(crate) aside: &'static [(&'static str, Case)],
}

impl Suite {
    /// Runs what the command line asks for.
    pub(crate) fn main(self) -> ExitCode {
        let args: Vec<OsString> = std::env::args_os().skip(1).collect();
        if args.first().is_some_and(|arg| arg == "--helper") {
            return (self.helper)(&args[1..]);
        }
        let aside = self.aside.iter().find(|(name, _)| args.first().is_some_and(|arg| arg == name));
        if let Some((_, case)) = aside {
            return self.alone(*case);
        }
        let mut arguments = Arguments::from_args();
        let missing = self.missing();
        if arguments.list || missing.is_some() {
            return self.without(&arguments, missing.as_deref());
        }
        inside(|dir| {
            // There is one set of programs; the cases change its coverage, replace it, and count its events.
            arguments.test_threads = Some(1);
            libtest_mimic::run(&arguments, self.trials(dir)).exit_code()
        })
    }

    fn alone(self, case: Case) -> ExitCode {
        if let Some(why) = self.missing() {
            eprintln!("it cannot be run here: {why}");
            return ExitCode::FAILURE;
        }
        inside(|dir| done(&case.run_on(FsKind::Ext4, dir, (self.content)())))
    }

    /// Why the programs cannot be tried here.
    fn missing(self) -> Option<String> {
        if !sandbox::is_root() {
            return Some("it needs root".into());
        }
        if bpf::object().is_none() {
            return Some("built without kernel programs; run `cargo xtask build` first".into());
        }
        (self.lacking)()
    }

    fn without(self, arguments: &Arguments, missing: Option<&str>) -> ExitCode {
        if let Some(why) = missing {
            eprintln!("\nTHE {} SUITE DOES NOT RUN ON THIS MACHINE: {why}.", self.whose);
            let program = std::env::current_exe().unwrap_or_else(|_| "TEST".into());
            eprintln!("In a guest it runs: {} -- {}\n", self.in_guest, program.display());
            if std::env::var_os(self.required_by).is_some() && !arguments.list {
                return ExitCode::FAILURE;
            }
        }
        let trials = self.trials(Path::new("/nonexistent"));
        let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(missing.is_some()));
        libtest_mimic::run(arguments, trials.collect()).exit_code()
    }

    fn trials(self, dir: &Path) -> Vec<Trial> {
        let all =
            FsKind::ALL.into_iter().flat_map(|fs| self.cases.iter().map(move |case| (fs, *case)));
        let trial = |(fs, case): (FsKind, Case)| {
            let dir = dir.to_path_buf();
            Trial::test(format!("{fs}::{}", case.name), move || {
                let result = case.run_on(fs, &dir, (self.content)());
                result.map_err(|error| Failed::from(format!("{error:#}")))
            })
        };
        all.map(trial).collect()
    }
}

fn inside(run: impl FnOnce(&Path) -> ExitCode) -> ExitCode {
    match sandbox::enter() {
        Ok(Role::Inside(dir)) => run(&dir),
        Ok(Role::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(101)),
        Err(error) => {
            eprintln!("the suite could not start: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn done(result: &Result<()>) -> ExitCode {
    if let Err(error) = result {
        eprintln!("{error:#}");
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
