//! From errno to the kinds of [`StoreError`].

use rustix::io::Errno;

use crate::store::error::{StoreError, Subject, cause};

/// The one mapping. Whatever is not listed is a failure for good.
pub(super) fn error(subject: impl Into<Subject>, e: Errno) -> StoreError {
    let (subject, source) = (subject.into(), cause(std::io::Error::from(e)));
    match e {
        Errno::NOENT => StoreError::NotFound { subject, source },
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => StoreError::Full { subject, source },
        // LOOP and XDEV: a symbolic link, or a way out of the store's directory.
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::LOOP | Errno::XDEV => {
            StoreError::Denied { subject, source }
        }
        // The second half comes from network file systems.
        Errno::AGAIN
        | Errno::INTR
        | Errno::NOMEM
        | Errno::MFILE
        | Errno::NFILE
        | Errno::BUSY
        | Errno::TIMEDOUT
        | Errno::STALE
        | Errno::NOTCONN
        | Errno::CONNREFUSED
        | Errno::CONNRESET
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH => StoreError::Unavailable { subject, source },
        _ => StoreError::Failed { subject, source },
    }
}
