//! `file_open`: called for every open of anything, before fanotify is asked and before leases are
//! waited for.
//!
//! An online file of a covered file system passes on its cached verdict; files of other file
//! systems pass without leaving a trace. A marked file passes on to fanotify if fanotify will ask
//! somebody. If not: in guard mode the open is refused, in filter mode the agent is asked for a
//! watch.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use hsm_common::filter::{Counter, KIND_QUERY, KIND_RECALL, KIND_WATCH};

use crate::counters::count;
use crate::coverage::{self, Mode};
use crate::marker::{self, Marker};
use crate::object::{File, SuperBlock};
use crate::task::{self, Task};
use crate::told;
use crate::under_way;
use crate::verdict::{Look, Verdict};
use crate::wait::{Answer, EAGAIN, Until, ask_until};

/// `int file_open(struct file *file)`.
#[lsm(hook = "file_open", sleepable)]
pub fn guard_open(context: LsmContext) -> i32 {
    // SAFETY: the hook's first argument.
    let file = unsafe { File::new(context.arg(0)) };
    let inode = file.inode();
    if !inode.is_regular() {
        return 0;
    }
    let verdict = Verdict::peek(inode);
    if verdict.is_online() {
        count(Counter::PassedCached);
        return 0;
    }
    let sb = inode.superblock();
    let Some(mode) = coverage::of(sb) else { return 0 };
    if task::is_exempt() {
        count(Counter::PassedExempt);
        return 0;
    }
    let (marker, look) = Look::take(inode, verdict, || marker::of_file(file));
    if marker.is_online() && !(marker == Marker::Held && mode == Mode::Mark && is_unseen(file)) {
        count(Counter::PassedAbsent);
        return 0;
    }
    if marker == Marker::Unreadable {
        count(Counter::Unreadable);
    }
    if file.is_silent() {
        count(Counter::DeniedSilent);
        told::silent(inode);
        return -EAGAIN;
    }
    // Before the watch is looked for.
    let server = coverage::server();
    let result = match mode {
        Mode::Guard => guard(file, sb, server),
        Mode::Filter => filter(file, sb, marker, look, false),
        Mode::Mark => mark(file, sb, marker, look),
    };
    match result {
        0 => under_way::pass(file, inode, sb, server),
        NOT_FOLLOWED => 0,
        refused => refused,
    }
}

/// Of [`filter`]: the open passes, and no second program follows. (Zero: it passes, and one does.)
const NOT_FOLLOWED: i32 = 1;

#[inline(always)]
fn guard(file: File, sb: SuperBlock, server: u64) -> i32 {
    if server != 0 && coverage::is_watched(file.inode(), sb) {
        count(Counter::PassedWatched);
        return 0;
    }
    count(Counter::DeniedUnwatched);
    told::unwatched(file.inode());
    -EAGAIN
}

/// Whether something happens to the file's content that no event of the open file tells: `O_TRUNC`, and
/// mappings of another file system.
#[inline(always)]
fn is_unseen(file: File) -> bool {
    file.is_emptied() || file.is_beneath()
}

/// The mark asks about each access, or refuses it if its group is gone. Then nobody serves either, and who
/// opens the file is better told at once.
///
/// Files that are recalled whole are recalled at open all the same, as in filter mode: a program that
/// compares times before and after it reads must not notice. What the mark cannot see waits here until the
/// file is online, and until that is durable.
#[inline(always)]
fn mark(file: File, sb: SuperBlock, marker: Marker, look: Look) -> i32 {
    if !sb.is_content_watched() || !coverage::is_served() {
        count(Counter::DeniedUnwatched);
        told::unwatched(file.inode());
        return -EAGAIN;
    }
    filter(file, sb, marker, look, is_unseen(file))
}

/// A watch that is there already may be somebody else's, a virus scanner's: the second check, in
/// `guard_post_open`, finds a file that is still marked then.
///
/// Where another file system opens the file for itself, or a program by XFS' own handles, there is no second
/// check. If the agent died while fanotify asks it, the kernel would let the open pass over a marked file: so no
/// watch is enough, and the open waits here until the file is online. A release that comes then finds this
/// open counted, and does not get its lease again.
///
/// A kernel thread that opens without a path (ksmbd, cachefiles; nfsd, whom the second check follows) cannot wait
/// here for so long. It goes on to fanotify, but only once the server has said that it watches the inode itself.
#[inline(always)]
fn filter(file: File, sb: SuperBlock, marker: Marker, look: Look, unseen: bool) -> i32 {
    let inode = file.inode();
    let walked = file.is_walked_to();
    let followed = !file.is_beneath() && (walked || Task::current().is_kernel());
    let unchecked = unseen || !followed;
    if !unchecked && walked && coverage::is_watched(inode, sb) {
        count(Counter::PassedWatched);
        return 0;
    }
    let kind = if unchecked {
        KIND_RECALL
    } else if marker == Marker::Unreadable {
        KIND_QUERY
    } else {
        KIND_WATCH
    };
    let until = if walked && !unchecked { Until::Watched } else { Until::Answered };
    match ask_until(inode, sb, kind, until) {
        Answer::ONLINE => {
            // The agent looked after this look began. Where the marker could be read, it was
            // there: then it has been removed, which counts, and is looked at again.
            if marker == Marker::Unreadable {
                look.end(Marker::Absent);
            }
            count(Counter::PassedAnswered);
            if followed { 0 } else { NOT_FOLLOWED }
        }
        Answer::WATCHED if !unchecked && inode.is_watched() => {
            count(Counter::PassedWatched);
            0
        }
        answer => answer.error(),
    }
}
