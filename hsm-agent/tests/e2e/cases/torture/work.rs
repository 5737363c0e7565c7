//! What programs do to the files: one operation after the other, each on a file that the dice choose.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Result;
use hsm_lab::Run;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::mapper::Mapper;
use super::world::{Dice, Read, Slot, World, read_at};

/// Operations on one open file in a row.
const IN_A_ROW: u64 = 12;

/// Rounds that a renamer may win against somebody who opens.
const NAMES: usize = 20;

/// One program: goes on until the time is over.
pub(super) fn work(world: &World, seed: u64, who: u64) -> Result<()> {
    let mut dice = Dice::new(seed, who);
    let mut mapper = Mapper::start()?;
    while !world.is_over() {
        let slot = &world.slots[dice.roll(world.slots.len() as u64) as usize];
        match dice.roll(100) {
            0..30 => read_whole(world, slot),
            30..57 => race(world, slot, &mut dice),
            57..67 => map(world, slot, &mut mapper)?,
            67..96 => change(world, slot, &mut dice, &mut mapper)?,
            _ => rename(world, slot, &mut dice),
        }
        // Time for releases: a file that is always open is never offline.
        std::thread::sleep(Duration::from_millis(dice.roll(30)));
    }
    Ok(())
}

/// With nobody changing it meanwhile.
pub(super) fn read_whole(world: &World, slot: &Slot) {
    let _together = slot.turn.read().unwrap_or_else(PoisonError::into_inner);
    let (begin, path) = (slot.versions().begin(), slot.path());
    match opened(slot, File::open).and_then(|file| read_at(&file, 0, 2 * slot.bytes as usize)) {
        Ok(got) => world.compare("read", slot, begin, &Read::whole(&got)),
        Err(error) => world.failed("read", &path, &error),
    }
    world.did("read");
}

/// While others change it, rename it, remove it.
fn race(world: &World, slot: &Slot, dice: &mut Dice) {
    let begin = slot.versions().begin();
    let size = slot.versions().newest().len() as u64;
    let offset = dice.roll(size) as usize;
    let wanted = 1 + dice.roll(64 << 10) as usize;
    let pause = Duration::from_millis(dice.roll(5));
    let file = opened(slot, File::open);
    std::thread::sleep(pause);
    match file.and_then(|file| read_at(&file, offset, wanted)) {
        Ok(got) => {
            world.compare("racing read", slot, begin, &Read { offset, wanted, got: &got });
        }
        // Removed, and not yet made anew.
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => {}
        Err(error) => world.failed("racing read", &slot.path(), &error),
    }
    world.did("racing read");
}

fn map(world: &World, slot: &Slot, mapper: &mut Mapper) -> Result<()> {
    // Who cuts a file that is mapped kills the program.
    let _together = slot.turn.read().unwrap_or_else(PoisonError::into_inner);
    let begin = slot.versions().begin();
    // Nor may it get another name before it is opened.
    let got = loop {
        let path = slot.path();
        match mapper.read(&path)? {
            Err(error) if is_missing(&error) && path != slot.path() => {}
            got => break got,
        }
    };
    match got {
        Ok(got) => world.compare("mapping", slot, begin, &Read::whole(&got)),
        Err(error) => world.failed("mapping", &slot.path(), &error),
    }
    world.did("mapping");
    Ok(())
}

fn rename(world: &World, slot: &Slot, dice: &mut Dice) {
    let _together = slot.turn.read().unwrap_or_else(PoisonError::into_inner);
    let to = world.dir.join(format!("renamed{}", dice.roll(u64::MAX)));
    if let Err(error) = slot.rename(to) {
        world.failed("rename", &slot.path(), &error);
    }
    world.did("rename");
}

fn change(world: &World, slot: &Slot, dice: &mut Dice, mapper: &mut Mapper) -> Result<()> {
    let _alone = slot.turn.write().unwrap_or_else(PoisonError::into_inner);
    if slot.versions().is_in_doubt() && !settle(world, slot) {
        return Ok(());
    }
    match dice.roll(100) {
        0..25 => write_once(world, slot, dice),
        25..40 => append(world, slot, dice),
        40..55 => truncate(world, slot, dice),
        55..65 => empty_and_fill(world, slot, dice),
        65..72 => replace(world, slot, dice),
        72..80 => return write_mapped(world, slot, dice, mapper),
        _ => in_a_row(world, slot, dice),
    }
    Ok(())
}

/// After a write that failed: finds out what the file is. Whether that was possible.
pub(super) fn settle(world: &World, slot: &Slot) -> bool {
    let begin = slot.versions().begin();
    match fs::read(slot.path()) {
        Ok(got) => {
            world.compare("read after a failure", slot, begin, &Read::whole(&got));
            slot.versions().may_become(got);
            slot.versions().holds();
            true
        }
        Err(error) => {
            world.failed("read after a failure", &slot.path(), &error);
            false
        }
    }
}

/// Announces a version, makes it, and says whether it holds.
fn attempt(
    world: &World,
    slot: &Slot,
    kind: &str,
    new: Vec<u8>,
    make: impl FnOnce(&Path) -> io::Result<()>,
) -> bool {
    slot.versions().may_become(new);
    world.did(kind);
    match make(&slot.path()) {
        Ok(()) => slot.versions().holds(),
        Err(error) => {
            world.failed(kind, &slot.path(), &error);
            return false;
        }
    }
    true
}

fn for_writing(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Bytes for `version`, and where they begin: perhaps behind its end, but not far.
fn some(world: &World, version: &[u8], bytes: u64, dice: &mut Dice) -> (usize, Vec<u8>) {
    let room = bytes.max(version.len() as u64);
    let at = dice.roll(room);
    let length = 1 + dice.roll((room - at).min(48 << 10));
    (at as usize, world.content(length))
}

/// `version` with `new` at `at`; zeros in between.
fn with(version: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = version.to_vec();
    bytes.resize(bytes.len().max(at + new.len()), 0);
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn write_once(world: &World, slot: &Slot, dice: &mut Dice) {
    let version = slot.versions().newest();
    let (at, new) = some(world, &version, slot.bytes, dice);
    let sync = dice.roll(4) == 0;
    attempt(world, slot, "write", with(&version, at, &new), |path| {
        let file = for_writing(path)?;
        file.write_all_at(&new, at as u64)?;
        if sync { file.sync_data() } else { Ok(()) }
    });
}

fn append(world: &World, slot: &Slot, dice: &mut Dice) {
    let version = slot.versions().newest();
    if version.len() as u64 > slot.bytes {
        return truncate(world, slot, dice);
    }
    let new = world.content(1 + dice.roll(10_000));
    attempt(world, slot, "append", with(&version, version.len(), &new), |path| {
        io::Write::write_all(&mut File::options().append(true).open(path)?, &new)
    });
}

fn truncate(world: &World, slot: &Slot, dice: &mut Dice) {
    let version = slot.versions().newest();
    let size = dice.roll(slot.bytes);
    let mut bytes = version.to_vec();
    bytes.resize(size as usize, 0);
    let by_path = dice.roll(3) == 0;
    attempt(world, slot, "truncate", bytes, |path| {
        if by_path { truncate_by_path(path, size) } else { for_writing(path)?.set_len(size) }
    });
}

/// `truncate(2)`, by this program's helper: it opens nothing.
fn truncate_by_path(path: &Path, size: u64) -> io::Result<()> {
    let size = size.to_string();
    let run = Run::new(std::env::current_exe()?).args(["--helper", "truncate"]);
    let out = run.args([path.as_os_str(), size.as_ref()]).output().map_err(io::Error::other)?;
    if out.status.success() {
        return Ok(());
    }
    let errno = out
        .stderr
        .rsplit_once("os error ")
        .and_then(|(_, rest)| rest.trim_end().trim_end_matches(')').parse().ok());
    Err(errno.map_or_else(|| io::Error::other(out.describe()), io::Error::from_raw_os_error))
}

/// `O_TRUNC` and a write: two versions.
fn empty_and_fill(world: &World, slot: &Slot, dice: &mut Dice) {
    let mut file = None;
    let emptied = attempt(world, slot, "O_TRUNC", Vec::new(), |path| {
        file = Some(File::create(path)?);
        Ok(())
    });
    let new = world.content(dice.roll(slot.bytes));
    if let (true, Some(file)) = (emptied, file) {
        attempt(world, slot, "write", new.clone(), |_| file.write_all_at(&new, 0));
    }
}

/// Unlinks it and makes another one of its name.
fn replace(world: &World, slot: &Slot, dice: &mut Dice) {
    let new = world.content(dice.roll(slot.bytes));
    attempt(world, slot, "unlink", new.clone(), |path| {
        fs::remove_file(path)?;
        // A racing reader sees it empty.
        slot.versions().may_become(Vec::new());
        let file = File::create_new(path)?;
        slot.versions().may_become(new.clone());
        file.write_all_at(&new, 0)
    });
}

fn write_mapped(world: &World, slot: &Slot, dice: &mut Dice, mapper: &mut Mapper) -> Result<()> {
    let version = slot.versions().newest();
    if version.is_empty() {
        return Ok(());
    }
    let at = dice.roll(version.len() as u64) as usize;
    let new = world.content(1 + dice.roll((version.len() - at).min(20_000) as u64 - 1));
    let mut died = Ok(());
    attempt(world, slot, "mapped write", with(&version, at, &new), |path| {
        match mapper.write(path, at, &new) {
            Ok(result) => result,
            Err(error) => {
                died = Err(error);
                Err(Errno::IO.into())
            }
        }
    });
    died
}

/// As `fsx` does: many operations through one descriptor, each read compared.
fn in_a_row(world: &World, slot: &Slot, dice: &mut Dice) {
    let path = slot.path();
    let file = match for_writing(&path) {
        Ok(file) => file,
        Err(error) => return world.failed("fsx open", &path, &error),
    };
    for _ in 0..IN_A_ROW {
        let version = slot.versions().newest();
        let (at, new) = some(world, &version, slot.bytes, dice);
        let (offset, length) = (at as u64, new.len() as u64);
        let in_it = new.len().min(version.len().saturating_sub(at));
        let zeros = with(&version, at, &vec![0; in_it]);
        let went_well = match dice.roll(6) {
            0 => {
                let bytes = with(&version, at, &new);
                attempt(world, slot, "fsx write", bytes, |_| file.write_all_at(&new, offset))
            }
            1 => attempt(
                world,
                slot,
                "fsx truncate",
                with(&version[..at.min(version.len())], at, &[]),
                |_| file.set_len(offset),
            ),
            2 if in_it > 0 => attempt(world, slot, "fsx punch", zeros, |_| {
                let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&file, how, offset, in_it as u64)?)
            }),
            3 if in_it > 0 => attempt(world, slot, "fsx zero", zeros, |_| {
                let how = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                Ok(fallocate(&file, how, offset, in_it as u64)?)
            }),
            _ => {
                let begin = slot.versions().begin();
                world.did("fsx read");
                match read_at(&file, at, length as usize) {
                    Ok(got) => {
                        let read = Read { offset: at, wanted: new.len(), got: &got };
                        world.compare("fsx read", slot, begin, &read);
                        true
                    }
                    Err(error) => {
                        world.failed("fsx read", &path, &error);
                        true
                    }
                }
            }
        };
        if !went_well {
            return;
        }
    }
}

/// Opens a file that others rename.
fn opened(slot: &Slot, open: impl Fn(std::path::PathBuf) -> io::Result<File>) -> io::Result<File> {
    for _ in 0..NAMES {
        let path = slot.path();
        match open(path.clone()) {
            Err(error) if is_missing(&error) && path != slot.path() => {}
            result => return result,
        }
    }
    Err(Errno::NOENT.into())
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
