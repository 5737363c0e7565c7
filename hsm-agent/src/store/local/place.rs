//! The store's directory, which may not be there yet.
//!
//! An agent whose store is not mounted must run all the same: only a running agent keeps readers of
//! offline files from seeing zeros. So a directory that is remembered as the store is opened when it
//! is there, at the first operation that finds it; until then each operation says "not available".

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::dir::Dir;
use super::errno::error;
use super::identity::Remembered;
use crate::store::{Result, Subject};

/// A path, and the directory there once it was seen.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// `None`: whatever is there is the store.
    remembered: Option<Remembered>,
    dir: OnceLock<Arc<Dir>>,
    /// Whether it was looked for in vain; locked while it is opened.
    missed: Mutex<bool>,
}

impl Place {
    /// An error unless the directory is there, or is known to be the store at other times.
    pub(super) fn open(path: &Path, remembered: Option<Remembered>) -> Result<Self> {
        let known = match &remembered {
            Some(remembered) => remembered.is_known()?,
            None => false,
        };
        let place = Self {
            path: path.to_owned(),
            remembered,
            dir: OnceLock::new(),
            missed: Mutex::default(),
        };
        match place.dir() {
            Err(error) if known => {
                tracing::error!(%error, "nothing can be archived or recalled until the store is there");
            }
            opened => drop(opened?),
        }
        Ok(place)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory. It stays the same from the first success on.
    pub(super) fn dir(&self) -> Result<&Arc<Dir>> {
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = self.dir.get() {
            return Ok(dir);
        }
        let opened = self.root().and_then(Dir::open);
        if std::mem::replace(&mut *missed, opened.is_err()) && opened.is_ok() {
            tracing::info!(path = %self.path.display(), "the store is there again");
        }
        let dir = Arc::new(opened?);
        Ok(self.dir.get_or_init(|| dir))
    }

    fn root(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.path, flags, Mode::empty());
        let Some(remembered) = &self.remembered else {
            return root.map_err(|e| error(Subject::Store, e));
        };
        match root {
            Ok(root) => remembered.check(&root, &self.path).map(|()| root),
            // Not an object that is missing: the whole store is.
            Err(e @ (Errno::NOENT | Errno::NOTDIR)) if remembered.is_known()? => Err(remembered
                .unavailable(format_args!("{}: {}", self.path.display(), std::io::Error::from(e)))),
            Err(e) => Err(error(Subject::Store, e)),
        }
    }
}
