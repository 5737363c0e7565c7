//! A file system, the pinned guard, and accesses by others than the agent.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hsm_agent::bpf::{Guard, Maps, Settings, Uuid};
use hsm_agent::sys::{fsuuid, xattr};
use hsm_common::marker::MARKER_XATTR;
use hsm_lab::loopfs::IMAGE_BYTES;
use hsm_lab::run::Run;
use hsm_lab::{FsKind, LoopFs};

/// `EIO` of `<errno.h>`.
pub(crate) const EIO: i32 = 5;
/// `EAGAIN`.
pub(crate) const EAGAIN: i32 = 11;
/// Bytes of every file.
pub(crate) const SIZE: u64 = 8 << 20;

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
}

/// Runs a case on a new file system, and takes everything down.
pub(crate) fn run(case: Case, kind: FsKind, dir: &Path) -> Result<()> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let fs = LoopFs::create(kind, dir, &format!("filter-{number}"), IMAGE_BYTES)?;
    let base = PathBuf::from(format!("/sys/fs/bpf/hsm-test-{}-{number}", std::process::id()));
    let settings = Settings { base, ..Settings::default() };
    let maps = Guard::install(&settings)?;
    let uuid = fsuuid::of(File::open(fs.path())?)?;
    let lab = Lab { fs, settings, maps, uuid };
    let result = (case.run)(&lab);
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

impl Lab {
    /// A new file of [`SIZE`] bytes, none of which is zero.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.fs.path().join(name);
        fs::write(&path, vec![b'x'; usize::try_from(SIZE)?])?;
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

/// Runs a Python statement on the file `p` in a process of its own; its error number, 0 when there was
/// none.
pub(crate) fn errno(statement: &str, path: &Path) -> Result<i32> {
    let program = format!(
        "import os, sys, mmap, fcntl\np = sys.argv[1]\ntry:\n    {statement}\nexcept OSError as e:\n    \
         print(e.errno)\nelse:\n    print(0)\n"
    );
    let output = Run::new("/usr/bin/python3").args(["-c", &program]).args([path]).output()?;
    output.text().trim().parse().with_context(|| output.describe())
}

/// An access must fail with this error, or succeed (0).
pub(crate) fn assert_errno(statement: &str, path: &Path, wanted: i32) -> Result<()> {
    let got = errno(statement, path)?;
    ensure!(got == wanted, "{statement}: error {got}, not {wanted}");
    Ok(())
}

/// Waits for what others do.
pub(crate) fn wait_for(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !done()? {
        ensure!(Instant::now() < end, "waited for 20 s");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
