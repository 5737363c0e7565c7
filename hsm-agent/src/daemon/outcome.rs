//! What a job did with one file.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::pool::FileRef;
use crate::control::types::{Outcome, Reason};
use crate::sys::inode::Stat;

/// Asked between files: has the user had enough?
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// A file that a job was pointed at.
#[derive(Debug)]
pub struct Candidate {
    /// Identity.
    pub file: FileRef,
    /// `O_PATH` descriptor on the pool's own mount.
    pub path: OwnedFd,
    /// How the user knows it.
    pub name: PathBuf,
    /// As it was when it was found.
    pub stat: Stat,
    /// Named by the user, not found below a directory: policy refusals are then failures.
    pub named: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOutcome {
    /// Done, already so, skipped, failed, or what a dry run would do.
    pub outcome: Outcome,
    /// Stable code of a refusal.
    pub reason: Option<Reason>,
    /// One sentence for people.
    pub detail: String,
    /// Bytes moved.
    pub bytes: u64,
}

impl FileOutcome {
    /// It is done.
    pub fn done(bytes: u64) -> Self {
        Self { outcome: Outcome::Done, reason: None, detail: String::new(), bytes }
    }

    /// There was nothing to do.
    pub fn already(detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::Already, reason: None, detail: detail.into(), bytes: 0 }
    }

    /// A dry run would do it.
    pub fn would(bytes: u64) -> Self {
        Self { outcome: Outcome::Would, reason: None, detail: String::new(), bytes }
    }

    /// Refused or failed.
    pub fn failed(reason: Reason, detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::Failed, reason: Some(reason), detail: detail.into(), bytes: 0 }
    }

    /// Left alone on purpose.
    pub fn skipped(reason: Reason, detail: impl Into<String>) -> Self {
        Self { outcome: Outcome::Skipped, ..Self::failed(reason, detail) }
    }

    /// The job was stopped before this file's turn came. Not reported.
    pub fn not_begun() -> Self {
        Self::skipped(Reason::Interrupted, "not begun")
    }

    /// Whether this is [`Self::not_begun`].
    pub fn is_not_begun(&self) -> bool {
        self.outcome == Outcome::Skipped && self.reason == Some(Reason::Interrupted)
    }

    /// A refusal that follows from policy: a failure for a file that the user named himself,
    /// expected for one that was found below a directory.
    pub fn policy(named: bool, reason: Reason, detail: impl Into<String>) -> Self {
        if named { Self::failed(reason, detail) } else { Self::skipped(reason, detail) }
    }

    /// An error of the system, with what was attempted.
    pub fn io(what: &str, error: &std::io::Error) -> Self {
        Self::failed(Reason::of_io(error), format!("{what}: {error}"))
    }
}

impl From<crate::marker::InodeError> for FileOutcome {
    fn from(error: crate::marker::InodeError) -> Self {
        Self::failed(Reason::of_inode(&error), error.to_string())
    }
}
