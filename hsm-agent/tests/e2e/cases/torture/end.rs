//! When the faults are over: nothing is wrong, and nothing is left over.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_lab::patience;

use super::super::failpoints::Index;
use super::work::{read_whole, settle};
use super::world::World;
use crate::fixture::Pool;

/// Everything; from here on every error is a failure.
pub(super) fn check(pool: &Pool, world: &World) -> Result<()> {
    world.calm.store(true, Ordering::Relaxed);
    enough_happened(world)?;
    drop_caches()?;
    for slot in &world.slots {
        if slot.versions().is_in_doubt() {
            settle(world, slot);
        }
        read_whole(world, slot);
    }
    // Every file can still go the whole way.
    // What the engine still does for a command that is gone may keep a file busy for a moment.
    let dir = ["-r".as_ref(), world.dir.as_os_str()];
    in_time(|| pool.hsm.must("unpin", dir).map(drop))?;
    in_time(|| pool.offline_tree(&world.dir).map(drop))?;
    in_time(|| nothing_is_left(pool))?;
    drop_caches()?;
    world.slots.iter().for_each(|slot| read_whole(world, slot));
    Ok(())
}

/// Tries it again, but not for long.
fn in_time(attempt: impl Fn() -> Result<()>) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(10));
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
            result => return result,
        }
    }
}

/// A torture that nobody felt shows nothing.
fn enough_happened(world: &World) -> Result<()> {
    let tally = world.tally();
    for kind in ["read", "racing read", "mapping", "write", "fsx write", "unlink", "rename"] {
        ensure!(tally.done.get(kind).is_some_and(|n| *n > 0), "no {kind}: {tally}");
    }
    let released =
        ["files by release", "files by migrate"].iter().filter_map(|k| tally.done.get(*k));
    ensure!(released.sum::<u64>() > 0, "nothing was released: {tally}");
    ensure!(tally.compared > 1 << 20, "too little was compared: {tally}");
    Ok(())
}

fn nothing_is_left(pool: &Pool) -> Result<()> {
    pool.hsm.command(["scan", "--pool", "lab"]).ok()?;
    let index = Index::read(pool)?;
    index.has_no_intents()?;
    index.knows_all_of_the_store(pool)
}

fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("drop_caches")
}
