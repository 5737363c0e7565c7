//! The end-to-end suite in the guest.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use hsm_lab::{FsKind, Tier};
use hsm_machine::run::Output;
use hsm_machine::{End, Outcome};

use super::command::{INTERRUPTED, pass_through};
use super::guest::{self, Guest};
use super::{Machine, Options, binaries};
use crate::ebpf;
use crate::report::{Report, Verdict};
use crate::results::Results;
use crate::setup;

/// Builds the suite, boots the guest, counts what passed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    let part = Part {
        test: "e2e",
        name: &name(options),
        tier: options.tier,
        arguments: arguments(options.fs, options.filter.as_deref()),
        selection: None,
    };
    let begin = Instant::now();
    let Some(verdict) = part.run(options.machine.clone())? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let mut report = Report::default();
    report.push(part.name, verdict, begin.elapsed());
    print!("{}", report.render());
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What of the suite is run.
pub(crate) struct Part<'a> {
    /// The test program: `e2e`, or `guard` and `mark_filter`, which try the kernel programs without an agent.
    pub(crate) test: &'a str,
    /// For the report.
    pub(crate) name: &'a str,
    /// The tier that the agents must have.
    pub(crate) tier: Tier,
    /// For the suite's program.
    pub(crate) arguments: Vec<String>,
    /// `HSM_CASES`, see `hsm-agent/tests/e2e/main.rs`.
    pub(crate) selection: Option<&'a str>,
}

impl Part<'_> {
    /// Runs it in a guest. `None`: interrupted.
    pub(crate) fn run(&self, machine: Machine) -> Result<Option<Verdict>> {
        self.run_with(machine, &[])
    }

    /// [`run`](Self::run) with more environment variables.
    pub(crate) fn run_with(
        &self,
        machine: Machine,
        environment: &[(String, String)],
    ) -> Result<Option<Verdict>> {
        self.run_telling(machine, environment, &mut |_| {})
    }

    /// [`run_with`](Self::run_with); shows each line of the suite's output to `each`.
    pub(crate) fn run_telling(
        &self,
        machine: Machine,
        environment: &[(String, String)],
        each: &mut dyn FnMut(&str),
    ) -> Result<Option<Verdict>> {
        if self.tier.has_programs() {
            ebpf::programs()?;
        }
        let machine = machine.for_tier(self.tier);
        let mut guest = Guest::new(&machine)?;
        let suite = binaries::test(self.test)?;
        let mut command = vec![suite.display().to_string()];
        command.extend(self.arguments.iter().cloned());
        let mut job = guest::job(command)?;
        job.env.push(("HSM_TIER".to_owned(), self.tier.name().to_owned()));
        job.env.push(("HSM_REQUIRE_LSM".to_owned(), "1".to_owned()));
        if self.tier == Tier::MarkFilter {
            job.env.push(("HSM_REQUIRE_FILTER".to_owned(), "1".to_owned()));
        }
        job.env.extend(self.selection.map(|part| ("HSM_CASES".to_owned(), part.to_owned())));
        job.env.extend_from_slice(environment);
        println!("\n==> {}: the same suite as on the host, under a kernel of its own", self.name);
        let (mut results, mut lines) = (Results::default(), Lines::default());
        let outcome = guest.run(&job, None, &mut |which, bytes| {
            pass_through(which, bytes);
            if which == Output::Stdout {
                lines.bytes(bytes, &mut |line| {
                    results.line(line);
                    each(line);
                });
            }
        })?;
        println!("==> guest: {}", guest.explain(&outcome));
        Ok((!guest.interrupted()).then(|| verdict(&outcome, results)))
    }
}

fn verdict(outcome: &Outcome, results: Results) -> Verdict {
    match &outcome.end {
        End::Ended { .. } if results.is_empty() => Verdict::NotRun("no test was run".to_owned()),
        End::Ended { .. } => Verdict::Ran { ok: outcome.ok(), results },
        other => Verdict::NotRun(format!("the guest did not get to its end: {other:?}")),
    }
}

fn name(options: &Options) -> String {
    let fs = options.fs.map_or("all file systems", FsKind::name);
    format!("vm, {}, {fs}", options.tier.name())
}

/// The suite knows filters by name only; what is not wanted is skipped, which leaves the one filter
/// to the caller.
fn arguments(fs: Option<FsKind>, filter: Option<&str>) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(fs) = fs {
        for other in FsKind::ALL.into_iter().filter(|other| *other != fs) {
            arguments.extend(["--skip".to_owned(), format!("{other}::")]);
        }
    }
    arguments.extend(filter.map(str::to_owned));
    arguments
}

/// Lines, which may come in pieces.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
}

impl Lines {
    fn bytes(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str)) {
        for byte in bytes {
            if *byte == b'\n' {
                each(&String::from_utf8_lossy(&self.line));
                self.line.clear();
            } else {
                self.line.push(*byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_system_is_all_but_the_others() {
        assert_eq!(
            arguments(Some(FsKind::Xfs), Some("cat")),
            ["--skip", "ext4::", "--skip", "btrfs::", "cat"]
        );
        assert_eq!(arguments(None, None), Vec::<String>::new());
    }

    #[test]
    fn results_that_come_in_pieces_are_counted() {
        let (mut results, mut lines) = (Results::default(), Lines::default());
        for piece in ["test a ... ok\ntest resu", "lt: ok. 3 passed; 1 fai", "led; 0 ignored\n"] {
            lines.bytes(piece.as_bytes(), &mut |line| results.line(line));
        }
        assert_eq!((results.passed, results.failed), (3, 1));
    }
}
