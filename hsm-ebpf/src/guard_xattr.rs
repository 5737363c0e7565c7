//! `inode_setxattr` and `inode_removexattr`: marker, record and residency map are the agent's,
//! whoever else is root.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::Counter;

use crate::counters::count;
use crate::coverage;
use crate::marker::AttributeName;
use crate::object::Dentry;
use crate::task;
use crate::told;

/// Not permitted.
const EPERM: i32 = 1;

/// `int inode_setxattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name, const void
/// *value, size_t size, int flags)`.
#[lsm(hook = "inode_setxattr")]
pub fn guard_setxattr(context: LsmContext) -> i32 {
    // SAFETY: the hook's second argument.
    change(unsafe { Dentry::new(context.arg(1)) }, context.arg(2))
}

/// `int inode_removexattr(struct mnt_idmap *idmap, struct dentry *dentry, const char *name)`.
#[lsm(hook = "inode_removexattr")]
pub fn guard_removexattr(context: LsmContext) -> i32 {
    // SAFETY: the hook's second argument.
    change(unsafe { Dentry::new(context.arg(1)) }, context.arg(2))
}

#[inline(always)]
fn change(dentry: Dentry, name: *const u8) -> i32 {
    let Some(inode) = dentry.inode() else { return 0 };
    if coverage::of(inode.superblock()).is_none() {
        return 0;
    }
    if !AttributeName::read(name).is_ours() || task::is_exempt() {
        return 0;
    }
    count(Counter::XattrDenied);
    told::attribute(inode);
    -EPERM
}
