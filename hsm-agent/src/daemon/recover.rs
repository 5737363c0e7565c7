//! After a start: finishes or undoes what an earlier engine left half done, and looks for programs
//! that have offline files open from a time when nobody watched.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::dispatch::Claim;
use super::jobs::scan;
use super::outcome::Candidate;
use super::pool::{FileRef, Pool, now_ns};
use crate::catalog::{Batch, CatalogError, Intent, IntentOp};
use crate::core::{FileKey, FileState};
use crate::failpoint::{Point, reach};
use crate::marker::{InodeFd, Marker, Owner, Record};
use crate::release::{PATIENCE, Unfinished, repunch};
use crate::sys::{handle, inode, process};

/// How soon a release that could not be finished is tried again; each time twice as long, up to [`RARELY`].
const SOON: Duration = Duration::from_secs(1);

/// At least so often it is tried.
const RARELY: Duration = Duration::from_secs(60);

/// How long the end of the engine waits for somebody who sleeps between two tries.
const NAP: Duration = Duration::from_millis(200);

/// Completes or undoes each open intent. Each step may itself be cut off: it is then repeated. Returns the releases
/// of which somebody uses the file now.
pub(super) fn intents(pool: &Arc<Pool>) -> Result<Vec<Intent>, CatalogError> {
    let open = pool.catalog.open_intents()?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    tracing::info!(pool = pool.config.name, count = open.len(), "recovering unfinished operations");
    let mut batch = Batch::default();
    let mut left = Vec::new();
    let patience = Instant::now() + PATIENCE;
    for intent in open {
        match intent.what.op {
            IntentOp::Archive => archive(pool, &intent, &mut batch),
            IntentOp::Release => match release(pool, &intent, patience, &mut batch) {
                Next::Done(_) | Next::AtStart => {}
                Next::Soon { why, name } => {
                    tracing::warn!(
                        why, file = %name.display(),
                        "a release that was cut off is not finished yet; the file is offline, and looked at again soon"
                    );
                    left.push(intent);
                }
            },
        }
    }
    pool.catalog.commit(&batch)?;
    reach(Point::RecoverCommitted);
    Ok(left)
}

/// Tries again what [`intents`] left, beside everything else that the engine does: each release is claimed like
/// any other job, so that no recall and no other job meets it. Until all are through, the second kernel program
/// stays attached, and what is left of the files' data takes room.
pub(super) fn finish(pool: &Arc<Pool>, mut left: Vec<Intent>) {
    let mut pause = SOON;
    while !left.is_empty() {
        let next = Instant::now() + pause;
        while Instant::now() < next {
            if pool.stopping.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(NAP);
        }
        pause = (2 * pause).min(RARELY);
        left.retain(|intent| is_left(pool, intent));
    }
}

/// Tries one again; whether somebody still uses the file.
fn is_left(pool: &Arc<Pool>, intent: &Intent) -> bool {
    let mut batch = Batch::default();
    let next = release(pool, intent, Instant::now(), &mut batch);
    // Noted under the claim that `next` holds: afterwards the file may be recalled, changed and archived, and a late
    // row would put that new object on the garbage list. One that is not noted is looked at again at the next start.
    if let Err(error) = pool.catalog.commit(&batch) {
        tracing::error!(%error, pool = pool.config.name, "what was finished is not noted");
    }
    matches!(next, Next::Soon { .. })
}

/// What becomes of an intent.
enum Next {
    /// Nothing more, once it is noted; under this claim, if others may come for the file meanwhile.
    Done(#[expect(dead_code, reason = "held, and dropped")] Option<Claim>),
    /// Somebody uses the file: looked at again soon.
    Soon {
        /// How he was noticed.
        why: &'static str,
        /// The file.
        name: PathBuf,
    },
    /// Looked at again at the next start. It is told why.
    AtStart,
}

fn candidate(pool: &Pool, intent: &Intent) -> std::io::Result<Candidate> {
    let file = FileRef { key: intent.what.key.clone(), event: None, pid: None };
    let path = handle::open(&pool.root, &file.key, OFlags::PATH)?;
    let stat = inode::stat(&path)?;
    let name = pool.name_of(path.as_fd());
    Ok(Candidate { file, path, name, stat, named: true })
}

/// The record names the object: the archive was complete, only the catalogue does not know. It
/// does not: the object is garbage. It is retired, not deleted: retention first.
fn archive(pool: &Pool, intent: &Intent, batch: &mut Batch) {
    let object = intent.what.object;
    let named = match candidate(pool, intent) {
        Ok(file) => match pool.attributes.record(InodeFd::Path(file.path.as_fd())) {
            Ok(Some(Record { archived: Some(copy), .. })) if copy.object == object => {
                // The catalogue still knows the copy of the previous version, if there was one.
                let known = pool.catalog.get(&intent.what.key).ok().flatten();
                scan::note(pool, &file, known.as_ref(), batch).map_err(|outcome| outcome.detail)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
        .inspect_err(|error| {
            tracing::warn!(error, file = %file.name.display(), "an unfinished archive is looked at again at the next start");
        }),
        Err(e) if handle::is_stale(&e) => Ok(false),
        Err(error) => {
            tracing::warn!(%error, "an unfinished archive is looked at again at the next start");
            return;
        }
    };
    let Ok(named) = named else { return };
    if !named {
        batch.retired.push((object, now_ns()));
    }
    batch.finished.push(intent.id);
}

/// No marker, or that of another file: nothing happened. Marker: the file is offline, whatever is left of its data; what
/// is left is taken away if nobody uses the file now.
fn release(pool: &Arc<Pool>, intent: &Intent, patience: Instant, batch: &mut Batch) -> Next {
    let file = match candidate(pool, intent) {
        Ok(file) => file,
        Err(e) if handle::is_stale(&e) => {
            batch.finished.push(intent.id);
            return Next::Done(None);
        }
        Err(error) => {
            tracing::warn!(%error, "an unfinished release is looked at again at the next start");
            return Next::AtStart;
        }
    };
    let mut held = None;
    match pool.attributes.marker(InodeFd::Path(file.path.as_fd())) {
        Ok(None) => {}
        Ok(Some(marker)) if is_foreign(&marker, &file) => {
            // Somebody copied it here; the release never came to set its own. Left open, the intent
            // would be looked at in vain at every start.
            tracing::error!(
                file = %file.name.display(), marker = pool.config.marker,
                "a release of this file was cut off, and now it carries the marker of another file: the release is given up and its data stays. If that data is right, remove the attribute"
            );
        }
        Ok(Some(_)) => match repunch(pool, &file, patience) {
            Ok((row, claim)) => {
                debug_assert!(matches!(row.state, FileState::Offline | FileState::Partial));
                batch.upserts.push(row);
                held = Some(claim);
            }
            Err(Unfinished::Busy(why)) => return Next::Soon { why, name: file.name },
            Err(Unfinished::Refused(why)) => {
                tracing::error!(
                    why, file = %file.name.display(),
                    "a release that was cut off is not finished; the file is offline, and looked at again at the next start"
                );
                return Next::AtStart;
            }
        },
        Err(error) => {
            tracing::error!(%error, file = %file.name.display(), "not recovered");
            return Next::AtStart;
        }
    }
    batch.finished.push(intent.id);
    Next::Done(held)
}

fn is_foreign(marker: &Marker, file: &Candidate) -> bool {
    let generation = file.file.key.generation();
    generation.is_some_and(|generation| marker.owner != Owner::of(file.stat.ino, generation))
}

/// Programs that have an offline file open since before the watch began raise no events: they
/// would read holes. Their files are recalled now, and the operator is told.
pub(super) fn open_files(pool: &Arc<Pool>) {
    let own = [std::process::id(), std::os::unix::process::parent_id()].map(|p| p.to_string());
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for entry in processes {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else {
            continue;
        };
        if own.iter().any(|own| own == pid) {
            continue;
        }
        for directory in ["fd", "map_files"] {
            let links = std::fs::read_dir(entry.path().join(directory));
            for link in links.into_iter().flatten().flatten() {
                one_open_file(pool, pid, &link.path());
            }
        }
    }
}

fn one_open_file(pool: &Arc<Pool>, pid: &str, link: &Path) {
    let Some((key, name)) = offline_file(pool, link) else { return };
    // A mapping is no descriptor: the kernel tells nothing of one by that name.
    let descriptor = link.file_name().and_then(|name| name.to_str());
    if descriptor.is_some_and(|descriptor| process::only_names_a_file(pid, descriptor)) {
        return;
    }
    tracing::error!(
        pid, file = %name.display(),
        "a program has this offline file open since before the agent watched; recalling it. What it read so far may be zeros: start the agent before anything can open files"
    );
    let _ = pool.recall_for_user(&FileRef { key, event: None, pid: None });
}

/// Identity and name of the file, if it is one of this pool and offline.
fn offline_file(pool: &Pool, link: &Path) -> Option<(FileKey, PathBuf)> {
    let fd = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let stat = inode::stat_cached(&fd).ok()?;
    if !stat.is_file() {
        return None;
    }
    if !matches!(pool.attributes.marker(InodeFd::Path(fd.as_fd())), Ok(Some(_))) {
        return None;
    }
    // Handles of other file systems look alike. This one is of ours if it leads to the same inode.
    let key = handle::of_fd(&fd).ok()?;
    let ours = inode::stat(handle::open(&pool.root, &key, OFlags::PATH).ok()?).ok()?;
    let same = (ours.dev, ours.ino) == (stat.dev, stat.ino);
    same.then(|| (key, pool.name_of(fd.as_fd())))
}
