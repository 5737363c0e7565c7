//! What the kernel says of an inode: size, times, generation; and putting times back.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, Timespec, Timestamps};
use rustix::ioctl;

use crate::core::DataVersion;

const NS: i64 = 1_000_000_000;

/// One look at an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// File type and permission bits (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Inode number.
    pub ino: u64,
    /// Device number as statx tells it (btrfs: one per subvolume).
    pub dev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Bytes allocated on disk.
    pub allocated: u64,
    /// Access time, nanoseconds since the epoch.
    pub atime_ns: i64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i64,
}

impl Stat {
    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// The data version, given the inode's generation.
    pub fn version(&self, generation: u64) -> DataVersion {
        DataVersion {
            generation,
            size: self.size,
            mtime_ns: self.mtime_ns,
            ctime_ns: self.ctime_ns,
        }
    }
}

/// `statx(2)` of the descriptor itself (any kind, `O_PATH` too).
pub fn stat(fd: impl AsFd) -> io::Result<Stat> {
    stat_with(fd, AtFlags::empty())
}

/// [`stat`] without asking a server: for descriptors that may lead anywhere.
pub fn stat_cached(fd: impl AsFd) -> io::Result<Stat> {
    stat_with(fd, AtFlags::STATX_DONT_SYNC)
}

fn stat_with(fd: impl AsFd, sync: AtFlags) -> io::Result<Stat> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | sync;
    let x = rustix::fs::statx(fd, c"", flags, StatxFlags::BASIC_STATS)?;
    Ok(Stat {
        mode: u32::from(x.stx_mode),
        uid: x.stx_uid,
        gid: x.stx_gid,
        links: x.stx_nlink,
        ino: x.stx_ino,
        dev: (x.stx_dev_major, x.stx_dev_minor),
        size: x.stx_size,
        allocated: x.stx_blocks * 512,
        atime_ns: x.stx_atime.tv_sec * NS + i64::from(x.stx_atime.tv_nsec),
        mtime_ns: x.stx_mtime.tv_sec * NS + i64::from(x.stx_mtime.tv_nsec),
        ctime_ns: x.stx_ctime.tv_sec * NS + i64::from(x.stx_ctime.tv_nsec),
    })
}

/// `FS_IOC_GETVERSION`, `_IOR('v', 1, long)`; the file systems write 32 bits.
const FS_IOC_GETVERSION: ioctl::Opcode = ioctl::opcode::read::<libc::c_long>(b'v', 1);

/// The inode's generation. Not for `O_PATH` descriptors.
pub fn generation(fd: impl AsFd) -> io::Result<u64> {
    // SAFETY: FS_IOC_GETVERSION writes at most a C long through the pointer; ext4, XFS and btrfs
    // write an int. The buffer is zeroed, so the upper half of a long is defined either way.
    let raw: u64 = unsafe {
        let get = ioctl::Updater::<FS_IOC_GETVERSION, u64>::new;
        let mut value = 0u64;
        ioctl::ioctl(fd, get(&mut value))?;
        value
    };
    Ok(raw & 0xffff_ffff)
}

/// Whether the descriptor is the root of a mount, and not a directory that nothing is mounted on.
pub fn is_mount_root(fd: impl AsFd) -> io::Result<bool> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The device number of the file system's superblock as kernel programs see it (`super_block.s_dev`,
/// `major << 20 | minor`). On btrfs `st_dev` tells a subvolume's own number instead; the one of the
/// mount is asked for.
pub fn kernel_device(fd: impl AsFd) -> io::Result<u32> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let id = stat.stx_mnt_id.to_string();
    let device = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next() == Some(id.as_str())).then(|| fields.nth(1))?
    });
    let numbers = device.and_then(|d| d.split_once(':'));
    let numbers = numbers.and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
    numbers
        .map(|(major, minor)| major << 20 | minor)
        .ok_or_else(|| io::Error::other(format!("mount {id} is not in /proc/self/mountinfo")))
}

/// The data version of an open file.
pub fn version(fd: impl AsFd) -> io::Result<DataVersion> {
    Ok(stat(fd.as_fd())?.version(generation(fd)?))
}

/// Puts access and modification time back after our own IO moved them (ctime cannot be set).
pub fn restore_times(fd: impl AsFd, before: &Stat) -> io::Result<()> {
    let times = Timestamps {
        last_access: timespec(before.atime_ns),
        last_modification: timespec(before.mtime_ns),
    };
    Ok(rustix::fs::futimens(fd, &times)?)
}

fn timespec(ns: i64) -> Timespec {
    Timespec { tv_sec: ns.div_euclid(NS), tv_nsec: ns.rem_euclid(NS) }
}

/// `/proc/self/fd/N` of a descriptor, for calls that take a path only.
pub fn proc_path(fd: BorrowedFd<'_>) -> CString {
    let mut path = b"/proc/self/fd/".to_vec();
    path.extend(fd.as_raw_fd().to_string().into_bytes());
    // A number has no NUL inside.
    CString::new(path).unwrap_or_default()
}

/// Opens the same inode on the same mount again, with other flags.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(proc_path(fd).as_c_str(), flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// Where the kernel says that the descriptor leads to, for messages only: names change.
pub fn path_hint(fd: impl AsFd) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStringExt;
    rustix::fs::readlink(proc_path(fd.as_fd()).as_c_str(), Vec::new())
        .map(|p| std::ffi::OsString::from_vec(p.into_bytes()).into())
        .unwrap_or_default()
}
