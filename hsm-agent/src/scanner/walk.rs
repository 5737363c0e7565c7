//! A walk over the files of one pool, everything by descriptor.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use globset::GlobSet;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags};

use crate::core::Subtrees;
use crate::daemon::outcome::Candidate;
use crate::daemon::pool::FileRef;
use crate::sys::{handle, inode};

/// Below the root, through no symbolic link, into no other mount.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);
const FIND: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A place that could not be looked at.
#[derive(Debug)]
pub struct WalkError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

/// What a walk comes across.
#[derive(Debug)]
pub enum Found {
    /// A file of any kind but directories.
    File(Candidate),
    /// A directory that was named although the walk does not go down.
    Directory(PathBuf),
    /// A place that was named although it is outside the directories that the walk is about.
    Outside(PathBuf),
    /// A place that could not be looked at. The walk goes on.
    Error(WalkError),
}

/// How to walk.
#[derive(Debug)]
pub struct Walker<'a> {
    /// A directory of the pool's own mount.
    pub root: BorrowedFd<'a>,
    /// Where that is, for names.
    pub mount: &'a Path,
    /// Go down directories.
    pub recursive: bool,
    /// What is outside is not entered and not found.
    pub subtrees: &'a Subtrees,
    /// Only names that match one of these; empty: all.
    pub include: &'a GlobSet,
    /// No names that match one of these; matching directories are not entered.
    pub exclude: &'a GlobSet,
}

/// `path` below `mount`, or `None` if it is not there. `.` components vanish; `..` is left for
/// the kernel, which refuses to leave the root.
pub fn relative_to(path: &Path, mount: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(mount).ok()?;
    Some(rest.components().filter(|c| !matches!(c, Component::CurDir)).collect())
}

struct Step {
    parent: Arc<OwnedFd>,
    name: Vec<u8>,
    path: PathBuf,
}

impl Walker<'_> {
    /// Calls `visit` for `path` and, if asked for, everything below it.
    pub fn walk(
        &self,
        path: &Path,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self.named(path) {
            Ok(Named::File(candidate)) => visit(Found::File(candidate)),
            Ok(Named::Outside) => visit(Found::Outside(path.into())),
            Ok(Named::Directory(fd)) if self.recursive => self.down(fd, path, visit),
            Ok(Named::Directory(_)) => visit(Found::Directory(path.into())),
            Err(error) => visit(Found::Error(WalkError { path: path.into(), error })),
        }
    }

    fn named(&self, path: &Path) -> io::Result<Named> {
        let not_below = || io::Error::from(io::ErrorKind::NotFound);
        let relative = relative_to(path, self.mount).ok_or_else(not_below)?;
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { &relative };
        let fd = rustix::fs::openat2(self.root, relative, FIND, Mode::empty(), RESOLVE)?;
        let stat = inode::stat(&fd)?;
        if stat.is_dir() {
            let inside = self.enters(path);
            return Ok(if inside { Named::Directory(fd) } else { Named::Outside });
        }
        if !self.finds(path) {
            return Ok(Named::Outside);
        }
        let file = FileRef { key: handle::of_fd(&fd)?, event: None, pid: None };
        Ok(Named::File(Candidate { file, path: fd, name: path.into(), stat, named: true }))
    }

    /// Whether files of that name are among those that the walk is about.
    fn finds(&self, path: &Path) -> bool {
        self.subtrees.is_everything()
            || relative_to(path, self.mount).is_some_and(|path| self.subtrees.cover(&path))
    }

    /// Whether such files may be below that directory.
    fn enters(&self, path: &Path) -> bool {
        self.subtrees.is_everything()
            || relative_to(path, self.mount).is_some_and(|path| self.subtrees.lead_through(&path))
    }

    fn down(
        &self,
        top: OwnedFd,
        path: &Path,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let top = Arc::new(top);
        let mut stack = vec![Step { parent: top, name: b".".to_vec(), path: path.into() }];
        while let Some(step) = stack.pop() {
            let shown = step.path.clone();
            if let Err(error) = self.directory(&step, path, &mut stack, visit) {
                match error {
                    Stop::Asked => return ControlFlow::Break(()),
                    Stop::Error(error) => visit(Found::Error(WalkError { path: shown, error }))?,
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn directory(
        &self,
        step: &Step,
        top: &Path,
        stack: &mut Vec<Step>,
        visit: &mut dyn FnMut(Found) -> ControlFlow<()>,
    ) -> Result<(), Stop> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(
            &*step.parent,
            OsStr::from_bytes(&step.name),
            flags,
            Mode::empty(),
            RESOLVE,
        )?;
        let fd = Arc::new(fd);
        for entry in Dir::read_from(&*fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let path = step.path.join(OsStr::from_bytes(name));
            let below = || path.strip_prefix(top).unwrap_or(&path);
            if !self.exclude.is_empty() && matches(self.exclude, below()) {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                if !self.enters(&path) {
                    continue;
                }
                stack.push(Step { parent: Arc::clone(&fd), name: name.to_vec(), path });
                continue;
            }
            if !self.include.is_empty() && !matches(self.include, below()) || !self.finds(&path) {
                continue;
            }
            let found = match candidate(fd.as_fd(), name, &path) {
                Ok(Some(candidate)) => Found::File(candidate),
                Ok(None) => continue,
                Err(error) => Found::Error(WalkError { path, error }),
            };
            if visit(found).is_break() {
                return Err(Stop::Asked);
            }
        }
        Ok(())
    }
}

enum Named {
    File(Candidate),
    Directory(OwnedFd),
    Outside,
}

enum Stop {
    Asked,
    Error(io::Error),
}

impl From<rustix::io::Errno> for Stop {
    fn from(e: rustix::io::Errno) -> Self {
        Self::Error(e.into())
    }
}

fn matches(globs: &GlobSet, below: &Path) -> bool {
    globs.is_match(below) || below.file_name().is_some_and(|name| globs.is_match(name))
}

/// `None`: it was deleted in between, or is a mount point.
fn candidate(directory: BorrowedFd<'_>, name: &[u8], path: &Path) -> io::Result<Option<Candidate>> {
    let name = OsStr::from_bytes(name);
    let fd = match rustix::fs::openat2(directory, name, FIND, Mode::empty(), RESOLVE) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let stat = inode::stat(&fd)?;
    let file = FileRef { key: handle::of_fd(&fd)?, event: None, pid: None };
    Ok(Some(Candidate { file, path: fd, name: path.into(), stat, named: false }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use globset::{Glob, GlobSetBuilder};

    use super::*;

    fn globs(list: &[&str]) -> GlobSet {
        let mut b = GlobSetBuilder::new();
        for g in list {
            b.add(Glob::new(g).unwrap());
        }
        b.build().unwrap()
    }

    fn names(dir: &Path, start: &Path, include: &[&str], exclude: &[&str]) -> BTreeSet<String> {
        names_within(&Subtrees::default(), dir, start, include, exclude)
    }

    fn names_within(
        subtrees: &Subtrees,
        dir: &Path,
        start: &Path,
        include: &[&str],
        exclude: &[&str],
    ) -> BTreeSet<String> {
        let root = std::fs::File::open(dir).unwrap();
        let (include, exclude) = (globs(include), globs(exclude));
        let walker = Walker {
            root: root.as_fd(),
            mount: dir,
            recursive: true,
            subtrees,
            include: &include,
            exclude: &exclude,
        };
        let mut all = BTreeSet::new();
        let _ = walker.walk(start, &mut |found| {
            all.insert(match found {
                Found::File(c) => relative_to(&c.name, dir).unwrap().display().to_string(),
                Found::Directory(d) => format!("dir {}", d.display()),
                Found::Outside(path) => {
                    format!("outside {}", relative_to(&path, dir).unwrap().display())
                }
                Found::Error(e) => format!("error {:?}", e.error.kind()),
            });
            ControlFlow::Continue(())
        });
        all
    }

    #[test]
    fn walks_below_the_root_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        let d = dir.path();
        std::fs::create_dir_all(d.join("a/b")).unwrap();
        for f in ["a/one.txt", "a/b/two.txt", "a/b/three.log"] {
            std::fs::write(d.join(f), "x").unwrap();
        }
        std::os::unix::fs::symlink(outside.path(), d.join("a/link")).unwrap();
        let set = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<BTreeSet<_>>();
        let all = ["a/one.txt", "a/b/two.txt", "a/b/three.log", "a/link"];
        assert_eq!(names(d, d, &[], &[]), set(&all));
        assert_eq!(names(d, &d.join("a/b"), &["*.txt"], &[]), set(&["a/b/two.txt"]));
        assert_eq!(names(d, d, &[], &["b", "link"]), set(&["a/one.txt"]));
        for escape in ["a/link/secret", "../", "a/../../etc", "nothing"] {
            let got = names(d, &d.join(escape), &[], &[]);
            assert!(got.iter().all(|n| n.starts_with("error")), "{escape}: {got:?}");
        }
    }

    #[test]
    fn stays_within_its_subtrees() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        for f in ["top", "a/one", "a/b/two", "a/c/three", "ab/four", "z/five"] {
            std::fs::create_dir_all(d.join(f).parent().unwrap()).unwrap();
            std::fs::write(d.join(f), "x").unwrap();
        }
        let subtrees = Subtrees::new(vec!["a/b".into(), "z".into()]);
        let found = |start: &str| {
            let found = names_within(&subtrees, d, &d.join(start), &[], &[]);
            found.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found(""), "a/b/two z/five");
        assert_eq!(found("a"), "a/b/two");
        assert_eq!(found("z/five"), "z/five");
        assert_eq!(found("a/one"), "outside a/one");
        assert_eq!(found("ab"), "outside ab");
        assert_eq!(found("z/../top"), "outside z/../top");
    }
}
