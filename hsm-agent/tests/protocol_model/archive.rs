//! Archive as `archive/batch.rs` does it.
//!
//! claim → read lease → data version → read → object → store flushed → lease still held, version the
//! same? → record → catalogue. (Its intent is about garbage in the store, and left out.)

use crate::setup::{Mutant, Setup};
use crate::state::{Archive, Lease, NOTHING, State};
use crate::step::Steps;

const ARCHIVE: &str = "archive";

/// What an archive job may do now.
pub(crate) fn steps(setup: &Setup, out: &mut Steps<'_>) {
    let agent = out.from.agent;
    if !agent.engine {
        return;
    }
    let then = |archive: Archive| move |s: &mut State| s.agent.archive = archive;
    match agent.archive {
        Archive::Idle => begin(setup, out),
        Archive::PassOver => out.progress(ARCHIVE, "passes over the online file, opens it", |s| {
            s.watch = false;
            s.agent.archive = Archive::Lease;
        }),
        Archive::Lease if out.from.is_open_for_writing() => {
            out.progress(ARCHIVE, "no lease: open for writing", then(Archive::Idle));
        }
        Archive::Lease => out.progress(ARCHIVE, "takes a read lease", |s| {
            s.archive_lease = Lease::Read;
            s.agent.archive = Archive::Snapshot;
        }),
        Archive::Snapshot => snapshot(out),
        Archive::Read(chunk) => out.progress(ARCHIVE, "reads a chunk", |s| {
            s.agent.copy[usize::from(chunk)] = s.file.chunk[usize::from(chunk)].now;
            s.agent.archive = match chunk {
                0 => Archive::Read(1),
                _ if setup.is(Mutant::RecordBeforeFlush) => Archive::Record,
                _ => Archive::Flush,
            };
        }),
        Archive::Flush => out.progress(ARCHIVE, "the object is durable", |s| {
            if setup.is(Mutant::VersionAfterRead) {
                s.agent.snapshot = s.file.meta.mtime;
            }
            s.objects[usize::from(s.agent.snapshot) - 1] = Some(s.agent.copy);
            let late = setup.is(Mutant::RecordBeforeFlush);
            s.agent.archive = if late { Archive::Check } else { Archive::Record };
        }),
        Archive::Record => record(setup, out),
        Archive::Check => out.progress(ARCHIVE, "looks again, and drops the lease", |s| {
            s.agent.vouched = setup.is(Mutant::VersionAfterRead) || is_unchanged(s);
            end(s);
        }),
    }
}

fn begin(setup: &Setup, out: &mut Steps<'_>) {
    let (agent, file) = (out.from.agent, out.from.file);
    let recalled = agent.job.is_recall() && !setup.is(Mutant::ArchiveDuringRecall);
    let free = !agent.job.is_release() && !recalled && agent.holder;
    let current = file.meta.record == file.meta.mtime && agent.vouched;
    if free && out.from.left.archives > 0 && !out.from.is_marked() && !current {
        out.whim(ARCHIVE, "claims the file", |s| {
            s.left.archives -= 1;
            s.agent.archive = Archive::PassOver;
        });
    }
}

/// The data version. A file whose content is that of its record's object only needs vouching for.
fn snapshot(out: &mut Steps<'_>) {
    let (file, version) = (out.from.file, out.from.file.meta.mtime);
    let content = file.chunk.map(|chunk| chunk.now);
    // Objects have the numbers of versions here: nothing to give to a file with a time of no version,
    // nor to bytes that a power cut left under the time of others.
    let object = match version {
        NOTHING => Some([NOTHING; 2]),
        version => out.from.objects[usize::from(version) - 1],
    };
    if object.is_some_and(|object| object != content) {
        return out.progress(ARCHIVE, "gives up", end);
    }
    if file.meta.record == version && object.is_some() {
        return out.progress(ARCHIVE, "the content was compared: archived already", |s| {
            s.agent.vouched |= s.archive_lease.is_intact();
            end(s);
        });
    }
    out.progress(ARCHIVE, "notes the data version", |s| {
        s.agent.snapshot = version;
        s.agent.archive = Archive::Read(0);
    });
}

fn is_unchanged(state: &State) -> bool {
    state.archive_lease.is_intact() && state.file.meta.mtime == state.agent.snapshot
}

fn record(setup: &Setup, out: &mut Steps<'_>) {
    if out.from.file.meta.mtime != out.from.agent.snapshot {
        return out.progress(ARCHIVE, "the file has changed: the object is thrown away", |s| {
            let object = s.agent.snapshot;
            if s.file.meta.record != object {
                s.objects[usize::from(object) - 1] = None;
            }
            end(s);
        });
    }
    out.progress(ARCHIVE, "writes the record", |s| {
        s.file.change(|m| m.record = s.agent.snapshot);
        s.agent.vouched = false;
        let late = setup.is(Mutant::RecordBeforeFlush);
        s.agent.archive = if late { Archive::Flush } else { Archive::Check };
    });
}

fn end(state: &mut State) {
    state.archive_lease = Lease::None;
    state.agent.archive = Archive::Idle;
}
