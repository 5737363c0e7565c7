//! `cargo xtask bench --instructions`: what an open and a read of an online file cost, in guest
//! instructions.
//!
//! QEMU's `-icount shift=0` lets a nanosecond of the guest's clock pass per instruction, on one
//! processor, so a clock read before and after a loop counts instructions, those of the kernel
//! included, and repeats to a few. The guest runs this program again ([`guest`]) with one step per
//! way of watching.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use hsm_lab::{FsKind, LoopFs};
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::ebpf;
use crate::lab::{Lab, build_release, drop_caches, exe};
use crate::vm::{self, Machine};

/// Opens per measurement.
const LOOPS: u64 = 2000;
/// Files that are opened once each, to measure first opens.
const FILES: u64 = 200;
/// Measurements; the smallest counts: whatever else the guest does only adds.
const ROUNDS: u32 = 5;

/// Builds, boots the guest, passes its table on.
pub(crate) fn host(fs: FsKind) -> Result<ExitCode> {
    ebpf::programs()?;
    build_release()?;
    vm::again(&Machine::counting(), &["bench", "--instructions-inside", "--fs", fs.name()])
}

/// Instructions per call, of each of the things that are measured.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// open, read of 4 KiB, close; over and over.
    open: u64,
    /// A further read of 4 KiB.
    read: u64,
    /// The first open and close of an inode that is in memory.
    first: u64,
}

/// Inside the guest.
pub(crate) fn guest(fs: FsKind, dir: &Path) -> Result<()> {
    // Names as long as those below: every component of a path costs, and so does its length.
    let plain = dir.join("not-managed");
    std::fs::create_dir(&plain)?;
    let mut plain = LoopFs::create(fs, &plain, "managed", hsm_lab::loopfs::IMAGE_BYTES)?;
    let elsewhere = plain.path().join("f");
    let mut rows = vec![("no hsm", measure(&elsewhere)?)];
    for (name, tier) in [("user-filter", "user-filter"), ("lsm-filter", "lsm-filter")] {
        let dir = dir.join(tier);
        std::fs::create_dir(&dir)?;
        let lab = Lab::with_tier(fs, &dir, hsm_lab::loopfs::IMAGE_BYTES, &exe()?, tier)?;
        if tier == "lsm-filter" {
            // The agent has just begun.
            rows.push(("lsm-filter, second program attached", measure(&lab.managed("a"))?));
        }
        wait_for_quiet(&lab)?;
        rows.push((name, measure(&lab.managed("f"))?));
        if tier == "lsm-filter" {
            rows.push(("lsm-filter, on a file system without a pool", measure(&elsewhere)?));
            let (guarded, lab) = guarded(lab)?;
            rows.push(("guard alone (agent dead)", guarded));
            lab.close()?;
        } else {
            lab.close()?;
        }
    }
    plain.unmount()?;
    println!("{}", table(fs, &rows));
    Ok(())
}

/// Until the second of the programs that look at opens is detached. Where nothing runs, time passes quickly here.
fn wait_for_quiet(lab: &Lab) -> Result<()> {
    for _ in 0..120 {
        std::thread::sleep(Duration::from_secs(1));
        let status = lab.hsm.command(["--json", "guard", "status"]).ok()?;
        let status: serde_json::Value = serde_json::from_str(&status.text())?;
        if status.get("second_net").is_some_and(|net| net == "on demand") {
            return Ok(());
        }
    }
    bail!("the second program stays attached")
}

/// The agent is gone, its programs are not.
fn guarded(mut lab: Lab) -> Result<(Cost, Lab)> {
    lab.kill_agent()?;
    let cost = measure(&lab.managed("g"))?;
    Ok((cost, lab))
}

fn measure(path: &Path) -> Result<Cost> {
    std::fs::write(path, [7u8; 8192])?;
    let files: Vec<PathBuf> = (0..FILES).map(|i| path.with_extension(i.to_string())).collect();
    for file in &files {
        std::fs::write(file, [7u8; 4096])?;
    }
    let mut cost = Cost { open: u64::MAX, read: u64::MAX, first: u64::MAX };
    for _ in 0..ROUNDS {
        cost.first = cost.first.min(first_opens(&files)?);
        // Its data is in memory again.
        open_read_close(path)?;
        let open = per_call(LOOPS, || (0..LOOPS).try_for_each(|_| open_read_close(path)))?;
        let file = File::open(path)?;
        let read = per_call(LOOPS, || (0..LOOPS).try_for_each(|_| read_page(&file)))?;
        cost.open = cost.open.min(open);
        cost.read = cost.read.min(read);
    }
    Ok(cost)
}

/// Names and inodes are in memory; what the kernel knows of their markers is not. Nothing is read: an idle
/// processor's clock runs too.
fn first_opens(files: &[PathBuf]) -> Result<u64> {
    drop_caches()?;
    for file in files {
        std::fs::metadata(file)?;
    }
    per_call(FILES, || files.iter().try_for_each(|file| open_close(file)))
}

fn open_read_close(path: &Path) -> Result<()> {
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY, Mode::empty())?);
    read_page(&file)
}

fn open_close(path: &Path) -> Result<()> {
    drop(rustix::fs::open(path, OFlags::RDONLY, Mode::empty())?);
    Ok(())
}

fn read_page(file: &File) -> Result<()> {
    let mut page = [0u8; 4096];
    let n = rustix::io::pread(file, &mut page, 0)?;
    ensure!(n == page.len() && page[0] == 7, "read {n} bytes");
    Ok(())
}

/// Nanoseconds, which are instructions here, per call.
fn per_call(calls: u64, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let begin = now();
    work()?;
    Ok((now() - begin) / calls)
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn table(fs: FsKind, rows: &[(&str, Cost)]) -> String {
    let base = rows.first().map(|(_, cost)| *cost);
    let more = |value: u64, base: Option<u64>| {
        let difference = base.map_or(0, |base| i128::from(value) - i128::from(base));
        format!("{value} ({difference:+})")
    };
    let mut text = format!(
        "guest instructions per call, {fs}, Linux {}\n\n\
         | | open + read + close | a further read | first open + close of an inode |\n\
         | --- | --- | --- | --- |\n",
        rustix::system::uname().release().to_string_lossy()
    );
    for (name, cost) in rows {
        text += &format!(
            "| {name} | {} | {} | {} |\n",
            more(cost.open, base.map(|b| b.open)),
            more(cost.read, base.map(|b| b.read)),
            more(cost.first, base.map(|b| b.first)),
        );
    }
    text
}
