//! Death between any two durable steps: of the engine, of the holder, of both, of both with the power.
//!
//! ```text
//! for each point × way to it × passage × who dies
//!   a fresh tree → the state that the way needs → arm the point → go the way
//!   the point must have been reached → an agent again → check → do it again → check
//! ```
//!
//! [`ways::to`] says for every point of the agent's table how it is reached: a new point does not compile
//! without. What must hold afterwards is in [`check`]. `HSM_TURNS` limits a run to the turns whose name
//! contains it (`release.punched`, `kill-both`), `HSM_DEATHS=one` to one death per passage, another one on each
//! file system: where each turn takes long.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hsm_agent::failpoint::{BUILT_IN, Point, REACHED, VARIABLE};
use hsm_agent::store::fault;
use hsm_lab::{Content, FsKind, PoolConfig, Run, Tier, census, patience};
use rustix::fs::OFlags;

use super::cases;
use crate::fixture::{Pool, Sample};

mod check;
mod tree;
mod ways;

pub(super) use check::Index;
use tree::Tree;
use ways::Way;

cases! {
    failpoints_in_archive_lose_nothing with with_readback,
    failpoints_in_release_lose_nothing with with_failpoints,
    failpoints_in_recovery_lose_nothing with with_failpoints,
    failpoints_in_recall_lose_nothing with with_failpoints,
    failpoints_under_writers_lose_nothing with with_failpoints,
    failpoints_in_range_recall_lose_nothing with with_ranges; needs Ranges,
    failpoints_on_the_way_of_an_event_lose_nothing with with_failpoints,
    failpoints_in_the_catalogue_lose_nothing with with_failpoints,
    an_overtaken_archive_leaves_no_unknown_object with with_failpoints,
    an_object_that_comes_too_late_is_known with with_store_faults,
    a_cut_during_a_release_is_never_under_a_marker with with_failpoints,
    a_cut_that_was_let_through_finds_no_stub with with_failpoints; needs WholeWatch,
    a_release_puts_no_older_row_back with with_failpoints,
    an_archive_puts_no_older_row_back with with_failpoints,
    an_orphan_that_recovers_does_not_wait_for_its_successor with with_failpoints,
}

/// The holder dies while its engine recovers, and the next agent watches before that is through.
fn an_orphan_that_recovers_does_not_wait_for_its_successor(pool: &mut Pool) -> Result<()> {
    let armory = Armory::new(&pool.config)?;
    let (dir, files) = files_in_a_directory(pool, 6)?;
    pool.hsm.must("archive", ["-r".as_ref(), dir.as_os_str()])?;
    let pause = Point::RecoverSynced;
    armory.arm(pause, "pause", 1)?;
    armory.arm(Point::ReleaseSynced, Death::Engine.order(), 1)?;
    let release = pool.hsm.command(["release".as_ref(), "-r".as_ref(), dir.as_os_str()]).start()?;
    armory.wait_until_reached(pause)?;
    let mut agent = pool.take_agent()?;
    agent.kill_holder()?;
    let log = pool.config.dir.join("agent.log");
    let freed = thread::scope(|scope| {
        // Once the next agent waits for it, the engine goes on to the other files.
        let freed = scope.spawn(|| {
            let end = Instant::now() + patience(Duration::from_secs(20));
            while !fs::read_to_string(&log)?.contains("taking over from the orphan") {
                ensure!(Instant::now() < end, "the next agent does not wait for the orphan");
                thread::sleep(Duration::from_millis(10));
            }
            armory.clear()
        });
        let started = pool.start();
        let freed = freed.join().map_err(|_| anyhow!("panicked"));
        started.and(freed?)
    });
    freed.context("the next agent")?;
    drop(release.finish()?);
    files.iter().try_for_each(Sample::check)?;
    pool.restart()?;
    Index::read(pool)?.has_no_intents()
}

/// `truncate(2)` opens nothing: between the lease and the marker, then the engine dies.
fn a_cut_during_a_release_is_never_under_a_marker(pool: &mut Pool) -> Result<()> {
    const LEFT: u64 = 16_603;
    let armory = Armory::new(&pool.config)?;
    let file = pool.file("file", 64_648)?;
    pool.hsm.must("archive", [&file.path])?;
    let before = Point::ReleaseWritten;
    armory.arm(before, "pause", 1)?;
    let release = pool.hsm.command(["release".as_ref(), file.path.as_os_str()]).start()?;
    armory.wait_until_reached(before)?;
    let size = LEFT.to_string();
    let cutter = Run::new(std::env::current_exe()?).args(["--helper", "truncate"]);
    let cutter = cutter.args([file.path.as_os_str(), size.as_ref()]).start()?;
    thread::sleep(patience(Duration::from_millis(500)));
    let now = fs::metadata(&file.path)?.len();
    // In tier lsm-filter nothing but the lease is in his way, which goes as soon as he comes for it.
    let waits = now == file.content.size;
    ensure!(waits || Tier::of_this_run() == Tier::LsmFilter, "he did not wait: {now} bytes");
    let after = Point::ReleaseSynced;
    armory.arm(after, Death::Engine.order(), 1)?;
    armory.let_go(before)?;
    armory.wait_until_reached(after)?;
    armory.clear()?;
    wait_for_restarts(pool, 1)?;
    let cut = cutter.finish()?;
    ensure!(cut.code() == 0, "the cut: {}", cut.describe());
    drop(release.finish()?);
    let left = Sample { content: Content { size: LEFT, ..file.content }, path: file.path };
    left.check()?;
    pool.hsm.must("migrate", [&left.path])?;
    left.check()?;
    // What could not be finished while the cutter waited is looked at by the next agent.
    pool.restart()?;
    left.check()?;
    Index::read(pool)?.has_no_intents()
}

/// `truncate(2)` has its answer, and does not get a processor until the file might be offline again.
fn a_cut_that_was_let_through_finds_no_stub(pool: &mut Pool) -> Result<()> {
    const LEFT: u64 = 16_603;
    let armory = Armory::new(&pool.config)?;
    let file = pool.offline_file("file", 64_648)?;
    let answering = Point::EventAnswering;
    armory.arm(answering, "pause", 1)?;
    let exe = std::env::current_exe()?;
    let size = LEFT.to_string();
    let cutter = Run::new("taskset").args(["-c", "0"]).args([exe.as_os_str(), "--helper".as_ref()]);
    let cutter =
        cutter.args(["truncate".as_ref(), file.path.as_os_str(), size.as_ref()]).start()?;
    armory.wait_until_reached(answering)?;
    // His processor is taken, for less than a release waits for him.
    let busy =
        ["0.4", "taskset", "-c", "0", "chrt", "--fifo", "1", "sh", "-c", "while :; do :; done"];
    let busy = Run::new("timeout").args(busy).start()?;
    thread::sleep(Duration::from_millis(50));
    armory.let_go(answering)?;
    let release = pool.hsm.command(["release".as_ref(), file.path.as_os_str()]).output()?;
    let cut = cutter.finish()?;
    let busy = busy.finish()?;
    ensure!(busy.code() == 124, "his processor was not taken: {}", busy.describe());
    ensure!(cut.code() == 0, "the cut: {}", cut.describe());
    let left = Sample { content: Content { size: LEFT, ..file.content }, path: file.path };
    left.check().with_context(|| format!("after {}", release.describe()))?;
    pool.hsm.must("migrate", [&left.path])?;
    left.check()
}

/// Two files are released together; somebody wants to cut the first one and archive it before the second is done.
fn a_release_puts_no_older_row_back(pool: &mut Pool) -> Result<()> {
    const LEFT: u64 = 10_000;
    let armory = Armory::new(&pool.config)?;
    let (dir, files) = files_in_a_directory(pool, 2)?;
    pool.hsm.must("archive", ["-r".as_ref(), dir.as_os_str()])?;
    let second = Point::ReleasePunched;
    armory.arm(second, "pause", 2)?;
    let release = pool.hsm.command(["release".as_ref(), "-r".as_ref(), dir.as_os_str()]).start()?;
    armory.wait_until_reached(second)?;
    let hsm = &pool.hsm;
    let change = |file: &Sample| -> Result<()> {
        File::options().write(true).open(&file.path)?.set_len(LEFT)?;
        hsm.must("archive", [&file.path]).map(drop)
    };
    while_it_stands(&armory, second, &files, change)?;
    let released = release.finish()?;
    ensure!(released.code() == 0, "{}", released.describe());
    let index = Index::read(pool)?;
    for file in files {
        let left = Sample { content: Content { size: LEFT, ..file.content }, path: file.path };
        index.names_the_copy_of(&left.path)?;
        pool.hsm.must("release", [&left.path])?;
        left.check()?;
    }
    Ok(())
}

/// The same of two files that are archived together: the second one's archive is overtaken.
fn an_archive_puts_no_older_row_back(pool: &mut Pool) -> Result<()> {
    const LEFT: u64 = 10_000;
    let armory = Armory::new(&pool.config)?;
    let (dir, files) = files_in_a_directory(pool, 2)?;
    let second = Point::ArchiveRecorded;
    armory.arm(second, "pause", 2)?;
    let archive = pool.hsm.command(["archive".as_ref(), "-r".as_ref(), dir.as_os_str()]).start()?;
    armory.wait_until_reached(second)?;
    let hsm = &pool.hsm;
    let change = |file: &Sample| -> Result<()> {
        File::options().write(true).open(&file.path)?.set_len(LEFT)?;
        let end = Instant::now() + patience(Duration::from_secs(20));
        // Busy as long as the other archive has it.
        while hsm.must("archive", [&file.path]).is_err() {
            ensure!(Instant::now() < end, "{} cannot be archived", file.path.display());
        }
        Ok(())
    };
    while_it_stands(&armory, second, &files, change)?;
    drop(archive.finish()?);
    let index = Index::read(pool)?;
    files.iter().try_for_each(|file| index.names_the_copy_of(&file.path))
}

fn files_in_a_directory(pool: &mut Pool, count: u32) -> Result<(PathBuf, Vec<Sample>)> {
    let dir = pool.path("d");
    fs::create_dir(&dir)?;
    let files = (0..count).map(|n| pool.file(format!("d/{n}"), 20_000)).collect::<Result<_>>()?;
    Ok((dir, files))
}

/// Somebody wants to change each of the files before the batch in which they are goes on.
fn while_it_stands(
    armory: &Armory,
    point: Point,
    files: &[Sample],
    change: impl Fn(&Sample) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let changes: Vec<_> = files.iter().map(|file| scope.spawn(|| change(file))).collect();
        // Long enough for who does not have to wait.
        thread::sleep(patience(Duration::from_secs(1)));
        armory.let_go(point)?;
        changes.into_iter().try_for_each(|c| c.join().map_err(|_| anyhow!("panicked"))?)
    })
}

fn an_overtaken_archive_leaves_no_unknown_object(pool: &mut Pool) -> Result<()> {
    let armory = Armory::new(&pool.config)?;
    let point = Point::ArchiveRecorded;
    armory.arm(point, "pause", 1)?;
    let file = pool.file("file", 100_000)?;
    let archive = pool.hsm.command(["archive".as_ref(), file.path.as_os_str()]).start()?;
    armory.wait_until_reached(point)?;
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let writer = File::options().write(true).custom_flags(nonblock).open(&file.path);
    ensure!(writer.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "the archive has no lease");
    armory.let_go(point)?;
    let archive = archive.finish()?;
    ensure!(archive.code() == 1, "archived in spite of a writer: {}", archive.describe());
    fs::remove_file(&file.path)?;
    pool.hsm.command(["scan", "--pool", "lab"]).ok()?;
    let index = Index::read(pool)?;
    index.has_no_intents()?;
    ensure!(!pool.objects()?.is_empty(), "nothing was stored: the case is no use");
    index.knows_all_of_the_store(pool)
}

/// A file with what goes wrong in the store.
fn store_faults(config: &PoolConfig) -> PathBuf {
    config.dir.join("store-faults")
}

fn with_store_faults(config: &mut PoolConfig) {
    let file = store_faults(config).display().to_string();
    config.environment.push((fault::VARIABLE.to_owned(), file));
    config.store_options.push("retries = 1\ndeadline = \"1500ms\"".into());
}

/// Whoever gave an object up has deleted it before it was there.
fn an_object_that_comes_too_late_is_known(pool: &mut Pool) -> Result<()> {
    ensure!(BUILT_IN, "this build has no faults of the store: cargo test --features failpoints");
    let faults = store_faults(&pool.config);
    for (count, (name, size)) in [("small", 100_000), ("large", 3 << 20)].into_iter().enumerate() {
        let file = pool.file(name, size)?;
        fs::write(&faults, "overdue = 1000")?;
        let report = pool.hsm.verb("archive", [&file])?;
        fs::remove_file(&faults)?;
        ensure!(report.code == 1, "archived without an answer: {}", report.output.describe());
        let temporary = pool.store().join("tmp");
        let end = Instant::now() + patience(Duration::from_secs(20));
        while pool.objects()?.iter().filter(|o| !o.starts_with(&temporary)).count() <= count {
            ensure!(Instant::now() < end, "the object never came: the case is no use");
            thread::sleep(Duration::from_millis(50));
        }
        Index::read(pool)?.knows_all_of_the_store(pool).context(name)?;
        fs::remove_file(&file.path)?;
    }
    Ok(())
}

fn failpoints_in_archive_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Archive, Way::ArchiveChanged])
}

fn failpoints_in_release_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Release, Way::ReleaseTurned])
}

fn failpoints_in_recovery_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Start, Way::Recover])
}

fn failpoints_in_recall_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Recall, Way::Read, Way::Damaged])
}

fn failpoints_under_writers_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Write, Way::Emptied])
}

fn failpoints_in_range_recall_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Range])
}

fn failpoints_on_the_way_of_an_event_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Event, Way::Request, Way::Respawn])
}

fn failpoints_in_the_catalogue_lose_nothing(pool: &mut Pool) -> Result<()> {
    walk(pool, &[Way::Index, Way::Scan, Way::Rebuild, Way::Pin])
}

fn with_failpoints(config: &mut PoolConfig) {
    let directory = config.dir.join("failpoints");
    config.environment.push((VARIABLE.to_owned(), directory.display().to_string()));
}

fn with_readback(config: &mut PoolConfig) {
    with_failpoints(config);
    config.pool.push("verify = \"readback\"".into());
}

fn with_ranges(config: &mut PoolConfig) {
    with_failpoints(config);
    config.pool.push("recall = \"range\"".into());
    config.pool.push("range_programs = [\"*\"]".into());
    config.pool.push("range_min_size = \"1MiB\"".into());
}

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Engine,
    Holder,
    Both,
    /// Both, and the file system loses what its device does not have. (The kernel may still write
    /// something between the deaths and the cut: it is one of the states that a cut can leave. Catalogue and
    /// store are on another disk, which keeps all.)
    Power,
}

impl Death {
    const ALL: [Self; 4] = [Self::Engine, Self::Holder, Self::Both, Self::Power];

    fn name(self) -> &'static str {
        match self {
            Self::Engine => "kill-engine",
            Self::Holder => "kill-holder",
            Self::Both => "kill-both",
            Self::Power => "power-cut",
        }
    }

    /// As the agent wants to be told.
    fn order(self) -> &'static str {
        if self == Self::Power { Self::Both.name() } else { self.name() }
    }

    /// Whether no process of the agent is left.
    fn is_total(self) -> bool {
        matches!(self, Self::Both | Self::Power)
    }
}

/// One death.
#[derive(Debug, Clone, Copy)]
struct Turn {
    point: Point,
    way: Way,
    passage: u64,
    death: Death,
}

impl Turn {
    fn name(&self) -> String {
        format!("{}-{}-{}-{:?}", self.point.name(), self.passage, self.death.name(), self.way)
    }
}

/// The turns of these ways, in the order of the table.
fn turns(wanted: &[Way], fs: FsKind) -> Result<Vec<Turn>> {
    let only = std::env::var("HSM_TURNS").unwrap_or_default();
    let one = match std::env::var("HSM_DEATHS").as_deref() {
        Err(_) | Ok("all") => false,
        Ok("one") => true,
        Ok(other) => bail!("HSM_DEATHS={other} is neither `one` nor `all`"),
    };
    let mut turns = Vec::new();
    let mut passages = FsKind::ALL.iter().position(|&kind| kind == fs).unwrap_or(0);
    for &point in Point::ALL {
        for &(way, passage) in ways::to(point).iter().filter(|(way, _)| wanted.contains(way)) {
            let deaths = Death::ALL.into_iter().filter(|&death| way.applies(death));
            let mut all: Vec<_> = deaths.map(|death| Turn { point, way, passage, death }).collect();
            if one && !all.is_empty() {
                all = vec![all.swap_remove(passages % all.len())];
            }
            turns.append(&mut all);
            passages += 1;
        }
    }
    turns.retain(|turn| turn.name().contains(&only));
    Ok(turns)
}

/// All turns, also after one that failed.
fn walk(pool: &mut Pool, wanted: &[Way]) -> Result<()> {
    ensure!(BUILT_IN, "this build has no fail points: cargo test --features failpoints");
    let armory = Armory::new(&pool.config)?;
    let turns = turns(wanted, pool.kind)?;
    let mut failures = Vec::new();
    let log = pool.config.dir.join("agent.log");
    for turn in &turns {
        let begin = fs::read(&log)?.len();
        if let Err(error) = one(pool, &armory, turn) {
            let log = fs::read(&log)?;
            let log = String::from_utf8_lossy(log.get(begin..).unwrap_or_default());
            failures.push(format!("{}: {error:#}\n{log}", turn.name()));
            start_afresh(pool, &armory).with_context(|| failures.join("\n"))?;
        }
    }
    if !failures.is_empty() {
        bail!("{} of {} turns failed\n{}", failures.len(), turns.len(), failures.join("\n"));
    }
    Ok(())
}

fn one(pool: &mut Pool, armory: &Armory, turn: &Turn) -> Result<()> {
    let mut tree = Tree::plant(pool, &turn.name(), turn.way, turn.point)?;
    turn.way.prepare(pool, &mut tree)?;
    tree.remember()?;
    let earlier = restarts(pool).unwrap_or(0);
    armory.arm(turn.point, turn.death.order(), turn.passage)?;
    turn.way.go(pool, &mut tree, armory, turn)?;
    armory.wait_until_reached(turn.point)?;
    armory.clear()?;
    revive(pool, turn.death, earlier + turn.way.deaths())?;
    turn.way.after(&tree)?;
    check::all(pool, &tree, turn, check::When::AfterDeath).context("after the death")?;
    turn.way.again(pool, &tree, turn.point).context("doing it again")?;
    check::all(pool, &tree, turn, check::When::AtTheEnd).context("in the end")?;
    tree.fell()
}

/// Whoever was to die is dead; an agent serves again.
fn revive(pool: &mut Pool, death: Death, restarts_at_least: u64) -> Result<()> {
    let Ok(mut agent) = pool.take_agent() else {
        // It died before it served.
        if death != Death::Holder {
            wait_until_dead(pool)?;
        }
        return begin_again(pool, death);
    };
    if death == Death::Engine {
        pool.put_agent(agent);
        return wait_for_restarts(pool, restarts_at_least);
    }
    agent.kill_holder()?;
    if death.is_total() {
        wait_until_dead(pool)?;
    }
    begin_again(pool, death)
}

fn begin_again(pool: &mut Pool, death: Death) -> Result<()> {
    if death == Death::Power {
        pool.fs().cut_power()?;
    }
    pool.start()
}

/// A killed engine keeps socket and lock until it is wholly gone, and the next one would take it for alive.
fn wait_until_dead(pool: &Pool) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(10));
    let socket = pool.config.dir.join("hsm.sock");
    while !census::processes(&pool.config.dir).is_empty() || UnixStream::connect(&socket).is_ok() {
        ensure!(Instant::now() < end, "a killed agent lives");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn restarts(pool: &Pool) -> Option<u64> {
    pool.hsm.status().ok()?.get("engine_restarts")?.as_u64()
}

/// So many engines came back.
pub(super) fn wait_for_restarts(pool: &Pool, count: u64) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(20));
    while restarts(pool).is_none_or(|restarts| restarts < count) {
        ensure!(Instant::now() < end, "no engine came back");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn start_afresh(pool: &mut Pool, armory: &Armory) -> Result<()> {
    armory.clear()?;
    if let Ok(mut agent) = pool.take_agent() {
        agent.killer().kill();
        agent.kill_holder()?;
    }
    wait_until_dead(pool)?;
    pool.start()
}

/// Where fail points are armed.
struct Armory {
    dir: PathBuf,
}

impl Armory {
    fn new(config: &PoolConfig) -> Result<Self> {
        let named = config.environment.iter().find(|(name, _)| name == VARIABLE);
        let dir = PathBuf::from(&named.context("no directory for fail points")?.1);
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// By a renaming: the agent reads all of it or nothing.
    fn arm(&self, point: Point, order: &str, passage: u64) -> Result<()> {
        let new = self.dir.join("new");
        fs::write(&new, format!("{order} {passage}"))?;
        Ok(fs::rename(new, self.dir.join(point.name()))?)
    }

    fn reached(&self, point: Point) -> PathBuf {
        self.dir.join(format!("{}{REACHED}", point.name()))
    }

    fn wait_until_reached(&self, point: Point) -> Result<()> {
        let end = Instant::now() + patience(Duration::from_secs(10));
        while !self.reached(point).exists() {
            ensure!(Instant::now() < end, "{} was not reached", point.name());
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Lets who pauses there go on.
    fn let_go(&self, point: Point) -> Result<()> {
        Ok(fs::remove_file(self.reached(point))?)
    }

    fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}
