//! `cargo xtask overload`: more of everything than can be served at once, and what the agent makes of it.
//!
//! Three parts, each with an agent, a file system and readers of its own: many readers of a store that
//! stalls; one user's storm of recalls beside another user's single ones; and many offline files, of which
//! some are read. Wrong bytes, lost readers and broken limits are failures; figures are printed.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use hsm_lab::readers::{Files, Readers, Tally, Usage};
use hsm_lab::s3::S3Server;
use hsm_lab::sandbox::{self, Role};
use hsm_lab::stats::{bytes, median, percentile};
use hsm_lab::{Agent, FsKind, Run, Tier};
use serde_json::Value;

use crate::demo::parse_fs;
use crate::lab::{LIMIT, Lab, build_release, drop_caches, enter, exe, timed};
use crate::steps::{note, step};
use crate::vm::{self, Machine};
use crate::{ebpf, setup};

/// Options of `cargo xtask overload`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask overload                              all parts, about half an hour\n  \
    cargo xtask overload --part blocked --readers 500\n  \
    cargo xtask overload --part many --files 100000 --fs xfs\n  \
    cargo xtask overload --part storm --storm-readers 1000 --limit recalls_per_user=4\n  \
    cargo xtask overload --part storm --tier mark-filter    in the guest")]
pub(crate) struct Options {
    /// Only this part
    #[arg(long)]
    part: Option<Part>,
    /// Readers that block at once, each on a file of its own
    #[arg(long, default_value_t = 10_000)]
    readers: u64,
    /// Offline files, of which at most 20,000 are read
    #[arg(long, default_value_t = 1_000_000)]
    files: u64,
    /// Recalls of the storming user
    #[arg(long, default_value_t = 5_000)]
    storm: u64,
    /// His readers: so many of these recalls are wanted at any time
    #[arg(long, default_value_t = 200)]
    storm_readers: u64,
    /// The managed file system
    #[arg(long, default_value = "ext4", value_parser = parse_fs)]
    fs: FsKind,
    /// The tier: user-filter natively, the others in the guest
    #[arg(long, default_value_t = Tier::UserFilter)]
    tier: Tier,
    /// A line of `[limits]` for the agent
    #[arg(long)]
    limit: Vec<String>,
    /// The guest's part
    #[arg(long, hide = true)]
    inside_guest: bool,
    /// The readers' own part
    #[arg(long, hide = true, num_args = 3)]
    readers_inside: Option<Vec<std::ffi::OsString>>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Many readers, and a store that stalls
    Blocked,
    /// One user's storm, another user's single recalls
    Storm,
    /// Many offline files
    Many,
}

/// Of each file.
const SIZE: u64 = 4096;
/// Users that need not exist.
const STORMING: u32 = 71_001;
const QUIET: u32 = 71_002;
/// Files of the many that are read.
const READ: u64 = 20_000;
/// What each of the agent's processes may have, besides the chunk buffers of `limits.recall_memory`.
const MEMORY_KIB: u64 = 64 << 10;
/// The default of `limits.recall_memory`.
const BUFFERS_KIB: u64 = 32 << 10;
/// Descriptors of a process that are not of readers who wait.
const DESCRIPTORS: u64 = 400;

/// Runs the parts.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(arguments) = &options.readers_inside {
        return hsm_lab::readers::run(arguments).map(|()| ExitCode::SUCCESS);
    }
    if !sandbox::is_inside() && !options.inside_guest {
        setup::s3_server()?;
    }
    if options.tier.has_programs() && !options.inside_guest {
        return guest(options);
    }
    // What is run in the guest was built on the host.
    let role = if options.inside_guest { sandbox::enter() } else { enter("cargo xtask overload") };
    match role? {
        Role::Done(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        Role::Inside(dir) => inside(options, &dir).map(|()| ExitCode::SUCCESS),
    }
}

/// The same, in the guest.
fn guest(options: &Options) -> Result<ExitCode> {
    ebpf::programs()?;
    build_release()?;
    let numbers = [options.readers, options.files, options.storm, options.storm_readers];
    let [readers, files, storm, storm_readers] = numbers.map(|number| number.to_string());
    let (tier, fs) = (options.tier.name(), options.fs.name());
    let mut arguments = vec!["overload", "--inside-guest", "--tier", tier, "--fs", fs];
    arguments.extend(["--readers", &readers, "--files", &files]);
    arguments.extend(["--storm", &storm, "--storm-readers", &storm_readers]);
    let part = options.part.and_then(|part| part.to_possible_value());
    if let Some(part) = &part {
        arguments.extend(["--part", part.get_name()]);
    }
    for limit in &options.limit {
        arguments.extend(["--limit", limit]);
    }
    vm::again(&Machine::ordinary().for_tier(options.tier), &arguments)
}

fn inside(options: &Options, dir: &Path) -> Result<()> {
    type Of = fn(&Options, &Path) -> Result<()>;
    let parts: [(Part, &str, Of); 3] = [
        (Part::Blocked, "blocked", blocked),
        (Part::Storm, "storm", storm),
        (Part::Many, "many", many),
    ];
    for (part, name, run) in parts {
        if options.part.is_none_or(|wanted| wanted == part) {
            let dir = dir.join(name);
            std::fs::create_dir(&dir)?;
            run(options, &dir).with_context(|| format!("part {name}"))?;
        }
    }
    Ok(())
}

/// Bytes of a file system for which `mkfs.ext4` makes one inode (`inode_ratio` in mke2fs.conf).
const PER_INODE: u64 = 16 << 10;

/// A lab with this store and these limits, taken down whatever comes of the work in it.
fn with_lab(
    options: &Options,
    dir: &Path,
    files: u64,
    store: Option<Vec<String>>,
    work: impl FnOnce(&Lab) -> Result<()>,
) -> Result<()> {
    // A quarter more than what mkfs.ext4 makes inodes for. The image is sparse.
    let image = (files * PER_INODE / 4 * 5).max(2 << 30);
    let lab = Lab::with_config(options.fs, dir, image, &exe()?, |config| {
        config.tier = Some(options.tier.name().to_owned());
        config.limits.extend(options.limit.iter().cloned());
        config.other_store = store;
    })?;
    let result = work(&lab);
    let log = lab.agent.log_tail();
    let closed = lab.close();
    if result.is_err() {
        eprintln!("{log}");
    }
    result.and(closed)
}

fn offline(lab: &Lab, dir: &str, count: u64) -> Result<Files> {
    let files = Files { dir: lab.managed(dir), first: 0, count, size: SIZE };
    step(&format!("making {count} files of {}", bytes(SIZE)), || files.write())?;
    for verb in ["archive", "release"] {
        let time = step(&format!("hsm {verb}"), || lab.verb(verb, &files.dir))?;
        note(&format!("{} files/s", per_second(count, time)));
    }
    Ok(files)
}

fn per_second(count: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    count.saturating_mul(1_000_000) / micros
}

fn readers(uid: u32, threads: u64, files: &Files) -> Result<Readers> {
    Readers::start(&["overload", "--readers-inside"], uid, threads, files)
}

fn queue(lab: &Lab) -> Result<Value> {
    lab.hsm.status()?.get("queue").cloned().context("no queue in the status")
}

fn usage(agent: &Agent) -> [(&'static str, Usage); 2] {
    let engine = agent.engines().into_iter().map(Usage::of).fold(Usage::default(), Usage::most);
    [("holder", Usage::of(agent.holder())), ("engine", engine)]
}

/// Prints and checks what the agent's processes have.
fn within_limits(when: &str, agent: &Agent, waiting: u64) -> Result<()> {
    for (name, usage) in usage(agent) {
        let Usage { rss_kib, descriptors } = usage;
        note(&format!("{when}: {name} has {} and {descriptors} descriptors", bytes(rss_kib << 10)));
        let most = MEMORY_KIB + if name == "engine" { BUFFERS_KIB } else { 0 };
        ensure!(rss_kib < most, "{name} has {rss_kib} KiB, more than {most}");
        ensure!(descriptors < waiting + DESCRIPTORS, "{name} has {descriptors} descriptors");
    }
    Ok(())
}

fn blocked(options: &Options, dir: &Path) -> Result<()> {
    let count = options.readers;
    let server = S3Server::new(&dir.join("s3"))?;
    let mut store = server.store_lines();
    store.push("deadline = \"4m\"\nretries = 50".to_owned());
    with_lab(options, dir, count, Some(store), |lab| {
        let files = offline(lab, "files", count)?;
        within_limits("before", &lab.agent, 0)?;
        server.stall();
        let begin = Instant::now();
        let readers = step(&format!("{count} readers, and a store that stalls"), || {
            let readers = readers(STORMING, count, &files)?;
            until_waiting(lab, count).map(|()| readers)
        });
        let held = within_limits("blocked", &lab.agent, count);
        note(&format!("queue: {}", queue(lab)?));
        note(&format!("blocked for {:.1} s until here", begin.elapsed().as_secs_f64()));
        server.resume();
        let begin = Instant::now();
        let tally = step("the store answers again", || readers?.finish())?;
        note(&format!("all done at {} files/s", per_second(count, begin.elapsed())));
        told(&tally);
        within_limits("after", &lab.agent, 0)?;
        held?;
        // Bytes or an error: with so many, the last ones may wait longer than limits.recall_deadline.
        let Tally { right, wrong, errors, .. } = &tally;
        ensure!(wrong.is_empty(), "WRONG BYTES: {:?}", wrong.first());
        let refused = errors.get(&rustix::io::Errno::AGAIN.raw_os_error()).copied().unwrap_or(0);
        ensure!(right + refused == count, "readers got lost: {errors:?}");
        Ok(())
    })
}

fn until_waiting(lab: &Lab, count: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let waiting = queue(lab)?.get("waiting").and_then(Value::as_u64).unwrap_or(0);
        if waiting >= count {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("only {waiting} of {count} readers wait");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn told(tally: &Tally) {
    let Tally { right, wrong, errors, .. } = tally;
    note(&format!("right bytes {right}, wrong {}, errors by number {errors:?}", wrong.len()));
}

fn storm(options: &Options, dir: &Path) -> Result<()> {
    /// Single recalls of the quiet user, each time.
    const QUIETLY: u64 = 100;
    let count = options.storm;
    with_lab(options, dir, count, None, |lab| {
        let files = offline(lab, "files", count + 2 * QUIETLY)?;
        let quietly = |first| -> Result<Vec<Duration>> {
            let tally = readers(QUIET, 1, &files.part(first, QUIETLY))?.finish()?;
            tally.all_right(QUIETLY).map(|()| tally.times())
        };
        let idle = step("single recalls of one user, alone", || quietly(count))?;
        let begin = Instant::now();
        let mut storm = readers(STORMING, options.storm_readers, &files.part(0, count))?;
        until_waiting(lab, options.storm_readers.min(count) / 4)?;
        let what = format!("the same, while {} of another user wait", options.storm_readers);
        let busy = step(&what, || quietly(count + QUIETLY))?;
        ensure!(
            storm.is_running(),
            "the storm was over first: it needs more recalls, or it held us up"
        );
        let all = storm.finish()?;
        note(&format!("the storm: {} recalls/s", per_second(count, begin.elapsed())));
        told(&all);
        let ms =
            |times: &[Duration], p| percentile(times, p).map_or(0.0, |t| t.as_secs_f64() * 1e3);
        for (name, times) in [("alone", &idle), ("in the storm", &busy)] {
            note(&format!("{name}: p50 {:.2} ms, p90 {:.2} ms", ms(times, 50), ms(times, 90)));
        }
        let ratio = ms(&busy, 50) / ms(&idle, 50).max(0.001);
        note(&format!("ratio of the medians {ratio:.1}"));
        all.all_right(count)?;
        ensure!(median(&busy) < Some(Duration::from_secs(1)), "the quiet user was held up");
        Ok(())
    })
}

fn many(options: &Options, dir: &Path) -> Result<()> {
    let count = options.files;
    let read = READ.min(count / 2);
    with_lab(options, dir, count, None, |lab| {
        // The first ones are read while there are no others.
        let few = offline(lab, "few", read)?;
        let alone = cat(lab, &few, read)?;
        within_limits("after that", &lab.agent, 0)?;
        let rest = offline(lab, "rest", count - read)?;
        within_limits("with all of them offline", &lab.agent, 0)?;
        lab.verb("release", &few.dir)?;
        let offline = lab.hsm.count("offline")?;
        ensure!(offline == count, "{offline} of {count} files are offline");
        let again = cat(lab, &few, read)?;
        within_limits("after that", &lab.agent, 0)?;
        let ratio = again.as_secs_f64() / alone.as_secs_f64();
        note(&format!("{read} of {count} offline files cost {ratio:.2} times {read} of {read}"));
        let sample = rest.part(0, 200.min(rest.count));
        readers(QUIET, 4, &sample)?.finish()?.all_right(sample.count)?;
        ensure!(ratio < 2.0, "the cost of a recall grows with the number of offline files");
        Ok(())
    })
}

/// As people do it: a process for each file. Then every byte is compared.
fn cat(lab: &Lab, files: &Files, count: u64) -> Result<Duration> {
    drop_caches()?;
    let script = "find \"$1\" -type f -exec cat {} ';' | wc -c";
    let time = step(&format!("find -exec cat over {count} offline files"), || {
        let out = Run::shell(script).args([&files.dir]).limit(LIMIT).ok()?;
        let read: u64 = out.text().trim().parse()?;
        ensure!(read == count * SIZE, "{read} bytes were read");
        Ok(out.elapsed)
    })?;
    note(&format!("{} files/s", per_second(count, time)));
    readers(0, 2, files)?.finish()?.all_right(count)?;
    let _ = timed(Run::new("sync"))?;
    ensure!(lab.hsm.count("archived")? >= count, "not all of them came back");
    Ok(time)
}
