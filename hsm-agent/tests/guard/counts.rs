//! What only this suite asks of its lab: coverage, counters, a server.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use hsm_agent::bpf::Mode;
use hsm_common::filter::Counter;
use hsm_lab::run::{Run, Running};

use crate::kernel_lab::{Lab, wait_for};

impl Lab {
    /// Covers the file system.
    pub(crate) fn cover(&self, mode: Mode) -> Result<()> {
        Ok(self.maps.cover(self.uuid, mode)?)
    }

    /// A path on the file system.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
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
        wait_for(|| {
            ensure!(server.is_running()?, "the server did not start");
            Ok(self.maps.server()?.is_some())
        })?;
        Ok(server)
    }
}

/// Fails with the counters in view.
pub(crate) fn assert_count(lab: &Lab, counter: Counter, wanted: u64) -> Result<()> {
    let got = lab.count(counter)?;
    if got != wanted {
        bail!("{}: {got}, not {wanted}", counter.name());
    }
    Ok(())
}
