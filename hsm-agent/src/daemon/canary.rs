//! Proof that the watch works, before the agent says that it does.
//!
//! A kernel program that was attached may still see nothing: another marker's name, another file
//! system, a kernel that was patched otherwise. So a file without a name gets a marker, a process that
//! is nobody special opens and reads it, and must get exactly the error that only this engine's answer
//! to its event can give. Anything else, above all a read that goes through, keeps the pool from
//! being served.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hsm_common::chunk::chunk_shift_for;
use rustix::fs::{Mode, OFlags};

use super::pool::Pool;
use crate::core::{FileKey, ObjectId};
use crate::marker::{InodeFd, Marker, MarkerFlags, MarkerState, Owner};
use crate::sys::{handle, inode};

/// What the engine denies the canary with: nothing else answers so.
pub(super) const ERRNO: i32 = libc::ETXTBSY;
/// How long the process that reads may take, on a machine that is starting up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Exit code of the process whose read went through.
const WENT_THROUGH: i32 = 0;
/// Size of the canary, in bytes.
const SIZE: u64 = 4096;

/// The canary of a pool, while there is one.
#[derive(Debug, Default)]
pub struct Canary(Mutex<Option<FileKey>>);

impl Canary {
    fn key(&self) -> MutexGuard<'_, Option<FileKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this file is it.
    pub(super) fn is(&self, key: &FileKey) -> bool {
        self.key().as_ref() == Some(key)
    }
}

/// Proves the watch of a pool whose events are being taken. An error says what was found instead.
pub(super) fn prove(pool: &Arc<Pool>) -> io::Result<()> {
    let file = marked(pool)?;
    *pool.canary.key() = Some(handle::of_fd(&file)?);
    let seen = read_elsewhere(&file);
    *pool.canary.key() = None;
    match seen? {
        Some(ERRNO) => Ok(()),
        Some(WENT_THROUGH) => Err(io::Error::other(
            "a marked file could be read and nobody was asked: the filter is attached but not active",
        )),
        Some(errno) => Err(io::Error::other(format!(
            "reading a marked file failed in the kernel, nobody was asked: {}",
            io::Error::from_raw_os_error(errno)
        ))),
        None => Err(io::Error::other("reading a marked file was killed by a signal")),
    }
}

/// A file without a name that carries a marker, and whose data is all hole.
fn marked(pool: &Pool) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&pool.root, c".", flags, Mode::RUSR | Mode::WUSR)?;
    let file = File::from(file);
    file.set_len(SIZE)?;
    let marker = Marker {
        object: ObjectId::random(),
        size: SIZE,
        epoch: rand::random(),
        owner: Owner::of(inode::stat(&file)?.ino, inode::generation(&file)?),
        chunk_shift: chunk_shift_for(SIZE),
        state: MarkerState::Lost,
        flags: MarkerFlags::empty(),
    };
    let set = pool.attributes.set_marker(InodeFd::Open(file.as_fd()), &marker);
    set.map_err(io::Error::other)?;
    Ok(file)
}

/// Has another process open the file anew and read it. Returns its exit code.
fn read_elsewhere(file: &File) -> io::Result<Option<i32>> {
    let mut child = Command::new("/proc/self/exe")
        .arg(COMMAND)
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::Error::other(
                "reading a marked file was asked about and never answered",
            ));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The hidden command that reads its standard input's file through a descriptor of its own.
pub const COMMAND: &str = "canary";

/// Carries out [`COMMAND`]. The exit code is the error number, or 0.
pub fn read_stdin_anew() -> ExitCode {
    let read = || -> io::Result<()> {
        use std::io::Read;
        File::open("/proc/self/fd/0")?.read_exact(&mut [0])
    };
    let code = match read() {
        Ok(()) => WENT_THROUGH,
        Err(error) => error.raw_os_error().unwrap_or(libc::EPROTO),
    };
    // Error numbers that an open or a read can end with fit.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
