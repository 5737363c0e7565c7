//! `file_post_open`: called when an open is through, after fanotify's answer and after the wait for
//! a lease.
//!
//! The independent second check: whoever is not the agent and would end up with an open file on a
//! marked inode is refused. It catches the opener whose listener died (the kernel lets those
//! pass), whose watch was somebody else's, and who waited for the lease of the release itself.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::{Counter, KIND_QUERY};

use crate::counters::count;
use crate::coverage::{self, Mode};
use crate::marker::{self, Marker};
use crate::object::{File, Inode, SuperBlock};
use crate::task;
use crate::verdict::{Look, Verdict};
use crate::wait::{Answer, EAGAIN, ask};

/// `int file_post_open(struct file *file, int mask)`.
#[lsm(hook = "file_post_open", sleepable)]
pub fn guard_post_open(context: LsmContext) -> i32 {
    // SAFETY: the hook's first argument.
    let file = unsafe { File::new(context.arg(0)) };
    let inode = file.inode();
    if !inode.is_regular() {
        return 0;
    }
    let verdict = Verdict::peek(inode);
    if verdict.is_online() {
        return 0;
    }
    let sb = inode.superblock();
    let Some(mode) = coverage::of(sb) else { return 0 };
    if task::is_exempt() {
        return 0;
    }
    let look = Look::begin(inode);
    let marker = if verdict.is_marked() { Marker::Present } else { marker::of_file(file) };
    look.end(marker);
    if marker == Marker::Absent {
        return 0;
    }
    let result = match mode {
        Mode::Guard if coverage::is_answered_for(sb) => 0,
        Mode::Guard => -EAGAIN,
        Mode::Filter => still_marked(inode, sb, marker, look),
    };
    if result != 0 {
        count(Counter::DeniedPostOpen);
    }
    result
}

/// Filter mode: a marker that cannot be read is asked about, one that is there refuses.
#[inline(always)]
pub fn still_marked(inode: Inode, sb: SuperBlock, marker: Marker, look: Look) -> i32 {
    if marker == Marker::Present {
        return -EAGAIN;
    }
    let answer = ask(inode, sb, KIND_QUERY);
    if answer == Answer::Online {
        // The agent looked after this look began.
        look.end(Marker::Absent);
    }
    answer.needs_online()
}
