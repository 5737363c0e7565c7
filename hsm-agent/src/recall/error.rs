//! Why a recall failed, and what the reader is told.

use std::io;

use crate::control::types::Reason;
use crate::marker::InodeError;
use crate::store::StoreError;

/// A recall did not bring the data back. The file stays offline.
#[derive(Debug, thiserror::Error)]
pub enum RecallError {
    /// The store does not have it, or not now, or not whole.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Marker, record or map.
    #[error(transparent)]
    Inode(#[from] InodeError),
    /// The file system would not take the data.
    #[error("{what}: {source}")]
    Local {
        /// What was attempted.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The object belongs to another file or version than the marker says.
    #[error("object {object} holds {found} bytes, the marker says {expected}")]
    Mismatch {
        /// The object.
        object: crate::core::ObjectId,
        /// Size in the object's manifest.
        found: u64,
        /// Size in the marker.
        expected: u64,
    },
    /// Somebody changed the file's size past the watch (a truncate that was already on its way
    /// when the file was released). Which bytes are right is not known any more.
    #[error(
        "the file's size changed from {expected} to {found} bytes while it was offline; \
         `hsm recall` cannot tell which bytes are right. The object in the store is untouched"
    )]
    SizeChanged {
        /// Size of the inode now.
        found: u64,
        /// Size in the marker.
        expected: u64,
    },
    /// The marker was written for another inode. What is stored under it may be older than the
    /// data that this file has.
    #[error(
        "the marker belongs to another file: it was copied together with the data; \
         remove the attribute {name} if this file's own data is right"
    )]
    Foreign {
        /// Name of the marker attribute.
        name: String,
    },
    /// There is data in the file that is not the object's.
    #[error(
        "the file was written to while no agent watched (at byte {offset} or behind): neither its \
         bytes nor the archived ones are the whole truth. Stop the agent, then remove the marker to \
         keep what is there, or punch the file to go back to the archived bytes"
    )]
    WrittenUnseen {
        /// Where the first difference lies.
        offset: u64,
    },
    /// The deadline passed.
    #[error("no progress within the deadline")]
    Deadline,
    /// A bug in the agent.
    #[error("the recall failed for a reason that is a bug; the log has the message")]
    Panicked,
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// Names what failed, for `map_err` on system calls.
pub(super) fn local(what: &'static str) -> impl FnOnce(io::Error) -> RecallError {
    move |source| RecallError::Local { what, source }
}

impl RecallError {
    /// What the reader gets. The table of the design: a bad or missing object is EIO, no room
    /// ENOSPC, quota EDQUOT, and what may pass with time (a lease of somebody else, too) EAGAIN.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Store(StoreError::Unavailable { .. }) | Self::Deadline | Self::Stopping => {
                libc::EAGAIN
            }
            Self::Store(_)
            | Self::Inode(_)
            | Self::Panicked
            | Self::WrittenUnseen { .. }
            | Self::Mismatch { .. }
            | Self::SizeChanged { .. }
            | Self::Foreign { .. } => libc::EIO,
            Self::Local { source, .. } => match source.raw_os_error() {
                Some(e @ (libc::ENOSPC | libc::EDQUOT)) => e,
                Some(libc::EAGAIN | libc::ETIMEDOUT) => libc::EAGAIN,
                _ => libc::EIO,
            },
        }
    }

    /// The code in reports.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(e) => store_reason(e),
            Self::Inode(InodeError::Io { .. }) => Reason::Io,
            Self::Foreign { .. } => Reason::ForeignMarker,
            Self::Inode(_) => Reason::UnreadableMarker,
            Self::Local { source, .. } => Reason::of_io(source),
            Self::Mismatch { .. } => Reason::ObjectCorrupt,
            Self::SizeChanged { .. } | Self::WrittenUnseen { .. } => Reason::Changed,
            Self::Deadline => Reason::Timeout,
            Self::Stopping => Reason::Interrupted,
            Self::Panicked => Reason::Internal,
        }
    }
}

/// The code in reports of a store's error.
pub fn store_reason(error: &StoreError) -> Reason {
    match error {
        StoreError::NotFound { .. } => Reason::ObjectMissing,
        StoreError::Corrupt { .. } => Reason::ObjectCorrupt,
        StoreError::Unavailable { .. } => Reason::StoreUnavailable,
        StoreError::Full { .. } => Reason::NoSpace,
        StoreError::Denied { .. } => Reason::Permission,
        StoreError::Invalid { .. } | StoreError::Failed { .. } => Reason::Io,
    }
}
