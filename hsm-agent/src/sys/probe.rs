//! What this kernel and this file system can do, found out by trying, never by version numbers.
//!
//! "Unsupported" is concluded only from the one refusal that means it; every other error is
//! passed on, because it says nothing about the feature.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::fanotify::{Class, EventMask, Group, GroupOptions, MarkTarget};

/// Result of trying a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It works.
    Yes,
    /// The kernel refused in the way that means "I do not know this".
    No,
}

/// Whether fanotify pre-content events can be had on the file system of `directory`.
/// Needs CAP_SYS_ADMIN. The trial mark is put on the directory inode, without `FAN_ONDIR`: it
/// can never raise an event.
pub fn pre_content(directory: &Path) -> io::Result<Support> {
    let group = match Group::new(GroupOptions { class: Class::PreContent, nonblock: true }) {
        Ok(group) => group,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Support::No),
        Err(e) => return Err(e),
    };
    let directory = File::open(directory)?;
    match group.watch_inode(MarkTarget::Fd(directory.as_fd()), EventMask::PRE_ACCESS) {
        Ok(()) => Ok(Support::Yes),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Support::No)
        }
        Err(e) => Err(e),
    }
}

/// Whether marks can have BPF filters (docs/KERNEL-PATCHES.md). Needs CAP_SYS_ADMIN. A kernel that knows
/// them says that the new group has none, before it looks for what is to be marked.
pub fn mark_filters() -> io::Result<Support> {
    let group = match Group::new(GroupOptions { class: Class::PreContent, nonblock: true }) {
        Ok(group) => group,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Support::No),
        Err(e) => return Err(e),
    };
    match group.filter_filesystem(group.as_fd(), EventMask::PRE_ACCESS) {
        Ok(()) => Err(io::Error::other("a group without a filter was given a mark with one")),
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(Support::Yes),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(Support::No),
        Err(e) => Err(e),
    }
}

/// Seconds that the kernel lets an opener wait for a lease.
pub fn lease_break_time() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/sys/fs/lease-break-time")?;
    text.trim().parse().map_err(io::Error::other)
}

/// The running kernel's release string, for messages.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
