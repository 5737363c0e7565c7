//! From `object_store`'s errors to ours.

use std::error::Error;

use object_store::client::HttpError;

use super::http::StatusError;
use crate::store::error::{Cause, StoreError, Subject, cause};

/// A probe that was stored and is gone.
#[derive(Debug, thiserror::Error)]
#[error("what was stored could not be found again: {0}")]
pub(super) struct Lost(#[source] pub(super) Cause);

/// The one mapping.
pub(super) fn error(subject: impl Into<Subject>, e: object_store::Error) -> StoreError {
    use object_store::Error as E;
    let subject = subject.into();
    match e {
        E::NotFound { .. } => StoreError::NotFound { subject, source: cause(e) },
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            StoreError::Denied { subject, source: cause(e) }
        }
        E::InvalidPath { .. }
        | E::NotSupported { .. }
        | E::NotImplemented { .. }
        | E::UnknownConfigurationKey { .. } => StoreError::Invalid { subject, source: cause(e) },
        e => by_cause(subject, e),
    }
}

fn by_cause(subject: Subject, e: object_store::Error) -> StoreError {
    let status = find::<StatusError>(&e).map(|s| s.status);
    let transport = find::<HttpError>(&e).is_some();
    let source = cause(e);
    match status {
        Some(507) => StoreError::Full { subject, source },
        Some(s) if is_passing(s) => StoreError::Unavailable { subject, source },
        Some(_) => StoreError::Failed { subject, source },
        // No answer, or half of one.
        None if transport => StoreError::Unavailable { subject, source },
        None => StoreError::Failed { subject, source },
    }
}

/// Does the status ask for patience?
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=506 | 508..=599)
}

fn status(e: &StoreError) -> Option<u16> {
    e.source().and_then(find::<StatusError>).map(|s| s.status)
}

/// The range begins after the end of the object.
pub(super) fn is_beyond_end(e: &StoreError) -> bool {
    status(e) == Some(416)
}

/// The service has no answer to this form of range. 500 is among them: a server that seeks before
/// the beginning of a file reports it so.
pub(super) fn is_refused_range(e: &StoreError) -> bool {
    matches!(e, StoreError::Invalid { .. }) || matches!(status(e), Some(400 | 416 | 500 | 501))
}

/// Looks for a cause of one type.
fn find<'a, T: Error + 'static>(e: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(e);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref() {
            return Some(found);
        }
        next = e.source();
    }
    None
}
