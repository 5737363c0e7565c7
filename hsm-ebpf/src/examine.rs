//! Looking at an inode: what is cached about it, and if nothing is, its marker.

use hsm_common::filter::KIND_QUERY;

use crate::coverage::{self, Mode};
use crate::marker::Marker;
use crate::object::{File, Inode, SuperBlock};
use crate::task;
use crate::under_way;
use crate::verdict::{Look, Verdict};
use crate::wait::{Answer, EAGAIN, ask, want};

/// A file of a covered file system that is not known to be online, and whom it is refused to.
#[derive(Clone, Copy)]
pub struct Suspect {
    inode: Inode,
    sb: SuperBlock,
    mode: Mode,
    marker: Marker,
    look: Look,
}

/// Looks for the hooks that ask nobody to watch. `None`: nothing speaks against the access.
#[inline(always)]
pub fn examine(inode: Inode, read: impl FnOnce() -> Marker) -> Option<Suspect> {
    if !inode.is_regular() {
        return None;
    }
    let verdict = Verdict::peek(inode);
    if verdict.is_online() {
        return None;
    }
    let sb = inode.superblock();
    let mode = coverage::of(sb)?;
    if task::is_exempt() {
        return None;
    }
    let (marker, look) = Look::take(inode, verdict, read);
    if marker.is_online() {
        return None;
    }
    Some(Suspect { inode, sb, mode, marker, look })
}

impl Suspect {
    /// The hook's result where no watch helps: guard mode passes what an agent answers for; otherwise a
    /// marker that cannot be read is asked about, and one that is there refuses.
    #[inline(always)]
    pub fn verdict(self) -> i32 {
        match self.mode {
            Mode::Guard if coverage::is_answered_for(self.sb) => 0,
            Mode::Guard => -EAGAIN,
            Mode::Filter | Mode::Mark if self.marker == Marker::Present => -EAGAIN,
            Mode::Filter | Mode::Mark => self.query(),
        }
    }

    /// Whether each access through this open file is asked about by a mark, so that it may be open. A
    /// file that was passed as online, and got its marker while it waited for a lease, is not.
    #[inline(always)]
    pub fn is_marked_for(self, file: File) -> bool {
        self.mode == Mode::Mark && self.sb.is_content_watched() && file.is_asked_about()
    }

    /// The hook's result at the end of an open: in guard mode the agent that answers for it must be the one that
    /// did when it began.
    #[inline(always)]
    pub fn verdict_of_an_open(self, file: File) -> i32 {
        if self.mode == Mode::Guard && !under_way::is_vouched_for(file) {
            return -EAGAIN;
        }
        self.verdict()
    }

    /// The hook's result where fanotify may have asked nobody at all: in guard mode, too, a marker that is
    /// there refuses. But nothing is left to recall in a file that is emptied: the agent lets a reader with
    /// `O_TRUNC` pass who opens it for ranges, and finds it empty.
    #[inline(always)]
    pub fn verdict_of_a_cut(self, size: u64) -> i32 {
        if self.marker == Marker::Present && size != 0 { -EAGAIN } else { self.verdict() }
    }

    /// Has the file recalled, and does not wait.
    #[inline(always)]
    pub fn want(self) {
        want(self.inode, self.sb);
    }

    #[inline(always)]
    fn query(self) -> i32 {
        let answer = ask(self.inode, self.sb, KIND_QUERY);
        if answer == Answer::ONLINE {
            // The agent looked after this look began.
            self.look.end(Marker::Absent);
        }
        answer.needs_online()
    }
}
