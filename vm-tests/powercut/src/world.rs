//! Three disks with a file system each, and an agent on them.
//!
//! ```text
//! DIR/managed   the file system under test
//! DIR/state     the agent's catalogue    (ext4)
//! DIR/cold      the store                (ext4)
//! ```
//! Each has its own cache and is cut with the others: what one has flushed another may still have to lose.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hsm_lab::{Agent, FsKind, Hsm, LoopFs, PoolConfig};

use crate::log::Disk;

/// The disks' names, which are those of their images and mount points.
pub(crate) const NAMES: [&str; 3] = ["managed", "state", "cold"];
/// The disk of the managed file system.
pub(crate) const MANAGED: Disk = 0;
/// The disk of the catalogue.
pub(crate) const STATE: Disk = 1;
/// The disk of the store.
pub(crate) const COLD: Disk = 2;

/// XFS wants 300 MiB at least; the images are sparse.
const BYTES: [u64; 3] = [512 << 20, 64 << 20, 512 << 20];

/// How long an agent may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What kind each disk's file system is.
fn kinds(managed: FsKind) -> [FsKind; 3] {
    [managed, FsKind::Ext4, FsKind::Ext4]
}

/// Makes an image with an empty file system for each disk.
pub(crate) fn make(managed: FsKind, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for ((kind, name), bytes) in kinds(managed).into_iter().zip(NAMES).zip(BYTES) {
        kind.make(&dir.join(name), bytes)?;
    }
    Ok(())
}

/// The mounted file systems and the agent. Fields are dropped in this order.
pub(crate) struct World {
    pub(crate) agent: Option<Agent>,
    pub(crate) hsm: Hsm,
    mounts: Vec<LoopFs>,
    exe: PathBuf,
    dir: PathBuf,
}

impl World {
    /// Mounts the disks that are files of `images`. No agent runs yet.
    pub(crate) fn mount(kind: FsKind, dir: &Path, images: &Path, exe: &Path) -> Result<Self> {
        let mount = |(kind, name): (FsKind, &str)| {
            let mount = dir.join(name);
            fs::create_dir_all(&mount)?;
            LoopFs::of_image(kind, &images.join(name), &mount)
                .with_context(|| format!("{kind} on disk {name} cannot be mounted"))
        };
        let mounts = kinds(kind).into_iter().zip(NAMES).map(mount).collect::<Result<_>>()?;
        let hsm = Hsm::new(exe, &configuration(dir).file());
        let (exe, dir) = (exe.to_path_buf(), dir.to_path_buf());
        Ok(Self { agent: None, hsm, mounts, exe, dir })
    }

    /// Starts an agent with a log of its own.
    pub(crate) fn start(&mut self) -> Result<()> {
        configuration(&self.dir).write()?;
        match fs::remove_file(self.dir.join("agent.log")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.agent = Some(Agent::start(&self.exe, &self.dir)?);
        Ok(())
    }

    /// Everything on all of the disks.
    pub(crate) fn sync(&self) -> Result<()> {
        self.mounts.iter().try_for_each(|fs| Ok(rustix::fs::syncfs(fs::File::open(fs.path())?)?))
    }

    /// The managed file system's mount point.
    pub(crate) fn managed(&self) -> PathBuf {
        self.dir.join(NAMES[MANAGED])
    }

    /// The catalogue's directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.join(NAMES[STATE])
    }

    /// The store's objects.
    pub(crate) fn objects(&self) -> PathBuf {
        configuration(&self.dir).store
    }

    /// Stops the agent and unmounts everything.
    pub(crate) fn close(mut self) -> Result<()> {
        let stopped =
            self.agent.take().map_or(Ok(()), |mut agent| agent.stop(STOP_LIMIT).map(drop));
        let unmounted = self.mounts.iter_mut().map(LoopFs::unmount).collect::<Vec<_>>();
        unmounted.into_iter().fold(stopped, Result::and).and(configuration(&self.dir).unpin())
    }

    /// The end of the agent's log.
    pub(crate) fn log_tail(&self) -> String {
        self.agent.as_ref().map(Agent::log_tail).unwrap_or_default()
    }
}

/// Ranges of all but small files, so that there are partial files, too.
fn configuration(dir: &Path) -> PoolConfig {
    let mut config = PoolConfig::new(dir, &dir.join(NAMES[MANAGED]));
    config.store = dir.join("cold/objects");
    let lines = ["recall = \"range\"", "range_programs = [\"*\"]", "range_min_size = \"1MiB\""];
    config.pool.extend(lines.map(str::to_owned));
    config
}
