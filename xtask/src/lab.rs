//! What demo and bench share: a release build, a managed file system, an agent, cold caches.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hsm_lab::sandbox::{self, Role};
use hsm_lab::{Agent, FsKind, Hsm, LoopFs, PoolConfig, Run};

use crate::process::{cargo, must, target_dir};
use crate::setup;
use crate::steps::step;

/// Big trees on slow disks take long; nothing takes this long.
pub(crate) const LIMIT: Duration = Duration::from_secs(1200);

/// Sets up and builds outside, then goes inside the sandbox.
pub(crate) fn enter(command: &str) -> Result<Role> {
    if !sandbox::is_inside() {
        sandbox::require_root(&format!("-E env \"PATH=$PATH\" {command}"))?;
        setup::packages()?;
        build_release()?;
    }
    sandbox::enter()
}

/// Builds what [`exe`] names.
pub(crate) fn build_release() -> Result<()> {
    step("building hsm (release)", || {
        must(cargo().args(["build", "--release", "--package", "hsm-agent", "--bin", "hsm"]))
    })
}

/// The release build.
pub(crate) fn exe() -> Result<PathBuf> {
    let exe = target_dir()?.join("release/hsm");
    ensure!(exe.is_file(), "{} was not built", exe.display());
    Ok(exe)
}

/// A managed file system with a running agent. Fields are dropped in this order: the agent lets go
/// of the file system before it is unmounted.
pub(crate) struct Lab {
    /// The running agent.
    pub(crate) agent: Agent,
    /// The command line.
    pub(crate) hsm: Hsm,
    config: PoolConfig,
    fs: LoopFs,
    dir: PathBuf,
}

impl Lab {
    /// Makes the file system, the store and the agent below `dir`.
    pub(crate) fn new(kind: FsKind, dir: &Path, image_bytes: u64, exe: &Path) -> Result<Self> {
        Self::with_config(kind, dir, image_bytes, exe, |_| {})
    }

    /// As [`new`](Self::new), in this tier.
    pub(crate) fn with_tier(
        kind: FsKind,
        dir: &Path,
        image_bytes: u64,
        exe: &Path,
        tier: &str,
    ) -> Result<Self> {
        Self::with_config(kind, dir, image_bytes, exe, |config| config.tier = Some(tier.into()))
    }

    /// As [`new`](Self::new), with a configuration that was changed before the agent starts.
    pub(crate) fn with_config(
        kind: FsKind,
        dir: &Path,
        image_bytes: u64,
        exe: &Path,
        configure: impl FnOnce(&mut PoolConfig),
    ) -> Result<Self> {
        let fs = LoopFs::create(kind, dir, "managed", image_bytes)?;
        let mut config = PoolConfig::new(dir, fs.path());
        configure(&mut config);
        let hsm = Hsm::new(exe, &config.write()?);
        let agent = Agent::start(exe, dir)?;
        Ok(Self { agent, hsm, config, fs, dir: dir.to_path_buf() })
    }

    /// A path on the managed file system.
    pub(crate) fn managed(&self, name: &str) -> PathBuf {
        self.fs.path().join(name)
    }

    /// A path on the host's file system, where the store is too.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A verb over a file or a tree; every file must come out well. As a user runs it, without a
    /// line per file.
    pub(crate) fn verb(&self, verb: &str, path: &Path) -> Result<Duration> {
        let args = [verb.as_ref(), "-r".as_ref(), path.as_os_str()];
        timed(self.hsm.command(args))
    }

    /// Kills both of the agent's processes.
    pub(crate) fn kill_agent(&mut self) -> Result<()> {
        self.agent.killer().kill();
        self.agent.kill_holder()
    }

    /// Stops the agent and takes the file system down; what fails here fails the run.
    pub(crate) fn close(mut self) -> Result<()> {
        let stopped = self.agent.stop(Duration::from_secs(30)).map(drop);
        let unmounted = self.fs.unmount();
        stopped.and(unmounted).and(self.config.unpin())
    }
}

/// Writes everything back and empties the page, dentry and inode caches.
pub(crate) fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    Ok(())
}

/// Runs a program to the end and tells how long it took.
pub(crate) fn timed(run: Run) -> Result<Duration> {
    Ok(run.limit(LIMIT).ok()?.elapsed)
}

/// How long reading a whole file takes: open, read, close.
pub(crate) fn read_latency(path: &Path) -> Result<(Vec<u8>, Duration)> {
    let begin = Instant::now();
    let bytes = fs::read(path)?;
    Ok((bytes, begin.elapsed()))
}
