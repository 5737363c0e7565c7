//! Images as a power cut would leave them, made by going through the log once.
//!
//! Per disk there is one image with all that is before its last flush, and the list of what came since.
//! A cut copies the image and puts a part of the list on it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hsm_lab::Run;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::disk::apply;
use crate::log::{Change, Disk, Entry, Position, Write};

/// What a disk keeps or loses as one: the sector of today's disks, and a page of the kernel.
const UNIT: u64 = 4096;

/// What becomes of what a disk was told since its last flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// It has all of it.
    Nothing,
    /// All of it is gone.
    Everything,
    /// Each unit of 4 KiB of each write is kept or lost, as this seed has it.
    Some(u64),
}

/// Goes through a log.
#[derive(Debug)]
pub struct Replay<'a> {
    entries: &'a [Entry],
    at: Position,
    durable: Vec<(PathBuf, File)>,
    pending: BTreeMap<Disk, Vec<&'a Write>>,
}

impl<'a> Replay<'a> {
    /// Begins with these images, which are changed: disk `n` is the `n`th.
    pub fn new(entries: &'a [Entry], images: Vec<PathBuf>) -> Result<Self> {
        let open = |path: PathBuf| {
            let file = OpenOptions::new().write(true).open(&path)?;
            Ok((path, file))
        };
        let durable = images.into_iter().map(open).collect::<std::io::Result<_>>()?;
        Ok(Self { entries, at: 0, durable, pending: BTreeMap::new() })
    }

    /// Goes on to a position, which is not before the last one.
    pub fn advance(&mut self, to: Position) -> Result<()> {
        ensure!((self.at..=self.entries.len()).contains(&to), "a replay goes forward only");
        for entry in &self.entries[self.at..to] {
            match entry {
                Entry::Write(disk, write) => self.pending.entry(*disk).or_default().push(write),
                Entry::Flush(disk) => {
                    let (path, image) = self.durable.get(*disk).context("no such disk")?;
                    for write in self.pending.remove(disk).unwrap_or_default() {
                        apply(image, write).with_context(|| path.display().to_string())?;
                    }
                }
            }
        }
        self.at = to;
        Ok(())
    }

    /// Makes the image of a disk as a cut here leaves it.
    pub fn cut(&self, disk: Disk, loss: Loss, into: &Path) -> Result<()> {
        let (image, _) = self.durable.get(disk).context("no such disk")?;
        Run::new("cp").args(["--sparse=auto", "--reflink=auto"]).args([image, into]).ok()?;
        let image = OpenOptions::new().write(true).open(into)?;
        let size = image.metadata()?.size();
        for write in kept(self.pending.get(&disk).map_or(&[], Vec::as_slice), loss) {
            apply(&image, &write)?;
        }
        ensure!(image.metadata()?.size() == size, "a write behind the end of the disk");
        Ok(())
    }
}

/// What is kept of these writes, in their order.
fn kept(pending: &[&Write], loss: Loss) -> Vec<Write> {
    match loss {
        Loss::Nothing => pending.iter().copied().cloned().collect(),
        Loss::Everything => Vec::new(),
        Loss::Some(seed) => {
            let mut random = StdRng::seed_from_u64(seed);
            // Little, half or nearly all: each of them finds other mistakes.
            let share = [0.1, 0.5, 0.9][random.random_range(0..3)];
            let units = pending.iter().flat_map(|write| units(write));
            units.filter(|_| random.random_bool(share)).collect()
        }
    }
}

/// A write, cut at multiples of [`UNIT`].
fn units(write: &Write) -> Vec<Write> {
    let end = write.offset + write.len();
    let mut units = Vec::new();
    let mut at = write.offset;
    while at < end {
        let next = ((at / UNIT + 1) * UNIT).min(end);
        let change = match &write.change {
            Change::Zeros(_) => Change::Zeros(next - at),
            Change::Data(bytes) => {
                let range = (at - write.offset) as usize..(next - write.offset) as usize;
                Change::Data(bytes[range].into())
            }
        };
        units.push(Write { offset: at, change });
        at = next;
    }
    units
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 8 * 4096;

    fn entry() -> impl Strategy<Value = Entry> {
        let place = (0..SIZE as u64, 1..3 * UNIT, any::<u8>(), any::<bool>());
        let write = place.prop_map(|(offset, length, byte, zeros)| {
            let length = length.min(SIZE as u64 - offset);
            let data = Change::Data(vec![byte; length as usize].into());
            let change = if zeros { Change::Zeros(length) } else { data };
            Write { offset, change }
        });
        prop_oneof![
            4 => (0..2usize, write).prop_map(|(disk, write)| Entry::Write(disk, write)),
            1 => (0..2usize).prop_map(Entry::Flush),
        ]
    }

    /// The plain way: all writes of a disk, one after the other.
    fn plain(entries: &[Entry], wanted: Disk) -> Vec<u8> {
        let mut image = vec![0; SIZE];
        for entry in entries {
            if let Entry::Write(disk, write) = entry
                && *disk == wanted
            {
                let range = write.offset as usize..(write.offset + write.len()) as usize;
                match &write.change {
                    Change::Data(bytes) => image[range].copy_from_slice(bytes),
                    Change::Zeros(_) => image[range].fill(0),
                }
            }
        }
        image
    }

    fn until_flush(entries: &[Entry], wanted: Disk) -> &[Entry] {
        let flush = |entry: &Entry| matches!(entry, Entry::Flush(disk) if *disk == wanted);
        &entries[..entries.iter().rposition(flush).map_or(0, |at| at + 1)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_cut_keeps_what_was_flushed_and_any_part_of_the_rest(
            entries in prop::collection::vec(entry(), 1..40),
            at in any::<prop::sample::Index>(),
            seed in any::<u64>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let images: Vec<_> = (0..2).map(|n| dir.path().join(format!("disk{n}"))).collect();
            for image in &images {
                File::create(image).unwrap().set_len(SIZE as u64).unwrap();
            }
            let at = at.index(entries.len() + 1);
            let mut replay = Replay::new(&entries, images).unwrap();
            // By stages, as it is used.
            replay.advance(at / 2).unwrap();
            replay.advance(at).unwrap();
            let before = &entries[..at];
            for disk in 0..2 {
                let made = |loss| {
                    let path = dir.path().join("cut");
                    replay.cut(disk, loss, &path).unwrap();
                    fs::read(path).unwrap()
                };
                prop_assert_eq!(made(Loss::Nothing), plain(before, disk));
                let durable = plain(until_flush(before, disk), disk);
                prop_assert_eq!(&made(Loss::Everything), &durable);
                let pending = &before[until_flush(before, disk).len()..];
                let some = made(Loss::Some(seed));
                for (i, byte) in some.iter().enumerate() {
                    let written = |entry: &Entry| match entry {
                        Entry::Write(d, w) if *d == disk => {
                            let inside = (w.offset..w.offset + w.len()).contains(&(i as u64));
                            inside && match &w.change {
                                Change::Data(bytes) => bytes[i - w.offset as usize] == *byte,
                                Change::Zeros(_) => *byte == 0,
                            }
                        }
                        _ => false,
                    };
                    prop_assert!(*byte == durable[i] || pending.iter().any(written));
                }
            }
        }
    }

    #[test]
    fn units_are_the_write() {
        let bytes: Vec<u8> = (0..10_000).map(|n| (n % 251) as u8).collect();
        let write = Write { offset: 4000, change: Change::Data(bytes.clone().into()) };
        let units = units(&write);
        assert_eq!(units.len(), 4);
        assert!(units[1..].iter().all(|unit| unit.offset % UNIT == 0));
        let joined: Vec<u8> = units
            .iter()
            .flat_map(|unit| match &unit.change {
                Change::Data(bytes) => bytes.to_vec(),
                Change::Zeros(_) => Vec::new(),
            })
            .collect();
        assert_eq!(joined, bytes);
    }
}
