//! Why a file was refused or failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::marker::{InodeError, Unjudged};

/// A stable code. Scripts match on it; the sentence beside it (`detail`) is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Somebody has the file open or mapped (swap files and loop devices count).
    OpenElsewhere,
    /// The file is pinned: it must stay local.
    Pinned,
    /// The file's policy says that it is never archived.
    Noarchive,
    /// The file changed since it was archived: the copy is stale.
    Dirty,
    /// There is no copy in the store.
    NotArchived,
    /// The file changed while it was worked on.
    Changed,
    /// Not a regular file.
    NotRegular,
    /// The file has no bytes, so there is nothing to release.
    Empty,
    /// The file is smaller than the pool's `min_size`.
    TooSmall,
    /// Another operation on the same file is under way, or the agent is at its limit.
    Busy,
    /// The file's data is not local, and the operation needs it to be.
    Offline,
    /// The file system is full.
    NoSpace,
    /// The user's quota is used up.
    Quota,
    /// The file system is mounted read-only.
    ReadOnly,
    /// The store does not answer, or answers with errors.
    StoreUnavailable,
    /// The store has no such object.
    ObjectMissing,
    /// The object's bytes are not what was stored.
    ObjectCorrupt,
    /// The marker, record or map on the inode cannot be decoded.
    UnreadableMarker,
    /// The marker was written for another file and copied here.
    ForeignMarker,
    /// The caller may not do this.
    Permission,
    /// The path does not exist.
    NotFound,
    /// The path is on no pool's file system, or outside the directories that its pool is limited to.
    NotManaged,
    /// No pool has this name.
    NoSuchPool,
    /// A directory was named without `--recursive`.
    IsDirectory,
    /// A deadline passed.
    Timeout,
    /// The user, or the agent's stop, ended the work.
    Interrupted,
    /// An input or output error.
    Io,
    /// The request makes no sense.
    BadRequest,
    /// A bug in the agent.
    Internal,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl Reason {
    /// The code for attributes that say nothing.
    pub fn of_inode(error: &InodeError) -> Self {
        match error {
            InodeError::Io { source, .. } => Self::of_io(source),
            InodeError::Unjudged(Unjudged::Foreign) => Self::ForeignMarker,
            _ => Self::UnreadableMarker,
        }
    }

    /// The code for an error of the operating system.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::NotFound,
            ErrorKind::PermissionDenied => Self::Permission,
            ErrorKind::StorageFull => Self::NoSpace,
            ErrorKind::QuotaExceeded => Self::Quota,
            ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_kebab_case_in_text_and_json() {
        for (reason, code) in [
            (Reason::OpenElsewhere, "open-elsewhere"),
            (Reason::NotArchived, "not-archived"),
            (Reason::StoreUnavailable, "store-unavailable"),
            (Reason::ForeignMarker, "foreign-marker"),
            (Reason::Io, "io"),
        ] {
            assert_eq!(reason.to_string(), code);
            assert_eq!(serde_json::to_value(reason).expect("serialises"), code);
        }
    }
}
