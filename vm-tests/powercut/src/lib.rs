//! Power cuts at every flush: does the agent keep what it promised, whatever the disks lose?
//!
//! ```text
//! workload ──► file systems ──► loop devices ──► disk (FUSE) ──► log: every write, every flush
//!    │                                                            │
//!    └─► model: what was promised since which position            │
//!                                                                 ▼
//!        for each cut:  replay makes the disks' images ──► mount, agent, check against the model
//! ```
//!
//! - [`log`], [`disk`]: recording; [`replay`], [`cut`]: where the power fails, and what is left then;
//! - [`model`]: what files may be after that; the workload fills it, the check asks it.
//!
//! Catalogue and store are on disks of their own that fail at the same moment. The whole runs in a
//! sandbox (`hsm_lab::sandbox`): nothing of it outlives the process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_lab::agent::Watchdog;
use hsm_lab::{FsKind, Run};

use crate::check::Checked;
use crate::cut::{Catalogue, Cut};
use crate::disk::Disks;
use crate::log::{Change, Entry, Log, Position, Write};
use crate::replay::{Loss, Replay};
use crate::workload::Done;
use crate::world::{COLD, NAMES, STATE, World};

mod check;
pub mod cut;
pub mod disk;
pub mod log;
pub mod model;
pub mod replay;
mod workload;
mod world;

/// After this the agent is killed: a cut with its checks takes a second or two.
const WATCHDOG: Duration = Duration::from_secs(120);
/// After so many failed cuts there is enough to look at.
const ENOUGH: usize = 5;
/// Every so many cuts the catalogue is put by, to be an old one later.
const BACKUP: usize = 16;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Options {
    /// The managed file system.
    pub fs: FsKind,
    /// Of workload and cuts. (The log depends on when the kernel writes back, too.)
    pub seed: u64,
    /// Steps of the workload.
    pub steps: usize,
    /// Most cuts; `None`: at every flush and in every epoch between two.
    pub cuts: Option<usize>,
    /// Where the disks of cuts that failed are kept.
    pub keep: Option<PathBuf>,
    /// The store's disk says that it has flushed, and has not. Then something must be found to be wrong: a
    /// test of the test.
    pub lying_store: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Writes that were recorded, behind the start.
    pub writes: usize,
    /// Flushes that were recorded, behind the start.
    pub flushes: usize,
    /// Cuts at flushes.
    pub at_flushes: usize,
    /// Cuts between flushes, each with a part of what the disks had in their caches.
    pub between: usize,
    /// Files archived, released, recalled by command, changed by the workload.
    pub work: [u64; 4],
    /// Files that were read and compared, over all cuts.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files whose data was in the store only, over all cuts.
    pub missing: u64,
    /// One text per cut after which something was wrong.
    pub wrong: Vec<String>,
    /// How long all of it took.
    pub elapsed: Duration,
}

/// Records a workload and cuts the power. `dir` is empty, `exe` the program `hsm`; `say` hears how far it is.
pub fn run(options: &Options, exe: &Path, dir: &Path, say: &dyn Fn(&str)) -> Result<Outcome> {
    let begin = Instant::now();
    let recording = record(options, exe, dir).context("recording the workload")?;
    let Recording { entries, start, done } = &recording;
    let cuts = cut::choose(entries, *start, options.cuts, options.seed);
    let at_flushes = cuts.iter().filter(|cut| !matches!(cut.loss, Loss::Some(_))).count();
    let flushes = cut::flushes(entries, *start).count();
    let mut outcome = Outcome {
        writes: entries.len() - start - flushes,
        flushes,
        at_flushes,
        between: cuts.len() - at_flushes,
        work: [done.archived, done.released, done.recalled, done.changed],
        ..Outcome::default()
    };
    say(&format!(
        "recorded in {:.1?}: {} writes, {} flushes; {} cuts",
        begin.elapsed(),
        outcome.writes,
        flushes,
        cuts.len()
    ));
    cut_all(options, exe, dir, &recording, &cuts, &mut outcome, say)?;
    outcome.elapsed = begin.elapsed();
    Ok(outcome)
}

/// A workload and its log.
struct Recording {
    entries: Vec<Entry>,
    /// Everything before is durable in every cut.
    start: Position,
    done: Done,
}

fn record(options: &Options, exe: &Path, dir: &Path) -> Result<Recording> {
    let (backing, disks, log) = (dir.join("backing"), dir.join("disks"), Log::default());
    world::make(options.fs, &backing)?;
    copy(&backing, &dir.join("replayed"))?;
    fs::create_dir(&disks)?;
    let served = Disks::mount(&disks, &backing, &NAMES, &log)?;
    let watchdog = Watchdog::new(dir, WATCHDOG);
    let mut world = World::mount(options.fs, dir, &disks, exe)?;
    world.start()?;
    world.sync()?;
    let start = log.position();
    let done = workload::run(&world, &log, options.seed, options.steps)
        .with_context(|| world.log_tail())?;
    let mut entries = log.snapshot();
    if options.lying_store {
        forget_flushes(&mut entries[start..]);
    }
    ensure!(!watchdog.barked(), "the agent did not answer");
    world.close()?;
    drop(served);
    fs::remove_dir_all(backing)?;
    Ok(Recording { entries, start, done })
}

fn cut_all(
    options: &Options,
    exe: &Path,
    dir: &Path,
    recording: &Recording,
    cuts: &[Cut],
    outcome: &mut Outcome,
    say: &dyn Fn(&str),
) -> Result<()> {
    let replayed = dir.join("replayed");
    let images = NAMES.map(|name| replayed.join(name)).to_vec();
    let mut replay = Replay::new(&recording.entries, images)?;
    replay.advance(recording.start)?;
    let (images, old) = (dir.join("cut"), dir.join("older"));
    fs::create_dir_all(&images)?;
    for (turn, cut) in cuts.iter().enumerate() {
        if turn % BACKUP == 0 {
            replay.cut(STATE, Loss::Everything, &old)?;
        }
        replay.advance(cut.at)?;
        for (disk, name) in NAMES.iter().enumerate() {
            replay.cut(disk, of_disk(cut.loss, disk), &images.join(name))?;
        }
        if cut.catalogue == Catalogue::Older {
            copy_file(&old, &images.join(NAMES[STATE]))?;
        }
        let kept = options.keep.as_deref().map(|keep| keep.join(format!("{}-{turn}", options.fs)));
        if let Some(kept) = &kept {
            copy(&images, kept)?;
        }
        match look(options, exe, dir, &images, recording, cut) {
            Ok(checked) => {
                add(outcome, checked);
                kept.map_or(Ok(()), fs::remove_dir_all)?;
            }
            Err(error) => {
                say(&format!("WRONG after cut {turn}, {cut:?}: {error:#}"));
                outcome.wrong.push(format!("cut {turn}, {cut:?}: {error:#}"));
            }
        }
        let failed = outcome.wrong.len();
        if failed >= ENOUGH {
            return Ok(());
        }
        if (turn + 1) % 25 == 0 {
            say(&format!("{} of {} cuts, {failed} of them wrong", turn + 1, cuts.len()));
        }
    }
    Ok(())
}

/// As if the store's disk had never been told to flush.
fn forget_flushes(entries: &mut [Entry]) {
    let nothing = || Write { offset: 0, change: Change::Data([].into()) };
    for entry in entries.iter_mut().filter(|entry| matches!(entry, Entry::Flush(COLD))) {
        *entry = Entry::Write(COLD, nothing());
    }
}

/// Each disk loses something else.
fn of_disk(loss: Loss, disk: usize) -> Loss {
    match loss {
        Loss::Some(seed) => Loss::Some(seed.wrapping_add(disk as u64)),
        other => other,
    }
}

fn add(outcome: &mut Outcome, checked: Checked) {
    outcome.files += checked.files;
    outcome.bytes += checked.bytes;
    outcome.missing += checked.missing;
}

/// The power is back.
fn look(
    options: &Options,
    exe: &Path,
    dir: &Path,
    images: &Path,
    recording: &Recording,
    cut: &Cut,
) -> Result<Checked> {
    let watchdog = Watchdog::new(dir, WATCHDOG);
    let mut world = World::mount(options.fs, dir, images, exe)?;
    if cut.catalogue == Catalogue::Lost {
        forget(&world.state())?;
    }
    let checked = world.start().and_then(|()| check::all(&world, &recording.done.files, cut));
    let checked = checked.with_context(|| world.log_tail());
    let closed = world.close();
    ensure!(!watchdog.barked(), "the agent did not answer: {checked:?}");
    let checked = checked?;
    closed?;
    Ok(checked)
}

/// Removes the catalogue.
fn forget(state: &Path) -> Result<()> {
    for entry in fs::read_dir(state)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    NAMES.iter().try_for_each(|name| copy_file(&from.join(name), &to.join(name)))
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    Run::new("cp").args(["--sparse=auto", "--reflink=auto"]).args([from, to]).ok()?;
    Ok(())
}
