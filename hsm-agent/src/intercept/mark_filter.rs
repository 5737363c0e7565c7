//! Tier `mark-filter`: one fanotify mark on the file system, and a kernel program on that mark which
//! looks at each file's marker. Needs a kernel with our patches (docs/KERNEL-PATCHES.md).
//!
//! Who opens an online file is asked about neither then nor later. Whoever opens an offline file is
//! asked about at each access, with its range, so that ranges can be recalled for every program; what
//! is resident of a partial file the program lets pass by itself. The agent's own accesses raise
//! nothing.
//!
//! The group fails closed: when holder and engine are gone the mark stays and denies, in files that
//! are open as well, until the next agent's mark takes over. So the watch is never taken away, not even
//! at an orderly end; the program's link is pinned, and what it passes works on.
//!
//! What is recalled whole is recalled at open: `guard_open` has the holder put an evictable watch for opens on the
//! inode, as in tier lsm-filter. A program that compares the times of an open file before and after it
//! reads (tar does) would otherwise notice the recall, which moves ctime. An open with `O_TRUNC` raises no event in
//! time, and overlayfs maps files past the event: those opens wait in `guard_open` until the file is online.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{Interceptor, Tier, WATCHED};
use crate::bpf::{BpfError, Filter, Maps, Residency, Settings};
use crate::marker::ResidencyMap;
use crate::sys::fanotify::{Class, EventMask, Group, GroupOptions, MarkTarget};

/// What the mark asks for.
fn watched() -> EventMask {
    EventMask::PRE_ACCESS | EventMask::PRE_MODIFY
}

/// Ends the watch that an agent has left on the file system of `root`, on purpose: a group of our own takes
/// over, filtered by the programs that are installed, and takes its mark away. Afterwards nothing stands
/// between a reader and an offline file but the guard.
pub fn let_go(settings: &Settings, pool: &str, root: BorrowedFd<'_>) -> io::Result<()> {
    let group = Group::new(GroupOptions { class: Class::FailClosed, nonblock: true })?;
    // Named as the pool's: it takes the place of the dead group's, which goes with its mark.
    let filter = Filter::attach(settings, pool, group.as_fd()).map_err(plain)?;
    group.filter_filesystem(root, watched())?;
    filter.retire_others().map_err(plain)?;
    group.unwatch_filesystem(root, watched())
}

/// A filtered mark on one file system.
#[derive(Debug)]
pub struct MarkFilter {
    group: Group,
    root: OwnedFd,
    maps: Arc<Maps>,
    filter: Filter,
}

impl MarkFilter {
    /// `group` belongs to the holder, fails closed, and has this filter already; `root` is a directory of
    /// the file system.
    pub fn new(group: Group, root: OwnedFd, maps: Arc<Maps>, filter: Filter) -> Self {
        Self { group, root, maps, filter }
    }
}

impl Interceptor for MarkFilter {
    fn tier(&self) -> Tier {
        Tier::MarkFilter
    }

    fn attach(&self) -> io::Result<()> {
        self.group.filter_filesystem(self.root.as_fd(), watched())?;
        // Only now: until our mark had taken over, an earlier agent's filter kept its online files usable.
        self.filter.retire_others().map_err(io::Error::other)
    }

    fn pass_over(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.maps.unhold(file.fd()).map_err(plain)?;
        self.group.unwatch_inode(file, WATCHED).map(drop)
    }

    fn watch(&self, file: MarkTarget<'_>) -> io::Result<()> {
        // From the moment that the marker is set, the program finds it. Until then an opener, and who cuts
        // the file without opening it, would wait for the release's lease only, which goes as soon as he does,
        // and find the marker where he was told that there was none.
        self.maps.hold(file.fd()).map_err(plain)?;
        // "Online" would be believed before anybody looks whether the file is held.
        self.maps.forget(file.fd()).map_err(plain)?;
        self.group.watch_inode(file, WATCHED)
    }

    fn keep_watch(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.maps.hold(file.fd()).map_err(plain)
    }

    fn resident(&self, file: MarkTarget<'_>, map: &ResidencyMap) -> io::Result<()> {
        self.maps.set_resident(file.fd(), &Residency::of(map)).map_err(plain)
    }

    fn nothing_resident(&self, file: MarkTarget<'_>) -> io::Result<()> {
        self.maps.clear_resident(file.fd()).map_err(plain)
    }
}

fn plain(error: BpfError) -> io::Error {
    io::Error::other(error)
}
