//! `cargo xtask test`: every suite of the project, cheapest first.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use hsm_lab::{FsKind, Tier};
use serde_json::Value;

use crate::fuzz::workspace;
use crate::kernel::{self, Flavour, Series};
use crate::process::{cargo, must, root, target_dir, tee};
use crate::report::{Report, Verdict};
use crate::results::Results;
use crate::setup;
use crate::steps::note;
use crate::{ebpf, vm};

/// Options of `cargo xtask test`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask test                  # what a change most likely breaks\n  \
    cargo xtask test --all            # what the others of three file systems and three tiers may still find\n  \
    cargo xtask test --quick          # no guest\n  \
    cargo xtask test xfs::cat_reads   # by name, wherever there is one")]
pub(crate) struct Options {
    /// Only unit and property tests, and the end-to-end suite on ext4
    #[arg(long, conflicts_with = "all")]
    quick: bool,
    /// Everything: fail points and torture on every file system, all tiers at length
    #[arg(long)]
    all: bool,
    /// Only tests whose name contains this (`xfs::`, `cat_reads`, `codec`)
    filter: Option<String>,
}

impl Options {
    /// Who names a test wants it wherever there is one.
    fn is_all(&self) -> bool {
        self.all || self.filter.is_some()
    }
}

/// Tests with a suite of their own; every other one in `hsm-agent/tests` is run as "integration".
const E2E: &str = "e2e";
const GUARD: &str = "guard";
const MARK_FILTER: &str = "mark_filter";
const S3: &str = "store_s3";

/// Runs the suites; fails unless all that were asked for ran and passed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    println!("==> setting up what the tests need (packages only where something is missing)");
    setup::packages()?;
    setup::exercisers()?;
    let mut report = Report::default();
    programs(options, &mut report);
    let kernels = kernels(options);
    unit(options, &mut report)?;
    integration(options, &mut report)?;
    s3(options, &mut report)?;
    fuzz(options, &mut report)?;
    end_to_end(options, &mut report)?;
    wait_for(kernels);
    guest(options, &mut report)?;
    print!("{}", report.render());
    let nothing = report.totals() == (0, 0);
    if nothing {
        eprintln!("NO TEST RAN: no name contains {:?}", options.filter);
    }
    Ok(if report.ok() && !nothing { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All suites are built of the whole workspace: a package by itself would need other features of its dependencies,
/// and most of them once more.
fn unit(options: &Options, report: &mut Report) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]);
    let why = "pure logic, codecs against random input, stores against one conformance suite";
    suite("unit, property, conformance", why, command, options, report)?;
    let mut command = cargo();
    command.args(["test", "--workspace", "--doc"]);
    suite("documentation", "examples in the documentation", command, options, report)
}

fn integration(options: &Options, report: &mut Report) -> Result<()> {
    let mut names = integration_tests(&root().join("hsm-agent/tests"))?;
    names.retain(|name| ![E2E, S3, GUARD, MARK_FILTER].contains(&name.as_str()));
    if names.is_empty() {
        return Ok(());
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    for name in &names {
        command.args(["--test", name]);
    }
    suite(
        "integration",
        "the command line, the protocols' model, what hsm takes for granted of the kernel",
        command,
        options,
        report,
    )
}

fn integration_tests(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let one_file = path.extension().is_some_and(|e| e == "rs");
        if (one_file || path.join("main.rs").is_file())
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn s3(options: &Options, report: &mut Report) -> Result<()> {
    let name = "S3 against s3s-fs";
    if skipped(name, options, report) || !root().join("hsm-agent/tests/store_s3.rs").exists() {
        return Ok(());
    }
    if let Err(error) = setup::s3_server() {
        let why = format!("no S3 server: {error:#}");
        report.push(name, Verdict::NotRun(why), std::time::Duration::ZERO);
        return Ok(());
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--test", S3]);
    suite(name, "the same conformance suite over HTTP", command, options, report)
}

/// Fuzzing needs nightly; that the targets still build and pass their seeds does not.
fn fuzz(options: &Options, report: &mut Report) -> Result<()> {
    let name = "fuzz targets on their seeds";
    if skipped(name, options, report) {
        return Ok(());
    }
    let mut command = workspace();
    command.args(["test", "--no-fail-fast"]);
    if options.all {
        command.env("HSM_FUZZ_SECONDS", "20");
    }
    suite(name, "parsers of foreign bytes must not panic", command, options, report)
}

fn end_to_end(options: &Options, report: &mut Report) -> Result<()> {
    let name = "end-to-end";
    if !hsm_lab::sandbox::is_root() {
        let why = "it needs root. Run: sudo -E env \"PATH=$PATH\" cargo xtask test";
        report.push(name, Verdict::NotRun(why.to_owned()), std::time::Duration::ZERO);
        return Ok(());
    }
    let on_host = |tier: &str| {
        let mut command = cargo();
        command.env("HSM_TIER", tier);
        command.args(["test", "--workspace", "--test", E2E, "--"]);
        if options.quick && options.filter.is_none() {
            command.arg("ext4::");
            note("--quick: only on ext4");
        } else if !options.is_all() {
            command.env("HSM_CASES", ordinarily());
            note(&format!("only on ext4: {}; --all: everywhere", ON_ONE.join(", ")));
        }
        command
    };
    let why = "a real agent, real file systems, real programs, killed processes";
    suite(name, why, on_host("user-filter"), options, report)?;
    if !options.quick && host_takes_programs()? {
        let why = "the same with kernel programs, which this host takes";
        suite("end-to-end, lsm-filter", why, on_host("lsm-filter"), options, report)?;
    }
    Ok(())
}

/// Whether the kernel programs can be loaded here, as `hsm doctor` finds out.
fn host_takes_programs() -> Result<bool> {
    must(cargo().args(["build", "--quiet", "--workspace", "--bin", "hsm"]))?;
    let mut doctor = Command::new(target_dir()?.join("debug/hsm"));
    doctor.args(["--json", "--config", "/nonexistent", "doctor"]);
    // It fails: there is no configuration.
    let output = doctor.stderr(Stdio::inherit()).output().context("starting hsm doctor")?;
    let report: Value = serde_json::from_slice(&output.stdout).context("hsm doctor --json")?;
    let checks = report.get("checks").and_then(Value::as_array).context("no checks")?;
    let is = |check: &Value, key: &str, value: &str| check.get(key).is_some_and(|v| v == value);
    let found = checks.iter().find(|check| is(check, "name", "kernel-programs"));
    Ok(is(found.context("no check of kernel programs")?, "verdict", "ok"))
}

/// First, so that everything that is built afterwards has them inside.
fn programs(options: &Options, report: &mut Report) {
    if options.quick {
        return;
    }
    println!("\n==> the kernel programs: built into hsm from here on");
    if let Err(error) = ebpf::programs() {
        let why = format!("{error:#}");
        report.push("kernel programs", Verdict::NotRun(why), std::time::Duration::ZERO);
    }
}

/// Subjects of the end-to-end suite that rarely differ by file system: ordinarily on ext4 only.
const ON_ONE: [&str; 12] = [
    "deadlocks",
    "external",
    "failpoints",
    "hostile",
    "nfs",
    "operating",
    "overload",
    "processes",
    "programs",
    "remote",
    "torture",
    "workloads",
];

/// Everything, but [`ON_ONE`] on ext4 only.
fn ordinarily() -> String {
    let others = [FsKind::Xfs, FsKind::Btrfs];
    let left_out = others.map(|fs| ON_ONE.map(|subject| format!("!{fs}:{subject}")));
    left_out.as_flattened().join(",")
}

/// A part of the suites under a kernel of its own. All of the tiers' matrix would take hours without KVM:
/// `cargo xtask conformance` fills it, and `cargo xtask vm --tier T --fs F` runs any part of it in full.
struct GuestPart {
    test: &'static str,
    name: &'static str,
    tier: Tier,
    /// Names of tests begin so, ordinarily. (The end-to-end suite takes a selection instead.)
    ordinary_filter: Option<&'static str>,
    /// What is tried ordinarily: what differs most from the other tiers. `None`: nothing; a second kernel, and its
    /// suites, are a long wait.
    ordinary: Option<&'static str>,
    /// What is tried with `--all`.
    all: &'static str,
}

const GUEST_PARTS: [GuestPart; 5] = [
    GuestPart {
        test: GUARD,
        name: "guest: kernel programs alone",
        tier: Tier::LsmFilter,
        ordinary_filter: Some("ext4::"),
        ordinary: Some(""),
        all: "",
    },
    GuestPart {
        test: MARK_FILTER,
        name: "guest: the filter on the mark alone",
        tier: Tier::MarkFilter,
        ordinary_filter: None,
        ordinary: None,
        all: "",
    },
    // On one file system all but the fail points, which take as long again and are walked on the host, and what
    // knows nothing of tiers (the stores' errors, the command line, metadata); on the others what differs.
    GuestPart {
        test: E2E,
        name: "guest: tier lsm-filter",
        tier: Tier::LsmFilter,
        ordinary_filter: None,
        ordinary: Some("ext4:reading,ext4:guarded,ext4:ways"),
        all: "ext4:reading,ext4:copying,ext4:workloads,ext4:programs,ext4:mapping,\
            ext4:syscalls,ext4:modifying,ext4:files,ext4:mounts,ext4:refusing,ext4:luck,\
            ext4:processes,ext4:deadlocks,ext4:torture,ext4:ways,ext4:nfs,ext4:subtrees,\
            ext4:regressions,ext4:guarded,\
            xfs:guarded,xfs:ways,xfs:nfs,btrfs:guarded,btrfs:ways,btrfs:nfs,btrfs:subvolumes",
    },
    // On the patched kernel: what the tier does of its own.
    GuestPart {
        test: E2E,
        name: "guest: tier mark-filter",
        tier: Tier::MarkFilter,
        ordinary_filter: None,
        ordinary: None,
        all: "ext4:marked,ext4:subtrees,ext4:mappings_that_grow_read_identical_bytes,ext4:reading,ext4:copying,ext4:refusing,ext4:guarded,\
            ext4:processes,xfs:marked,btrfs:marked",
    },
    // Beside what the host tries: with the kernel programs, which a host may not take.
    GuestPart {
        test: E2E,
        name: "guest: tier user-filter",
        tier: Tier::UserFilter,
        ordinary_filter: None,
        ordinary: Some("ext4:reading"),
        all: "ext4:reading,ext4:a_changed_configuration_never_mixes_pools_up,xfs:syscalls,btrfs:modifying",
    },
];

const STOCK: Flavour = Flavour { series: Series::Stock, debug: false };

const PATCHED: Flavour = Flavour { series: Series::Patched, debug: false };

/// The kernels that the guest will need are built while other suites leave the processors idle.
fn kernels(options: &Options) -> Option<JoinHandle<Result<()>>> {
    let flavours: &[_] = if options.is_all() { &[STOCK, PATCHED] } else { &[STOCK] };
    (!options.quick).then(|| kernel::beside(flavours))
}

/// Why there is none is told by whatever needs it.
fn wait_for(kernels: Option<JoinHandle<Result<()>>>) {
    let Some(kernels) = kernels else { return };
    if !kernels.is_finished() {
        println!("\n==> waiting for the guest's kernel");
    }
    drop(kernels.join());
}

/// What the host may not be able to do.
fn guest(options: &Options, report: &mut Report) -> Result<()> {
    for GuestPart { test, name, tier, ordinary_filter, ordinary, all } in GUEST_PARTS {
        if skipped(name, options, report) {
            continue;
        }
        let selection = if options.is_all() { Some(all) } else { ordinary };
        if selection.is_none() {
            let why = "it needs the patched kernel: --all, or cargo xtask vm --tier mark-filter";
            report.push(name, Verdict::NotAsked(why.to_owned()), std::time::Duration::ZERO);
            continue;
        }
        let filter = options.filter.as_deref().or(ordinary_filter.filter(|_| !options.is_all()));
        let arguments = filter.map(str::to_owned).into_iter().collect();
        let part = vm::Part { test, name, tier, arguments, selection };
        let begin = Instant::now();
        let verdict = match part.run(vm::Machine::ordinary()) {
            Ok(Some(Verdict::NotRun(_))) if options.filter.is_some() => continue,
            Ok(Some(verdict)) => verdict,
            Ok(None) => Verdict::NotRun("interrupted".to_owned()),
            Err(error) => Verdict::NotRun(format!("{error:#}")),
        };
        report.push(name, verdict, begin.elapsed());
    }
    if !options.is_all() && !options.quick {
        note("parts of the guest's suites only; --all: all of them");
    }
    Ok(())
}

fn skipped(name: &str, options: &Options, report: &mut Report) -> bool {
    if options.quick {
        report.push(name, Verdict::NotAsked("--quick".to_owned()), std::time::Duration::ZERO);
    }
    options.quick
}

fn suite(
    name: &str,
    why: &str,
    mut command: Command,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    println!("\n==> {name}: {why}");
    if let Some(filter) = &options.filter {
        command.arg(filter);
    }
    let begin = Instant::now();
    let mut results = Results::default();
    let ok = tee(&mut command, |line| results.line(line))?;
    let verdict = if ok && results.is_empty() && options.filter.is_none() && name != "documentation"
    {
        Verdict::NotRun("no test was found in it".to_owned())
    } else {
        Verdict::Ran { ok, results }
    };
    report.push(name, verdict, begin.elapsed());
    Ok(())
}
