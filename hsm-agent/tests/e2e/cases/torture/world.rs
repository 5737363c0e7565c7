//! The files under torture, and what is counted.
//!
//! Each file has a lock and a list of [`Versions`]. Who changes a file holds its lock alone, so that the order
//! of the versions is that of the changes. Readers hold it together or not at all; `hsm` knows nothing of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::Result;
use hsm_lab::Content;
use rustix::io::Errno;

use super::model::{Verdict, Versions};

/// Many small files and some with more than one chunk (of 1 MiB).
const SMALL: u64 = 110;
const LARGE: u64 = 6;
const SMALL_BYTES: u64 = 120 << 10;
const LARGE_BYTES: u64 = 2_600_000;

/// What a program may be told while stores fail and processes die. EPERM is the kernel's own answer, when the
/// process that was just reading the event dies before it has the event's descriptor (`fanotify_read`).
const ALLOWED: [Errno; 3] = [Errno::IO, Errno::AGAIN, Errno::PERM];

/// A file.
pub(super) struct Slot {
    /// Content may be changed by who has it alone.
    pub(super) turn: RwLock<()>,
    name: Mutex<PathBuf>,
    versions: Mutex<Versions>,
    /// Files of this slot are about that large.
    pub(super) bytes: u64,
}

impl Slot {
    /// Its name now.
    pub(super) fn path(&self) -> PathBuf {
        locked(&self.name).clone()
    }

    /// Renames it: others find either name.
    pub(super) fn rename(&self, to: PathBuf) -> io::Result<()> {
        let mut name = locked(&self.name);
        std::fs::rename(&*name, &to)?;
        *name = to;
        Ok(())
    }

    pub(super) fn versions(&self) -> MutexGuard<'_, Versions> {
        locked(&self.versions)
    }
}

/// Everything that the threads share.
pub(super) struct World {
    pub(super) slots: Vec<Slot>,
    /// The directory of all files.
    pub(super) dir: PathBuf,
    /// For [`Content`]s: no two are alike.
    contents: AtomicU64,
    /// The time is over.
    pub(super) end: AtomicBool,
    /// The faults are over: from here on every error is a failure.
    pub(super) calm: AtomicBool,
    pub(super) tally: Mutex<Tally>,
}

/// What happened.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By kind: how often it was done.
    pub(super) done: BTreeMap<String, u64>,
    /// By kind of operation and error number.
    pub(super) errors: BTreeMap<(String, i32), u64>,
    /// Reads that nobody could judge any more.
    pub(super) too_late: u64,
    /// Bytes that were compared.
    pub(super) compared: u64,
    /// What must never be.
    pub(super) failures: Vec<String>,
}

impl World {
    /// Makes the files.
    pub(super) fn new(dir: &Path, seed: u64) -> Result<Self> {
        std::fs::create_dir(dir)?;
        let world = Self {
            slots: Vec::new(),
            dir: dir.to_path_buf(),
            contents: AtomicU64::new(seed << 32),
            end: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            tally: Mutex::default(),
        };
        let mut slots = Vec::new();
        for n in 0..SMALL + LARGE {
            let bytes = if n < LARGE { LARGE_BYTES } else { SMALL_BYTES };
            let path = dir.join(format!("file{n}"));
            let content = world.content(bytes * (n % 7 + 1) / 7);
            std::fs::write(&path, &content)?;
            slots.push(Slot {
                turn: RwLock::new(()),
                name: Mutex::new(path),
                versions: Mutex::new(Versions::new(content)),
                bytes,
            });
        }
        Ok(Self { slots, ..world })
    }

    /// New bytes, none of which is like any other's.
    pub(super) fn content(&self, length: u64) -> Vec<u8> {
        Content::new(self.contents.fetch_add(1, Ordering::Relaxed), length).bytes()
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        locked(&self.tally)
    }

    pub(super) fn did(&self, kind: &str) {
        *self.tally().done.entry(kind.to_owned()).or_default() += 1;
    }

    /// The operation failed.
    pub(super) fn failed(&self, kind: &str, path: &Path, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let allowed = ALLOWED.iter().any(|allowed| allowed.raw_os_error() == errno);
        *self.tally().errors.entry((kind.to_owned(), errno)).or_default() += 1;
        if !allowed || self.calm.load(Ordering::Relaxed) {
            self.failure(format!("{kind} {}: {error}", path.display()));
        }
    }

    /// What must never be.
    pub(super) fn failure(&self, text: String) {
        eprintln!("TORTURE: {text}");
        self.tally().failures.push(text);
    }

    /// Compares what was read of a file, see [`Versions::judge`].
    pub(super) fn compare(&self, kind: &str, slot: &Slot, begin: u64, read: &Read<'_>) {
        let verdict = slot.versions().judge(begin, read.offset, read.wanted, read.got);
        let mut tally = self.tally();
        match verdict {
            Verdict::Right => tally.compared += read.got.len() as u64,
            Verdict::TooLate => tally.too_late += 1,
            Verdict::Wrong(wrong) => {
                drop(tally);
                self.failure(format!("WRONG BYTES: {kind} {} {wrong}", slot.path().display()));
            }
        }
    }
}

/// What a reader asked for and got.
pub(super) struct Read<'a> {
    pub(super) offset: usize,
    pub(super) wanted: usize,
    pub(super) got: &'a [u8],
}

impl<'a> Read<'a> {
    /// All of a file.
    pub(super) fn whole(got: &'a [u8]) -> Self {
        Self { offset: 0, wanted: usize::MAX, got }
    }
}

/// Reads up to `length` bytes, less only at the end of the file.
pub(super) fn read_at(file: &File, offset: usize, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], (offset + filled) as u64)? {
            0 => break,
            n => filled += n,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operations: u64 = self.done.values().sum();
        write!(f, "{operations} operations, {} MiB compared:", self.compared >> 20)?;
        for (kind, times) in &self.done {
            write!(f, " {kind} {times},")?;
        }
        write!(f, " {} reads too late to judge\nerrors:", self.too_late)?;
        for ((kind, errno), times) in &self.errors {
            let name = io::Error::from_raw_os_error(*errno);
            write!(f, " {kind} {times} × {name};")?;
        }
        write!(f, "\nwrong bytes and other failures: {}", self.failures.len())
    }
}

/// A poisoned lock belongs to a thread that panicked, which fails the case by itself.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers that a seed gives: xorshift64, Marsaglia, "Xorshift RNGs", 2003.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64, who: u64) -> Self {
        Self(
            (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ who.wrapping_mul(0xbf58_476d_1ce4_e5b9))
                | 1,
        )
    }

    /// From 0 to `below`, without it.
    pub(super) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below.max(1)
    }
}
