//! What dies, and how it starts again; and what the kernel does by itself.

use crate::recall::deny_all;
use crate::release::marked;
use crate::setup::{Mutant, Setup, Tier};
use crate::state::{
    Archive, At, Cached, Cut, Cutter, Item, Job, Lease, NOTHING, Net, Opener, State,
};
use crate::step::Steps;

const FAULT: &str = "fault";

/// Crashes and starts.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    starts(setup, out);
    if out.from.left.crashes == 0 {
        return;
    }
    let agent = out.from.agent;
    let one_may_die = agent.holder && agent.engine || setup.both_die;
    if agent.engine && one_may_die {
        out.whim(FAULT, "the engine dies", |s| {
            s.left.crashes -= 1;
            kill_engine(setup, s);
        });
    }
    if agent.holder && one_may_die {
        out.whim(FAULT, "the holder dies", |s| {
            s.left.crashes -= 1;
            kill_holder(s);
            close_group(setup, s);
        });
    }
    if agent.holder && agent.engine && setup.both_die {
        out.whim(FAULT, "holder and engine die", |s| {
            s.left.crashes -= 1;
            kill_holder(s);
            kill_engine(setup, s);
        });
    }
    power_cut(setup, out);
}

/// Leases, claims and memory go with it. Who waits, waits for the next one, if there is a holder.
fn kill_engine(setup: &Setup, state: &mut State) {
    if state.agent.job == Job::ReleaseMarked {
        marked(setup, state);
    }
    let agent = &mut state.agent;
    agent.engine = false;
    agent.job = Job::Idle;
    agent.archive = Archive::Idle;
    agent.finished = false;
    state.cutter.promised = false;
    state.lease = Lease::None;
    state.archive_lease = Lease::None;
    if setup.is(Mutant::AllowOnEngineDeath) {
        state.allow();
    }
    close_group(setup, state);
}

/// The programs' server is gone, and the next one has another serial number.
fn kill_holder(state: &mut State) {
    state.agent.holder = false;
    state.openers_mut().into_iter().for_each(|opener| opener.vouched = false);
    state.cutter.promised = false;
    // `guard_truncate` looks whether somebody serves.
    if state.cutter.at == Cut::AskedRecall {
        state.cutter = state.cutter.allowed();
    }
}

/// With its last descriptor a group's marks go, and the kernel lets pass whoever waits in it; that of tier
/// mark-filter fails closed.
fn close_group(setup: &Setup, state: &mut State) {
    if !state.group() {
        state.watch = false;
        if setup.tier == Tier::MarkFilter {
            deny_all(state);
        } else {
            state.allow();
        }
    }
}

fn starts(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if agent.holder && !agent.engine && !setup.is(Mutant::NoNewEngine) {
        out.progress("holder", "starts an engine, which syncs the file system", |s| {
            start(setup, s);
        });
    }
    if !agent.holder {
        // First its own watch, then it ends the engine that a dead holder has left.
        out.whim("operator", "starts an agent, which syncs the file system", |s| {
            if !setup.is(Mutant::AllowAtTakeOver) {
                deny_all(s);
            }
            kill_engine(setup, s);
            s.agent.holder = true;
            s.watch = setup.watches_all();
            start(setup, s);
        });
    }
}

/// Intents are recovered before the first event is taken.
fn start(setup: &Setup, state: &mut State) {
    state.agent.engine = true;
    state.net = Net::Armed;
    if !setup.is(Mutant::NoSyncAtStart) {
        state.file.sync();
    }
    state.agent.job = Job::RecoverLook;
}

/// One successor for each combination of what the device may have. The agent starts before anybody
/// can open the file, as OPERATIONS.md has it.
fn power_cut(setup: &Setup, out: &mut Steps<'_>) {
    let file = out.from.file;
    for a in file.chunk[0].survivors() {
        for meta in file.surviving_meta() {
            for b in file.surviving_tail(meta) {
                for intent in out.from.agent.intent.survivors() {
                    out.whim(FAULT, name(meta.marker, [a, b], file.truth), |s| {
                        s.left.crashes -= 1;
                        s.file.chunk = [Item::durable(a), Item::durable(b)];
                        s.file.meta = meta;
                        s.file.sync_meta();
                        s.agent.intent = Item::durable(intent);
                        boot(setup, s);
                    });
                }
            }
        }
    }
}

fn name(marker: u8, chunks: [u8; 2], truth: [u8; 2]) -> &'static str {
    let holes = chunks.contains(&NOTHING);
    let newest = (0..2).all(|chunk| truth[chunk] & (1 << chunks[chunk]) != 0);
    match (marker != NOTHING, holes, newest) {
        (true, true, _) => "power cut; the device has the marker, and holes",
        (true, false, true) => "power cut; the device has the marker, and the newest data",
        (true, false, false) => "power cut; the device has the marker, and older data",
        (false, true, _) => "power cut; the device has no marker, and holes",
        (false, false, true) => "power cut; the device has no marker, and the newest data",
        (false, false, false) => "power cut; the device has no marker, and older data",
    }
}

fn boot(setup: &Setup, state: &mut State) {
    for opener in state.openers_mut().into_iter().filter(|opener| opener.counts()) {
        *opener = Opener::GONE;
    }
    if state.writer.at == At::Gone {
        state.writer = Opener::AWAY;
    }
    if state.cutter.at != Cut::Away {
        state.cutter = Cutter::at(Cut::Gone);
    }
    kill_engine(setup, state);
    state.agent.holder = true;
    state.agent.vouched = false;
    state.cached = Cached::None;
    (state.watch, state.held) = (setup.watches_all(), false);
    for chunk in 0..2 {
        // What nobody synced may be gone; then the file is what is left.
        let here = state.file.chunk[chunk].now;
        let found = 1 << here | 1 << state.stored(state.file.meta.marker, chunk);
        state.file.truth[chunk] = state.file.legal[chunk] & found;
        state.file.legal[chunk] = state.file.truth[chunk];
    }
    start(setup, state);
}

/// Break signals, and eviction.
pub(crate) fn kernel_steps(setup: &Setup, out: &mut Steps<'_>) {
    let from = out.from;
    let engine = from.agent.engine;
    // `Lease::while_intact` holds the break watch up while the marker is set, and until the punch is over.
    let intact = matches!(from.agent.job, Job::ReleaseMarked | Job::ReleasePunch(1));
    if engine && from.lease == Lease::WriteBreaking && !intact {
        out.progress("engine", "gives the broken lease up", |s| s.lease = Lease::None);
    }
    if engine && from.archive_lease == Lease::ReadBreaking {
        out.progress("engine", "gives the archive job's lease up", |s| {
            s.archive_lease = Lease::None;
        });
    }
    // An inode with unsynced metadata may be evicted too, but then fdatasync of the inode that is read
    // again syncs that as well (ext4 `i_datasync_tid` of a fresh inode, btrfs `NEEDS_FULL_SYNC`; XFS
    // keeps the inode): less can go wrong than without.
    let used = from.is_open() || from.agent.job != Job::Idle || from.agent.archive != Archive::Idle;
    let watch = setup.watches_all() && from.group();
    let clean = from.file.journal.count_ones() == 1;
    if !used && clean && (from.cached != Cached::None || from.held || from.watch != watch) {
        out.whim("kernel", "evicts the inode, its mark and its cached verdict", |s| {
            s.cached = Cached::None;
            (s.watch, s.held) = (watch, false);
        });
    }
}
