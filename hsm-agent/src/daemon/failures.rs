//! The last failures of recalls, so that a job can tell its user more than an errno.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::control::types::Reason;
use crate::core::FileKey;
use crate::recall::RecallError;

/// Failures that are remembered: more than any job has in work.
const REMEMBERED: usize = 4096;

/// Why recalls failed.
#[derive(Debug, Default)]
pub struct Failures {
    last: Mutex<HashMap<FileKey, (Reason, String)>>,
}

impl Failures {
    /// Notes a failure.
    pub fn note(&self, key: &FileKey, error: &RecallError) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() >= REMEMBERED {
            last.clear();
        }
        last.insert(key.clone(), (error.reason(), error.to_string()));
    }

    /// Takes the failure of a file out.
    pub fn take(&self, key: &FileKey) -> Option<(Reason, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).remove(key)
    }
}
