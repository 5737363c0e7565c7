//! A program that cuts the file with `truncate(2)`, by path: `vfs_truncate` and the kernel programs in it.
//!
//! fsnotify → `get_write_access` → `break_lease` → `guard_truncate` → `guard_setattr` and the cut → write
//! access dropped. It opens nothing, so that neither `guard_open` nor a watch for opens sees it; and between fsnotify
//! and `get_write_access` nobody can know that it is on its way.

use crate::setup::{Setup, Tier};
use crate::state::{Cached, Cut, Cutter, Job, State};
use crate::step::Steps;

const CUTTER: &str = "cutter";

/// Everything that it may do now.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    let (from, mut go) = (out.from, Go(out));
    match from.cutter.at {
        Cut::Away => begin(&mut go),
        Cut::Begun => fsnotify(setup, &mut go),
        Cut::Looking => look(&mut go),
        Cut::Asked => go.whim(Cut::Gone, "does not wait any longer"),
        Cut::Passed => go.to(Cut::Counted, "get_write_access: raises the inode's write count"),
        Cut::Counted => break_lease(setup, &mut go),
        Cut::Truncating if from.agent.holder && from.is_marked() => {
            go.to(Cut::AskedRecall, "guard_truncate: asks for a recall, and waits");
        }
        Cut::Truncating if from.agent.holder => {
            go.to(Cut::Unlocked, "guard_truncate: the holder finds no marker");
        }
        Cut::Truncating => go.to(Cut::Unlocked, "guard_truncate: nobody serves"),
        // Past its deadline.
        Cut::AskedRecall => go.whim(Cut::Unlocked, "guard_truncate: does not wait any longer"),
        Cut::Unlocked => set_attributes(setup, &mut go),
        Cut::Done => go.to(Cut::Gone, "put_write_access"),
        Cut::Met | Cut::Gone => {}
    }
}

struct Go<'a, 'b>(&'a mut Steps<'b>);

impl Go<'_, '_> {
    fn to(&mut self, at: Cut, what: &'static str) {
        self.and(at, what, |_| {});
    }

    fn and(&mut self, at: Cut, what: &'static str, change: impl FnOnce(&mut State)) {
        self.0.progress(CUTTER, what, |s| {
            change(s);
            s.cutter = s.cutter.on(at);
        });
    }

    fn whim(&mut self, at: Cut, what: &'static str) {
        self.0.whim(CUTTER, what, |s| s.cutter = Cutter::at(at));
    }
}

fn begin(go: &mut Go<'_, '_>) {
    let agent = go.0.from.agent;
    go.0.whim(CUTTER, "calls truncate", |s| {
        s.cutter.at = Cut::Begun;
        s.cutter.promised = agent.holder && agent.job.is_watched_release();
    });
}

/// `fsnotify_truncate_perm`: a content access. The watch of tier lsm-filter is one for opens only.
fn fsnotify(setup: &Setup, go: &mut Go<'_, '_>) {
    let from = go.0.from;
    match (setup.tier, from.cached) {
        (Tier::LsmFilter, _) => go.to(Cut::Passed, "fsnotify: nobody watches"),
        (Tier::MarkFilter, Cached::Online) => go.to(Cut::Passed, "mark_access: cached as online"),
        (Tier::MarkFilter, Cached::Marked) => notify(go, "mark_access: cached as marked"),
        (Tier::MarkFilter, Cached::None) => go.to(Cut::Looking, "mark_access: reads seq"),
        _ if from.is_watched() => go.to(Cut::Asked, "fsnotify: raises an event and waits"),
        _ => go.to(Cut::Passed, "fsnotify: nobody watches"),
    }
}

/// `mark_access`: the marker, then HELD.
fn look(go: &mut Go<'_, '_>) {
    let from = go.0.from;
    match (from.is_marked(), from.held) {
        (true, _) => notify(go, "mark_access: finds the marker"),
        (false, true) => notify(go, "mark_access: finds no marker, but that the file is held"),
        (false, false) => go.and(Cut::Passed, "mark_access: finds no marker", |s| {
            s.cached = if s.cutter.stale { Cached::None } else { Cached::Online };
        }),
    }
}

/// A group that nobody has any more denies.
fn notify(go: &mut Go<'_, '_>, what: &'static str) {
    go.to(if go.0.from.group() { Cut::Asked } else { Cut::Gone }, what);
}

/// As of an opener for writing.
fn break_lease(setup: &Setup, go: &mut Go<'_, '_>) {
    let (job, archive) = (go.0.from.lease, go.0.from.archive_lease);
    if job.is_intact() {
        go.and(Cut::Counted, "breaks the lease and waits", |s| s.lease = job.breaking());
    } else if archive.is_intact() {
        let what = "breaks the archive job's lease and waits";
        go.and(Cut::Counted, what, |s| s.archive_lease = archive.breaking());
    } else if !job.conflicts(true) && !archive.conflicts(true) {
        let asks = setup.tier == Tier::LsmFilter;
        go.to(if asks { Cut::Truncating } else { Cut::Unlocked }, "no lease is in the way");
    }
}

/// `guard_setattr`, and the cut: one step, because the inode is locked meanwhile, as it is until `setxattr` of
/// a marker has returned. (To no bytes a file may be cut in guard mode: then nothing is left to recall.)
fn set_attributes(setup: &Setup, go: &mut Go<'_, '_>) {
    let from = go.0.from;
    if from.agent.job == Job::ReleaseMarked {
        return;
    }
    match (from.is_marked(), setup.programs()) {
        (true, _) if from.cutter.promised => go.to(Cut::Met, "meets the marker"),
        (true, true) => go.to(Cut::Gone, "guard_setattr: marked: EAGAIN"),
        (true, false) => go.and(Cut::Done, "cuts chunk 1 off, under the marker", State::cut),
        (false, _) => go.and(Cut::Done, "cuts chunk 1 off", State::cut),
    }
}
