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

/// Whether an error of [`open`] says that the file does not exist any more.
pub fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESTALE)
}
