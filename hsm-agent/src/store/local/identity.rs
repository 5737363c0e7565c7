//! Which store is it? A file in the store's directory, and the same line in the agent's state.
//!
//! A directory whose disk is not mounted looks like an empty store: objects would be missing, and
//! new ones would go to the wrong disk. So the store carries a random identity, written once into
//! an empty directory, and the agent remembers it outside. From then on a directory counts as the
//! store only while it shows that identity.
//!
//! Invariant: an identity is made only where none is remembered, and only in an empty directory.
//! It is durable in the store before it is remembered: a crash between the two leaves a store that
//! is recognised, never an agent that expects what does not exist.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::errno::error;
use crate::store::error::text;
use crate::store::{Result, StoreError, Subject};

/// The identity's file in the store's directory.
pub(super) const FILE: &str = "hsm-store";
/// What it is called until it is complete.
const UNFINISHED: &str = "hsm-store.new";
/// Names that an empty store may have: a new ext4 has the first, and what is not yet a store may
/// have been looked at by `hsm doctor`.
const NOTHING: [&str; 5] = [".", "..", "lost+found", "tmp", UNFINISHED];
/// First words of the line, with the version of the store's layout.
const PREFIX: &str = "hsm-store 1 ";

/// 128 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity(u128);

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:032x}", self.0)
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let digits = line.trim_end_matches('\n').strip_prefix(PREFIX).ok_or(())?;
        let plain = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain {
            return Err(());
        }
        u128::from_str_radix(digits, 16).map(Self).map_err(drop)
    }
}

/// Where the agent remembers the store of a pool, and whether it may begin to.
#[derive(Debug, Clone)]
pub struct Remembered {
    file: PathBuf,
    learns: bool,
}

impl Remembered {
    /// For the agent: at first use it gives the store an identity and remembers it in `file`.
    pub fn in_file(file: PathBuf) -> Self {
        Self { file, learns: true }
    }

    /// For whoever only looks: nothing is written.
    pub fn read_only(file: PathBuf) -> Self {
        Self { file, learns: false }
    }

    /// Whether some store is remembered.
    pub(super) fn is_known(&self) -> Result<bool> {
        Ok(self.load()?.is_some())
    }

    /// Whether the directory is the store. At first use it becomes the store.
    pub(super) fn check(&self, root: &OwnedFd, path: &Path) -> Result<()> {
        let found = read(root, path)?;
        match (self.load()?, found) {
            (Some(known), Some(found)) if known == found => Ok(()),
            (Some(_), None) => Err(self.unavailable(format!(
                "{} has no file {FILE}: probably the store's file system is not mounted there",
                path.display()
            ))),
            (Some(known), Some(found)) => Err(self.unavailable(format!(
                "{} is another store ({found}; expected {known})",
                path.display()
            ))),
            (None, Some(found)) => self.remember(found),
            (None, None) => self.begin(root, path),
        }
    }

    /// The store is known, and this is not it: it may come back.
    pub(super) fn unavailable(&self, what: impl fmt::Display) -> StoreError {
        StoreError::unavailable(
            Subject::Store,
            format!(
                "{what}. Mount the store there, or correct `path`. (A store is moved by copying all of \
                 it, {FILE} too. If this is to be another store on purpose, recall what is offline \
                 first, then remove {})",
                self.file.display()
            ),
        )
    }

    fn begin(&self, root: &OwnedFd, path: &Path) -> Result<()> {
        if let Some(name) = first_content(root).map_err(|e| error(Subject::Store, e))? {
            return Err(StoreError::invalid(
                Subject::Store,
                format!(
                    "{} is not empty (it has {name:?}) and has no file {FILE}, so it is no store yet \
                     and cannot become one. Name an empty directory; or, if this is a store that lost \
                     that file, make it again with one line: {PREFIX}and 32 random hexadecimal digits",
                    path.display()
                ),
            ));
        }
        if !self.learns {
            return Ok(());
        }
        let identity = Identity(rand::random());
        write(root, identity).map_err(|e| error(Subject::Store, e))?;
        self.remember(identity)
    }

    fn load(&self) -> Result<Option<Identity>> {
        let line = match std::fs::read_to_string(&self.file) {
            Ok(line) => line,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.bad(e)),
        };
        line.parse().map(Some).map_err(|()| self.bad("it holds no identity of a store"))
    }

    fn remember(&self, identity: Identity) -> Result<()> {
        if !self.learns {
            return Ok(());
        }
        let remember = || -> io::Result<()> {
            let unfinished = self.file.with_extension("store.new");
            let mut file = File::create(&unfinished)?;
            writeln!(file, "{identity}")?;
            file.sync_all()?;
            std::fs::rename(&unfinished, &self.file)?;
            match self.file.parent() {
                Some(dir) => File::open(dir)?.sync_all(),
                None => Ok(()),
            }
        };
        remember().map_err(|e| self.bad(e))
    }

    fn bad(&self, why: impl fmt::Display) -> StoreError {
        let why = format!("{}: {why}", self.file.display());
        StoreError::Failed { subject: Subject::Store, source: text(why) }
    }
}

/// The identity that a directory shows, if any. One that cannot be read is an error.
fn read(root: &OwnedFd, path: &Path) -> Result<Option<Identity>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(root, FILE, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        file => File::from(file.map_err(|e| error(Subject::Store, e))?),
    };
    let mut line = String::new();
    let read = file.take(256).read_to_string(&mut line);
    let parsed = read
        .map_err(|e| e.to_string())
        .and_then(|_| line.parse().map_err(|()| "it holds no identity of a store".to_owned()));
    parsed.map(Some).map_err(|why| StoreError::Failed {
        subject: Subject::Store,
        source: text(format!("{}: {why}", path.join(FILE).display())),
    })
}

fn write(root: &OwnedFd, identity: Identity) -> Result<(), Errno> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = rustix::fs::openat(root, UNFINISHED, flags, mode)?;
    super::sink::write_all(&file, format!("{identity}\n").as_bytes())?;
    rustix::fs::fsync(&file)?;
    rustix::fs::renameat(root, UNFINISHED, root, FILE)?;
    rustix::fs::fsync(root)
}

/// A name in the directory that an empty store does not have.
fn first_content(root: &OwnedFd) -> Result<Option<String>, Errno> {
    for entry in rustix::fs::Dir::read_from(root)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !NOTHING.contains(&name.as_str()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World {
        _dir: tempfile::TempDir,
        store: PathBuf,
        remembered: Remembered,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = dir.path().join("store");
        std::fs::create_dir(&store).expect("mkdir");
        let remembered = Remembered::in_file(dir.path().join("pool.store"));
        World { _dir: dir, store, remembered }
    }

    impl World {
        fn check(&self) -> Result<()> {
            let root = File::open(&self.store).expect("open").into();
            self.remembered.check(&root, &self.store)
        }

        fn identity(&self) -> PathBuf {
            self.store.join(FILE)
        }
    }

    fn unavailable(result: &Result<()>) -> bool {
        matches!(result, Err(StoreError::Unavailable { .. }))
    }

    #[test]
    fn the_first_use_makes_an_identity_and_later_ones_want_it() {
        let w = world();
        std::fs::create_dir(w.store.join("lost+found")).expect("mkdir");
        w.check().expect("first use");
        assert!(w.remembered.is_known().expect("readable"));
        w.check().expect("second use");
        let line = std::fs::read_to_string(w.identity()).expect("read");
        std::fs::remove_file(w.identity()).expect("unmounted");
        let gone = w.check();
        assert!(unavailable(&gone), "{gone:?}");
        assert!(gone.expect_err("gone").to_string().contains("not mounted"));
        assert!(!w.identity().exists(), "nothing is made in the empty directory");
        std::fs::write(w.identity(), format!("{PREFIX}{:032x}\n", 7)).expect("write");
        let other = w.check();
        assert!(unavailable(&other), "{other:?}");
        std::fs::write(w.identity(), line).expect("mounted again");
        w.check().expect("the store is back");
    }

    #[test]
    fn a_store_with_an_identity_is_adopted_by_an_agent_that_knows_none() {
        let w = world();
        w.check().expect("first use");
        std::fs::write(w.store.join("object"), "x").expect("write");
        std::fs::remove_file(&w.remembered.file).expect("the state directory is lost");
        w.check().expect("adopted");
        std::fs::remove_file(w.identity()).expect("unmounted");
        assert!(unavailable(&w.check()), "and remembered again");
    }

    #[test]
    fn what_is_not_empty_does_not_become_a_store() {
        let w = world();
        std::fs::write(w.store.join("letter.txt"), "x").expect("write");
        let refused = w.check().expect_err("not empty").to_string();
        assert!(refused.contains("letter.txt") && refused.contains(FILE), "{refused}");
        assert!(!w.identity().exists() && !w.remembered.file.exists());
    }

    #[test]
    fn looking_writes_nothing() {
        let mut w = world();
        w.remembered = Remembered::read_only(w.remembered.file.clone());
        w.check().expect("may become a store");
        assert!(!w.identity().exists() && !w.remembered.file.exists());
    }

    #[test]
    fn nonsense_is_an_error_and_no_identity() {
        let w = world();
        for line in ["", "hsm-store 2 00000000000000000000000000000000", "hsm-store 1 +", PREFIX] {
            std::fs::write(w.identity(), line).expect("write");
            let refused = w.check();
            assert!(matches!(refused, Err(StoreError::Failed { .. })), "{line:?}: {refused:?}");
        }
        let identity = Identity(rand::random());
        assert_eq!(format!("{identity}\n").parse(), Ok(identity));
    }
}
