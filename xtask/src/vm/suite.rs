//! The end-to-end suite in the guest.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use hsm_lab::FsKind;
use hsm_machine::run::Output;
use hsm_machine::{End, Outcome};

use super::command::{INTERRUPTED, pass_through};
use super::guest::{self, Guest};
use super::{Options, binaries};
use crate::report::{Report, Verdict, count};
use crate::setup;

/// Builds the suite, boots the guest, counts what passed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    let mut guest = Guest::new(&options.machine)?;
    let suite = binaries::suite()?;
    let mut command = vec![suite.display().to_string()];
    command.extend(arguments(options.fs, options.filter.as_deref()));
    let mut job = guest::job(command)?;
    job.env.push(("HSM_TIER".to_owned(), options.tier.name().to_owned()));
    job.env.push(("HSM_SLOW".to_owned(), guest.slowness().to_string()));
    let name = name(options);
    println!("\n==> {name}: the same suite as on the host, under a kernel of its own");
    let begin = Instant::now();
    let mut counts = Counts::default();
    let outcome = guest.run(&job, None, &mut |which, bytes| {
        pass_through(which, bytes);
        if which == Output::Stdout {
            counts.bytes(bytes);
        }
    })?;
    println!("==> guest: {}", guest.explain(&outcome));
    if guest.interrupted() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    Ok(conclude(&name, &outcome, counts.sum, begin.elapsed()))
}

fn conclude(name: &str, outcome: &Outcome, sum: (u64, u64), elapsed: Duration) -> ExitCode {
    let mut report = Report::default();
    let verdict = match &outcome.end {
        End::Ended { .. } if sum == (0, 0) => Verdict::NotRun("no test was run".to_owned()),
        End::Ended { .. } => Verdict::Ran { ok: outcome.ok(), passed: sum.0, failed: sum.1 },
        other => Verdict::NotRun(format!("the guest did not get to its end: {other:?}")),
    };
    report.push(name, verdict, elapsed);
    print!("{}", report.render());
    if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// Counts result lines, which may come in pieces.
#[derive(Default)]
struct Counts {
    sum: (u64, u64),
    line: Vec<u8>,
}

impl Counts {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                count(&String::from_utf8_lossy(&self.line), &mut self.sum);
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
        let mut counts = Counts::default();
        for piece in ["test a ... ok\ntest resu", "lt: ok. 3 passed; 1 fai", "led; 0 ignored\n"] {
            counts.bytes(piece.as_bytes());
        }
        assert_eq!(counts.sum, (3, 1));
    }
}
