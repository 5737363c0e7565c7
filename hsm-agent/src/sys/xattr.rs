//! Extended attributes by descriptor.
//!
//! `O_PATH` descriptors cannot be used directly (`EBADF`); the `_at_path` forms go through
//! `/proc/self/fd/N`, which the kernel resolves to the very same inode on the very same mount.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::inode::proc_path;

/// Largest value that Linux allows (`XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 65_536;
/// Enough for everything that hsm writes; larger values take a second call.
const FIRST_TRY: usize = 256;

/// The attribute's value; `None` when the file has no such attribute (or the file system none).
pub fn get(fd: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    read_value(|buf| rustix::fs::fgetxattr(fd.as_fd(), name, buf))
}

/// [`get`] for an `O_PATH` descriptor.
pub fn get_at_path(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(fd);
    read_value(|buf| rustix::fs::getxattr(path.as_c_str(), name, buf))
}

/// Sets or replaces the attribute.
pub fn set(fd: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?)
}

/// [`set`] for an `O_PATH` descriptor.
pub fn set_at_path(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = proc_path(fd);
    Ok(rustix::fs::setxattr(path.as_c_str(), name, value, XattrFlags::empty())?)
}

/// Removes the attribute. `Ok(false)`: it was not there.
pub fn remove(fd: impl AsFd, name: &CStr) -> io::Result<bool> {
    absent_is_false(rustix::fs::fremovexattr(fd, name))
}

/// [`remove`] for an `O_PATH` descriptor.
pub fn remove_at_path(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<bool> {
    absent_is_false(rustix::fs::removexattr(proc_path(fd).as_c_str(), name))
}

/// Names of all attributes that the caller may see.
pub fn list(fd: impl AsFd) -> io::Result<Vec<CString>> {
    read_names(|buf| rustix::fs::flistxattr(fd.as_fd(), buf))
}

/// [`list`] for an `O_PATH` descriptor.
pub fn list_at_path(fd: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let path = proc_path(fd);
    read_names(|buf| rustix::fs::listxattr(path.as_c_str(), buf))
}

fn read_names(mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> io::Result<Vec<CString>> {
    let mut buf = vec![0u8; FIRST_TRY];
    let used = loop {
        match call(&mut buf[..]) {
            Ok(n) => break n,
            Err(Errno::RANGE) if buf.len() < MAX_VALUE => buf.resize(MAX_VALUE, 0),
            Err(Errno::NOTSUP) => break 0,
            Err(e) => return Err(e.into()),
        }
    };
    Ok(buf[..used]
        .split_inclusive(|b| *b == 0)
        .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
        .map(CStr::to_owned)
        .collect())
}

fn read_value(
    mut call: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
) -> io::Result<Option<Vec<u8>>> {
    let mut buf = vec![0u8; FIRST_TRY];
    loop {
        match call(&mut buf) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(Some(buf));
            }
            Err(Errno::RANGE) if buf.len() < MAX_VALUE => buf.resize(MAX_VALUE, 0),
            // Only "no such attribute" and "no attributes here" mean absence: every other error
            // must reach the caller, who then denies.
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
}

fn absent_is_false(result: Result<(), Errno>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
