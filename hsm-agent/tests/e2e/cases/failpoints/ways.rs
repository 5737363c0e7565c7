//! How each fail point is reached.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hsm_agent::failpoint::Point;
use hsm_agent::store::ObjectKey;
use hsm_lab::{Content, patience};

use super::tree::{LARGE, Planted, Tree};
use super::{Armory, Death, Turn};
use crate::fixture::{Needs, Pool};

const MIB: u64 = 1 << 20;

/// Re-reads the inodes.
const SCAN: [&str; 3] = ["scan", "--pool", "lab"];

/// What a writer appends.
const TAIL: &[u8] = &[0x5a; 7777];

/// What is done when death comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// `hsm archive -r`, of one file for the second time.
    Archive,
    /// `hsm archive`, and somebody opens the file for writing meanwhile.
    ArchiveChanged,
    /// `hsm release -r`.
    Release,
    /// `hsm release`, and somebody opens the file when the marker is set.
    ReleaseTurned,
    /// `hsm recall -r`.
    Recall,
    /// A program reads.
    Read,
    /// A program reads a file whose object is damaged.
    Damaged,
    /// A program appends.
    Write,
    /// A program reads a file that was cut to nothing while no agent watched.
    Emptied,
    /// A program reads a range.
    Range,
    /// A program reads; it is about the event.
    Event,
    /// A program opens a file that nobody watches: tier lsm-filter.
    Request,
    /// A program reads and its engine dies; it is about the next one.
    Respawn,
    /// The agent is started.
    Start,
    /// `hsm release -r` and its engine dies; it is about the next one.
    Recover,
    /// `hsm migrate -r`; it is about the catalogue.
    Index,
    /// `hsm scan` when a file is gone.
    Scan,
    /// `hsm scan --rebuild`.
    Rebuild,
    /// `hsm pin -r`.
    Pin,
}

/// The ways to a point, each with the passage at which death comes. Of points that each file (chunk)
/// passes it is one in the middle, or the last: of six files (five, where none is archived for the second
/// time) and of the four chunks of the large one.
pub(super) fn to(point: Point) -> &'static [(Way, u64)] {
    match point {
        Point::ArchiveLeased | Point::ArchiveStored => &[(Way::Archive, 3)],
        Point::ArchiveChunk | Point::ArchiveVerified => &[(Way::Archive, 2)],
        Point::ArchiveRecorded => &[(Way::Archive, 1), (Way::Archive, 6)],
        Point::ArchiveIntended | Point::ArchiveFlushed | Point::ArchiveCommitted => {
            &[(Way::Archive, 1)]
        }
        Point::ArchiveUndone => &[(Way::ArchiveChanged, 1)],

        Point::ReleaseLeased | Point::ReleaseTimed => &[(Way::Release, 3)],
        Point::ReleaseMarked | Point::ReleasePunched => &[(Way::Release, 1), (Way::Release, 5)],
        Point::ReleaseTrimmed
        | Point::ReleaseIntended
        | Point::ReleaseWritten
        | Point::ReleaseSynced
        | Point::ReleaseRetaken
        | Point::ReleaseCommitted => &[(Way::Release, 1)],
        Point::ReleaseUnmarked | Point::ReleaseUndone => &[(Way::ReleaseTurned, 1)],

        Point::RecallOpened | Point::RecallFilled => &[(Way::Read, 1)],
        Point::RecallChunk => &[(Way::Read, 1), (Way::Read, 4), (Way::Recall, 5), (Way::Write, 2)],
        Point::RecallTimed | Point::RecallUnmarked => {
            &[(Way::Read, 1), (Way::Recall, 2), (Way::Write, 1)]
        }
        Point::RecallSynced | Point::RecallUnmapped => &[(Way::Read, 1), (Way::Write, 1)],
        Point::RecallLeased => &[(Way::Read, 1), (Way::Recall, 2)],
        Point::RecallDurable => &[(Way::Write, 1)],
        Point::RecallTakenBack => &[(Way::Damaged, 1)],
        Point::SettleSynced | Point::SettleDurable | Point::SettleCommitted => &[(Way::Recall, 1)],
        Point::SettleUnleased => &[(Way::Recall, 2)],
        Point::PartialSynced | Point::PartialMapped | Point::PartialMarked => &[(Way::Range, 1)],
        Point::EmptiedUnmarked | Point::EmptiedUnmapped => &[(Way::Emptied, 1)],

        // Intents and outcome of the archive, then of the release.
        Point::CatalogApplied => {
            &[(Way::Index, 1), (Way::Index, 2), (Way::Index, 3), (Way::Index, 4)]
        }
        Point::CatalogCommitted => &[(Way::Index, 1), (Way::Index, 2), (Way::Index, 3)],
        Point::ScanEmptied => &[(Way::Rebuild, 1)],
        Point::ScanWritten => &[(Way::Rebuild, 1), (Way::Scan, 1)],
        Point::ScanForgotten => &[(Way::Scan, 1)],
        Point::PinRecorded => &[(Way::Pin, 2)],

        Point::RecoverWatched | Point::RecoverOpened => &[(Way::Start, 1)],
        Point::RecoverSynced | Point::RecoverCompared | Point::RecoverPunched => {
            &[(Way::Recover, 2)]
        }
        Point::RecoverTimed => &[(Way::Recover, 5)],
        Point::RecoverCommitted => &[(Way::Recover, 1)],

        Point::EventTaken | Point::EventAnswered => &[(Way::Event, 1)],
        Point::EventAnswering => &[(Way::Event, 1), (Way::Write, 1)],
        Point::HolderRead
        | Point::HolderListed
        | Point::HolderSent
        | Point::HolderAnswering
        | Point::HolderAnswered => &[(Way::Event, 1)],
        Point::HolderSpawned => &[(Way::Respawn, 1)],
        Point::HolderRequested | Point::HolderMarked => &[(Way::Request, 1)],
    }
}

impl Way {
    /// Whether anything is promised. Where no kernel programs guard the files, and both processes are
    /// dead, a writer goes on over a stub (docs/OPERATIONS.md).
    pub(super) fn applies(self, death: Death) -> bool {
        let guarded = Needs::Programs.are_met();
        match self {
            Self::Write => guarded || !death.is_total(),
            Self::Request => guarded,
            _ => true,
        }
    }

    /// Engines that die on this way if it is engines that are to die.
    pub(super) fn deaths(self) -> u64 {
        if matches!(self, Self::Recover) { 2 } else { 1 }
    }

    /// Whether somebody reads files.
    pub(super) fn reads(self) -> bool {
        !matches!(
            self,
            Self::Archive
                | Self::ArchiveChanged
                | Self::Release
                | Self::Recall
                | Self::Start
                | Self::Recover
                | Self::Index
                | Self::Scan
                | Self::Rebuild
                | Self::Pin
        )
    }

    /// Whether files are recalled.
    pub(super) fn recalls(self) -> bool {
        self == Self::Recall || self.reads()
    }

    /// Brings the tree into the state that the way begins with.
    pub(super) fn prepare(self, pool: &mut Pool, tree: &mut Tree) -> Result<()> {
        match self {
            Self::Archive | Self::ArchiveChanged | Self::Index => return Ok(()),
            Self::Release | Self::ReleaseTurned | Self::Recover | Self::Pin => {
                return below(pool, "archive", tree);
            }
            Self::Scan => return mixed(pool, tree, true),
            Self::Rebuild => return mixed(pool, tree, false),
            _ => pool.offline_tree(&tree.dir)?,
        };
        match self {
            Self::Damaged => damage(pool, tree),
            Self::Emptied => empty(pool, tree),
            Self::Request => pool.restart(),
            _ => Ok(()),
        }
    }

    /// Goes it. The armed point strikes meanwhile or soon after; everybody who was started has ended.
    pub(super) fn go(
        self,
        pool: &mut Pool,
        tree: &mut Tree,
        armory: &Armory,
        turn: &Turn,
    ) -> Result<()> {
        match self {
            Self::Archive => run(pool, &["archive", "-r"], &tree.dir),
            Self::Release => run(pool, &["release", "-r"], &tree.dir),
            Self::Recall => run(pool, &["recall", "-r"], &tree.dir),
            Self::Index => run(pool, &["migrate", "-r"], &tree.dir),
            Self::Pin => run(pool, &["pin", "-r"], &tree.dir),
            Self::Scan => pool.hsm.command(SCAN).output().map(drop),
            Self::Rebuild => pool.hsm.command(SCAN).args(["--rebuild"]).output().map(drop),
            Self::ArchiveChanged => archive_changed(pool, tree, armory),
            Self::ReleaseTurned => release_turned(pool, tree, armory, turn),
            Self::Recover => {
                armory.arm(Point::ReleaseSynced, "kill-engine", 1)?;
                run(pool, &["release", "-r"], &tree.dir)
            }
            Self::Start => {
                pool.stop()?;
                ensure!(pool.start().is_err(), "the agent says that it serves");
                Ok(())
            }
            Self::Respawn => {
                armory.arm(Point::EventTaken, "kill-engine", 1)?;
                read(tree, turn)
            }
            Self::Read | Self::Event | Self::Request | Self::Emptied | Self::Damaged => {
                read(tree, turn)
            }
            Self::Write => write(tree, turn),
            Self::Range => read_range(pool, tree, turn),
        }
    }

    /// Undoes what is none of the agent's doing.
    pub(super) fn after(self, tree: &Tree) -> Result<()> {
        if self == Self::Damaged { flip(tree) } else { Ok(()) }
    }

    /// The same once more: it succeeds.
    pub(super) fn again(self, pool: &Pool, tree: &Tree, point: Point) -> Result<()> {
        match self {
            Self::Archive | Self::ArchiveChanged => below(pool, "archive", tree),
            // What is said of it in `check::has_moved_mtime`.
            Self::Release if point == Point::ReleaseTrimmed => {
                below(pool, "archive", tree)?;
                below(pool, "release", tree)
            }
            Self::Release | Self::ReleaseTurned | Self::Recover => below(pool, "release", tree),
            Self::Index => below(pool, "migrate", tree),
            Self::Scan => pool.hsm.command(SCAN).ok().map(drop),
            Self::Rebuild => pool.hsm.command(SCAN).args(["--rebuild"]).ok().map(drop),
            Self::Pin => {
                below(pool, "pin", tree)?;
                below(pool, "unpin", tree)
            }
            _ => below(pool, "recall", tree),
        }
    }

    /// The state of every file then.
    pub(super) fn end(self) -> &'static [&'static str] {
        match self {
            Self::Release | Self::ReleaseTurned | Self::Recover | Self::Index => &["offline"],
            Self::Scan | Self::Rebuild => &["archived", "offline"],
            _ => &["archived"],
        }
    }
}

fn below(pool: &Pool, verb: &str, tree: &Tree) -> Result<()> {
    pool.hsm.must(verb, ["-r".as_ref(), tree.dir.as_os_str()]).map(drop)
}

/// Whatever comes of it.
fn run(pool: &Pool, words: &[&str], dir: &Path) -> Result<()> {
    pool.hsm.command(words).args([dir]).output().map(drop)
}

/// Files in two states and, if it is wanted, a row of one that is gone. (A rebuild would forget it; what
/// it leaves in the store only a listing of the store could find.)
fn mixed(pool: &Pool, tree: &mut Tree, gone: bool) -> Result<()> {
    below(pool, "archive", tree)?;
    pool.hsm.must("release", [tree.large()?])?;
    if !gone {
        return pool.hsm.command(SCAN).ok().map(drop);
    }
    let gone = tree.files.iter().position(|file| file.name == "small").context("no small file")?;
    Ok(fs::remove_file(tree.files.remove(gone).sample.path)?)
}

/// Breaks a byte of the large file's first chunk, or mends it.
fn flip(tree: &Tree) -> Result<()> {
    let (object, at) = tree.damage.as_ref().context("nothing was damaged")?;
    let file = File::options().read(true).write(true).open(object)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, *at)?;
    Ok(file.write_all_at(&[byte[0] ^ 1], *at)?)
}

/// The last chunk is the smallest by far: it is in place before the first one is known to be bad.
fn damage(pool: &Pool, tree: &mut Tree) -> Result<()> {
    let object = pool.object_of(&tree.large()?.path)?;
    let path = pool.store().join(ObjectKey::new(object.parse()?).to_string());
    tree.damage = Some((path, MIB / 2));
    flip(tree)
}

fn empty(pool: &mut Pool, tree: &mut Tree) -> Result<()> {
    pool.stop()?;
    let file = tree.of_mut(LARGE)?;
    let path = file.sample.path.clone();
    pool.unguarded(|| {
        let file = File::options().write(true).open(path)?;
        file.set_len(0)?;
        Ok(file.sync_all()?)
    })?;
    file.sample.content = Content::new(0, 0);
    file.changed = true;
    pool.start()
}

fn archive_changed(pool: &Pool, tree: &mut Tree, armory: &Armory) -> Result<()> {
    armory.arm(Point::ArchiveChunk, "pause", 2)?;
    let archive = pool.hsm.command(["archive".as_ref(), tree.large()?.path.as_os_str()]).start()?;
    armory.wait_until_reached(Point::ArchiveChunk)?;
    let writer = File::options().write(true).open(&tree.large()?.path)?;
    armory.let_go(Point::ArchiveChunk)?;
    archive.finish()?;
    drop(writer);
    Ok(())
}

fn release_turned(pool: &Pool, tree: &Tree, armory: &Armory, turn: &Turn) -> Result<()> {
    armory.arm(Point::ReleaseMarked, "pause", 1)?;
    let release = pool.hsm.command(["release".as_ref(), tree.large()?.path.as_os_str()]).start()?;
    armory.wait_until_reached(Point::ReleaseMarked)?;
    let reader = start_reading(tree)?;
    // He counts in the kernel before his event comes: the lease cannot be taken again.
    let end = Instant::now() + patience(Duration::from_secs(10));
    while pool.hsm.command(["--json", "waiters"]).ok()?.text().trim().is_empty() {
        ensure!(Instant::now() < end, "nobody waits");
        thread::sleep(Duration::from_millis(10));
    }
    armory.let_go(Point::ReleaseMarked)?;
    release.finish()?;
    judge(reader, tree.of(LARGE)?, turn)
}

type Reader = JoinHandle<std::io::Result<Vec<u8>>>;

fn start_reading(tree: &Tree) -> Result<Reader> {
    let path = tree.large()?.path.clone();
    Ok(thread::spawn(move || fs::read(path)))
}

fn read(tree: &Tree, turn: &Turn) -> Result<()> {
    judge(start_reading(tree)?, tree.of(LARGE)?, turn)
}

/// The bytes or an error; the bytes if only engines died.
fn judge(reader: Reader, file: &Planted, turn: &Turn) -> Result<()> {
    let got = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
    // One engine is dead already, and the next one has no part of the watch yet.
    let both = turn.death.is_total() || (turn.death, turn.way) == (Death::Holder, Way::Respawn);
    match got {
        // Nobody keeps him then (docs/OPERATIONS.md).
        _ if both && !Needs::Programs.are_met() => Ok(()),
        Ok(bytes) => file.check_bytes(&bytes).context("what the reader got"),
        Err(error) if turn.death == Death::Engine && turn.way != Way::Damaged => {
            Err(error).context("the reader got an error")
        }
        Err(_) => Ok(()),
    }
}

fn write(tree: &mut Tree, turn: &Turn) -> Result<()> {
    let file = tree.of_mut(LARGE)?;
    let path = file.sample.path.clone();
    let writer = thread::spawn(move || -> std::io::Result<()> {
        let mut file = File::options().append(true).open(path)?;
        file.write_all(TAIL)?;
        // What is lost with the power otherwise is his.
        file.sync_data()
    });
    match writer.join().map_err(|_| anyhow!("the writer panicked"))? {
        Ok(()) => (file.changed, file.tail) = (true, TAIL.to_vec()),
        Err(error) if turn.death == Death::Engine => {
            return Err(error).context("the writer got an error");
        }
        Err(_) => {}
    }
    Ok(())
}

/// Of the second chunk.
fn read_range(pool: &Pool, tree: &Tree, turn: &Turn) -> Result<()> {
    let (file, offset, length) = (tree.large()?, MIB + 5, 1000);
    let args = [file.path.display().to_string(), offset.to_string(), length.to_string()];
    let out = pool.helper("pread", args)?.output()?;
    match (out.code(), turn.death) {
        (_, Death::Both | Death::Power) => Ok(()),
        (0, _) => file.content.check_range(offset, &out.stdout),
        (_, Death::Holder) => Ok(()),
        (code, Death::Engine) => Err(anyhow!("pread ended with {code}: {}", out.describe())),
    }
}
