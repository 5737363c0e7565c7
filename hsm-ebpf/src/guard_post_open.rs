//! `file_post_open`: called when an open is through, after fanotify's answer and after the wait for
//! a lease.
//!
//! The independent second check: whoever is not the agent and would end up with an open file on a
//! marked inode is refused. It catches the opener whose listener died (the kernel lets those
//! pass), whose watch was somebody else's, and who waited for the lease of the release itself.
//!
//! In mark mode an open file on a marked inode is right if fanotify asks about its accesses.
//!
//! This is the second net. It is attached only while somebody can be under way whom it would refuse
//! (`hsm_common::filter::UnderWay`), and looks at every open then.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::Counter;

use crate::counters::count;
use crate::examine::examine;
use crate::marker;
use crate::object::File;
use crate::told;
use crate::under_way;

/// `int file_post_open(struct file *file, int mask)`.
#[lsm(hook = "file_post_open", sleepable)]
pub fn guard_post_open(context: LsmContext) -> i32 {
    // SAFETY: the hook's first argument.
    let file = unsafe { File::new(context.arg(0)) };
    let result = look(file);
    under_way::end(file);
    result
}

#[inline(always)]
fn look(file: File) -> i32 {
    let Some(suspect) = examine(file.inode(), || marker::of_file(file)) else { return 0 };
    if suspect.is_marked_for(file) {
        return 0;
    }
    let result = suspect.verdict_of_an_open(file);
    if result != 0 {
        count(Counter::DeniedPostOpen);
        told::marked_at_end(file.inode());
    }
    result
}
