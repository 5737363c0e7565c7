//! `file_ioctl` and `file_ioctl_compat`: requests that would lie about a marked file, or reach
//! attributes behind the other hooks' backs.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::Counter;

use crate::counters::count;
use crate::coverage;
use crate::examine::examine;
use crate::marker;
use crate::object::{File, Inode};
use crate::task;
use crate::wait::EAGAIN;

/// Not permitted.
const EPERM: i32 = 1;

/// `FS_IOC_FIEMAP` of `<linux/fs.h>`: where a file's data lies. Of an offline file: nowhere.
const FIEMAP: u32 = 0xc020_660b;

/// Type and number of `XFS_IOC_ATTRMULTI_BY_HANDLE`; size and direction differ between the native
/// and the 32-bit form. It writes attributes and calls none of the attribute hooks.
const XFS_ATTRMULTI: u32 = ((b'X' as u32) << 8) | 123;

/// `int file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`.
#[lsm(hook = "file_ioctl", sleepable)]
pub fn guard_ioctl(context: LsmContext) -> i32 {
    let command: u32 = context.arg(1);
    // SAFETY: the hook's first argument.
    let file = unsafe { File::new(context.arg(0)) };
    if command == FIEMAP {
        fiemap(file)
    } else if command & 0xffff == XFS_ATTRMULTI {
        attributes_by_handle(file.inode())
    } else {
        0
    }
}

/// `int file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`. Not a hook that
/// may sleep, so it cannot look at a marker.
#[lsm(hook = "file_ioctl_compat")]
pub fn guard_ioctl_compat(context: LsmContext) -> i32 {
    let command: u32 = context.arg(1);
    if command & 0xffff != XFS_ATTRMULTI {
        return 0;
    }
    // SAFETY: the hook's first argument.
    attributes_by_handle(unsafe { File::new(context.arg(0)) }.inode())
}

#[inline(always)]
fn fiemap(file: File) -> i32 {
    let Some(suspect) = examine(file.inode(), || marker::of_file(file)) else { return 0 };
    // The mark asks about this request as well.
    if suspect.is_marked_for(file) {
        return 0;
    }
    count(Counter::IoctlDenied);
    -EAGAIN
}

#[inline(always)]
fn attributes_by_handle(inode: Inode) -> i32 {
    let sb = inode.superblock();
    if !sb.is_xfs() || coverage::of(sb).is_none() || task::is_exempt() {
        return 0;
    }
    count(Counter::IoctlDenied);
    -EPERM
}
