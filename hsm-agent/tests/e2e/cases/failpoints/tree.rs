//! A small tree with one file of every kind, and what each of them was like.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hsm_agent::failpoint::Point;
use hsm_agent::marker::{MAP_XATTR, MARKER_XATTR, RECORD_XATTR};
use hsm_lab::{Content, Run};

use super::ways::Way;
use crate::fixture::{Pool, Sample};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The multi-chunk file, which most ways are about.
pub(super) const LARGE: &str = "large";
/// The file that was archived once and changed since.
pub(super) const CHANGED: &str = "changed";
/// The file with blocks behind its end.
pub(super) const PREALLOCATED: &str = "preallocated";

/// Owner, mode, ACL, attributes and times that are not those of a new file.
const DRESS: &str = "cd \"$1\" && ln linked link && chown 1234:4321 dressed && chmod 2640 dressed \
    && setfacl -m u:1234:rw,g:4321:r dressed && setfattr -n user.one -v 'some value' dressed \
    && touch -a -d '2001-02-03 04:05:06.123456789' dressed sparse \
    && touch -m -d '1999-12-31 23:59:59.987654321' dressed sparse linked";

/// The tree of one turn.
pub(super) struct Tree {
    pub(super) dir: PathBuf,
    pub(super) files: Vec<Planted>,
    /// A byte of an object that is broken.
    pub(super) damage: Option<(PathBuf, u64)>,
}

/// One file and what it must be.
pub(super) struct Planted {
    pub(super) name: &'static str,
    pub(super) sample: Sample,
    /// Appended by a writer.
    pub(super) tail: Vec<u8>,
    /// As it was before the death.
    pub(super) looks: Looks,
    /// Somebody but the agent changed it: times are his, and the copy may be old.
    pub(super) changed: bool,
}

/// What a file has beside its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Looks {
    pub(super) mtime: (i64, i64),
    pub(super) atime: (i64, i64),
    pub(super) rest: Rest,
}

/// What nothing may ever change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rest {
    inode: u64,
    links: u64,
    mode: u32,
    owner: (u32, u32),
    attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Looks {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let meta = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
        let rest = Rest {
            inode: meta.ino(),
            links: meta.nlink(),
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            attributes: attributes(path)?,
        };
        let mtime = (meta.mtime(), meta.mtime_nsec());
        Ok(Self { mtime, atime: (meta.atime(), meta.atime_nsec()), rest })
    }
}

/// All but hsm's own. No descriptor is opened, not even one that only names the file: an agent that has just started
/// looks at descriptors, takes one that is closed meanwhile for one that reads, and recalls the file.
fn attributes(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    /// More than any test sets.
    const ROOM: usize = 16 << 10;
    let own = [MARKER_XATTR, RECORD_XATTR, MAP_XATTR].map(str::as_bytes);
    let mut names = vec![0; ROOM];
    let used = rustix::fs::llistxattr(path, &mut names[..])?;
    let mut found = BTreeMap::new();
    for name in names[..used].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if !own.contains(&name) {
            let mut value = vec![0; ROOM];
            let used = rustix::fs::lgetxattr(path, name, &mut value[..])?;
            value.truncate(used);
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

impl Tree {
    pub(super) fn plant(pool: &mut Pool, name: &str, way: Way, point: Point) -> Result<Self> {
        let dir = pool.path(name);
        fs::create_dir(&dir)?;
        let mut tree = Self { dir, files: Vec::new(), damage: None };
        tree.add(pool, "small", 5_000)?;
        tree.add(pool, LARGE, 3 * MIB + 4321)?;
        tree.add(pool, "linked", 40 * KIB + 1)?;
        tree.add(pool, "dressed", 70_000)?;
        let extents = [(0, 4 * KIB), (MIB, 64 * KIB), (2 * MIB + 64 * KIB, 8 * KIB)];
        let sparse = pool.path(name).join("sparse");
        let sparse = pool.file_with(sparse, Content::sparse(77, 2 * MIB + 200 * KIB, &extents))?;
        tree.take("sparse", sparse);
        pool.sh(DRESS, [&tree.dir])?;
        if way == Way::Archive {
            tree.add(pool, CHANGED, 30_000)?;
            pool.hsm.must("archive", [&tree.of(CHANGED)?.sample])?;
            let path = tree.of(CHANGED)?.sample.path.clone();
            let changed = pool.file_with(path, Content::new(4711, 31_000))?;
            tree.of_mut(CHANGED)?.sample = changed;
        }
        if point == Point::ReleaseTrimmed {
            tree.add(pool, PREALLOCATED, 100_000)?;
            let path = &tree.of(PREALLOCATED)?.sample.path;
            Run::new("fallocate").args(["-n", "-l", "1M"]).args([path]).ok()?;
        }
        Ok(tree)
    }

    fn add(&mut self, pool: &mut Pool, name: &'static str, size: u64) -> Result<()> {
        let sample = pool.file(self.dir.join(name), size)?;
        self.take(name, sample);
        Ok(())
    }

    fn take(&mut self, name: &'static str, sample: Sample) {
        let (tail, looks) = (Vec::new(), Looks::default());
        self.files.push(Planted { name, sample, tail, looks, changed: false });
    }

    pub(super) fn of(&self, name: &str) -> Result<&Planted> {
        self.files.iter().find(|file| file.name == name).context("no such file in the tree")
    }

    pub(super) fn of_mut(&mut self, name: &str) -> Result<&mut Planted> {
        self.files.iter_mut().find(|file| file.name == name).context("no such file in the tree")
    }

    pub(super) fn large(&self) -> Result<&Sample> {
        Ok(&self.of(LARGE)?.sample)
    }

    /// Before anything is done to it that may be cut off. Nothing of what is before can be lost.
    pub(super) fn remember(&mut self) -> Result<()> {
        rustix::fs::syncfs(fs::File::open(&self.dir)?)?;
        for file in &mut self.files {
            file.looks = Looks::of(&file.sample.path)?;
        }
        Ok(())
    }

    /// Takes it away: the next turn needs the room.
    pub(super) fn fell(self) -> Result<()> {
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

impl Planted {
    /// These bytes, and what a writer appended.
    pub(super) fn check_bytes(&self, bytes: &[u8]) -> Result<()> {
        let size = usize::try_from(self.sample.content.size)?;
        ensure!(bytes.len() >= size, "{} of {size} bytes", bytes.len());
        self.sample.content.check_bytes(&bytes[..size])?;
        ensure!(bytes[size..] == self.tail, "what was appended is not what is there");
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        let bytes = fs::read(&self.sample.path);
        bytes.map_err(Into::into).and_then(|bytes| self.check_bytes(&bytes)).context(self.name)
    }
}
