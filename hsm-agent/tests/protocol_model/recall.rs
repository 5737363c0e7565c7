//! The engine answers accesses: `daemon/dispatch.rs`, `core/inflight.rs`, and Recall as
//! `recall/worker.rs` and `recall/settle.rs` do it.
//!
//! Recall: marker → compare what is there → chunks → times → sync → marker removed → readers go on →
//! removal durable → writers go on.

use crate::setup::{Mutant, Setup, Tier};
use crate::state::{Archive, Cut, Cutter, Job, Lease, NOTHING, Opener, State};
use crate::step::Steps;

const ENGINE: &str = "engine";

/// What the engine may do now about accesses that wait, and about the recall that is under way.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if !agent.engine {
        return;
    }
    if agent.holder {
        judge(out);
    } else {
        sentinel(out);
    }
    match agent.job {
        Job::Idle if agent.holder => begin(out),
        Job::LookedOnline => out.progress(ENGINE, "passes over the online file", |s| {
            pass_over(s);
            s.agent.job = Job::Answer;
        }),
        Job::LookedOffline => out.progress(ENGINE, "keeps the watch: the file is offline", |s| {
            let keeps = !setup.is(Mutant::NoKeepWatch);
            let kept = if setup.tier == Tier::MarkFilter { &mut s.held } else { &mut s.watch };
            *kept |= keeps;
            s.agent.job = Job::RecallOpen;
        }),
        Job::Answer => out.progress(ENGINE, "allows all who wait", allow_all),
        job => recall(setup, out, job),
    }
}

/// The kernel need not ask about the file.
pub(crate) fn pass_over(state: &mut State) {
    (state.watch, state.held) = (false, false);
}

fn begin(out: &mut Steps<'_>) {
    if out.from.is_marked() {
        out.whim("operator", "asks for a recall; the engine finds the marker", |s| {
            s.agent.bulk = true;
            s.agent.job = Job::LookedOffline;
        });
    }
    if !out.from.is_asked() {
        return;
    }
    if out.from.is_marked() {
        out.progress(ENGINE, "is asked, finds the marker", |s| s.agent.job = Job::LookedOffline);
    } else {
        out.progress(ENGINE, "is asked, finds no marker", |s| s.agent.job = Job::LookedOnline);
    }
}

/// Nobody is answered by an engine whose holder is gone: the sentinel does that.
fn allow_all(state: &mut State) {
    if state.agent.holder {
        state.allow();
    }
    state.agent.job = Job::Idle;
}

/// All who wait are denied.
pub(crate) fn deny_all(state: &mut State) {
    let [a, b, writer] = state.openers_mut();
    for reader in [a, b].into_iter().filter(|o| o.is_asked()) {
        *reader = Opener::GONE;
    }
    if writer.is_asked() {
        *writer = Opener::AWAY;
    }
    if state.cutter.is_asked() {
        state.cutter = Cutter::at(Cut::Gone);
    }
}

/// All who wait, and who have come while it failed, get an error.
fn fail(state: &mut State) {
    if state.agent.holder {
        deny_all(state);
    }
    state.agent.job = Job::Idle;
}

/// `Effect::Judge`: while the file settles, who provably reads goes on. That nobody writes is proved
/// by taking the read lease again.
fn judge(out: &mut Steps<'_>) {
    let from = &out.from;
    let cleared = from.agent.job.is_settling() && !from.agent.bulk;
    if !cleared || from.lease != Lease::Read || from.is_open_for_writing() {
        return;
    }
    for reader in 0..2 {
        if out.from.readers[reader].is_asked() {
            out.progress(ENGINE, "lets a reader of the settling file go on", |s| {
                s.readers[reader] = s.readers[reader].allowed();
            });
        }
    }
}

/// `daemon/sentinel.rs`: the holder is gone, and what had been asked is denied. What comes later goes on
/// if the file is online and nothing is going on with it.
fn sentinel(out: &mut Steps<'_>) {
    let agent = out.from.agent;
    let busy = agent.job != Job::Idle || agent.archive != Archive::Idle;
    let online = !out.from.is_marked() && !busy;
    for who in 0..3 {
        if !out.from.openers()[who].is_asked() {
            continue;
        }
        let refused = if who == 2 { Opener::AWAY } else { Opener::GONE };
        out.progress("sentinel", "denies an access", |s| *s.openers_mut()[who] = refused);
        if online {
            out.progress("sentinel", "allows an access to the online file", |s| {
                let opener = &mut *s.openers_mut()[who];
                *opener = opener.allowed();
            });
        }
    }
    if out.from.cutter.is_asked() {
        out.progress("sentinel", "denies a cut", |s| s.cutter = Cutter::at(Cut::Gone));
        if online {
            let what = "allows a cut of the online file";
            out.progress("sentinel", what, |s| s.cutter = s.cutter.allowed());
        }
    }
}

fn recall(setup: &Setup, out: &mut Steps<'_>, job: Job) {
    let then = |job: Job| move |s: &mut State| s.agent.job = job;
    match job {
        Job::RecallOpen => open(setup, out),
        Job::RecallWrite(chunk) => write(out, chunk),
        Job::RecallTimes => out.progress(ENGINE, "recall: restores the times", |s| {
            s.file.change(|m| m.mtime = s.agent.times);
            let early = setup.is(Mutant::ClearBeforeSync) || setup.is(Mutant::NoSyncOfData);
            s.agent.job = match (early, s.agent.bulk) {
                (true, _) => Job::RecallClear,
                (false, true) => Job::RecallLease,
                (false, false) => Job::RecallSync,
            };
        }),
        Job::RecallSync => out.progress(ENGINE, "recall: syncs the data", |s| {
            s.file.sync_data();
            let early = setup.is(Mutant::ClearBeforeSync);
            s.agent.job = if early { Job::RecallLease } else { Job::RecallClear };
        }),
        Job::RecallClear => out.progress(ENGINE, "recall: removes the marker", |s| {
            clear(s);
            s.agent.job = match (setup.is(Mutant::ClearBeforeSync), s.agent.bulk) {
                (true, _) => Job::RecallSync,
                (false, true) => Job::CompleteSync,
                (false, false) => Job::RecallLease,
            };
        }),
        Job::RecallLease if setup.is(Mutant::AnswerBeforeDurable) => {
            out.progress(ENGINE, "recall: is content", then(Job::Answer));
        }
        Job::RecallLease if out.from.is_open_for_writing() => {
            // An operator's recall has not synced its data yet.
            let next = if out.from.agent.bulk { Job::RecallSync } else { Job::CompleteSync };
            out.progress(ENGINE, "recall: gets no read lease", then(next));
        }
        Job::RecallLease => out.progress(ENGINE, "recall: takes a read lease", |s| {
            s.lease = Lease::Read;
            s.agent.job = if s.agent.bulk { Job::SettleData } else { Job::SettleSync };
        }),
        Job::SettleData => out.progress(ENGINE, "settle: syncs the data", |s| {
            s.file.sync_data();
            s.agent.job = Job::SettleClear;
        }),
        Job::SettleClear => out.progress(ENGINE, "settle: removes the marker", |s| {
            clear(s);
            s.agent.job = Job::SettleSync;
        }),
        Job::CompleteSync => out.progress(ENGINE, "recall: syncs the marker's removal", |s| {
            s.file.sync();
            s.agent.job = Job::CompletePassOver;
        }),
        Job::CompletePassOver => {
            out.progress(ENGINE, "recall: passes over the file, tells the catalogue", |s| {
                pass_over(s);
                s.agent.vouched = s.agent.row;
                s.agent.job = Job::Answer;
            });
        }
        Job::SettleSync => out.progress(ENGINE, "settle: syncs the marker's removal", |s| {
            s.file.sync();
            s.agent.job = Job::SettlePassOver;
        }),
        Job::SettlePassOver => {
            out.progress(ENGINE, "settle: passes over the file, tells the catalogue", |s| {
                pass_over(s);
                s.agent.vouched = s.agent.row;
                s.agent.job = Job::SettleUnlease;
            });
        }
        Job::SettleUnlease => out.progress(ENGINE, "settle: drops the read lease", |s| {
            s.lease = Lease::None;
            s.agent.job = Job::Answer;
        }),
        _ => {}
    }
}

/// The row with the ctime that this leaves is for the catalogue.
fn clear(state: &mut State) {
    state.file.change(|m| m.marker = NOTHING);
    state.invalidate();
    (state.agent.vouched, state.agent.row) = (false, true);
}

fn open(setup: &Setup, out: &mut Steps<'_>) {
    let (from, object) = (out.from, out.from.file.meta.marker);
    if object == NOTHING {
        return out.progress(ENGINE, "recall: finds no marker", |s| s.agent.job = Job::Answer);
    }
    let here = |chunk: usize| from.file.chunk[chunk].now;
    let is_other =
        |chunk: usize| here(chunk) != NOTHING && here(chunk) != from.stored(object, chunk);
    if from.objects[usize::from(object) - 1].is_none() {
        out.progress(ENGINE, "recall: the store has no such object: EIO", fail);
    } else if !setup.is(Mutant::NoCompareAtRecall) && (is_other(0) || is_other(1)) {
        out.progress(ENGINE, "recall: data that is not the object's: EIO", fail);
    } else {
        out.progress(ENGINE, "recall: opens object and file", |s| {
            s.agent.object = object;
            s.agent.times = s.file.meta.mtime;
            s.agent.clean = here(0) == NOTHING && here(1) == NOTHING;
            s.agent.job = Job::RecallWrite(0);
        });
    }
}

fn write(out: &mut Steps<'_>, chunk: u8) {
    let next = if chunk == 0 { Job::RecallWrite(1) } else { Job::RecallTimes };
    let place = usize::from(chunk);
    let what = if chunk == 0 { "recall: writes chunk 0" } else { "recall: writes chunk 1" };
    out.progress(ENGINE, what, |s| {
        let bytes = s.stored(s.agent.object, place);
        s.file.chunk[place].set(bytes);
        s.file.change(|m| m.mtime = NOTHING);
        s.agent.job = next;
    });
    out.whim(ENGINE, "recall: fails, takes back what it wrote", |s| {
        if s.agent.clean {
            s.file.chunk.iter_mut().for_each(|chunk| chunk.set(NOTHING));
        }
        let times = s.agent.times;
        s.file.change(|m| m.mtime = times);
        fail(s);
    });
}
