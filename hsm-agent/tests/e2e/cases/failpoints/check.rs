//! What must hold after a death, over the whole tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hsm_agent::core::{FileKey, FileState, ObjectId};
use hsm_agent::failpoint::Point;
use hsm_agent::marker::{Attributes, Facts, InodeFd, MARKER_XATTR};
use hsm_agent::store::ObjectKey;
use hsm_agent::sys::{handle, inode};
use hsm_lab::patience;
use rusqlite::{Connection, OpenFlags};

use super::tree::{CHANGED, LARGE, Looks, PREALLOCATED, Planted, Tree};
use super::ways::Way;
use super::{Death, Turn};
use crate::fixture::Pool;

/// When it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// An agent serves again, nothing else has happened.
    AfterDeath,
    /// The operation was repeated.
    AtTheEnd,
}

/// Everything.
pub(super) fn all(pool: &Pool, tree: &Tree, turn: &Turn, when: When) -> Result<()> {
    let index = Index::read(pool)?;
    index.has_no_intents()?;
    for file in &tree.files {
        looks(file, turn, when).context(file.name)?;
    }
    // What the engine knows of a recall it writes down a moment later, perhaps over what the scan found.
    let end = Instant::now() + patience(Duration::from_secs(1));
    loop {
        match agrees(pool, tree, turn) {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(50)),
            result => break result?,
        }
    }
    if when == When::AtTheEnd {
        for file in tree.files.iter().filter(|file| !is_stale(file, turn)) {
            pool.assert_state(&file.sample.path, turn.way.end())?;
        }
        tree.files.iter().try_for_each(Planted::check)?;
    }
    Ok(())
}

/// Whether a scan makes inodes, catalogue and store agree.
fn agrees(pool: &Pool, tree: &Tree, turn: &Turn) -> Result<()> {
    pool.hsm.command(["scan", "--pool", "lab"]).ok()?;
    let index = Index::read(pool)?;
    let attributes = Attributes::new(MARKER_XATTR)?;
    for file in &tree.files {
        state(pool, &attributes, file, &index, turn).context(file.name)?;
    }
    index.knows_all_of_the_store(pool)
}

/// The catalogue, as it is on disk.
pub(in crate::cases) struct Index {
    /// State and object of each file.
    files: BTreeMap<Vec<u8>, (i64, Option<ObjectId>)>,
    retired: Vec<ObjectId>,
    intents: i64,
}

impl Index {
    pub(in crate::cases) fn read(pool: &Pool) -> Result<Self> {
        let path = pool.config.state_dir().join("lab.db");
        let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let object = |bytes: [u8; 16]| ObjectId(bytes);
        let mut files = database.prepare("SELECT key, state, object FROM files")?;
        let files = files.query_map([], |row| {
            Ok((row.get(0)?, (row.get(1)?, row.get::<_, Option<[u8; 16]>>(2)?.map(object))))
        })?;
        let files = files.collect::<rusqlite::Result<_>>()?;
        let mut retired = database.prepare("SELECT object FROM retired")?;
        let retired = retired.query_map([], |row| row.get(0).map(object))?;
        let retired = retired.collect::<rusqlite::Result<_>>()?;
        let intents = database.query_row("SELECT count(*) FROM intents", [], |row| row.get(0))?;
        Ok(Self { files, retired, intents })
    }

    /// Nothing is half done.
    pub(in crate::cases) fn has_no_intents(&self) -> Result<()> {
        ensure!(self.intents == 0, "{} intents are open", self.intents);
        Ok(())
    }

    /// Whatever is in the store has a file, or waits on the list for the end of its retention.
    pub(in crate::cases) fn knows_all_of_the_store(&self, pool: &Pool) -> Result<()> {
        let used = self.files.values().filter_map(|(_, object)| *object);
        let known: Vec<_> = used.chain(self.retired.iter().copied()).collect();
        let known: Vec<_> = known
            .iter()
            .map(|object| pool.store().join(ObjectKey::new(*object).to_string()))
            .collect();
        // What a crash leaves under tmp/ has a rule of its own: a day.
        let temporary = pool.store().join("tmp");
        for object in pool.objects()? {
            if object.starts_with(&temporary) || known.contains(&object) {
                continue;
            }
            let meta = fs::metadata(&object)?;
            bail!("nobody knows {} ({} bytes)", object.display(), meta.len());
        }
        Ok(())
    }

    /// The object that the inode's record names is the one that is kept for the file.
    pub(in crate::cases) fn names_the_copy_of(&self, path: &Path) -> Result<()> {
        let fd = named(path)?;
        let record = Attributes::new(MARKER_XATTR)?.record(InodeFd::Path(fd.as_fd()))?;
        let copy = record.and_then(|record| record.archived).context("not archived")?.object;
        let known = self.state(&handle::of_fd(&fd)?).and_then(|(_, object)| object);
        ensure!(known == Some(copy), "{}: {copy}, not {known:?}", path.display());
        ensure!(!self.retired.contains(&copy), "{}: its object is to be deleted", path.display());
        Ok(())
    }

    fn state(&self, key: &FileKey) -> Option<(i64, Option<ObjectId>)> {
        self.files.get(&key.to_blob()).copied()
    }
}

/// Whether the death may have come while a recall, or a release's work on preallocated blocks, had moved the
/// mtime: it stays so until the file is recalled, or archived.
fn has_moved_mtime(file: &Planted, turn: &Turn, when: When) -> bool {
    match turn.point {
        // Other files of the job are at other points.
        _ if turn.way == Way::Recall => when == When::AfterDeath,
        // The journal may have kept it, and not that it was put back.
        _ if turn.death == Death::Power && turn.way.recalls() => when == When::AfterDeath,
        Point::RecallChunk | Point::RecallFilled | Point::RecallTakenBack => {
            file.name == LARGE && when == When::AfterDeath
        }
        Point::ReleaseTrimmed => file.name == PREALLOCATED,
        _ => false,
    }
}

/// Whether the copy may count as that of older data, for good.
fn is_stale(file: &Planted, turn: &Turn) -> bool {
    file.changed || has_moved_mtime(file, turn, When::AtTheEnd)
}

/// Times, owner, mode, attributes.
fn looks(file: &Planted, turn: &Turn, when: When) -> Result<()> {
    let now = Looks::of(&file.sample.path)?;
    ensure!(now.rest == file.looks.rest, "{:?} became {:?}", file.looks.rest, now.rest);
    if file.changed || has_moved_mtime(file, turn, when) {
        return Ok(());
    }
    ensure!(now.mtime == file.looks.mtime, "mtime {:?} became {:?}", file.looks.mtime, now.mtime);
    // Whoever reads moves it himself: here the way, or the check before.
    // And the kernel is in no hurry to write it down.
    let read = turn.way.reads() || when == When::AtTheEnd || turn.death == Death::Power;
    ensure!(
        read || now.atime == file.looks.atime,
        "atime {:?} became {:?}",
        file.looks.atime,
        now.atime
    );
    Ok(())
}

/// The file, without opening it.
fn named(path: &Path) -> Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

/// Marker, record and catalogue say the same, and the object is there.
fn state(
    pool: &Pool,
    attributes: &Attributes,
    file: &Planted,
    index: &Index,
    turn: &Turn,
) -> Result<()> {
    let path = &file.sample.path;
    let fd = named(path)?;
    let (key, on) = (handle::of_fd(&fd)?, InodeFd::Path(fd.as_fd()));
    let marker = attributes.marker(on)?;
    let facts: Facts = attributes.facts(on, &inode::stat(&fd)?, Some(&key))?;
    let stale = is_stale(file, turn) || (turn.way == Way::Archive && file.name == CHANGED);
    match facts.state {
        FileState::Resident | FileState::Archived | FileState::Offline => {}
        FileState::Partial if turn.way == Way::Range => {}
        FileState::Dirty if stale => {}
        other => bail!("{other:?}: {}", facts.detail),
    }
    let missing = matches!(facts.state, FileState::Offline | FileState::Partial);
    ensure!(marker.is_some() == missing, "{:?} with marker {marker:?}", facts.state);
    if let (Some(marker), copy) = (marker, facts.copy) {
        let named = copy.map(|copy| copy.object);
        ensure!(named == Some(marker.object), "the record names {named:?}, not the marker's");
    }
    let expected = (facts.state != FileState::Resident).then_some((facts.state, facts.object));
    let known = index.state(&key);
    let same = match (expected, known) {
        (None, None) => true,
        (Some((state, object)), Some((number, known))) => state as i64 == number && object == known,
        _ => false,
    };
    ensure!(same, "{expected:?} on the inode, {known:?} in the catalogue");
    if let Some(object) = facts.object {
        let path = pool.store().join(ObjectKey::new(object).to_string());
        ensure!(path.exists(), "{} is not in the store", path.display());
    }
    Ok(())
}
