//! The listening socket's file: made, replaced when it is a dead agent's, removed at the end.
//!
//! A lock file beside it decides who may touch it. Without it, two agents that start together
//! could each find the other's socket not yet listening and throw it away.
//!
//! Invariant: a socket that somebody listens on is never unlinked.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody serves it.
    #[error("an agent is running already (pid {pid}, socket {})", socket.display())]
    AlreadyRunning {
        /// The socket.
        socket: PathBuf,
        /// Its process, or `unknown`.
        pid: String,
    },
    /// The directory would let others replace the socket.
    #[error("{}: {problem}; the control socket needs a directory that only root can write", dir.display())]
    UnsafeDirectory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// There is something at the path, and it is no socket.
    #[error("{} exists and is not a socket; remove it or set [agent] socket", .0.display())]
    NotASocket(PathBuf),
    /// A system call failed.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound, listening control socket. Dropping it removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    /// Held until after the file is removed.
    _lock: File,
}

impl ControlSocket {
    /// Binds `path` with mode 0666, in a directory that is made if it does not exist.
    ///
    /// Must run inside a Tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        prepare_directory(dir)?;
        let lock = take_lock(path)?;
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(io_error("bind", path))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o666))
            .map_err(io_error("set its mode", path))?;
        let meta = std::fs::symlink_metadata(path).map_err(io_error("stat", path))?;
        let inode = (meta.dev(), meta.ino());
        Ok(Self { listener, path: path.to_owned(), inode, _lock: lock })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode);
        if ours {
            // What stays behind is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    let path = path.to_owned();
    move |source| BindError::Io { action, path, source }
}

fn prepare_directory(dir: &Path) -> Result<(), BindError> {
    std::fs::create_dir_all(dir).map_err(io_error("make the directory", dir))?;
    let meta = std::fs::metadata(dir).map_err(io_error("stat", dir))?;
    let own = rustix::process::geteuid().as_raw();
    let problem = if meta.uid() != 0 && meta.uid() != own {
        "belongs to another user"
    } else if meta.mode() & 0o022 != 0 {
        "others can write it"
    } else {
        return Ok(());
    };
    Err(BindError::UnsafeDirectory { dir: dir.to_owned(), problem })
}

fn take_lock(path: &Path) -> Result<File, BindError> {
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_error("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(already_running(path)),
        Err(std::fs::TryLockError::Error(error)) => Err(io_error("lock", &lock_path)(error)),
    }
}

fn already_running(path: &Path) -> BindError {
    let pid = listener_pid(path).ok().flatten();
    let pid = pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    BindError::AlreadyRunning { socket: path.to_owned(), pid }
}

/// Process that listens on `path`: the credentials that the kernel noted at its `listen`.
fn listener_pid(path: &Path) -> io::Result<Option<i32>> {
    let stream = std::os::unix::net::UnixStream::connect(path)?;
    let cred = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(Some(cred.pid.as_raw_nonzero().get()))
}

/// Removes the socket of an agent that is gone.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("stat", path)(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(BindError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match listener_pid(path) {
        // Only the one expected refusal says "nobody listens".
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io_error("remove the stale socket", path))
        }
        Err(error) => Err(io_error("ask whether somebody listens", path)(error)),
        Ok(_) => Err(already_running(path)),
    }
}
