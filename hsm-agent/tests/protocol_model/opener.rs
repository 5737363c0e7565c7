//! Programs that open the file: `do_dentry_open` and the kernel programs in it, step by step.
//!
//! raise the open count → `guard_open` → fanotify → `break_lease` → `guard_post_open` → access.
//! In tier user-filter content accesses are asked about too, and there are no kernel programs, or
//! they are in guard mode.

use crate::setup::{Mutant, Setup, Tier};
use crate::state::{At, Cached, NOTHING, Net, Opener, State};
use crate::step::Steps;

const NAMES: [&str; 3] = ["reader A", "reader B", "writer"];
const WRITER: usize = 2;

/// Everything that opener number `who` may do now.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>, who: usize) {
    let opener = out.from.openers()[who];
    let mut program = Program { setup, out, who, opener };
    match opener.at {
        At::Away => program.begin(),
        At::Counted => program.guard_open(),
        At::Looking => program.look(false),
        At::WantsWatch => program.wait_for_watch(),
        At::WantsNet => program.wait_for_net(),
        At::BeforeFanotify => program.fanotify(),
        At::Asked | At::AskedContent => program.give_up(),
        At::BeforeLease => program.break_lease(),
        At::BeforePost => program.guard_post_open(),
        At::LookingAgain => program.look(true),
        At::Open => program.begin_access(),
        At::Access => program.access(),
        At::Wrote => program.after_write(),
        At::Gone => {}
    }
}

struct Program<'a, 'b> {
    setup: &'a Setup,
    out: &'a mut Steps<'b>,
    who: usize,
    opener: Opener,
}

impl Program<'_, '_> {
    fn writes(&self) -> bool {
        self.who == WRITER
    }

    /// Goes to `at`, and changes what else changes.
    fn go(&mut self, at: At, what: &'static str, change: impl FnOnce(&mut State)) {
        let who = self.who;
        self.out.progress(NAMES[who], what, |s| {
            let opener = &mut s.openers_mut()[who];
            **opener = opener.on(at);
            change(s);
        });
    }

    fn refused(&mut self, what: &'static str) {
        let at = if self.writes() { At::Away } else { At::Gone };
        self.go(at, what, |_| {});
    }

    fn begin(&mut self) {
        let (who, writes) = (self.who, self.writes());
        if writes && self.out.from.left.writes == 0 {
            return;
        }
        self.out.whim(NAMES[who], "opens the file: the inode's open count is raised", |s| {
            *s.openers_mut()[who] = Opener::at(At::Counted);
            s.left.writes -= u8::from(writes);
        });
    }

    fn guard_open(&mut self) {
        if !self.setup.programs() {
            return self.go(At::BeforeFanotify, "goes on to fanotify", |_| {});
        }
        match self.out.from.cached {
            Cached::Online => self.go(At::BeforeFanotify, "guard_open: cached as online", |_| {}),
            Cached::Marked => self.marked("guard_open: cached as marked"),
            Cached::None => self.begin_look(At::Looking),
        }
    }

    fn begin_look(&mut self, at: At) {
        if !self.setup.is(Mutant::LookBeforeSeq) {
            return self.go(at, "guard: reads seq", |_| {});
        }
        let (who, saw) = (self.who, self.out.from.is_marked());
        self.go(at, "guard: reads the marker", |s| s.openers_mut()[who].saw = saw);
    }

    /// `Look::end`, and what follows from it. A word with an old `seq` is stored too: it counts for
    /// nothing, and neither does what it replaces.
    fn look(&mut self, again: bool) {
        let early = self.setup.is(Mutant::LookBeforeSeq);
        let marked = if early { self.opener.saw } else { self.out.from.is_marked() };
        let verdict = match (self.opener.stale && !early, marked) {
            (true, _) => Cached::None,
            (false, true) => Cached::Marked,
            (false, false) => Cached::Online,
        };
        // Not remembered of a file that is held.
        if marked || !self.out.from.held {
            self.out.from.cached = verdict;
        }
        match (marked, again) {
            (false, false) => self.go(At::BeforeFanotify, "guard_open: finds no marker", |_| {}),
            (false, true) => self.go(At::Open, "guard_post_open: finds no marker", |_| {}),
            (true, false) => self.marked("guard_open: finds the marker"),
            (true, true) => self.still_marked(),
        }
    }

    fn marked(&mut self, what: &'static str) {
        let from = &self.out.from;
        let (watched, holder) = (from.is_watched(), from.agent.holder);
        match self.setup.tier {
            Tier::LsmFilter | Tier::MarkFilter if watched => self.pass(what),
            Tier::LsmFilter | Tier::MarkFilter if holder => self.go(At::WantsWatch, what, |_| {}),
            Tier::Guarded if holder => self.pass(what),
            _ => self.refused("guard_open: marked, and nobody serves: EAGAIN"),
        }
    }

    /// A marked file: counted, so that the second net stays.
    fn pass(&mut self, what: &'static str) {
        let (who, late) = (self.who, self.setup.is(Mutant::CountAfterLook));
        let at = if self.setup.disarms { At::WantsNet } else { At::BeforeFanotify };
        let (counted, vouched) = (self.setup.disarms && !late, self.setup.tier == Tier::Guarded);
        self.go(at, what, |s| {
            let opener = &mut s.openers_mut()[who];
            (opener.counted, opener.vouched) = (counted, vouched);
        });
    }

    fn wait_for_net(&mut self) {
        let (who, from) = (self.who, &self.out.from);
        let (net, agent) = (from.net, from.agent);
        if self.opener.saw {
            self.go(At::BeforeFanotify, "guard_open: counts itself", |s| {
                s.openers_mut()[who].counted = true;
            });
        } else if net == Net::Armed && self.setup.is(Mutant::CountAfterLook) {
            self.go(At::WantsNet, "guard_open: sees that the second net is armed", |s| {
                s.openers_mut()[who].saw = true;
            });
        } else if net == Net::Armed || self.setup.is(Mutant::PassUnarmed) {
            self.go(At::BeforeFanotify, "guard_open: passes, counted", |_| {});
        } else if !agent.holder {
            self.refused("guard_open: not armed, and nobody serves: EAGAIN");
        } else if net == Net::Gone || !agent.engine {
            // An engine that is about to detach it has the lock.
            self.out.progress("holder", "arms", |s| s.net = Net::Armed);
        }
    }

    fn wait_for_watch(&mut self) {
        if self.out.from.is_watched() {
            self.pass("guard_open: sees the watch");
        } else if self.out.from.agent.holder {
            self.out.progress("holder", "puts a watch on the inode", |s| s.watch = true);
        } else {
            self.refused("guard_open: nobody serves: EAGAIN");
        }
    }

    fn fanotify(&mut self) {
        if self.out.from.is_watched() {
            self.go(At::Asked, "fanotify: raises an event and waits", |_| {});
        } else {
            self.go(At::BeforeLease, "fanotify: nobody watches", |_| {});
        }
    }

    /// Killed, aborted by the operator, past its deadline.
    fn give_up(&mut self) {
        let who = self.who;
        let refused = if self.writes() { Opener::AWAY } else { Opener::GONE };
        self.out.whim(NAMES[who], "does not wait any longer", |s| *s.openers_mut()[who] = refused);
    }

    fn break_lease(&mut self) {
        let (job, archive) = (self.out.from.lease, self.out.from.archive_lease);
        let writes = self.writes();
        if job.conflicts(writes) && job.is_intact() {
            self.go(At::BeforeLease, "breaks the lease and waits", |s| s.lease = job.breaking());
        } else if archive.conflicts(writes) && archive.is_intact() {
            let what = "breaks the archive job's lease and waits";
            self.go(At::BeforeLease, what, |s| s.archive_lease = archive.breaking());
        } else if !job.conflicts(writes) && !archive.conflicts(writes) {
            let attached = self.out.from.net != Net::Gone && !self.setup.is(Mutant::NoPostOpen);
            let guarded = self.setup.programs() && attached;
            let at = if guarded { At::BeforePost } else { At::Open };
            self.go(at, "no lease is in the way", |_| {});
        }
    }

    fn guard_post_open(&mut self) {
        match self.out.from.cached {
            Cached::Online => self.go(At::Open, "guard_post_open: cached as online", |_| {}),
            Cached::Marked => self.still_marked(),
            Cached::None => self.begin_look(At::LookingAgain),
        }
    }

    fn still_marked(&mut self) {
        let from = &self.out.from;
        let same = self.opener.vouched || self.setup.is(Mutant::AnyServer);
        let answered_for = from.group() && from.agent.holder && same;
        if self.setup.tier == Tier::Guarded && answered_for {
            self.go(At::Open, "guard_post_open: marked, and answered for", |_| {});
        } else {
            self.refused("guard_post_open: marked: EAGAIN");
        }
    }

    fn begin_access(&mut self) {
        let from = &self.out.from;
        let filtered = self.setup.tier == Tier::MarkFilter && (from.is_marked() || from.held);
        if filtered && !from.group() {
            self.refused("accesses the data: nobody has the group: EIO");
        } else if filtered || self.setup.watches_all() && from.is_watched() {
            self.go(At::AskedContent, "accesses the data: raises an event and waits", |_| {});
        } else {
            self.go(At::Access, "accesses the data", |_| {});
        }
    }

    /// That a reader sees what it may is checked in every state with somebody at [`At::Access`]. So
    /// it may stay there as long as it likes.
    fn access(&mut self) {
        if self.writes() {
            return self.go(At::Wrote, "writes both chunks", write);
        }
        self.go(At::Gone, "has read, and closes the file", |s| {
            for chunk in 0..2 {
                s.file.truth[chunk] = 1 << s.file.chunk[chunk].now;
            }
        });
    }

    fn after_write(&mut self) {
        let file = &self.out.from.file;
        let synced = file.chunk.iter().all(|chunk| chunk.device.count_ones() == 1);
        if !synced || file.legal != file.truth {
            self.go(At::Wrote, "calls fdatasync, which succeeds", |s| s.file.sync_data());
        }
        self.go(At::Away, "closes the file", |_| {});
    }
}

fn write(state: &mut State) {
    state.newest += 1;
    let version = state.newest;
    let file = &mut state.file;
    file.change(|m| m.mtime = version);
    for chunk in 0..2 {
        file.chunk[chunk].set(version);
        file.truth[chunk] = 1 << version;
        file.legal[chunk] |= 1 << version;
    }
    debug_assert_ne!(version, NOTHING);
    (state.agent.vouched, state.agent.row) = (false, false);
}
