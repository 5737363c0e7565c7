//! Release as `release/batch.rs` does it, and the recovery of one that was cut off
//! (`daemon/recover.rs`, `repunch`).
//!
//! eligible? → claim → invisible descriptor → watch → exclusive lease → unchanged? → intent, durable →
//! marker → sync → lease taken again → punch → times → catalogue. The agent's own descriptor raises
//! no count here: the kernel knows whose lease it is.

use crate::recall::pass_over;
use crate::setup::{Mutant, Setup, Tier};
use crate::state::{Archive, Job, Lease, NOTHING, Net, State};
use crate::step::Steps;

const RELEASE: &str = "release";
const RECOVERY: &str = "recovery";

/// What a release, or the recovery of one, may do now.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if !agent.engine {
        return;
    }
    if agent.finished {
        out.progress(
            RELEASE,
            "the catalogue's batch is committed (a power cut may undo it)",
            |s| {
                s.agent.intent.set(0);
                s.agent.finished = false;
            },
        );
    }
    match agent.job {
        Job::Idle => begin(setup, out),
        Job::ReleasePassOver
        | Job::ReleaseWatch
        | Job::ReleaseLease
        | Job::ReleaseCheck
        | Job::TrimPassOver
        | Job::TrimWatch
        | Job::TrimRetake => acquire(setup, out, agent.job),
        job if job.is_release() => {
            commit(setup, out, job);
            recover(setup, out, job);
        }
        _ => {}
    }
}

fn begin(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if out.from.net == Net::Cleared {
        // Waits until the second net is detached, or armed again.
        return;
    }
    // An engine tells one release from the next by its intent; one slot is enough here.
    let free = agent.archive == Archive::Idle && !agent.finished;
    if agent.holder && free && out.from.left.releases > 0 && !out.from.is_marked() {
        out.whim(RELEASE, "step 1: arms, and claims the file", |s| {
            if !setup.is(Mutant::ReleaseUnarmed) {
                s.net = Net::Armed;
            }
            s.left.releases -= 1;
            s.cutter.promised = false;
            s.agent.job = Job::ReleasePassOver;
        });
    }
}

/// `Interceptor::watch`. The marker, which the filter of tier mark-filter looks for, is not there yet: so
/// the file is held, and a verdict that it is online forgotten.
fn watch(setup: &Setup, state: &mut State) {
    state.watch = true;
    if setup.tier != Tier::MarkFilter || setup.is(Mutant::NotHeld) {
        return;
    }
    state.held = true;
    if !setup.is(Mutant::HeldBesideVerdict) {
        state.invalidate();
    }
}

/// Whether the lease can be taken, or taken again: nobody but us counts.
fn retaken(state: &State) -> bool {
    state.lease.is_intact() && !state.is_open()
}

fn acquire(setup: &Setup, out: &mut Steps<'_>, job: Job) {
    match job {
        Job::ReleasePassOver => out.progress(RELEASE, "step 2: opens the file, passed over", |s| {
            pass_over(s);
            let first = !setup.is(Mutant::WatchAfterLease);
            s.agent.job = if first { Job::ReleaseWatch } else { Job::ReleaseLease };
        }),
        Job::ReleaseWatch => out.progress(RELEASE, "the watch is put in place", |s| {
            watch(setup, s);
            s.agent.job = Job::ReleaseLease;
        }),
        Job::ReleaseLease if out.from.is_open() => {
            out.progress(RELEASE, "step 3: no lease: open elsewhere", |s| {
                s.agent.job = Job::ReleaseUnclaim;
            });
        }
        Job::ReleaseLease => out.progress(RELEASE, "step 3: takes a write lease", |s| {
            s.lease = Lease::Write;
            s.agent.job = Job::ReleaseCheck;
        }),
        Job::ReleaseCheck => check(setup, out),
        // Blocks behind the end are freed; the truncation must raise no event.
        Job::TrimPassOver => out.progress(RELEASE, "trim: passed over, and trims", |s| {
            pass_over(s);
            s.cutter.promised = false;
            s.agent.job = Job::TrimWatch;
        }),
        Job::TrimWatch => out.progress(RELEASE, "trim: the watch is put back", |s| {
            watch(setup, s);
            s.agent.job = Job::TrimRetake;
        }),
        Job::TrimRetake => {
            let good = setup.is(Mutant::NoRetakeAfterTrim) || retaken(&out.from);
            let what = if good { "trim: the lease holds" } else { "trim: open elsewhere" };
            out.progress(RELEASE, what, |s| {
                s.agent.job = if good { Job::ReleaseIntent } else { Job::ReleaseUnlease };
            });
        }
        _ => {}
    }
}

/// `eligible()`: size and times are those of the record. The ctime that was seen last vouches for the
/// content; otherwise it is compared.
fn check(setup: &Setup, out: &mut Steps<'_>) {
    let from = out.from;
    let (record, mtime) = (from.file.meta.record, from.file.meta.mtime);
    let same = (0..2).all(|chunk| from.file.chunk[chunk].now == from.stored(record, chunk));
    let believed = from.agent.vouched || setup.is(Mutant::NoCompareAtRelease);
    if record == NOTHING || record != mtime || !(believed || same) {
        return out.progress(RELEASE, "step 4: changed since it was archived", |s| {
            s.agent.job = Job::ReleaseUnlease;
        });
    }
    for (what, job) in [
        ("step 4: unchanged", Job::ReleaseIntent),
        ("step 4: unchanged, and preallocated", Job::TrimPassOver),
    ] {
        out.progress(RELEASE, what, |s| {
            (s.agent.object, s.agent.times) = (record, mtime);
            s.agent.job = job;
        });
    }
}

fn commit(setup: &Setup, out: &mut Steps<'_>, job: Job) {
    match job {
        Job::ReleaseIntent => out.progress(RELEASE, "step 5: intent; the data is durable", |s| {
            s.agent.intent.set(1);
            s.agent.intent.sync();
            if !setup.is(Mutant::MarkerBeforeData) {
                s.file.sync_data();
            }
            let early = setup.is(Mutant::PunchBeforeMarker);
            s.agent.job = if early { Job::ReleasePunch(0) } else { Job::ReleaseMark };
        }),
        Job::ReleaseMark
            if !out.from.lease.is_intact() && !setup.is(Mutant::MarkerWithoutLease) =>
        {
            out.progress(RELEASE, "step 6: the lease is gone, no marker is set", |s| {
                s.agent.job = Job::UndoRemove;
            });
        }
        Job::ReleaseMark => out.progress(RELEASE, "step 6: sets the marker", |s| {
            s.watch |= setup.is(Mutant::WatchAfterLease);
            s.file.change(|m| m.marker = s.agent.object);
            s.agent.vouched = false;
            s.agent.job = Job::ReleaseMarked;
        }),
        Job::ReleaseMarked => {
            out.progress(RELEASE, "step 6: cached verdicts end", |s| marked(setup, s));
        }
        Job::ReleaseSync => out.progress(RELEASE, "step 6: syncs the marker", |s| {
            s.file.sync();
            let late = setup.is(Mutant::PunchBeforeMarker);
            s.agent.job = if late { Job::ReleaseTimes } else { Job::ReleaseRetake };
        }),
        Job::ReleaseRetake => {
            let good = setup.is(Mutant::NoRetake) || retaken(&out.from);
            let what = if good { "step 7: takes the lease again" } else { "step 7: no lease" };
            out.progress(RELEASE, what, |s| {
                s.agent.job = if good { Job::ReleasePunch(0) } else { Job::UndoRemove };
            });
        }
        Job::ReleasePunch(0) if !out.from.lease.is_intact() => {
            out.progress(RELEASE, "step 8: somebody breaks the lease", |s| {
                s.agent.job = Job::UndoRemove;
            });
        }
        Job::ReleasePunch(chunk) => {
            let what =
                if chunk == 0 { "steps 8, 9: punches chunk 0" } else { "step 9: punches chunk 1" };
            out.progress(RELEASE, what, |s| punch(setup, s, chunk));
        }
        Job::ReleaseTimes => out.progress(RELEASE, "step 9: restores the times", |s| {
            s.file.change(|m| m.mtime = s.agent.times);
            s.agent.finished = true;
            s.agent.job = Job::ReleaseUnlease;
        }),
        Job::UndoRemove => out.progress(RELEASE, "the way back: removes the marker", |s| {
            s.file.change(|m| m.marker = NOTHING);
            s.invalidate();
            s.agent.job = Job::UndoSync;
        }),
        Job::UndoSync => out.progress(RELEASE, "the way back: syncs", |s| {
            if !setup.is(Mutant::NoSyncOfUndo) {
                s.file.sync();
            }
            s.agent.finished = true;
            s.agent.job = Job::ReleaseUnlease;
        }),
        Job::ReleaseUnlease => out.progress(RELEASE, "drops the lease", |s| {
            s.lease = Lease::None;
            s.agent.job = Job::ReleaseUnclaim;
        }),
        Job::ReleaseUnclaim => {
            out.progress(RELEASE, "drops the claim", |s| s.agent.job = Job::Idle);
        }
        _ => {}
    }
}

/// `setxattr` returns. That much happens to a process that is killed meanwhile, too.
pub(crate) fn marked(setup: &Setup, state: &mut State) {
    state.invalidate();
    let hasty = setup.is(Mutant::NoSyncOfMarker);
    state.agent.job = if hasty { Job::ReleaseRetake } else { Job::ReleaseSync };
}

fn punch(setup: &Setup, state: &mut State, chunk: u8) {
    state.file.chunk[usize::from(chunk)].set(NOTHING);
    state.file.change(|m| m.mtime = NOTHING);
    state.agent.job = match chunk {
        0 => Job::ReleasePunch(1),
        _ if setup.is(Mutant::PunchBeforeMarker) => Job::ReleaseMark,
        _ => Job::ReleaseTimes,
    };
}

fn recover(setup: &Setup, out: &mut Steps<'_>, job: Job) {
    let from = out.from;
    match job {
        Job::RecoverLook if from.agent.intent.now == 0 => {
            out.progress(RECOVERY, "finds no open release", |s| s.agent.job = Job::Idle);
        }
        Job::RecoverLook if !from.is_marked() => {
            out.progress(RECOVERY, "no marker: nothing happened", |s| {
                s.agent.finished = true;
                s.agent.job = Job::Idle;
            });
        }
        // The intent stays open until the next start.
        Job::RecoverLook if from.is_open() => {
            out.progress(RECOVERY, "no lease: open elsewhere", |s| s.agent.job = Job::Idle);
        }
        Job::RecoverLook => out.progress(RECOVERY, "finds the marker, takes a write lease", |s| {
            s.lease = Lease::Write;
            s.agent.job = Job::RecoverCheck;
        }),
        Job::RecoverCheck => recover_check(setup, out),
        Job::RecoverRetake if retaken(&from) => {
            out.progress(RECOVERY, "takes the lease again", |s| s.agent.job = Job::RecoverPunch);
        }
        Job::RecoverPunch if from.lease.is_intact() => {
            out.progress(RECOVERY, "punches what is left", |s| {
                s.file.chunk.iter_mut().for_each(|chunk| chunk.set(NOTHING));
                s.file.change(|m| m.mtime = NOTHING);
                s.agent.job = Job::RecoverTimes;
            });
        }
        Job::RecoverRetake | Job::RecoverPunch => {
            out.progress(RECOVERY, "the lease is gone: next time", |s| {
                s.agent.job = Job::ReleaseUnlease;
            });
        }
        Job::RecoverTimes => out.progress(RECOVERY, "restores the times", |s| {
            s.file.change(|m| m.mtime = m.record);
            s.agent.finished = true;
            s.agent.job = Job::ReleaseUnlease;
        }),
        _ => {}
    }
}

/// What is there must be the object's, or it is not for us to take away.
fn recover_check(setup: &Setup, out: &mut Steps<'_>) {
    let file = out.from.file;
    let object = file.meta.marker;
    let here = [0, 1].map(|chunk: usize| (file.chunk[chunk].now, out.from.stored(object, chunk)));
    let data = here.iter().any(|(here, _)| *here != NOTHING);
    let other = here.iter().any(|(here, stored)| *here != NOTHING && here != stored);
    let kept = if setup.is(Mutant::RepunchTrustsTime) {
        data && file.meta.mtime != file.meta.record
    } else {
        other && !setup.is(Mutant::RepunchTrustsMarker)
    };
    let good = file.meta.record == object && !kept;
    let what = if good { "syncs the marker" } else { "finds data of somebody else's" };
    out.progress(RECOVERY, what, |s| {
        s.file.sync();
        s.agent.job = if good { Job::RecoverRetake } else { Job::ReleaseUnlease };
    });
}
