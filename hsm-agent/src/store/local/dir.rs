//! The blocking half of the local store: files, names and descriptors.
//!
//! Every path is one component relative to a descriptor, opened with `openat2` that follows no
//! symbolic link and stays beneath its directory: whoever plants links in the store gets an error.
//! The descriptors of the fan-out directories are kept (at most 256).

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::barrier::Barrier;
use super::errno::error;
use super::sink::write_all;
use crate::store::error::{Subject, check_range, text};
use crate::store::{ObjectKey, ObjectStat, Result, StoreError, Tail};

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIR_MODE: Mode = Mode::RWXU;
const TEMP_DIR: &str = "tmp";
/// Larger objects take long enough to write for the chance of a kill in the middle to count, and
/// long enough for a rename not to.
const IN_PLACE_MAX: usize = 256 << 10;
/// Nobody writes one object for longer; what is older was left by a crash.
const TEMP_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// An open store directory.
#[derive(Debug)]
pub(super) struct Dir {
    root: OwnedFd,
    temp: OwnedFd,
    shards: [OnceLock<OwnedFd>; 256],
    barrier: Barrier,
    /// Held while a name passes from one file to another.
    publish: Mutex<()>,
    /// Makes temporary names unique, with a random part against other processes.
    next_temp: AtomicU64,
    nonce: u64,
}

fn open_beneath(dir: &OwnedFd, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mode = if flags.contains(OFlags::CREATE) { FILE_MODE } else { Mode::empty() };
    rustix::io::retry_on_intr(|| {
        rustix::fs::openat2(dir, name, flags | OFlags::CLOEXEC, mode, resolve)
    })
}

fn open_or_make_dir(root: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match open_beneath(root, name, OFlags::RDONLY | DIR_FLAGS) {
        Err(Errno::NOENT) => {}
        opened => return opened,
    }
    match rustix::fs::mkdirat(root, name, DIR_MODE) {
        Ok(()) | Err(Errno::EXIST) => open_beneath(root, name, OFlags::RDONLY | DIR_FLAGS),
        Err(e) => Err(e),
    }
}

fn modified(stat: &Stat) -> SystemTime {
    let nanos = Duration::from_nanos(stat.st_mtime_nsec);
    match u64::try_from(stat.st_mtime) {
        Ok(s) => SystemTime::UNIX_EPOCH + Duration::from_secs(s) + nanos,
        Err(_) => SystemTime::UNIX_EPOCH,
    }
}

/// Reads exactly `range` of `file`. The buffer is no larger than the caller proved the file to be.
fn read_exact(key: &ObjectKey, file: &OwnedFd, range: Range<u64>) -> Result<Bytes> {
    let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
    while (bytes.len() as u64) < range.end - range.start {
        let at = range.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(StoreError::short(key, range.end, at)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(error(key, e)),
        }
    }
    bytes.truncate((range.end - range.start) as usize);
    Ok(bytes.into())
}

impl Dir {
    pub(super) fn open(root: OwnedFd) -> Result<Self> {
        let fail = |e| error(Subject::Store, e);
        let barrier = Barrier::new(rustix::io::fcntl_dupfd_cloexec(&root, 0).map_err(fail)?);
        let temp = open_or_make_dir(&root, TEMP_DIR).map_err(fail)?;
        let shards = std::array::from_fn(|_| OnceLock::new());
        let next_temp = AtomicU64::new(0);
        let (publish, nonce) = (Mutex::default(), rand::random());
        let dir = Self { root, temp, shards, barrier, publish, next_temp, nonce };
        dir.sweep_temp(SystemTime::now());
        Ok(dir)
    }

    /// Removes what crashes left behind. Best effort: leftovers cost room and nothing else.
    fn sweep_temp(&self, now: SystemTime) {
        let Ok(entries) = rustix::fs::Dir::read_from(&self.temp) else { return };
        for entry in entries.filter_map(std::result::Result::ok) {
            let name = entry.file_name();
            let Ok(stat) = rustix::fs::statat(&self.temp, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let age = now.duration_since(modified(&stat)).unwrap_or_default();
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            if is_file && age > TEMP_LIFE {
                // Gone already, or not removable: either way the next open tries again.
                let _ = rustix::fs::unlinkat(&self.temp, name, AtFlags::empty());
            }
        }
    }

    /// The fan-out directory of `key`, if it exists.
    fn shard(&self, shard: u8) -> Result<&OwnedFd, Errno> {
        let slot = &self.shards[usize::from(shard)];
        if let Some(fd) = slot.get() {
            return Ok(fd);
        }
        let flags = OFlags::RDONLY | DIR_FLAGS;
        let fd = open_beneath(&self.root, &ObjectKey::shard_name(shard), flags)?;
        Ok(slot.get_or_init(|| fd))
    }

    fn shard_for_write(&self, shard: u8) -> Result<&OwnedFd, Errno> {
        let slot = &self.shards[usize::from(shard)];
        if let Some(fd) = slot.get() {
            return Ok(fd);
        }
        let fd = open_or_make_dir(&self.root, &ObjectKey::shard_name(shard))?;
        Ok(slot.get_or_init(|| fd))
    }

    pub(super) fn create_temp(&self, key: &ObjectKey) -> Result<(String, OwnedFd)> {
        let n = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:016x}-{n:x}", self.nonce);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = open_beneath(&self.temp, &name, flags).map_err(|e| gone(key, e))?;
        Ok((name, file))
    }

    pub(super) fn remove_temp(&self, name: &str) {
        // Left behind on failure, and swept when it is a day old.
        let _ = rustix::fs::unlinkat(&self.temp, name, AtFlags::empty());
    }

    /// Gives a temporary file its name: the moment at which the object becomes visible.
    pub(super) fn publish(&self, key: &ObjectKey, temp: &str) -> Result<()> {
        let shard = self.shard_for_write(key.shard()).map_err(|e| error(key, e))?;
        let _publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::renameat(&self.temp, temp, shard, key.file_name()).map_err(|e| gone(key, e))
    }

    /// Stores a small object under its own name at once, which saves a quarter of the time, and
    /// everything else by way of `tmp/`. See the module head of `local` for why that is enough.
    pub(super) fn put(&self, key: &ObjectKey, body: &[u8]) -> Result<()> {
        if body.len() > IN_PLACE_MAX {
            return self.put_by_rename(key, body);
        }
        let shard = self.shard_for_write(key.shard()).map_err(|e| error(key, e))?;
        let (name, flags) = (key.file_name(), OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL);
        let file = match open_beneath(shard, &name, flags) {
            // Stored before, or torn by a crash: replaced as a whole.
            Err(Errno::EXIST) => return self.put_by_rename(key, body),
            file => file.map_err(|e| gone(key, e))?,
        };
        write_all(&file, body).map_err(|e| {
            self.remove_failed(shard, &name, &file);
            error(key, e)
        })
    }

    /// Takes back an object whose write failed, unless its name belongs to another file by now:
    /// a caller that lost patience with a hanging put may have stored the object again. Best
    /// effort: what stays is torn, unknown to everybody, and says so itself.
    pub(super) fn remove_failed(&self, shard: &OwnedFd, name: &str, file: &OwnedFd) {
        let _publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        if rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink > 0) {
            let _ = rustix::fs::unlinkat(shard, name, AtFlags::empty());
        }
    }

    fn put_by_rename(&self, key: &ObjectKey, body: &[u8]) -> Result<()> {
        let (temp, file) = self.create_temp(key)?;
        let stored = write_all(&file, body).map_err(|e| error(key, e));
        drop(file);
        let stored = stored.and_then(|()| self.publish(key, &temp));
        if stored.is_err() {
            self.remove_temp(&temp);
        }
        stored
    }

    /// Opens an object and tells its size.
    fn open_object(&self, key: &ObjectKey) -> Result<(OwnedFd, u64)> {
        let open = || {
            let file = open_beneath(self.shard(key.shard())?, &key.file_name(), OFlags::RDONLY)?;
            rustix::fs::fstat(&file).map(|stat| (file, stat))
        };
        let (file, stat) = open().map_err(|e| error(key, e))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((file, stat.st_size.max(0) as u64)),
            _ => Err(StoreError::corrupt(key, "its name belongs to something that is no file")),
        }
    }

    pub(super) fn get_range(&self, key: &ObjectKey, range: Range<u64>) -> Result<Bytes> {
        check_range(key, &range)?;
        let (file, size) = self.open_object(key)?;
        if range.end > size {
            return Err(StoreError::short(key, range.end, size));
        }
        read_exact(key, &file, range)
    }

    pub(super) fn get_tail(&self, key: &ObjectKey, n: u64) -> Result<Tail> {
        let (file, object_size) = self.open_object(key)?;
        let bytes = read_exact(key, &file, object_size.saturating_sub(n)..object_size)?;
        Ok(Tail { bytes, object_size })
    }

    pub(super) fn head(&self, key: &ObjectKey) -> Result<ObjectStat> {
        let stat = || {
            let shard = self.shard(key.shard())?;
            rustix::fs::statat(shard, key.file_name(), AtFlags::SYMLINK_NOFOLLOW)
        };
        let stat = stat().map_err(|e| error(key, e))?;
        Ok(ObjectStat { key: *key, size: stat.st_size.max(0) as u64, modified: modified(&stat) })
    }

    pub(super) fn delete(&self, key: &ObjectKey) -> Result<()> {
        let unlink = || {
            let shard = self.shard(key.shard())?;
            rustix::fs::unlinkat(shard, key.file_name(), AtFlags::empty())
        };
        match unlink() {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(error(key, e)),
        }
    }

    /// Gives every object to `each` until that says `false`.
    pub(super) fn list(&self, each: &mut dyn FnMut(Result<ObjectStat>) -> bool) {
        for shard in 0..=u8::MAX {
            let go_on = match self.list_shard(shard, each) {
                Ok(go_on) => go_on,
                Err(e) => each(Err(e)),
            };
            if !go_on {
                return;
            }
        }
    }

    fn list_shard(
        &self,
        shard: u8,
        each: &mut dyn FnMut(Result<ObjectStat>) -> bool,
    ) -> Result<bool> {
        let fail = |e| error(Subject::Store, e);
        let fd = match self.shard(shard) {
            Err(Errno::NOENT) => return Ok(true),
            fd => fd.map_err(fail)?,
        };
        for entry in rustix::fs::Dir::read_from(fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(key) = ObjectKey::from_names(&ObjectKey::shard_name(shard), name) else {
                continue;
            };
            let item = match self.head(&key) {
                Err(StoreError::NotFound { .. }) => continue, // deleted since it was read
                item => item,
            };
            if !each(item) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.barrier.wait().map_err(|e| StoreError::Failed {
            subject: Subject::Store,
            source: text(format!(
                "writing its objects to the device failed, and those written since the last \
                 success must be written again after a restart: {e}"
            )),
        })
    }

    /// Writes, reads and removes a temporary file.
    pub(super) fn check(&self) -> Result<()> {
        let fail = |e| error(Subject::Store, e);
        let name = format!("{:016x}-check", self.nonce);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        let file = open_beneath(&self.temp, &name, flags).map_err(fail)?;
        let probe = write_all(&file, b"hsm").and_then(|()| {
            let mut back = [0u8; 3];
            rustix::io::pread(&file, &mut back, 0).map(|n| n == 3 && &back == b"hsm")
        });
        self.remove_temp(&name);
        match probe {
            Ok(true) => Ok(()),
            Ok(false) => Err(fail(Errno::IO)),
            Err(e) => Err(fail(e)),
        }
    }
}

/// An error of a write path. Nothing is looked up there, so "no such file" means that the store's
/// own directories were taken away, and must not pass for a missing object.
fn gone(key: &ObjectKey, e: Errno) -> StoreError {
    match e {
        Errno::NOENT => StoreError::Failed {
            subject: key.into(),
            source: text("a directory of the store was removed or renamed while in use"),
        },
        e => error(key, e),
    }
}
