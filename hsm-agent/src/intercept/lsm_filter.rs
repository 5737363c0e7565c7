//! Tier `lsm-filter`: no watch on the file system. A kernel program at every open finds the marker
//! and has the holder put an evictable watch on that one inode; fanotify then asks about the open.
//!
//! The watch lives as long as the inode stays in memory. When the file is found to be online, it is
//! taken away, and opens cost nothing but the program's look again. A second program, behind the
//! lease break, refuses whoever would end up with an open file on a marked inode: in this tier a set
//! marker means that nobody but the agent has the file open.

use std::io;

use super::{Interceptor, Tier};
use crate::sys::fanotify::{EventMask, Group, MarkTarget};

/// What a watched inode is watched for. Content accesses are not: the file is recalled before it is
/// open.
pub(crate) const WATCHED: EventMask = EventMask::OPEN_PERM;

/// Watches on inodes; the kernel programs are loaded and told about the file system elsewhere.
#[derive(Debug)]
pub struct LsmFilter {
    group: Group,
}

impl LsmFilter {
    /// `group` belongs to the holder.
    pub fn new(group: Group) -> Self {
        Self { group }
    }
}

impl Interceptor for LsmFilter {
    fn tier(&self) -> Tier {
        Tier::LsmFilter
    }

    fn attach(&self) -> io::Result<()> {
        // The kernel programs ask about every marked inode without a watch.
        Ok(())
    }

    fn pass_over(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.group.unwatch_inode(file, WATCHED).map(drop)
    }

    fn watch(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.group.watch_inode(file, WATCHED)
    }

    fn keep_watch(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.watch(file)
    }
}
