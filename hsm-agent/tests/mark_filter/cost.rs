//! `mark_filter --cost`: what the filter costs, in guest instructions:
//! `cargo xtask vm run --kernel patched --icount --smp 1 -- TEST --cost`.
//!
//! There a nanosecond passes per instruction (docs/VM.md). Elsewhere the numbers are nanoseconds.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::Mode;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::cases::second_and_third;
use crate::kernel_lab::{Case, Lab};
use crate::watch::{Watch, elsewhere};

/// Calls per measurement.
const CALLS: u64 = 2000;
/// Measurements, of which the smallest counts.
const ROUNDS: u32 = 5;
/// A place that is local in the partial file.
const LOCAL: u64 = 1 << 20;

/// Measures on a new ext4.
pub(crate) const CASE: Case = Case { name: "cost", run: table };

fn table(lab: &Lab) -> Result<()> {
    let path = lab.file("online")?;
    let partial = lab.file("partial")?;
    println!(
        "| | open + close | open + read + close | a further read |\n| --- | --- | --- | --- |"
    );
    row("guard's programs, no mark, not covered", &path, 0)?;
    lab.maps.cover(lab.uuid, Mode::Mark)?;
    row("guard's programs, no mark", &path, 0)?;
    let watch = Watch::begin(lab, "pool")?;
    row("guard's programs and filter", &path, 0)?;
    ensure!(watch.seen().is_empty(), "somebody was asked");
    drop(watch);
    // The guard passes a marked file only while somebody serves, and passes him all; each open is asked about.
    let mut listener = elsewhere(lab)?;
    lab.mark(&partial)?;
    second_and_third(&partial, lab)?;
    row("… a local range of a partial file, and a listener that allows opens", &partial, LOCAL)?;
    lab.maps.clear_resident(File::open(&partial)?.as_fd())?;
    row("… a range that is not local, and a listener that allows", &partial, LOCAL)?;
    listener.kill();
    let watch = Watch::begin(lab, "pool")?;
    // Only the filter's link is left, as it is nowhere else.
    let links = fs::read_dir(lab.settings.base.read_dir()?.next().context("pinned")??.path())?;
    for entry in links {
        let dir = entry?.path();
        if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("links-")) {
            fs::read_dir(&dir)?.try_for_each(|link| fs::remove_file(link?.path()))?;
        }
    }
    // The kernel detaches in the background.
    std::thread::sleep(std::time::Duration::from_secs(2));
    row("filter alone", &path, 0)?;
    second_and_third(&partial, lab)?;
    row("… a local range of a partial file", &partial, LOCAL)?;
    drop(watch);
    row("nothing", &path, 0)
}

fn row(name: &str, path: &Path, at: u64) -> Result<()> {
    let (mut opens, mut with_reads, mut reads) = (u64::MAX, u64::MAX, u64::MAX);
    open_and_read(path, at)?;
    for _ in 0..ROUNDS {
        opens = opens.min(per_call(|| open(path).map(drop))?);
        with_reads = with_reads.min(per_call(|| open_and_read(path, at))?);
        let file = open(path)?;
        reads = reads.min(per_call(|| read(&file, at))?);
    }
    println!("| {name} | {opens} | {with_reads} | {reads} |");
    Ok(())
}

fn open_and_read(path: &Path, at: u64) -> Result<()> {
    read(&open(path)?, at)
}

fn open(path: &Path) -> Result<File> {
    Ok(File::from(rustix::fs::open(path, OFlags::RDONLY, FileMode::empty())?))
}

fn read(file: &File, at: u64) -> Result<()> {
    let mut page = [0; 4096];
    file.read_exact_at(&mut page, at)?;
    ensure!(page[0] == b'x', "wrong bytes");
    Ok(())
}

fn per_call(mut call: impl FnMut() -> Result<()>) -> Result<u64> {
    let begin = now();
    (0..CALLS).try_for_each(|_| call())?;
    Ok((now() - begin) / CALLS)
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
