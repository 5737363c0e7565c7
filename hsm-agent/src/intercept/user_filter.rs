//! Tier `user-filter`: one fanotify mark on the file system, evictable ignore marks on inodes
//! that the agent found to be online.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{Interceptor, Tier};
use crate::sys::fanotify::{EventMask, Group, MarkTarget};

/// A fanotify mark on one file system.
#[derive(Debug)]
pub struct UserFilter {
    group: Group,
    root: OwnedFd,
    mask: EventMask,
}

impl UserFilter {
    /// `group` belongs to the holder; `root` is a directory of the file system.
    pub fn new(group: Group, root: OwnedFd) -> Self {
        // Opens, because programs ask for holes before they read (`cp`, `tar -S`), which raises
        // no event. Content accesses, for truncate(2) and for files that are recalled in ranges.
        let mask = EventMask::OPEN_PERM | EventMask::PRE_ACCESS;
        Self { group, root, mask }
    }
}

impl Interceptor for UserFilter {
    fn tier(&self) -> Tier {
        Tier::UserFilter
    }

    fn attach(&self) -> io::Result<()> {
        // The mark first: a file whose ignore mark goes is watched from that moment on.
        self.group.watch_filesystem(self.root.as_fd(), self.mask)?;
        self.group.flush_inode_marks()
    }

    fn pass_over(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.group.ignore_inode(file, self.mask)
    }

    fn watch(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.group.unignore_inode(file, self.mask).map(drop)
    }

    fn keep_watch(&self, _: MarkTarget<'_>) -> io::Result<()> {
        // The whole file system is watched, and offline files are never passed over.
        Ok(())
    }
}
