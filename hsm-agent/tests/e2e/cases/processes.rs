//! Death of a process of the agent, in every way, with readers waiting.

use std::collections::BTreeMap;
use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hsm_lab::run::kill;
use hsm_lab::{Content, PoolConfig, patience};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use super::cases;
use super::failpoints::wait_for_restarts;
use crate::fixture::{Pool, STOP_LIMIT, Sample};

const MIB: u64 = 1 << 20;

cases! {
    readers_survive_the_death_of_the_engine,
    readers_survive_repeated_deaths_of_the_engine,
    readers_survive_an_engine_that_hangs with quick_watchdog,
    a_long_recall_is_no_hang with quick_watchdog,
    openers_survive_engine_kills,
    archives_survive_the_death_of_the_engine,
    a_clean_stop_answers_every_waiting_reader,
    a_killed_reader_frees_itself,
    waiters_are_listed,
    waiters_can_be_aborted,
    a_recall_that_nobody_waits_for_leaves_the_queue with |config| {
        config.limits.push("recalls_per_user = 1".into());
    },
    offline_files_survive_the_death_of_the_holder,
    offline_files_survive_the_death_of_both_processes,
    a_service_manager_keeps_the_files_closed_when_both_processes_die with |config| {
        config.keeps = true;
    }; needs WholeWatch,
    a_restarted_agent_serves_its_offline_files,
    a_lost_catalogue_is_rebuilt,
    trees_of_more_files_than_descriptors_are_released,
}

type Readers = Vec<JoinHandle<std::io::Result<Vec<u8>>>>;

/// Offline files, a slow store, and one blocked reader for each.
fn waiting_readers(pool: &mut Pool, count: usize) -> Result<(Vec<Sample>, Readers)> {
    let mut files = Vec::new();
    for i in 0..count {
        files.push(pool.offline_file(format!("file{i}"), 2 * MIB)?);
    }
    pool.restart_slow("1MiB")?;
    let readers: Readers = files.iter().map(reader).collect();
    thread::sleep(Duration::from_millis(500));
    ensure!(readers.iter().all(|reader| !reader.is_finished()), "the recalls were not slow");
    Ok((files, readers))
}

fn reader(file: &Sample) -> JoinHandle<std::io::Result<Vec<u8>>> {
    let path = file.path.clone();
    thread::spawn(move || fs::read(path))
}

/// Every reader got its bytes.
fn all_right(files: &[Sample], readers: Readers) -> Result<()> {
    for (file, reader) in files.iter().zip(readers) {
        let bytes = reader.join().map_err(|_| anyhow!("a reader panicked"))?;
        let bytes = bytes.with_context(|| format!("reading {}", file.path.display()))?;
        file.content.check_bytes(&bytes)?;
    }
    Ok(())
}

fn readers_survive_the_death_of_the_engine(pool: &mut Pool) -> Result<()> {
    let (files, readers) = waiting_readers(pool, 4)?;
    let killed = pool.agent()?.kill_engine();
    ensure!(killed == 1, "{killed} engines were killed");
    all_right(&files, readers)?;
    files.iter().try_for_each(Sample::check)
}

fn readers_survive_repeated_deaths_of_the_engine(pool: &mut Pool) -> Result<()> {
    let (files, readers) = waiting_readers(pool, 3)?;
    for _ in 0..5 {
        pool.agent()?.kill_engine();
        thread::sleep(Duration::from_millis(300));
    }
    // Otherwise two files at this rate and as many deaths are a long test.
    all_right(&files, readers)?;
    pool.restart_fast()?;
    pool.offline_file("after", MIB)?.check()
}

/// Many processes, each opening files that are taken away again all the time, and engines that are killed
/// all the time. What happened is told, for whoever runs this under a kernel that checks itself.
fn openers_survive_engine_kills(pool: &mut Pool) -> Result<()> {
    const OPENERS: u64 = 64;
    // Enough that most are open nowhere at any time.
    const FILES: u64 = 768;
    const SIZE: u64 = 4 << 10;
    // Few enough that an engine lives to release them.
    const PIECE: usize = 48;
    let dir = pool.path("d");
    fs::create_dir(&dir)?;
    for number in 0..FILES {
        pool.file_with(format!("d/{number}"), Content::new(number, SIZE))?;
    }
    pool.offline_tree(&dir)?;
    let time = Duration::from_secs(16) + patience(Duration::from_secs(4));
    let openers = (1..=OPENERS).map(|seed| {
        let numbers = [FILES, SIZE, u64::try_from(time.as_millis())?, seed].map(|n| n.to_string());
        let run = pool.helper("open-loop", [dir.as_os_str()])?.args(numbers);
        run.limit(time + Duration::from_secs(30)).start()
    });
    let openers: Vec<_> = openers.collect::<Result<_>>()?;
    let end = Instant::now() + time;
    let hsm = pool.hsm.clone();
    let target = dir.clone();
    let releases = thread::spawn(move || -> Result<usize> {
        let mut released = 0;
        let mut next = (0..FILES).cycle();
        while Instant::now() < end {
            let some = next.by_ref().take(PIECE).map(|number| target.join(number.to_string()));
            let release = ["--json".into(), "release".into()].into_iter().chain(some);
            // A killed engine ends it in the middle, and there may be none.
            released += hsm.command(release).output()?.text().matches("\"done\"").count();
        }
        Ok(released)
    });
    let mut kills = 0;
    while Instant::now() < end {
        wait_until_up(pool)?;
        thread::sleep(patience(Duration::from_millis(200)));
        kills += pool.agent()?.kill_engine();
    }
    let released = releases.join().map_err(|_| anyhow!("the releases panicked"))??;
    let mut counts = BTreeMap::<i32, u64>::new();
    for opener in openers {
        let out = opener.finish()?;
        ensure!(out.code() == 0, "{}", out.describe());
        for line in out.text().lines() {
            let (errno, times) = line.split_once(' ').context("no counts")?;
            *counts.entry(errno.parse()?).or_default() += times.parse::<u64>()?;
        }
    }
    let opens = counts.remove(&0).unwrap_or(0);
    eprintln!(
        "{OPENERS} processes in {time:?}: {opens} files opened and compared, {released} released, {kills} \
         engines killed; errors by number: {counts:?}"
    );
    ensure!(opens > OPENERS && released > 0 && kills > 2, "too little happened");
    ensure!(counts.keys().all(|errno| *errno == Errno::AGAIN.raw_os_error()), "errors: {counts:?}");
    pool.agent()?.kill_engine();
    wait_until_up(pool)?;
    (0..FILES).try_for_each(|n| Content::new(n, SIZE).check(&dir.join(n.to_string())))
}

/// Silence of one second costs the engine its life, instead of a minute.
fn quick_watchdog(config: &mut PoolConfig) {
    config.environment.push(("HSM_ENGINE_HANG_LIMIT_MS".into(), "1000".into()));
}

fn readers_survive_an_engine_that_hangs(pool: &mut Pool) -> Result<()> {
    let (files, readers) = waiting_readers(pool, 3)?;
    let late = pool.file("late", MIB)?;
    let engines = pool.agent()?.engines();
    ensure!(engines.len() == 1, "engines: {engines:?}");
    kill(engines[0], Signal::STOP);
    // Its open waits for an engine that has not been told of it yet.
    let opened = late.path.clone();
    let opener = thread::spawn(move || fs::read(opened));
    all_right(&files, readers)?;
    all_right(std::slice::from_ref(&late), vec![opener])?;
    ensure!(pool.agent()?.engines() != engines, "the engine that hung is still there");
    ensure!(pool.agent()?.log().contains("the engine hangs"), "the log does not say so");
    ensure!(restarts(pool)? == 1, "{} restarts", restarts(pool)?);
    files.iter().try_for_each(Sample::check)
}

fn a_long_recall_is_no_hang(pool: &mut Pool) -> Result<()> {
    let begin = Instant::now();
    let (files, readers) = waiting_readers(pool, 3)?;
    all_right(&files, readers)?;
    ensure!(begin.elapsed() > Duration::from_secs(4), "the recalls were not long");
    // Nor is having nothing to do.
    thread::sleep(Duration::from_secs(3));
    ensure!(restarts(pool)? == 0, "the engine was killed");
    Ok(())
}

fn restarts(pool: &mut Pool) -> Result<u64> {
    let status = pool.hsm.status()?;
    status.get("engine_restarts").and_then(|n| n.as_u64()).context("no count of restarts")
}

fn archives_survive_the_death_of_the_engine(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("d"))?;
    let mut files = Vec::new();
    for i in 0..40 {
        files.push(pool.file(format!("d/{i}"), 300_000)?);
    }
    for verb in ["archive", "release", "recall", "migrate"] {
        let dir = pool.path("d");
        let args = ["--json".as_ref(), verb.as_ref(), "-r".as_ref(), dir.as_os_str()];
        let running = pool.hsm.command(args).start()?;
        thread::sleep(Duration::from_millis(60));
        pool.agent()?.kill_engine();
        // Finished, failed for some, or cut off: all are honest.
        running.finish()?;
        wait_until_up(pool)?;
        files.iter().try_for_each(Sample::check).with_context(|| format!("killed in {verb}"))?;
    }
    pool.offline_tree(&pool.path("d"))?;
    files.iter().try_for_each(Sample::check)
}

/// Until an engine answers commands.
pub(super) fn wait_until_up(pool: &mut Pool) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(20));
    while pool.hsm.status().is_err() {
        ensure!(Instant::now() < end, "no engine came back");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn a_clean_stop_answers_every_waiting_reader(pool: &mut Pool) -> Result<()> {
    let (files, mut readers) = waiting_readers(pool, 6)?;
    // So many that answers gather (`holder/pace.rs`).
    readers.extend(files.iter().cycle().take(36).map(reader));
    thread::sleep(Duration::from_millis(200));
    let mut agent = pool.take_agent()?;
    agent.stop(STOP_LIMIT)?;
    let end = Instant::now() + patience(Duration::from_secs(10));
    while readers.iter().any(|reader| !reader.is_finished()) {
        ensure!(Instant::now() < end, "a reader still waits after the stop");
        thread::sleep(Duration::from_millis(20));
    }
    for (file, reader) in files.iter().cycle().zip(readers) {
        // Bytes or an error, never zeros.
        if let Ok(bytes) = reader.join().map_err(|_| anyhow!("a reader panicked"))? {
            file.content.check_bytes(&bytes)?;
        }
    }
    pool.start()?;
    pool.restart_fast()?;
    files.iter().try_for_each(Sample::check)
}

fn a_killed_reader_frees_itself(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 4 * MIB)?;
    pool.restart_slow("512KiB")?;
    let mut reader = hsm_lab::Run::new("cat").args([&file]).start()?;
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    reader.kill();
    let out = reader.finish()?;
    ensure!(begin.elapsed() < patience(Duration::from_secs(3)), "it took {:?}", begin.elapsed());
    ensure!(out.stdout.is_empty(), "it had read already");
    pool.restart_fast()?;
    file.check()
}

fn waiters_are_listed(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("waited-for", 4 * MIB)?;
    pool.restart_slow("1MiB")?;
    let reader = hsm_lab::Run::new("cat").args([&file]).start()?;
    thread::sleep(Duration::from_millis(500));
    let out = pool.hsm.command(["waiters"]).ok()?;
    let (pid, text) = (reader.pid().to_string(), out.text());
    ensure!(text.contains(&pid) && text.contains("waited-for") && text.contains("cat"), "{text}");
    file.content.check_bytes(&reader.finish()?.stdout)?;
    let text = pool.hsm.command(["waiters"]).ok()?.text();
    ensure!(!text.contains("waited-for"), "still listed: {text}");
    Ok(())
}

fn waiters_can_be_aborted(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("waited-for", 4 * MIB)?;
    pool.restart_slow("512KiB")?;
    let reader = hsm_lab::Run::new("cat").args([&file]).start()?;
    thread::sleep(Duration::from_millis(500));
    let begin = Instant::now();
    abort_who_waits_for(pool, "/waited-for")?;
    let out = reader.finish()?;
    ensure!(begin.elapsed() < patience(Duration::from_secs(3)), "it took {:?}", begin.elapsed());
    ensure!(out.code() == 1 && out.stdout.is_empty(), "{}", out.describe());
    pool.restart_fast()?;
    file.check()
}

fn abort_who_waits_for(pool: &Pool, name: &str) -> Result<()> {
    let text = pool.hsm.command(["--json", "waiters"]).ok()?.text();
    let waiter = text.lines().find(|line| line.contains(name)).context("no waiter")?;
    let waiter: serde_json::Value = serde_json::from_str(waiter)?;
    let id = waiter.get("id").with_context(|| text.clone())?;
    let id = id.as_str().map_or_else(|| id.to_string(), str::to_owned);
    pool.hsm.command(["waiters", "abort", &id]).ok().map(drop)
}

fn a_recall_that_nobody_waits_for_leaves_the_queue(pool: &mut Pool) -> Result<()> {
    let (first, second) = (pool.offline_file("first", 4 * MIB)?, pool.offline_file("second", MIB)?);
    pool.restart_slow("512KiB")?;
    let runs = hsm_lab::Run::new("cat").args([&first]).start()?;
    let queued = |pool: &Pool| -> Result<u64> {
        let status = pool.hsm.command(["--json", "status"]).ok()?.text();
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let users = status.pointer("/queue/users").and_then(|users| users.as_array().cloned());
        let users = users.with_context(|| format!("no queue: {status}"))?;
        Ok(users.iter().filter_map(|user| user.get("queued")?.as_u64()).sum())
    };
    thread::sleep(Duration::from_millis(500));
    let waits = hsm_lab::Run::new("cat").args([&second]).start()?;
    let end = Instant::now() + patience(Duration::from_secs(5));
    while queued(pool)? == 0 {
        ensure!(Instant::now() < end, "the second recall is not queued");
        thread::sleep(Duration::from_millis(20));
    }
    abort_who_waits_for(pool, "/second")?;
    ensure!(waits.finish()?.code() == 1, "it was not aborted");
    ensure!(queued(pool)? == 0, "the recall is still queued");
    pool.assert_state(&second.path, &["offline"])?;
    drop(runs);
    pool.restart_fast()?;
    first.check()?;
    second.check()
}

fn offline_files_survive_the_death_of_the_holder(pool: &mut Pool) -> Result<()> {
    let quiet = pool.offline_file("quiet", MIB)?;
    let (files, readers) = waiting_readers(pool, 2)?;
    let mut agent = pool.take_agent()?;
    let killer = agent.killer();
    agent.kill_holder()?;
    // The engine outlives it, answers who waits, and denies who comes: bytes or an error.
    for (file, reader) in files.iter().zip(readers) {
        if let Ok(bytes) = reader.join().map_err(|_| anyhow!("a reader panicked"))? {
            file.content.check_bytes(&bytes)?;
        }
    }
    for _ in 0..20 {
        if let Ok(bytes) = fs::read(&quiet.path) {
            quiet.content.check_bytes(&bytes)?;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let started = pool.start();
    if started.is_err() {
        killer.kill();
    }
    started?;
    pool.restart_fast()?;
    quiet.check()?;
    files.iter().try_for_each(Sample::check)
}

fn offline_files_survive_the_death_of_both_processes(pool: &mut Pool) -> Result<()> {
    let quiet = pool.offline_file("quiet", MIB)?;
    let (files, readers) = waiting_readers(pool, 2)?;
    let mut agent = pool.take_agent()?;
    agent.killer().kill();
    agent.kill_holder()?;
    // Nobody guards the files now (docs/OPERATIONS.md): what these readers got is not promised,
    // only that they are not left hanging.
    for reader in readers {
        drop(reader.join());
    }
    pool.start()?;
    pool.restart_fast()?;
    quiet.check()?;
    files.iter().try_for_each(Sample::check)
}

fn a_service_manager_keeps_the_files_closed_when_both_processes_die(pool: &mut Pool) -> Result<()> {
    let (quiet, online) = (pool.offline_file("quiet", MIB)?, pool.file("online", MIB)?);
    let (mut files, mut readers) = waiting_readers(pool, 3)?;
    let mut agent = pool.take_agent()?;
    let mut kept = agent.take_kept();
    ensure!(kept.len() == 1, "{} descriptors were given to be kept", kept.len());
    agent.killer().kill();
    agent.kill_holder()?;
    for late in [&quiet, &online] {
        let path = late.path.clone();
        readers.push(thread::spawn(move || fs::read(path)));
        files.push(late.clone());
    }
    thread::sleep(Duration::from_secs(1));
    let done = readers.iter().filter(|reader| reader.is_finished()).count();
    ensure!(done == 0, "{done} readers went on while there was no agent");
    pool.start_keeping(kept.pop())?;
    let end = Instant::now() + Duration::from_secs(10);
    while readers.iter().any(|reader| !reader.is_finished()) {
        ensure!(Instant::now() < end, "a reader waits on for the dead agent");
        thread::sleep(Duration::from_millis(20));
    }
    for (file, reader) in files.iter().zip(readers) {
        if let Ok(bytes) = reader.join().map_err(|_| anyhow!("a reader panicked"))? {
            file.content.check_bytes(&bytes)?;
        }
    }
    pool.restart_fast()?;
    files.iter().try_for_each(Sample::check)
}

fn a_restarted_agent_serves_its_offline_files(pool: &mut Pool) -> Result<()> {
    let files: Vec<_> = (0..5).map(|i| pool.offline_file(format!("f{i}"), 300_000)).collect();
    let files: Vec<_> = files.into_iter().collect::<Result<_>>()?;
    pool.restart()?;
    files.iter().try_for_each(|file| pool.assert_offline(&file.path))?;
    files.iter().try_for_each(Sample::check)
}

fn a_lost_catalogue_is_rebuilt(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let other = pool.file("other", MIB)?;
    pool.hsm.must("archive", [&other])?;
    pool.stop()?;
    fs::remove_dir_all(pool.config.state_dir())?;
    pool.start()?;
    pool.hsm.command(["scan", "--pool", "lab", "--rebuild"]).ok()?;
    let counts = (pool.hsm.count("offline")?, pool.hsm.count("archived")?);
    ensure!(counts == (1, 1), "{counts:?} are offline and archived");
    pool.assert_offline(&file.path)?;
    file.check()?;
    pool.hsm.must("release", [&other])?;
    other.check()
}

fn trees_of_more_files_than_descriptors_are_released(pool: &mut Pool) -> Result<()> {
    const DESCRIPTORS: u64 = 512;
    const FILES: u64 = 700;
    let dir = pool.path("d");
    fs::create_dir(&dir)?;
    for n in 0..FILES {
        Content::new(n, 3000 + n).write(&dir.join(n.to_string()))?;
    }
    let sample = Sample { path: dir.join("7"), content: Content::new(7, 3007) };
    // The engine inherits it.
    let limit = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    let agent = pool.agent()?;
    let holder = Pid::from_raw(agent.holder()).context("no holder")?;
    prlimit(Some(holder), Resource::Nofile, limit)?;
    ensure!(agent.kill_engine() == 1, "no engine was killed");
    wait_for_restarts(pool, 1)?;
    let engine = pool.agent()?.engines().first().copied().and_then(Pid::from_raw);
    let had = prlimit(engine, Resource::Nofile, limit)?;
    ensure!(had.maximum == Some(DESCRIPTORS), "the engine has another limit: {had:?}");
    let count = pool.offline_tree(&dir)?;
    ensure!(count as u64 == FILES, "{count} files are offline");
    sample.check()
}
