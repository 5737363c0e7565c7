//! More readers than can be served at once. `cargo xtask overload` does the same with far more of them.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_agent::failpoint::BUILT_IN;
use hsm_agent::store::fault;
use hsm_lab::readers::{Files, Readers, Usage};
use hsm_lab::{PoolConfig, patience, s3::S3Server};
use rustix::io::Errno;

use super::{cases, remote};
use crate::fixture::Pool;

cases! {
    blocked_readers_of_a_stalled_store_all_get_their_bytes,
    a_recall_storm_of_one_user_does_not_hold_up_another with with_a_slow_store,
    a_user_past_his_limit_is_refused_and_nobody_else_is with |config| {
        config.limits.push("waiting = 30\nwaiting_per_user = 20".into());
    },
}

/// Users that need not exist.
const STORMING: u32 = 71_001;
const QUIET: u32 = 71_002;

/// Memory of one of the agent's processes: 64 MiB, and the engine's buffers for chunks.
const MEMORY_KIB: u64 = (64 + 32) << 10;

fn offline_files(pool: &Pool, dir: &str, count: u64) -> Result<Files> {
    let files = Files { dir: pool.path(dir), first: 0, count, size: 4096 };
    files.write()?;
    pool.offline_tree(&files.dir)?;
    Ok(files)
}

fn readers(uid: u32, threads: u64, files: &Files) -> Result<Readers> {
    Readers::start(&["--helper", "readers"], uid, threads, files)
}

/// Waits until so many readers wait by what `hsm status` says.
fn until_waiting(pool: &Pool, count: u64) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(60));
    loop {
        let status = pool.hsm.status()?;
        let waiting = status.pointer("/queue/waiting").and_then(serde_json::Value::as_u64);
        if waiting.context("no queue in the status")? >= count {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{waiting:?} readers wait, not {count}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A store that takes requests and answers none.
fn stalled(pool: &mut Pool, count: u64) -> Result<(S3Server, Files)> {
    let server = remote::server(pool, &["deadline = \"2m\"", "retries = 20"])?;
    let files = offline_files(pool, "files", count)?;
    server.stall();
    Ok((server, files))
}

fn blocked_readers_of_a_stalled_store_all_get_their_bytes(pool: &mut Pool) -> Result<()> {
    const READERS: u64 = 500;
    let (server, files) = stalled(pool, READERS)?;
    let readers = readers(STORMING, READERS, &files)?;
    let blocked = until_waiting(pool, READERS);
    let agent = pool.agent()?;
    let usage = [vec![agent.holder()], agent.engines()].concat();
    server.resume();
    blocked?;
    for usage in usage.into_iter().map(Usage::of) {
        ensure!(usage.rss_kib < MEMORY_KIB, "{usage:?}");
        ensure!(usage.descriptors < READERS + 300, "{usage:?}");
    }
    readers.finish()?.all_right(READERS)
}

fn speed_file(config: &PoolConfig) -> PathBuf {
    config.dir.join("speed")
}

fn with_a_slow_store(config: &mut PoolConfig) {
    config.environment.push((fault::VARIABLE.to_owned(), speed_file(config).display().to_string()));
}

/// Recalls that are done by now.
fn recalls(pool: &Pool) -> Result<u64> {
    let status = pool.hsm.status()?;
    let recalls = status.pointer("/pools/0/counters/recalls").and_then(serde_json::Value::as_u64);
    recalls.context("no recalls in the status")
}

/// The store is slow for everybody, so that it is the order that decides, not the machine.
fn a_recall_storm_of_one_user_does_not_hold_up_another(pool: &mut Pool) -> Result<()> {
    const STORM: u64 = 1500;
    const WAITING: u64 = 1200;
    const QUIETLY: u64 = 3;
    ensure!(BUILT_IN, "the store is not slow in this build: cargo test --features failpoints");
    let files = offline_files(pool, "files", STORM + QUIETLY)?;
    // Each request takes up to 200 ms.
    fs::write(speed_file(&pool.config), "delay = 1000")?;
    let storm = readers(STORMING, STORM, &files.part(0, STORM))?;
    until_waiting(pool, WAITING)?;
    let before = recalls(pool)?;
    let quiet = readers(QUIET, 1, &files.part(STORM, QUIETLY))?.finish()?;
    let passed = recalls(pool)? - before - QUIETLY;
    fs::write(speed_file(&pool.config), "")?;
    quiet.all_right(QUIETLY)?;
    println!("{passed} recalls of the storm during {QUIETLY} of another user's");
    // In one queue with the others, the first of these would have waited for all that came before it. As it is,
    // each takes as long as one of the storm's, of which a dozen are done at once; the rest of the limit is for a
    // reader that is late for other reasons.
    ensure!(passed < WAITING * 3 / 4, "{passed} recalls came before {QUIETLY} of the quiet user");
    storm.finish()?.all_right(STORM)
}

fn a_user_past_his_limit_is_refused_and_nobody_else_is(pool: &mut Pool) -> Result<()> {
    let (server, files) = stalled(pool, 51)?;
    let storm = readers(STORMING, 50, &files.part(0, 50))?;
    let full = until_waiting(pool, 20);
    let quiet = readers(QUIET, 1, &files.part(50, 1));
    let both = full.and_then(|()| until_waiting(pool, 21));
    server.resume();
    both?;
    quiet?.finish()?.all_right(1)?;
    let tally = storm.finish()?;
    let refused = tally.errors.get(&Errno::AGAIN.raw_os_error()).copied().unwrap_or(0);
    ensure!((tally.right, refused) == (20, 30), "{tally:?}");
    Ok(())
}
