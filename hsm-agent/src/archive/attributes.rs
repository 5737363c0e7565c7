//! What an object says of its file besides the bytes.

use std::os::fd::BorrowedFd;

use crate::daemon::pool::Pool;
use crate::store::object::{FileAttributes, Xattr};
use crate::sys::inode::Stat;
use crate::sys::xattr;

/// Owner, mode, times, and every extended attribute but our own (ACLs are among them).
pub(super) fn read(
    pool: &Pool,
    fd: BorrowedFd<'_>,
    stat: &Stat,
    path_hint: Vec<u8>,
) -> std::io::Result<FileAttributes> {
    let mut xattrs = Vec::new();
    for name in xattr::list(fd)?.into_iter().filter(|n| !pool.attributes.is_own(n)) {
        if let Some(value) = xattr::get(fd, &name)? {
            xattrs.push(Xattr { name: name.into_bytes(), value });
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
