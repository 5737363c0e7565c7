//! `fanotify_filter_ops`: which accesses to a watched file system become events of its mark.
//!
//! `mark_open` is asked once for each open of a regular file. What it passes is silent for the life of
//! the open file: an online file, because a marker is set only under a lease that proves that nobody
//! has the file open; and whatever the agent itself opens. `mark_access` is asked about each access to
//! the others, and about every truncation: it lets pass what is online by now, and reads of what is
//! local of a partial file.
//!
//! Everything that is not known for sure is an event. The programs are attached only where the guard's
//! are: they share its verdicts, which the guard's programs make invalid.

use hsm_common::filter::Counter;

use crate::counters::count;
use crate::maps::RESIDENT;
use crate::marker::{self, Marker};
use crate::object::{Dentry, File, Inode};
use crate::task::{self, Task};
use crate::verdict::{Look, Verdict};

/// `FANOTIFY_FILTER_PASS`.
const PASS: i32 = 0;
/// `FANOTIFY_FILTER_NOTIFY`.
const NOTIFY: i32 = 1;

/// `FS_PRE_MODIFY` of the kernel's patches.
const PRE_MODIFY: u64 = 0x0020_0000;

/// `int open(struct file *file, struct dentry *dentry)`.
///
/// # Safety
/// The kernel calls it with the arguments of this member.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry.s/mark_open")]
pub unsafe extern "C" fn mark_open(arguments: *const u64) -> i32 {
    // SAFETY: the first argument.
    let file = unsafe { File::new(*arguments as *const u8) };
    let inode = file.inode();
    let verdict = Verdict::peek(inode);
    if verdict.is_online() || !inode.is_regular() {
        return PASS;
    }
    if task::is_exempt() {
        count(Counter::PassedExempt);
        return PASS;
    }
    let (marker, _) = Look::take(inode, verdict, || marker::of_file(file));
    if marker == Marker::Absent {
        count(Counter::PassedAbsent);
        return PASS;
    }
    notify(marker)
}

/// `int pre_access(const struct path *path, struct dentry *dentry, u32 mask, loff_t pos, size_t
/// count)`.
///
/// # Safety
/// The kernel calls it with the arguments of this member.
#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry.s/mark_access")]
pub unsafe extern "C" fn mark_access(arguments: *const u64) -> i32 {
    // SAFETY: the second argument.
    let dentry = unsafe { Dentry::new(*arguments.add(1) as *const u8) };
    let Some(inode) = dentry.inode() else { return NOTIFY };
    let verdict = Verdict::peek(inode);
    if verdict.is_online() {
        return PASS;
    }
    if task::is_exempt() {
        return PASS;
    }
    let (marker, _) = Look::take(inode, verdict, || marker::of_dentry(dentry));
    if marker == Marker::Absent {
        return PASS;
    }
    // SAFETY: the third, fourth and fifth argument.
    let (mask, position, bytes) =
        unsafe { (*arguments.add(2), *arguments.add(3), *arguments.add(4)) };
    if marker == Marker::Present
        && mask & PRE_MODIFY == 0
        && inode.superblock().tells_modifications()
        && is_resident(inode, position, bytes)
        && Task::current().is_reading()
    {
        count(Counter::PassedResident);
        return PASS;
    }
    notify(marker)
}

/// Whether the range is known (a position that is not, is negative) and local.
#[inline(always)]
fn is_resident(inode: Inode, position: u64, bytes: u64) -> bool {
    // SAFETY: the inode is reached from the member's argument.
    let resident = unsafe { RESIDENT.get_ptr_mut(inode.as_ptr()) };
    if resident.is_null() || position.cast_signed() < 0 {
        return false;
    }
    // SAFETY: not null. The agent replaces it as a whole, and what is replaced lives on until all
    // programs that have found it are through.
    unsafe { &*resident }.covers(inode.size(), position, bytes)
}

#[inline(always)]
fn notify(marker: Marker) -> i32 {
    count(Counter::Notified);
    match marker {
        Marker::Unreadable => count(Counter::Unreadable),
        Marker::Held => count(Counter::Held),
        Marker::Absent | Marker::Present => {}
    }
    NOTIFY
}
