//! The state of files, from their inodes or from the agent.
//!
//! The inode is the truth, and looking at it needs no agent: an `O_PATH` descriptor raises no
//! event and recalls nothing. But `trusted.*` attributes are invisible, not forbidden, to whoever
//! lacks CAP_SYS_ADMIN: without it an archived file would look resident, so then the agent is
//! asked instead.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::control::client::Client;
use crate::control::{PathError, Reason, StateEntry, StateReport, WirePath};
use crate::marker::{Attributes, InodeFd};
use crate::sys::handle;
use crate::sys::inode::{self, Stat};

use super::context::Context;
use super::exit::Failure;
use super::paths::describe;

/// Who is asked.
#[derive(Debug)]
pub(super) enum Source {
    /// The inodes themselves.
    Inodes(MarkerNames),
    /// The agent.
    Agent(Client),
}

impl Source {
    /// The inodes if this process may see everything on them, else the agent.
    pub(super) fn new(context: &Context) -> Result<Self, Failure> {
        if sees_trusted_attributes() {
            return Ok(Self::Inodes(context.marker_names()?));
        }
        Ok(Self::Agent(context.client()?))
    }

    /// One entry per path, in order.
    pub(super) fn states(
        &self,
        context: &Context,
        paths: &[PathBuf],
    ) -> Result<Vec<StateEntry>, Failure> {
        match self {
            Self::Inodes(names) => Ok(paths.iter().map(|path| entry(path, names)).collect()),
            Self::Agent(client) => {
                let paths: Vec<WirePath> = paths.iter().map(WirePath::from).collect();
                context.block_on(client.state(&paths))
            }
        }
    }
}

/// Which attribute is the marker on which file system: pools may differ.
#[derive(Debug, Clone)]
pub(super) struct MarkerNames {
    /// Mount points and names.
    pub(super) pools: Vec<(PathBuf, CString)>,
    /// Elsewhere.
    pub(super) default: CString,
}

impl MarkerNames {
    fn for_path(&self, path: &Path) -> &CStr {
        // A symlink on the way may lead into another pool.
        let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
        let place = parent.as_deref().unwrap_or(path);
        let inside = self.pools.iter().filter(|(mount, _)| place.starts_with(mount));
        inside
            .max_by_key(|(mount, _)| mount.as_os_str().len())
            .map_or(&self.default, |(_, name)| name)
    }
}

/// Whether this process has CAP_SYS_ADMIN where it counts: in the initial user namespace.
fn sees_trusted_attributes() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let initial = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]));
    initial && effective_capabilities().is_some_and(|c| c >> CAP_SYS_ADMIN & 1 == 1)
}

/// The effective capabilities of this process, as a bit set.
pub(super) fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn entry(path: &Path, names: &MarkerNames) -> StateEntry {
    match look(path, names.for_path(path)) {
        Ok(report) => StateEntry::File(report),
        Err((reason, detail)) => StateEntry::Error(PathError { path: path.into(), reason, detail }),
    }
}

type Refusal = (Reason, String);

fn look(path: &Path, marker_name: &CStr) -> Result<StateReport, Refusal> {
    let io = |error: io::Error| (Reason::of_io(&error), describe(&error));
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io(e.into()))?;
    let stat = inode::stat(&fd).map_err(io)?;
    if !stat.is_file() {
        return Err((Reason::NotRegular, format!("is {}", kind(&stat))));
    }
    // Handles of other file systems than the three are not known; whose a marker is, then neither.
    let key = handle::of_fd(&fd).ok();
    let facts = Attributes::new(&marker_name.to_string_lossy())
        .map_err(io)?
        .facts(InodeFd::Path(fd.as_fd()), &stat, key.as_ref())
        .map_err(|error| (Reason::of_inode(&error), error.to_string()))?;
    Ok(StateReport::new(path.into(), facts, &stat))
}

fn kind(stat: &Stat) -> &'static str {
    match stat.mode & libc::S_IFMT {
        libc::S_IFDIR => "a directory (see `hsm ls`)",
        libc::S_IFLNK => "a symbolic link",
        _ => "not a regular file",
    }
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
