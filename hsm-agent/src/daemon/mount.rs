//! Is this mount point one that can be managed?

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags};

use crate::config::{Config, PoolConfig};

/// Why not.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// It cannot be opened.
    #[error("{path}: {source}")]
    Open {
        /// Mount point.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nothing is mounted there.
    #[error("{path} is not a mount point; mount the file system first, or correct `mount`")]
    NotMounted {
        /// Configured path.
        path: PathBuf,
    },
    /// Another file system.
    #[error("{path} is neither ext4 nor XFS nor btrfs (its type is {magic:#x})")]
    Type {
        /// Mount point.
        path: PathBuf,
        /// `f_type` of statfs.
        magic: i64,
    },
    /// Read-only.
    #[error("{path} is mounted read-only; recalls could not write")]
    ReadOnly {
        /// Mount point.
        path: PathBuf,
    },
    /// The kernel does not watch it.
    #[error(
        "{path} cannot be watched: {source}. fanotify pre-content events need Linux 6.14 or newer \
         and root; `hsm doctor` tells more"
    )]
    NotWatchable {
        /// Mount point.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The agent would wait for itself.
    #[error("{what} {path} is on the managed file system {mount}; move it elsewhere")]
    OwnFile {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The pool's mount point.
        mount: PathBuf,
    },
}

impl MountError {
    pub(super) fn not_watchable(path: PathBuf, source: io::Error) -> Self {
        Self::NotWatchable { path, source }
    }
}

/// `f_type` and name of the file systems whose behaviour was measured.
const KNOWN: [(i64, &str); 3] = [(0xEF53, "ext4"), (0x5846_5342, "xfs"), (0x9123_683E, "btrfs")];

/// Opens a mount point and tells the type of its file system.
pub(super) fn open(path: &Path) -> Result<(OwnedFd, &'static str), MountError> {
    let failed = |source: io::Error| MountError::Open { path: path.into(), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let stat = rustix::fs::statx(&root, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        .map_err(|e| failed(e.into()))?;
    if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        return Err(MountError::NotMounted { path: path.into() });
    }
    let magic = rustix::fs::fstatfs(&root).map_err(|e| failed(e.into()))?.f_type;
    let known = KNOWN.iter().find(|(m, _)| *m == magic);
    let Some((_, name)) = known else {
        return Err(MountError::Type { path: path.into(), magic });
    };
    let vfs = rustix::fs::fstatvfs(&root).map_err(|e| failed(e.into()))?;
    if vfs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Err(MountError::ReadOnly { path: path.into() });
    }
    Ok((root, name))
}

/// Names this mount of the file system in this boot. What the kernel told about an inode is
/// comparable only within it: after a power cut a file may have new bytes and its old times.
pub(super) fn instance(root: &OwnedFd) -> Result<Vec<u8>, MountError> {
    let failed = |source: io::Error| MountError::Open { path: "/proc".into(), source };
    let mut name = std::fs::read("/proc/sys/kernel/random/boot_id").map_err(failed)?;
    let unique = rustix::fs::statx(root, c"", AtFlags::EMPTY_PATH, MNT_ID_UNIQUE)
        .map_err(|e| failed(e.into()))?
        .stx_mnt_id;
    name.extend(unique.to_ne_bytes());
    Ok(name)
}

/// `STATX_MNT_ID_UNIQUE`: a mount number that is never used again in this boot (Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// The agent's own files must not wait for the agent.
pub(super) fn refuse_own_files(
    root: &OwnedFd,
    config: &Config,
    pool: &PoolConfig,
) -> Result<(), MountError> {
    let own = [
        ("the state directory", Some(config.agent.state_dir.as_path())),
        ("the control socket's directory", config.agent.socket.parent()),
        ("the store", pool.store.path.as_deref()),
        // To start an engine again is to open these, and nobody could answer.
        ("the configuration", Some(config.file())),
        ("the program", Some(Path::new("/proc/self/exe"))),
    ];
    for (what, path) in own {
        let Some(path) = path else { continue };
        if same_filesystem(root, path) {
            let (path, mount) = (path.into(), pool.mount.clone());
            return Err(MountError::OwnFile { what, path, mount });
        }
    }
    Ok(())
}

/// By the file system's own identity, which all subvolumes of a btrfs share only in its upper
/// half: there the device of the mount decides.
fn same_filesystem(root: &OwnedFd, path: &Path) -> bool {
    let device = |fd: &dyn AsFd| {
        let x = rustix::fs::statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
        x.ok().map(|x| (x.stx_dev_major, x.stx_dev_minor))
    };
    let Ok(other) = std::fs::File::open(path) else { return false };
    let ours = device(root);
    ours.is_some() && ours == device(&other)
}
