//! `inode_post_setxattr` and `inode_post_removexattr`: the marker or the record of an inode has
//! changed, whoever did it, and before the system call returns to them.
//!
//! Whether the file system is covered does not matter: a verdict can be left from a time when it
//! was. A marker that is set also ends what was known to be local: it may be that of another release.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::Counter;

use crate::counters::count;
use crate::maps::RESIDENT;
use crate::marker::AttributeName;
use crate::object::Dentry;
use crate::verdict::Verdict;

/// `void inode_post_setxattr(struct dentry *dentry, const char *name, const void *value, size_t
/// size, int flags)`.
#[lsm(hook = "inode_post_setxattr")]
pub fn invalidate_set(context: LsmContext) -> i32 {
    let name = AttributeName::read(context.arg(1));
    // SAFETY: the hook's first argument.
    let dentry = unsafe { Dentry::new(context.arg(0)) };
    changed(dentry, || name.is_state());
    if name.is_marker() {
        nothing_is_resident(dentry);
    }
    0
}

/// `void inode_post_removexattr(struct dentry *dentry, const char *name)`.
#[lsm(hook = "inode_post_removexattr")]
pub fn invalidate_removed(context: LsmContext) -> i32 {
    let name = context.arg(1);
    // SAFETY: the hook's first argument.
    changed(unsafe { Dentry::new(context.arg(0)) }, || AttributeName::read(name).is_state());
    0
}

#[inline(always)]
fn nothing_is_resident(dentry: Dentry) {
    let Some(inode) = dentry.inode() else { return };
    // SAFETY: the inode is reached from the hook's argument. An error says that there was nothing.
    let _ = unsafe { RESIDENT.delete(inode.as_ptr()) };
}

#[inline(always)]
fn changed(dentry: Dentry, is_state: impl FnOnce() -> bool) {
    let Some(inode) = dentry.inode() else { return };
    let verdict = Verdict::peek(inode);
    if verdict.exists() && is_state() {
        verdict.invalidate();
        count(Counter::Invalidated);
    }
}
