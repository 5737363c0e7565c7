//! Everything at once: programs, commands, deaths, a bad store; and every byte compared.
//!
//! ```text
//! work    readers, mappings, writers, appenders, cutters, renamers, removers, fsx   ─┐
//! verbs   hsm archive, release, migrate, recall, pin, unpin, scan                    ├─ world: files and
//! chaos   SIGKILL of engine, holder, both; the store fails, stalls, is late, lies   ─┘  their model
//! end     the faults are over: all bytes, all states, no intent, nothing in the store that nobody knows
//! ```
//!
//! `HSM_TORTURE_SECONDS` says how long, `HSM_TORTURE_SEED` what the dice fall like (threads still meet each
//! other as they like), `HSM_TORTURE_KEEP` where the image goes when something was wrong:
//! `cargo xtask torture` sets them.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use hsm_agent::failpoint::BUILT_IN;
use hsm_lab::{Run, Tier, patience};

use super::cases;
use crate::fixture::{Needs, Pool};

mod chaos;
mod end;
mod mapper;
mod model;
mod verbs;
mod work;
mod world;

use world::{Dice, World};

cases! {
    torture_never_shows_a_wrong_byte with chaos::configure,
}

/// Threads with a program each.
const PROGRAMS: u64 = 10;

/// Threads with a command each.
const COMMANDS: u64 = 3;

/// After the end of the faults nobody waits longer: every deadline is far below it.
const LAST: Duration = Duration::from_secs(30);

/// How long it goes on: in the guest, where each step takes longer, half as long again. With three file systems on
/// the host and one in the guest it is three minutes.
fn length() -> Result<Duration> {
    let ordinary = if Needs::Guest.are_met() { 60 } else { 40 };
    let asked = asked("HSM_TORTURE_SECONDS")?;
    Ok(Duration::from_secs(asked.unwrap_or(ordinary)))
}

/// How much longer than other cases this may take.
pub(crate) fn asked_for() -> Duration {
    length().unwrap_or_default()
}

pub(super) fn asked(variable: &str) -> Result<Option<u64>> {
    let Some(text) = std::env::var_os(variable).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    Ok(Some(number.with_context(|| format!("{variable}={} is no number", text.display()))?))
}

/// Another one each time; told, so that it can be asked for again.
fn seed() -> Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(asked("HSM_TORTURE_SEED")?.unwrap_or_else(|| u64::from(now.subsec_nanos())))
}

fn torture_never_shows_a_wrong_byte(pool: &mut Pool) -> Result<()> {
    ensure!(BUILT_IN, "this build has no faults of the store: cargo test --features failpoints");
    model::check_itself()?;
    let (seed, length) = (seed()?, length()?);
    let world = Box::leak(Box::new(World::new(&pool.path("files"), seed)?));
    let result = under(pool, world, seed, length);
    let tally = world.tally();
    let failures = tally.failures.clone();
    eprintln!("{} on {}, seed {seed}, {length:?}: {tally}", Tier::of_this_run(), pool.kind);
    drop(tally);
    if result.is_err() || !failures.is_empty() {
        keep(pool)?;
    }
    result.with_context(|| format!("seed {seed}"))?;
    let first = &failures[..failures.len().min(8)];
    ensure!(first.is_empty(), "seed {seed}: {} failures:\n{}", failures.len(), first.join("\n"));
    Ok(())
}

type Threads = Vec<(String, JoinHandle<Result<()>>)>;

fn under(pool: &mut Pool, world: &'static World, seed: u64, length: Duration) -> Result<()> {
    let mut threads = Threads::new();
    for who in 1..=PROGRAMS {
        let work = move || work::work(world, seed, who);
        threads.push((format!("program {who}"), thread::spawn(work)));
    }
    for who in PROGRAMS + 1..=PROGRAMS + COMMANDS {
        let hsm = pool.hsm.clone();
        let work = move || verbs::work(world, &hsm, seed, who);
        threads.push((format!("command {}", who - PROGRAMS), thread::spawn(work)));
    }
    let raged = chaos::rage(pool, &mut Dice::new(seed, 0), Instant::now() + length);
    world.end.store(true, Ordering::Relaxed);
    let ended = join(threads);
    let kills = raged?;
    ended?;
    eprintln!("killed: {kills:?}");
    ensure!(kills.values().sum::<u64>() > 2, "too few deaths: {kills:?}");
    end::check(pool, world)
}

/// Nobody hangs.
fn join(threads: Threads) -> Result<()> {
    let end = Instant::now() + patience(LAST);
    for (name, thread) in threads {
        while !thread.is_finished() {
            ensure!(Instant::now() < end, "{name} HANGS: not back {LAST:?} after the last fault");
            thread::sleep(Duration::from_millis(20));
        }
        thread.join().map_err(|_| anyhow!("{name} panicked"))?.context(name)?;
    }
    Ok(())
}

/// For whoever looks for the cause: the image as it is now, and the agent's log.
fn keep(pool: &mut Pool) -> Result<()> {
    let Some(dir) = std::env::var_os("HSM_TORTURE_KEEP").map(PathBuf::from) else { return Ok(()) };
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let name = format!("{}-{}", Tier::of_this_run(), pool.kind);
    rustix::fs::sync();
    let image = dir.join(format!("{name}.img"));
    let from = pool.fs().image().to_path_buf();
    Run::new("cp").args(["--sparse=always"]).args([&from, &image]).ok()?;
    fs::write(dir.join(format!("{name}.log")), pool.agent()?.log())?;
    eprintln!("kept: {}", image.display());
    Ok(())
}
