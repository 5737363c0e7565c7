//! `cargo xtask build-project`: a C project of somebody else, built in a tree whose every file is offline.
//!
//! ```text
//! no hsm               the tree on a file system that no agent watches
//! hsm, resident        the same tree on a managed file system, never archived
//! hsm, released        the same tree, everything offline, caches cold
//! ... nothing to do    all of it offline once more, with what was built: make must write no more than without hsm
//! ```
//! Each build must give the same objects, library and program, byte by byte, and leave the sources as they
//! came. Times, events and recalls are told. Natively for tier `user-filter`, in the guest for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use hsm_lab::content::{files_below, hash_file};
use hsm_lab::sandbox::{self, Role};
use hsm_lab::{FsKind, LoopFs, Run, Tier};
use serde_json::Value;

use crate::ebpf;
use crate::lab::{LIMIT, Lab, build_release, drop_caches, enter, exe};
use crate::steps::step;
use crate::vm::{self, Machine};

mod source;

/// Options of `cargo xtask build-project`.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    cargo xtask build-project                                # user-filter on ext4, natively\n  \
    cargo xtask build-project --tier lsm-filter --fs xfs     # in the guest: zstd's decompression only\n\n\
    The project is Debian's source package zstd, kept in ~/.cache/hsm-dev.")]
pub(crate) struct Options {
    /// The tier (user-filter, lsm-filter, mark-filter)
    #[arg(long, default_value_t = Tier::UserFilter)]
    tier: Tier,
    /// The managed file system (ext4, xfs, btrfs)
    #[arg(long, default_value_t = FsKind::Ext4)]
    fs: FsKind,
    /// The guest's part
    #[arg(long, hide = true)]
    inside_guest: bool,
}

/// For sources, objects and a journal.
const IMAGE_BYTES: u64 = 1 << 30;

/// Runs the builds.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.tier.has_programs() && !options.inside_guest {
        return guest(options);
    }
    if !sandbox::is_inside() && !options.inside_guest {
        source::ensure()?;
    }
    // What is run in the guest was built on the host.
    let role =
        if options.inside_guest { sandbox::enter() } else { enter("cargo xtask build-project") };
    match role? {
        Role::Done(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        Role::Inside(dir) => inside(options, &dir).map(|()| ExitCode::SUCCESS),
    }
}

/// Builds and fetches on the host, and does the rest in the guest.
fn guest(options: &Options) -> Result<ExitCode> {
    source::ensure()?;
    ebpf::programs()?;
    build_release()?;
    let [tier, fs] = [options.tier.name(), options.fs.name()];
    vm::again(
        &Machine::ordinary().for_tier(options.tier),
        &["build-project", "--inside-guest", "--tier", tier, "--fs", fs],
    )
}

/// What is built. Optimisation is for the time that it takes: what is compiled is read all the same.
struct Project {
    what: &'static str,
    /// For `make`, in the tree.
    arguments: &'static [&'static str],
}

const WHOLE: Project = Project {
    what: "zstd: library and program",
    arguments: &[
        "-C",
        "programs",
        "zstd",
        "CFLAGS=-O1",
        "HAVE_ZLIB=0",
        "HAVE_LZMA=0",
        "HAVE_LZ4=0",
    ],
};

/// Translated instructions take ten times as long.
const PART: Project = Project {
    what: "zstd: library, decompression only, without optimisation",
    arguments: &[
        "-C",
        "lib",
        "libzstd.a",
        "CFLAGS=-O0",
        "ZSTD_LIB_COMPRESSION=0",
        "ZSTD_LIB_DICTBUILDER=0",
        "ZSTD_LIB_DEPRECATED=0",
    ],
};

fn inside(options: &Options, dir: &Path) -> Result<()> {
    let project = if options.inside_guest { PART } else { WHOLE };
    let mut plain = LoopFs::create(options.fs, dir, "plain", IMAGE_BYTES)?;
    let tree = unpack(plain.path())?;
    let sources = digests(&tree)?;
    let mut table = Table::default();
    let want = step(&format!("{}, no hsm", project.what), || {
        drop_caches()?;
        let time = make(&project, &tree)?;
        table.row("no hsm", time, Counters::default());
        let files = built(&tree, &sources)?;
        drop_caches()?;
        let (time, rewritten) = make_again(&project, &tree)?;
        table.row("no hsm, nothing to do", time, Counters::default());
        Ok(Built { files, rewritten })
    })?;
    plain.unmount()?;
    ensure!(
        want.files.keys().any(|path| path.extension().is_some_and(|e| e == "o")),
        "no object was built"
    );
    let lab = Lab::with_tier(options.fs, dir, IMAGE_BYTES, &exe()?, options.tier.name())?;
    let result = managed(&lab, &project, &sources, &want, &mut table);
    let log = lab.agent.log_tail();
    let closed = lab.close();
    if result.is_err() {
        eprintln!("{log}");
    }
    result.and(closed)?;
    println!(
        "\n{}, tier {} on {}, Linux {}: {} sources, {} files built, all identical\n\n{}",
        project.what,
        options.tier,
        options.fs,
        rustix::system::uname().release().to_string_lossy(),
        sources.len(),
        want.files.len(),
        table.text
    );
    Ok(())
}

/// What a file contains, by its path in the tree.
type Digests = BTreeMap<PathBuf, blake3::Hash>;

/// What came of the build without hsm.
struct Built {
    files: Digests,
    /// By a second run of make, which found everything up to date: a program that it copies every time.
    rewritten: BTreeSet<PathBuf>,
}

fn managed(
    lab: &Lab,
    project: &Project,
    sources: &Digests,
    want: &Built,
    table: &mut Table,
) -> Result<()> {
    let tree = unpack(&lab.managed(""))?;
    let mut build = |what: &'static str, make: &dyn Fn() -> Result<Duration>| {
        step(&format!("{}, {what}", project.what), || {
            drop_caches()?;
            let before = Counters::of(lab)?;
            let time = make()?;
            table.row(what, time, Counters::of(lab)?.since(before));
            ensure!(built(&tree, sources)? == want.files, "ANOTHER RESULT: {what}");
            Ok(())
        })
    };
    build("hsm, resident", &|| make(project, &tree))?;
    clean(&tree, &want.files)?;
    offline(lab, &tree)?;
    build("hsm, released", &|| make(project, &tree))?;
    offline(lab, &tree)?;
    build("hsm, released, nothing to do", &|| {
        let (time, rewritten) = make_again(project, &tree)?;
        let more = rewritten.difference(&want.rewritten).collect::<Vec<_>>();
        ensure!(more.is_empty(), "make built again what was up to date: {more:?}");
        Ok(time)
    })?;
    step("every source as it came, offline once more", || {
        offline(lab, &tree)?;
        let mut now = digests(&tree)?;
        now.retain(|path, _| sources.contains_key(path));
        ensure!(now == *sources, "SOURCES CHANGED");
        Ok(())
    })
}

fn unpack(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("project");
    fs::create_dir(&tree)?;
    let archive = source::archive()?;
    let options = ["--strip-components=1", "-xf"];
    Run::new("tar").args(["-C".as_ref(), tree.as_os_str()]).args(options).args([archive]).ok()?;
    Ok(tree)
}

fn make(project: &Project, tree: &Path) -> Result<Duration> {
    let make = Run::new("make").args(["-j2", "--no-print-directory"]).args(project.arguments);
    Ok(make.dir(tree).limit(LIMIT).ok()?.elapsed)
}

/// Everything below the tree; symbolic links not followed.
fn digests(tree: &Path) -> Result<Digests> {
    let digest = |path: PathBuf| Ok((path.strip_prefix(tree)?.to_path_buf(), hash_file(&path)?));
    files_below(tree)?.into_iter().map(digest).collect()
}

/// What is not a source.
fn built(tree: &Path, sources: &Digests) -> Result<Digests> {
    let mut found = digests(tree)?;
    found.retain(|path, _| !sources.contains_key(path));
    Ok(found)
}

fn clean(tree: &Path, built: &Digests) -> Result<()> {
    built.keys().try_for_each(|path| Ok(fs::remove_file(tree.join(path))?))
}

/// Runs make where all is built, and tells which files it wrote all the same.
fn make_again(project: &Project, tree: &Path) -> Result<(Duration, BTreeSet<PathBuf>)> {
    let before = written(tree)?;
    let time = make(project, tree)?;
    let after = written(tree)?.into_iter().filter(|(path, time)| before.get(path) != Some(time));
    let relative = |(path, _): (PathBuf, SystemTime)| Ok(path.strip_prefix(tree)?.to_path_buf());
    Ok((time, after.map(relative).collect::<Result<_>>()?))
}

/// When each file was written.
fn written(tree: &Path) -> Result<BTreeMap<PathBuf, SystemTime>> {
    let time = |path: PathBuf| {
        let time = fs::metadata(&path)?.modified()?;
        Ok((path, time))
    };
    files_below(tree)?.into_iter().map(time).collect()
}

/// Every file but the empty ones, by what hsm counts.
fn offline(lab: &Lab, tree: &Path) -> Result<()> {
    lab.verb("archive", tree)?;
    lab.verb("release", tree)?;
    let sizes = files_below(tree)?.into_iter().map(|path| fs::metadata(path).map(|m| m.len()));
    let sizes = sizes.collect::<std::io::Result<Vec<_>>>()?;
    let files = sizes.into_iter().filter(|size| *size > 0).count() as u64;
    let offline = lab.hsm.count("offline")?;
    ensure!(offline >= files, "only {offline} of {files} files are offline");
    Ok(())
}

/// What the agent was asked.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    events: u64,
    recalls: u64,
    bytes: u64,
}

impl Counters {
    fn of(lab: &Lab) -> Result<Self> {
        let status = lab.hsm.status()?;
        let counter = |name: &str| {
            let pointer = format!("/pools/0/counters/{name}");
            let value = status.pointer(&pointer).and_then(Value::as_u64);
            value.with_context(|| format!("hsm status has no {pointer}"))
        };
        let [events, recalls, bytes] =
            [counter("events")?, counter("recalls")?, counter("bytes_recalled")?];
        Ok(Self { events, recalls, bytes })
    }

    fn since(self, before: Self) -> Self {
        Self {
            events: self.events - before.events,
            recalls: self.recalls - before.recalls,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// The rows so far.
struct Table {
    text: String,
}

impl Default for Table {
    fn default() -> Self {
        let head = "| build | seconds | events | recalls | KiB recalled |\n";
        Self { text: format!("{head}| --- | --- | --- | --- | --- |\n") }
    }
}

impl Table {
    fn row(&mut self, what: &str, time: Duration, counters: Counters) {
        let (seconds, Counters { events, recalls, bytes }) = (time.as_secs_f64(), counters);
        self.text +=
            &format!("| {what} | {seconds:.2} | {events} | {recalls} | {} |\n", bytes >> 10);
    }
}
