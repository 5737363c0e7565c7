//! `cargo xtask torture`: everything at once for as long as is asked, on every tier and file system.
//!
//! ```text
//! tier user-filter             natively (as root), one file system after the other
//! tiers lsm-filter, mark-filter    in the guest whose kernel has them
//! ```
//! What is run is the case `torture_never_shows_a_wrong_byte` of the end-to-end suite, with its time, its seed
//! and a place for the image of a file system on which something was wrong. `--external` runs what others wrote:
//! `fsx` and `stress-ng`, on a managed and on an unmanaged file system.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use hsm_lab::{FsKind, Tier};

use crate::process::{cargo, root, tee};
use crate::report::{Report, Verdict};
use crate::results::Results;
use crate::{setup, vm};

/// Options of `cargo xtask torture`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask torture --minutes 30                         # shared by three tiers on three file systems\n  \
    cargo xtask torture --tier lsm-filter --fs xfs --minutes 3\n  \
    cargo xtask torture --seed 7                             # the dice fall as they did with this seed\n  \
    cargo xtask torture --external                           # fsx, stress-ng\n\n\
    When a byte was wrong, the image of the file system and the agent's log stay in target/torture\n\
    (of a run in the guest, the log on the screen only).")]
pub(crate) struct Options {
    /// How long altogether: tiers and file systems share it
    #[arg(long, default_value_t = 9)]
    minutes: u64,
    /// Only this tier (user-filter, lsm-filter, mark-filter)
    #[arg(long)]
    tier: Option<Tier>,
    /// Only this file system (ext4, xfs, btrfs)
    #[arg(long)]
    fs: Option<FsKind>,
    /// For the dice; by default another one each time, which is told
    #[arg(long)]
    seed: Option<u64>,
    /// Programs of others instead: fsx, stress-ng
    #[arg(long)]
    external: bool,
}

const ORDINARY: &str = "torture_never_shows_a_wrong_byte";
const EXTERNAL: &str = "external_";

/// Less shows nothing: in the guest an agent needs seconds to start.
const LEAST_SECONDS: u64 = 20;

/// Runs every part; fails if one failed, or did not run.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::packages()?;
    setup::exercisers()?;
    let tiers = Tier::ALL.into_iter().filter(|tier| options.tier.is_none_or(|t| t == *tier));
    let kinds = FsKind::ALL.into_iter().filter(|fs| options.fs.is_none_or(|f| f == *fs));
    let kinds: Vec<_> = kinds.collect();
    let parts: Vec<_> = tiers.flat_map(|tier| kinds.iter().map(move |fs| (tier, *fs))).collect();
    let seconds = (options.minutes * 60 / parts.len() as u64).max(LEAST_SECONDS);
    let mut report = Report::default();
    for (tier, fs) in parts {
        let name = format!("tier {tier} on {fs}");
        let begin = Instant::now();
        let part = Part { tier, fs, seconds, options };
        let verdict = if tier.has_programs() { part.in_guest(&name) } else { part.native(&name) };
        let verdict = verdict.unwrap_or_else(|error| Verdict::NotRun(format!("{error:#}")));
        report.push(&name, verdict, begin.elapsed());
    }
    print!("{}", report.render());
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Part<'a> {
    tier: Tier,
    fs: FsKind,
    seconds: u64,
    options: &'a Options,
}

impl Part<'_> {
    fn filter(&self) -> String {
        format!("{}::{}", self.fs, if self.options.external { EXTERNAL } else { ORDINARY })
    }

    /// What the suite has to be told, besides the tier.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let keep = root().join("target/torture").display().to_string();
        let mut settings =
            vec![("HSM_TORTURE_SECONDS", self.seconds.to_string()), ("HSM_TORTURE_KEEP", keep)];
        settings.extend(self.options.seed.map(|seed| ("HSM_TORTURE_SEED", seed.to_string())));
        settings
    }

    fn native(&self, name: &str) -> Result<Verdict> {
        hsm_lab::sandbox::require_root("-E env \"PATH=$PATH\" cargo xtask torture")?;
        println!("\n==> {name}: {} s", self.seconds);
        let mut suite: Command = cargo();
        suite.env("HSM_TIER", self.tier.name()).env("HSM_CASES", self.fs.name());
        suite.envs(self.settings());
        suite.args(["test", "--quiet", "--workspace", "--test", "e2e", "--"]);
        suite.arg(self.filter());
        let mut results = Results::default();
        let ok = tee(&mut suite, |line| results.line(line))?;
        ensure!(!results.is_empty(), "no case was run");
        Ok(Verdict::Ran { ok, results })
    }

    fn in_guest(&self, name: &str) -> Result<Verdict> {
        let part = vm::Part {
            test: "e2e",
            name,
            tier: self.tier,
            arguments: vec![self.filter()],
            selection: Some(self.fs.name()),
        };
        // The guest sees the host's files read-only: nothing is kept.
        let settings = self.settings().into_iter().filter(|(name, _)| *name != "HSM_TORTURE_KEEP");
        let settings: Vec<_> = settings.map(|(name, value)| (name.to_owned(), value)).collect();
        let verdict = part.run_with(vm::Machine::ordinary(), &settings)?;
        Ok(verdict.unwrap_or_else(|| Verdict::NotRun("interrupted".to_owned())))
    }
}
