//! Tier mark-filter: files that are open while they are offline, with an agent and without.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_lab::patience;
use rustix::io::Errno;

use super::cases;
use super::guarded::kill_agent;
use crate::fixture::{Pool, Sample, read_errno};
use crate::helper::pages::Reader;

const MIB: u64 = 1 << 20;
const CHUNK: u64 = MIB;

cases! {
    resident_ranges_raise_no_events with ranges,
    every_program_reads_ranges with ranges,
    tar_reads_large_files_without_a_complaint with ranges,
    an_open_file_gives_an_error_without_an_agent_and_its_bytes_with_the_next with ranges,
    online_files_work_on_without_an_agent_also_when_they_are_open with ranges,
    an_agent_takes_over_under_readers with ranges,
    emptying_a_file_during_its_recall_keeps_it_empty,
    writers_recall_whole_and_readers_ranges with ranges,
    letting_go_ends_the_watch,
}

fn ranges(config: &mut hsm_lab::PoolConfig) {
    config.pool.push("range_min_size = \"1MiB\"".into());
}

fn events(pool: &Pool) -> Result<u64> {
    let status = pool.hsm.status()?;
    let events = status.pointer("/pools/0/counters/events").and_then(|count| count.as_u64());
    events.with_context(|| format!("no events in {status}"))
}

/// Reads through a descriptor that may have been open for long.
fn read_at(file: &File, sample: &Sample, offset: u64) -> Result<()> {
    let mut page = [0u8; 4096];
    file.read_exact_at(&mut page, offset)?;
    sample.content.check_range(offset, &page)
}

fn resident_ranges_raise_no_events(pool: &mut Pool) -> Result<()> {
    let sample = pool.offline_file("file", 16 * MIB)?;
    let mut file = Reader::open(&sample)?;
    pool.assert_offline(&sample.path)?;
    file.check_at(5 * CHUNK + 8192)?;
    pool.assert_state(&sample.path, &["partial"])?;
    let before = events(pool)?;
    ensure!(before > 0, "the recall raised no event");
    for round in 0..2000 {
        file.check_at(5 * CHUNK + 4096 * (round % 256))?;
    }
    ensure!(events(pool)? == before, "reads of what is resident raised events");
    file.check_at(6 * CHUNK)?;
    ensure!(events(pool)? == before + 1, "the next chunk was not asked about");
    // Also through another descriptor, when its open was asked about.
    let mut other = Reader::open(&sample)?;
    let before = events(pool)?;
    other.check_at(5 * CHUNK)?;
    ensure!(events(pool)? == before, "a read of what is resident raised an event");
    // Not across the edge.
    file.check_at(7 * CHUNK - 2048)?;
    pool.assert_state(&sample.path, &["partial"])?;
    drop((file, other));
    sample.check()
}

fn every_program_reads_ranges(pool: &mut Pool) -> Result<()> {
    let sample = pool.offline_file("file", 16 * MIB)?;
    let out = pool.sh("tail -c 1000 \"$1\"; head -c 1000 \"$1\"", [&sample])?;
    sample.content.check_range(16 * MIB - 1000, &out.stdout[..1000])?;
    sample.content.check_range(0, &out.stdout[1000..])?;
    pool.assert_state(&sample.path, &["partial"])?;
    // `cp` asks for holes, and gets the truth.
    let copy = pool.outside("copy");
    pool.sh("cp --sparse=auto \"$1\" \"$2\"", [&sample.path, &copy])?;
    sample.content.check(&copy)
}

fn tar_reads_large_files_without_a_complaint(pool: &mut Pool) -> Result<()> {
    let sample = pool.offline_file("large", 16 * MIB)?;
    let archive = pool.outside("large.tar");
    let out = pool.sh("tar -C \"$1\" -cf \"$2\" large", [pool.mnt(), archive.as_path()])?;
    ensure!(out.stderr.is_empty(), "{}", out.describe());
    pool.assert_local(&sample.path)?;
    let copy = pool.outside("large");
    pool.sh("tar -C \"$(dirname \"$2\")\" -xf \"$1\"", [&archive, &copy])?;
    sample.content.check(&copy)
}

fn an_open_file_gives_an_error_without_an_agent_and_its_bytes_with_the_next(
    pool: &mut Pool,
) -> Result<()> {
    let sample = pool.offline_file("file", 16 * MIB)?;
    let mut file = Reader::open(&sample)?;
    file.check_at(3 * CHUNK)?;
    kill_agent(pool)?;
    let io = Some(Errno::IO.raw_os_error());
    // What is resident is read on; what is not, is an error; nobody opens the file.
    file.check_at(3 * CHUNK + 65_536)?;
    for offset in [0, 4 * CHUNK, 15 * CHUNK] {
        ensure!(file.errno_at(offset)? == io, "offset {offset}");
    }
    let refused = read_errno(&sample.path)?;
    ensure!(refused == Errno::AGAIN.raw_os_error(), "open: error {refused}");
    pool.start()?;
    for offset in [0, 4 * CHUNK, 15 * CHUNK] {
        file.check_at(offset)?;
    }
    // An orderly end closes it as well.
    pool.stop()?;
    ensure!(file.errno_at(9 * CHUNK)? == io, "after an orderly end");
    file.check_at(3 * CHUNK)?;
    pool.start()?;
    file.check_at(9 * CHUNK)?;
    drop(file);
    sample.check()
}

fn online_files_work_on_without_an_agent_also_when_they_are_open(pool: &mut Pool) -> Result<()> {
    let recalled = pool.offline_file("recalled", MIB)?;
    let offline = pool.offline_file("offline", 2 * MIB)?;
    let plain = pool.file("plain", MIB)?;
    recalled.check()?;
    // Opened while offline, so that each access is looked at; and while online.
    let open = [File::open(&recalled.path)?, File::open(&plain.path)?, File::open(&offline.path)?];
    std::io::Read::read_to_end(&mut &open[2], &mut Vec::new())?;
    // Until the removal of a marker is durable its file is held.
    thread::sleep(patience(Duration::from_millis(300)));
    kill_agent(pool)?;
    for (file, sample) in open.iter().zip([&recalled, &plain, &offline]) {
        read_at(file, sample, 8192)?;
        sample.check()?;
    }
    let script = "echo more >> \"$1\"; truncate -s 100 \"$1\"; cat \"$1\"; rm \"$1\"; echo new > \"$1\"; \
                  cp \"$1\" \"$1.2\"";
    pool.sh(script, [&plain])?;
    pool.start()
}

/// Readers that never stop, while agents end in every way and the next ones take over.
fn an_agent_takes_over_under_readers(pool: &mut Pool) -> Result<()> {
    const READERS: u64 = 4;
    let samples: Vec<_> = (0..READERS)
        .map(|n| pool.offline_file(format!("f{n}"), 24 * MIB))
        .collect::<Result<_>>()?;
    let end = Instant::now() + Duration::from_secs(8);
    let io = Errno::IO.raw_os_error();
    let again = Errno::AGAIN.raw_os_error();
    let read = |sample: &Sample, seed: u64| -> Result<(u64, u64)> {
        let file = File::open(&sample.path)?;
        let (mut right, mut denied, mut place) = (0, 0, seed);
        while Instant::now() < end {
            place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (place >> 33) % (24 * MIB / 4096) * 4096;
            // One read, judged by itself: the next one may meet another agent, or none.
            let mut page = [0u8; 4096];
            match file.read_exact_at(&mut page, offset).map_err(|error| error.raw_os_error()) {
                Ok(()) => {
                    sample.content.check_range(offset, &page)?;
                    right += 1;
                }
                Err(errno) if errno == Some(io) || errno == Some(again) => {
                    denied += 1;
                    thread::sleep(Duration::from_millis(2));
                }
                Err(errno) => anyhow::bail!("error {errno:?} at {offset}"),
            }
        }
        Ok((right, denied))
    };
    thread::scope(|scope| -> Result<()> {
        let start = |(seed, sample)| scope.spawn(move || read(sample, seed));
        let readers: Vec<_> = (1..).zip(&samples).map(start).collect();
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(400));
            pool.agent()?.kill_engine();
            thread::sleep(Duration::from_millis(400));
            kill_agent(pool)?;
            pool.start()?;
            thread::sleep(Duration::from_millis(400));
            pool.restart()?;
        }
        for reader in readers {
            let (right, denied) =
                reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))??;
            println!("{right} reads right, {denied} denied");
            ensure!(right > 0, "nothing was read");
        }
        Ok(())
    })?;
    samples.iter().try_for_each(Sample::check)
}

/// The recall must not write behind the cut.
fn emptying_a_file_during_its_recall_keeps_it_empty(pool: &mut Pool) -> Result<()> {
    let sample = pool.offline_file("file", 4 * MIB)?;
    pool.restart_slow("1MiB")?;
    let path = sample.path.clone();
    let reader = thread::spawn(move || fs::read(path));
    thread::sleep(Duration::from_millis(700));
    let mut file = OpenOptions::new().write(true).truncate(true).open(&sample.path)?;
    file.write_all(b"new")?;
    file.sync_all()?;
    // Right bytes, fewer of them, or none: whatever it was when it was read.
    let seen = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
    if let Ok(seen) = seen
        && seen != b"new"
    {
        sample.content.check_range(0, &seen)?;
    }
    thread::sleep(Duration::from_millis(500));
    ensure!(fs::read(&sample.path)? == b"new", "old bytes came back");
    pool.restart_fast()?;
    ensure!(fs::read(&sample.path)? == b"new", "old bytes came back with the next agent");
    Ok(())
}

fn writers_recall_whole_and_readers_ranges(pool: &mut Pool) -> Result<()> {
    let sample = pool.offline_file("file", 16 * MIB)?;
    // A reader, though the descriptor could write.
    Reader::open_for_writing(&sample)?.check_at(2 * CHUNK)?;
    pool.assert_state(&sample.path, &["partial"])?;
    let file = OpenOptions::new().write(true).open(&sample.path)?;
    file.write_all_at(b"changed", 9 * CHUNK)?;
    pool.assert_state(&sample.path, &["dirty"])?;
    let mut bytes = sample.content.bytes();
    let place = (9 * CHUNK) as usize;
    bytes[place..place + 7].copy_from_slice(b"changed");
    ensure!(fs::read(&sample.path)? == bytes, "a write into an offline file lost something");
    Ok(())
}

fn letting_go_ends_the_watch(pool: &mut Pool) -> Result<()> {
    let plain = pool.file("plain", MIB)?;
    let offline = pool.offline_file("offline", MIB)?;
    let refused = pool.hsm.command(["guard", "unpin"]).output()?;
    ensure!(refused.code() == 1, "unpinned under an agent: {}", refused.describe());
    kill_agent(pool)?;
    let shown = pool.hsm.command(["guard", "unpin", "--dry-run"]).ok()?.text();
    ensure!(shown.contains("would end the watch of"), "{shown}");
    ensure!(read_errno(&offline.path)? == Errno::AGAIN.raw_os_error(), "a dry run did something");
    let said = pool.hsm.command(["guard", "unpin"]).ok()?.text();
    ensure!(said.contains("ended the watch of"), "{said}");
    // Without link and watch: as if there had never been one.
    plain.check()?;
    pool.sh("echo more >> \"$1\"; cp \"$1\" \"$1.2\"; cat \"$1.2\"", [&plain])?;
    pool.start()?;
    offline.check()
}
