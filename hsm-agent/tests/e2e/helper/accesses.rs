//! Ways to a file that a shell has no word for: what `cases/ways.rs` cannot say in one line.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hsm_lab::Content;
use rustix::fs::{Mode, OFlags, SeekFrom, copy_file_range, ioctl_ficlone, open, seek, sendfile};

/// More than any file here has.
const ENOUGH: usize = 1 << 30;

fn number(rest: &[OsString], at: usize) -> Result<u64> {
    Ok(rest.get(at).and_then(|text| text.to_str()).context("a number is missing")?.parse()?)
}

fn target(rest: &[OsString]) -> Result<File> {
    Ok(File::create(rest.first().context("the copy's name is missing")?)?)
}

/// Reopens an `O_PATH` descriptor through `/proc`.
pub(super) fn reopen(path: &Path) -> Result<()> {
    let found = open(path, OFlags::PATH, Mode::empty())?;
    let mut file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    std::io::copy(&mut file, &mut std::io::stdout())?;
    Ok(())
}

/// Makes the file's directory the root.
pub(super) fn chroot(path: &Path) -> Result<()> {
    rustix::process::chroot(path.parent().context("no parent")?)?;
    let mut file = File::open(Path::new("/").join(path.file_name().context("no name")?))?;
    std::io::copy(&mut file, &mut std::io::stdout())?;
    Ok(())
}

/// Standard output is a pipe.
pub(super) fn send(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    while sendfile(std::io::stdout(), &file, None, ENOUGH)? > 0 {}
    Ok(())
}

pub(super) fn copy_range(path: &Path, rest: &[OsString]) -> Result<()> {
    let (file, copy) = (File::open(path)?, target(rest)?);
    while copy_file_range(&file, None, &copy, None, ENOUGH)? > 0 {}
    Ok(())
}

pub(super) fn clone(path: &Path, rest: &[OsString]) -> Result<()> {
    Ok(ioctl_ficlone(target(rest)?, File::open(path)?)?)
}

/// Says where the first data and the first hole are.
pub(super) fn seek_data(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    println!("{} {}", seek(&file, SeekFrom::Data(0))?, seek(&file, SeekFrom::Hole(0))?);
    Ok(())
}

/// By path, without opening it.
pub(super) fn truncate(path: &Path, rest: &[OsString]) -> Result<()> {
    hsm_lab::truncate(path, number(rest, 0)?).map_err(|error| anyhow!("truncate: {error}"))
}

/// `DIR COUNT BYTES MILLISECONDS SEED`: opens the files `DIR/0`... in an order of its own until the time
/// is over, and compares every byte. Says how often, and which errors there were how often.
pub(super) fn open_loop(dir: &Path, rest: &[OsString]) -> Result<()> {
    let (count, bytes, mut random) = (number(rest, 0)?, number(rest, 1)?, number(rest, 3)?);
    let end = Instant::now() + Duration::from_millis(number(rest, 2)?);
    let (mut opens, mut errors) = (0_u64, BTreeMap::<i32, u64>::new());
    while Instant::now() < end {
        // xorshift64: Marsaglia, "Xorshift RNGs", 2003. The seed is not 0.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = random % count;
        let path = dir.join(number.to_string());
        match Content::new(number, bytes).check(&path) {
            Ok(()) => opens += 1,
            Err(error) => match error.root_cause().downcast_ref::<std::io::Error>() {
                Some(failed) => *errors.entry(failed.raw_os_error().unwrap_or(0)).or_default() += 1,
                None => return Err(error),
            },
        }
        // Many of these are to leave time for others.
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "0 {opens}")?;
    errors.iter().try_for_each(|(errno, times)| writeln!(out, "{errno} {times}"))?;
    Ok(())
}
