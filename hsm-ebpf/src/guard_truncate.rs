//! `path_truncate` and `inode_setattr`: `truncate(2)` opens nothing, and fsnotify has looked before
//! either hook is called, so no watch can help.
//!
//! `path_truncate` has the file recalled while the caller waits, but can see neither the marker nor
//! a cached verdict: the kernel's functions do not accept `path->dentry`. So in filter mode it asks
//! about every regular file, as long as somebody serves. `inode_setattr` gets the directory entry
//! itself, and refuses what is still marked.
//!
//! Who cuts without a path (nfsd, overlayfs on its upper layer) is seen by `inode_setattr` alone, which
//! cannot wait: it is called with the inode locked, and the recall needs that lock. So it asks for the recall and
//! refuses with `EAGAIN`, which nfsd hands on to its client as "later".

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::{Counter, KIND_RECALL};

use crate::counters::count;
use crate::coverage::{self, Mode};
use crate::examine::examine;
use crate::marker;
use crate::object::{Attributes, Dentry, Path};
use crate::task;
use crate::told;
use crate::wait::{EAGAIN, ask};

/// `ATTR_SIZE` of `<linux/fs.h>`.
const ATTR_SIZE: u32 = 1 << 3;

/// `int path_truncate(const struct path *path)`.
#[lsm(hook = "path_truncate", sleepable)]
pub fn guard_truncate(context: LsmContext) -> i32 {
    // SAFETY: the hook's first argument.
    let path = unsafe { Path::new(context.arg(0)) };
    let Some(inode) = path.dentry().inode() else { return 0 };
    if !inode.is_regular() {
        return 0;
    }
    let sb = inode.superblock();
    if coverage::of(sb) != Some(Mode::Filter) || task::is_exempt() || !coverage::is_served() {
        return 0;
    }
    count(Counter::TruncateAsked);
    let refusal = ask(inode, sb, KIND_RECALL).refusal();
    if refusal != 0 {
        count(Counter::TruncateDenied);
    }
    // Whatever else was or was not answered, `inode_setattr` decides.
    refusal
}

/// `int inode_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)`.
#[lsm(hook = "inode_setattr", sleepable)]
pub fn guard_setattr(context: LsmContext) -> i32 {
    // SAFETY: the hook's third argument.
    let attributes = unsafe { Attributes::new(context.arg(2)) };
    if attributes.valid() & ATTR_SIZE == 0 {
        return 0;
    }
    // SAFETY: the hook's second argument.
    let dentry = unsafe { Dentry::new(context.arg(1)) };
    let Some(inode) = dentry.inode() else { return 0 };
    let Some(suspect) = examine(inode, || marker::of_dentry(dentry)) else { return 0 };
    let result = suspect.verdict_of_a_cut(attributes.size());
    if result != 0 {
        count(Counter::TruncateDenied);
        told::cut(inode);
    }
    if result == -EAGAIN {
        suspect.want();
    }
    result
}
