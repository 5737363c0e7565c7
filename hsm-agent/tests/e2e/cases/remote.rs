//! A store behind a network: an S3 server that comes and goes.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hsm_lab::s3::{S3Server, SECRET};
use hsm_lab::{PoolConfig, patience};
use rustix::io::Errno;

use super::cases;
use crate::fixture::{Pool, Sample, assert_read_fails};

const MIB: u64 = 1 << 20;

cases! {
    s3_stores_return_identical_bytes,
    an_unreachable_store_is_an_error_and_loses_nothing,
    a_store_that_comes_back_in_time_is_no_error,
    keys_of_stores_are_in_no_log_and_no_answer with with_every_word,
}

fn with_every_word(config: &mut PoolConfig) {
    config.log = "trace".into();
}

/// An S3 server that the pool uses from now on, with these options for the store.
pub(super) fn server(pool: &mut Pool, options: &[&str]) -> Result<S3Server> {
    let server = S3Server::new(&pool.outside("s3"))?;
    let mut store = server.store_lines();
    store.extend(options.iter().map(|&line| line.to_owned()));
    pool.stop()?;
    pool.config.other_store = Some(store);
    pool.start()?;
    Ok(server)
}

fn s3_stores_return_identical_bytes(pool: &mut Pool) -> Result<()> {
    let _server = server(pool, &[])?;
    for size in [1, 4096, 3 * MIB + 17, 40 * MIB] {
        pool.offline_file(format!("f{size}"), size)?.check()?;
    }
    ensure!(pool.objects()?.is_empty(), "something went to the local store");
    Ok(())
}

/// A line of the configuration: short, but not for a slow machine.
fn seconds(key: &str, seconds: u64) -> String {
    format!("{key} = \"{}s\"", patience(Duration::from_secs(seconds)).as_secs())
}

fn an_unreachable_store_is_an_error_and_loses_nothing(pool: &mut Pool) -> Result<()> {
    pool.config.limits.push(seconds("recall_deadline", 5));
    let mut server = server(pool, &[&seconds("deadline", 2), "retries = 2"])?;
    let file = pool.offline_file("file", MIB)?;
    server.stop();
    let begin = Instant::now();
    assert_read_fails(&file.path, &[Errno::IO, Errno::AGAIN].map(Errno::raw_os_error))?;
    let waited = begin.elapsed();
    ensure!(waited < patience(Duration::from_secs(20)), "the reader waited {waited:?}");
    pool.assert_offline(&file.path)?;
    // What cannot be stored stays where it is.
    let new = pool.file("new", MIB)?;
    let report = pool.hsm.verb("archive", [&new])?;
    ensure!(report.code == 1, "archived into nothing: {}", report.output.describe());
    pool.assert_state(&new.path, &["resident"])?;
    server.start()?;
    file.check()?;
    new.check()?;
    pool.offline(&new.path)?;
    new.check()
}

fn a_store_that_comes_back_in_time_is_no_error(pool: &mut Pool) -> Result<()> {
    let mut server = server(pool, &["deadline = \"60s\"", "retries = 20"])?;
    let files: Vec<_> = (0..3).map(|i| pool.offline_file(format!("f{i}"), MIB)).collect();
    let files: Vec<Sample> = files.into_iter().collect::<Result<_>>()?;
    server.stop();
    thread::scope(|scope| {
        let readers: Vec<_> = files.iter().map(|file| scope.spawn(|| file.check())).collect();
        thread::sleep(Duration::from_secs(2));
        ensure!(readers.iter().all(|reader| !reader.is_finished()), "a reader did not wait");
        server.start()?;
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a reader panicked")))
        })
    })
}

/// Whatever goes well or wrong, and however much is logged.
fn keys_of_stores_are_in_no_log_and_no_answer(pool: &mut Pool) -> Result<()> {
    pool.config.limits.push(seconds("recall_deadline", 3));
    let mut server = server(pool, &[&seconds("deadline", 1), "retries = 1"])?;
    let file = pool.offline_file("file", MIB)?;
    let mut said = Vec::new();
    for stopped in [false, true] {
        if stopped {
            server.stop();
            assert_read_fails(&file.path, &[Errno::IO, Errno::AGAIN].map(Errno::raw_os_error))?;
        }
        for args in [&["status"][..], &["doctor"], &["config", "check"], &["waiters"]] {
            for json in [&["--json"][..], &[]] {
                // What they find is their affair.
                let out = pool.hsm.command(json.iter().chain(args)).output()?;
                said.push(format!("{}\n{}", out.text(), out.stderr));
            }
        }
    }
    said.push(pool.agent()?.log());
    let log = said.last().map_or(0, String::len);
    ensure!(log > 10_000, "the log has {log} bytes: not every word was logged");
    ensure!(!said.iter().any(|text| text.contains(SECRET)), "the secret is told");
    for process in [vec![pool.agent()?.holder()], pool.agent()?.engines()].concat() {
        for what in ["cmdline", "environ"] {
            let text = fs::read(format!("/proc/{process}/{what}"))?;
            ensure!(!String::from_utf8_lossy(&text).contains(SECRET), "the secret is in {what}");
        }
    }
    server.start()?;
    file.check()
}
