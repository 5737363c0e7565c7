//! What an object says of its file besides the bytes.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use crate::store::object::{FileAttributes, Xattr};
use crate::sys::inode::Stat;
use crate::sys::xattr;

/// Owner, mode, times, and the extended attributes `names` (ACLs are among them; one that has gone
/// since it was listed is left out).
pub(super) fn read(
    fd: BorrowedFd<'_>,
    stat: &Stat,
    names: &[CString],
    path_hint: Vec<u8>,
) -> std::io::Result<FileAttributes> {
    let mut xattrs = Vec::new();
    for name in names {
        if let Some(value) = xattr::get(fd, name)? {
            xattrs.push(Xattr { name: name.to_bytes().to_vec(), value });
        }
    }
    Ok(FileAttributes {
        path_hint,
        uid: stat.uid,
        gid: stat.gid,
        mode: stat.mode,
        atime_ns: stat.atime_ns,
        mtime_ns: stat.mtime_ns,
        xattrs,
    })
}
