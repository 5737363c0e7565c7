//! File handles: a file's identity that outlives its names (`name_to_handle_at(2)`).

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

use super::check;
use crate::core::FileKey;

/// `MAX_HANDLE_SZ` of the kernel.
const MAX_HANDLE: usize = 128;

/// `struct file_handle` with room for the largest handle.
#[repr(C, align(4))]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_HANDLE],
}

/// The identity of the file behind `fd` (any descriptor, `O_PATH` too).
pub fn of_fd(fd: impl AsFd) -> io::Result<FileKey> {
    let mut raw = RawHandle { bytes: MAX_HANDLE as u32, kind: 0, data: [0; MAX_HANDLE] };
    let mut mount_id = 0;
    // SAFETY: `raw` has the layout of `struct file_handle` with `bytes` of room behind the
    // header, the path is an empty C string, and all three outlive the call.
    check(unsafe {
        libc::name_to_handle_at(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let data = raw
        .data
        .get(..raw.bytes as usize)
        .ok_or_else(|| io::Error::other("the kernel returned an oversized file handle"))?;
    Ok(FileKey { kind: raw.kind, bytes: data.into() })
}

/// Opens the file by its identity, on the mount that `mount` is on. `ESTALE`: it is gone.
pub fn open(mount: impl AsFd, key: &FileKey, flags: OFlags) -> io::Result<OwnedFd> {
    let mut raw =
        RawHandle { bytes: key.bytes.len() as u32, kind: key.kind, data: [0; MAX_HANDLE] };
    raw.data
        .get_mut(..key.bytes.len())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?
        .copy_from_slice(&key.bytes);
    let flags = flags | OFlags::CLOEXEC;
    // SAFETY: `raw` has the layout of `struct file_handle` and outlives the call.
    let fd = check(unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            (&raw mut raw).cast(),
            flags.bits() as libc::c_int,
        )
    })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `FILEID_INO32_GEN`: inode number and generation, 32 bits each (ext4).
const INO32_GEN: i32 = 1;
/// `FILEID_INO32_GEN | XFS_FILEID_TYPE_64FLAG`: the inode number with 64 bits. XFS decodes it for
/// every inode, whatever it hands out itself.
const XFS_INO64_GEN: i32 = 0x81;
/// `FILEID_BTRFS_WITHOUT_PARENT`.
const BTRFS_WITHOUT_PARENT: i32 = 0x4d;

/// What a kernel program knows of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InodeNumbers {
    /// Inode number.
    pub ino: u64,
    /// Generation.
    pub generation: u32,
    /// btrfs: object id of the subvolume's root.
    pub subvolume: u64,
}

/// A handle that [`open`] takes, on the file system that `mount` is on. `Unsupported`: not ext4, XFS or
/// btrfs. The kernel may hand out another form of handle for the same file: not a key for tables.
pub fn from_numbers(mount: impl AsFd, inode: InodeNumbers) -> io::Result<FileKey> {
    let (kind, bytes) = match rustix::fs::fstatfs(mount)?.f_type {
        libc::EXT4_SUPER_MAGIC => {
            let ino = u32::try_from(inode.ino).map_err(io::Error::other)?;
            (INO32_GEN, [ino.to_ne_bytes(), inode.generation.to_ne_bytes()].concat())
        }
        libc::XFS_SUPER_MAGIC => {
            let ino = inode.ino.to_ne_bytes();
            (XFS_INO64_GEN, [&ino[..], &inode.generation.to_ne_bytes()].concat())
        }
        libc::BTRFS_SUPER_MAGIC => {
            // `struct btrfs_fid`, which is packed, up to its parent.
            let (object, root) = (inode.ino.to_ne_bytes(), inode.subvolume.to_ne_bytes());
            let fid = [&object[..], &root, &inode.generation.to_ne_bytes()].concat();
            (BTRFS_WITHOUT_PARENT, fid)
        }
        other => {
            let text = format!("no file handles for file system type {other:#x}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    };
    Ok(FileKey { kind, bytes: bytes.into() })
}

/// Whether an error of [`open`] says that the file does not exist any more.
pub fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESTALE)
}
