//! What can go wrong with a store, in the few kinds that callers act on differently.
//!
//! Backends have many causes; they are kept as `source` for the log. The kind alone decides what
//! happens: retry, deny the reader with which errno, or tell the operator.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::ObjectKey;

/// Result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// The underlying error. Shared, because many readers may wait for one request.
pub type Cause = Arc<dyn Error + Send + Sync>;

/// What an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// One object.
    Object(ObjectKey),
    /// The store as a whole.
    Store,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(key) => write!(f, "object {}", key.id()),
            Self::Store => f.write_str("the store"),
        }
    }
}

impl From<&ObjectKey> for Subject {
    fn from(key: &ObjectKey) -> Self {
        Self::Object(*key)
    }
}

/// A store operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The object does not exist.
    #[error("{subject} does not exist")]
    NotFound {
        /// What was asked for.
        subject: Subject,
        /// Underlying error.
        source: Cause,
    },
    /// The object exists, and its bytes are not those that were stored.
    #[error("{subject} is corrupt: {source}")]
    Corrupt {
        /// The bad object.
        subject: Subject,
        /// What does not fit.
        source: Cause,
    },
    /// The store does not answer, or asks for patience. Trying again may help.
    #[error("{subject} is not available now: {source}")]
    Unavailable {
        /// What was asked for.
        subject: Subject,
        /// Underlying error.
        source: Cause,
    },
    /// No room, or quota exhausted.
    #[error("no room in the store for {subject}: {source}")]
    Full {
        /// What was to be stored.
        subject: Subject,
        /// Underlying error.
        source: Cause,
    },
    /// Permissions or credentials do not suffice, or a symbolic link stands in the way.
    #[error("access to {subject} was denied: {source}")]
    Denied {
        /// What was asked for.
        subject: Subject,
        /// Underlying error.
        source: Cause,
    },
    /// The request makes no sense: configuration or a bug.
    #[error("invalid request for {subject}: {source}")]
    Invalid {
        /// What was asked for.
        subject: Subject,
        /// Why it makes no sense.
        source: Cause,
    },
    /// The store failed for good: a medium error, an answer nobody understands.
    #[error("the store failed on {subject}: {source}")]
    Failed {
        /// What was asked for.
        subject: Subject,
        /// Underlying error.
        source: Cause,
    },
}

/// A cause that is only text.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Text(String);

/// Makes a cause of an error value.
pub(super) fn cause(e: impl Error + Send + Sync + 'static) -> Cause {
    Arc::new(e)
}

/// Makes a cause of text.
pub(super) fn text(text: impl Into<String>) -> Cause {
    Arc::new(Text(text.into()))
}

impl StoreError {
    /// Would the same request, made a little later, have a chance?
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// What the error is about.
    pub fn subject(&self) -> Subject {
        match self {
            Self::NotFound { subject, .. }
            | Self::Corrupt { subject, .. }
            | Self::Unavailable { subject, .. }
            | Self::Full { subject, .. }
            | Self::Denied { subject, .. }
            | Self::Invalid { subject, .. }
            | Self::Failed { subject, .. } => *subject,
        }
    }

    pub(super) fn not_found(key: &ObjectKey) -> Self {
        Self::NotFound { subject: key.into(), source: text("no such object") }
    }

    pub(super) fn corrupt(key: &ObjectKey, what: impl Into<String>) -> Self {
        Self::Corrupt { subject: key.into(), source: text(what) }
    }

    pub(super) fn invalid(subject: impl Into<Subject>, what: impl Into<String>) -> Self {
        Self::Invalid { subject: subject.into(), source: text(what) }
    }

    pub(super) fn unavailable(subject: impl Into<Subject>, what: impl Into<String>) -> Self {
        Self::Unavailable { subject: subject.into(), source: text(what) }
    }

    /// The object ends before the range that was asked for.
    pub(super) fn short(key: &ObjectKey, wanted_end: u64, size: u64) -> Self {
        Self::corrupt(key, format!("it ends at byte {size}, and byte {wanted_end} was asked for"))
    }
}

/// Refuses ranges without bytes.
pub(super) fn check_range(key: &ObjectKey, range: &std::ops::Range<u64>) -> Result<()> {
    if range.start >= range.end {
        return Err(StoreError::invalid(key, format!("the range {range:?} is empty")));
    }
    Ok(())
}
