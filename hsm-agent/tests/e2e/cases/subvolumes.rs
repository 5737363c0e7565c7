//! btrfs: one file system, many inode number spaces.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use hsm_lab::Run;
use rustix::io::Errno;

use super::cases;
use super::guarded::kill_agent;
use crate::fixture::{Needs, Pool, Sample, assert_read_fails};

const MIB: u64 = 1 << 20;

cases! {
    subvolumes_with_the_same_inode_numbers_are_told_apart; only Btrfs,
    snapshots_of_offline_files_are_files_of_their_own; only Btrfs,
}

fn subvolume(path: &Path) -> Result<()> {
    Run::new("btrfs").args(["-q", "subvolume", "create"]).args([path]).ok().map(drop)
}

fn subvolumes_with_the_same_inode_numbers_are_told_apart(pool: &mut Pool) -> Result<()> {
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        subvolume(&pool.path(name))?;
        files.push(pool.file(format!("{name}/file"), MIB)?);
    }
    let [a, b, c]: [Sample; 3] = files.try_into().map_err(|_| anyhow::anyhow!("three files"))?;
    let number = |file: &Sample| fs::metadata(&file.path).map(|meta| meta.ino());
    ensure!(number(&a)? == number(&b)? && number(&b)? == number(&c)?, "other inode numbers");
    // The one that is local keeps its answers while the others are recalled, one by one.
    pool.offline(&a.path)?;
    pool.offline(&b.path)?;
    c.check()?;
    a.check()?;
    pool.assert_local(&a.path)?;
    pool.assert_offline(&b.path)?;
    a.check()?;
    c.check()?;
    b.check()?;
    pool.offline(&a.path)?;
    b.check()?;
    if Needs::Programs.are_met() {
        kill_agent(pool)?;
        b.check()?;
        c.check()?;
        assert_read_fails(&a.path, &[Errno::AGAIN.raw_os_error()])?;
        pool.start()?;
    }
    [&a, &b, &c].into_iter().try_for_each(Sample::check)
}

/// A snapshot's inodes carry the markers of those they were taken from.
fn snapshots_of_offline_files_are_files_of_their_own(pool: &mut Pool) -> Result<()> {
    subvolume(&pool.path("a"))?;
    let offline = pool.offline_file("a/offline", MIB)?;
    let local = pool.file("a/local", MIB)?;
    // Read at once; read when the original is another one already; read-only.
    let names = ["early", "late", "frozen"];
    for (name, option) in names.into_iter().zip([None, None, Some("-r")]) {
        let run = Run::new("btrfs").args(["-q", "subvolume", "snapshot"]).args(option);
        run.args([pool.path("a"), pool.path(name)]).ok()?;
    }
    let sample = |name: &str| Sample { path: pool.path(name).join("offline"), ..offline.clone() };
    let [early, late, frozen] = names.map(sample);
    early.check()?;
    let read_only = [Errno::IO.raw_os_error()];
    assert_read_fails(&frozen.path, &read_only)?;
    pool.assert_offline(&late.path)?;
    pool.assert_offline(&offline.path)?;
    offline.check()?;
    pool.sh("printf more >> \"$1\"", [&offline.path])?;
    pool.offline(&offline.path)?;
    if Needs::Programs.are_met() {
        kill_agent(pool)?;
        early.check()?;
        for file in [&late, &frozen] {
            assert_read_fails(&file.path, &[Errno::AGAIN.raw_os_error()])?;
        }
        for name in names {
            local.content.check(&pool.path(name).join("local"))?;
        }
        pool.start()?;
    }
    late.check()?;
    assert_read_fails(&frozen.path, &read_only)?;
    let got = fs::read(&offline.path)?;
    ensure!(got.ends_with(b"more"), "the append is missing");
    offline.content.check_bytes(&got[..got.len() - 4])
}
