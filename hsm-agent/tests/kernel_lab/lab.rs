//! A file system, the pinned programs, and this process as their agent when it says so.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::{Guard, Maps, Settings, Uuid};
use hsm_agent::sys::{fsuuid, xattr};
use hsm_common::marker::MARKER_XATTR;
use hsm_lab::loopfs::IMAGE_BYTES;
use hsm_lab::{FsKind, LoopFs};

/// A case: its name, and what it does.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Lab) -> Result<()>,
}

/// Everything that a case has.
pub(crate) struct Lab {
    pub(crate) fs: LoopFs,
    pub(crate) settings: Settings,
    pub(crate) maps: Maps,
    pub(crate) uuid: Uuid,
    content: Vec<u8>,
}

impl Case {
    /// Runs it on a new file system whose files will have this content, and takes everything down.
    pub(crate) fn run_on(self, kind: FsKind, dir: &Path, content: Vec<u8>) -> Result<()> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let fs = LoopFs::create(kind, dir, &format!("lab-{number}"), IMAGE_BYTES)?;
        let base = PathBuf::from(format!("/sys/fs/bpf/hsm-test-{}-{number}", std::process::id()));
        let settings = Settings { base, ..Settings::default() };
        let maps = Guard::install(&settings)?;
        let uuid = fsuuid::of(File::open(fs.path())?)?;
        let lab = Lab { fs, settings, maps, uuid, content };
        let result = (self.run)(&lab);
        let counts = lab.maps.counters().map(|counts| {
            counts.iter().filter(|count| count.1 != 0).map(|(n, c)| format!("{n}={c} ")).collect()
        });
        let unpinned = Guard::unpin(&lab.settings.base);
        drop(fs::remove_dir(&lab.settings.base));
        let counts: String = counts.unwrap_or_default();
        result.with_context(|| format!("counters: {counts}"))?;
        unpinned?;
        Ok(())
    }
}

impl Lab {
    /// A new file with the suite's content.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.fs.path().join(name);
        fs::write(&path, &self.content)?;
        Ok(path)
    }

    /// A new file with a marker. Its data is there all the same.
    pub(crate) fn marked(&self, name: &str) -> Result<PathBuf> {
        let path = self.file(name)?;
        self.mark(&path)?;
        Ok(path)
    }

    /// Sets the marker, as the agent.
    pub(crate) fn mark(&self, path: &Path) -> Result<()> {
        self.as_agent(|| Ok(xattr::set(File::open(path)?, &marker(), b"marker")?))
    }

    /// Removes the marker, as the agent.
    pub(crate) fn unmark(&self, path: &Path) -> Result<()> {
        self.as_agent(|| {
            ensure!(xattr::remove(File::open(path)?, &marker())?, "there was no marker");
            Ok(())
        })
    }

    /// Does something while this process is exempt.
    pub(crate) fn as_agent<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        self.maps.exempt(std::process::id())?;
        let result = what();
        ensure!(self.maps.unexempt(std::process::id())?, "the exemption was lost");
        result
    }
}

/// The marker's name.
pub(crate) fn marker() -> CString {
    CString::new(MARKER_XATTR).unwrap_or_default()
}
