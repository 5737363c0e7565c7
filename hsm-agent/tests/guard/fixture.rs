//! A file system, the pinned programs, and this process as their agent when it says so.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hsm_agent::bpf::{Guard, Maps, Mode, Settings, Uuid};
use hsm_agent::sys::{fsuuid, xattr};
use hsm_common::filter::Counter;
use hsm_common::marker::MARKER_XATTR;
use hsm_lab::loopfs::IMAGE_BYTES;
use hsm_lab::run::{Output, Run, Running};
use hsm_lab::{FsKind, LoopFs};

/// `EAGAIN` of `<errno.h>`.
pub(crate) const EAGAIN: i32 = 11;
/// `EPERM`.
pub(crate) const EPERM: i32 = 1;

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
    let fs = LoopFs::create(kind, dir, &format!("guard-{number}"), IMAGE_BYTES)?;
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
    /// Covers the file system.
    pub(crate) fn cover(&self, mode: Mode) -> Result<()> {
        Ok(self.maps.cover(self.uuid, mode)?)
    }

    /// A path on the file system.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
    }

    /// A new file with some bytes.
    pub(crate) fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, b"#!/bin/sh\nexit 0\n")?;
        Ok(path)
    }

    /// A new file with a marker.
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

    /// One counter.
    pub(crate) fn count(&self, counter: Counter) -> Result<u64> {
        Ok(self.maps.counters()?.get(counter))
    }

    /// This program as the server of requests, in a process of its own; exempt, and serving.
    pub(crate) fn serve(&self, how: &str, path: &Path) -> Result<Running> {
        let program = std::env::current_exe()?;
        let mut server = Run::new(program)
            .args(["--helper", how])
            .args([self.settings.base.as_path(), path])
            .start()?;
        let end = Instant::now() + Duration::from_secs(20);
        while self.maps.server()?.is_none() {
            ensure!(server.is_running()? && Instant::now() < end, "the server did not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

/// The marker's name.
pub(crate) fn marker() -> std::ffi::CString {
    std::ffi::CString::new(MARKER_XATTR).unwrap_or_default()
}

/// A Python program; its output.
pub(crate) fn python(program: &str, path: &Path) -> Result<Output> {
    Run::new("/usr/bin/python3").args(["-c", program]).args([path]).output()
}

/// Runs a Python expression on the file `p`; its error number, 0 when there was none.
pub(crate) fn errno(expression: &str, path: &Path) -> Result<i32> {
    let program = format!(
        "import os, sys, subprocess\np = sys.argv[1]\ntry:\n    {expression}\nexcept OSError as e:\n    \
         print(e.errno)\nelse:\n    print(0)\n"
    );
    let output = python(&program, path)?;
    output.text().trim().parse().with_context(|| output.describe())
}

/// An access must fail with this error.
pub(crate) fn assert_errno(expression: &str, path: &Path, wanted: i32) -> Result<()> {
    let got = errno(expression, path)?;
    ensure!(got == wanted, "{expression}: error {got}, not {wanted}");
    Ok(())
}

/// Fails with the counters in view.
pub(crate) fn assert_count(lab: &Lab, counter: Counter, wanted: u64) -> Result<()> {
    let got = lab.count(counter)?;
    if got != wanted {
        bail!("{}: {got}, not {wanted}", counter.name());
    }
    Ok(())
}
