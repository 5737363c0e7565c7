//! How far each recall has come: for `hsm waiters`, and to tell slow from stuck.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::core::FileKey;

/// One recall under way.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bytes: AtomicU64,
    /// Milliseconds after `started` of the last step.
    last: AtomicU64,
}

impl Progress {
    /// Some bytes are in place.
    pub fn step(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Bytes in place.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Since the last step.
    pub fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

/// All recalls of a pool that are under way.
#[derive(Debug, Default)]
pub struct Progresses {
    all: Mutex<HashMap<FileKey, Arc<Progress>>>,
}

/// Keeps a recall in the list until dropped.
#[derive(Debug)]
pub struct Underway<'a> {
    list: &'a Progresses,
    key: FileKey,
    progress: Arc<Progress>,
}

impl Progresses {
    fn all(&self) -> MutexGuard<'_, HashMap<FileKey, Arc<Progress>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A recall begins.
    pub fn begin(&self, key: &FileKey) -> Underway<'_> {
        let progress = Arc::new(Progress {
            started: Instant::now(),
            bytes: AtomicU64::new(0),
            last: AtomicU64::new(0),
        });
        self.all().insert(key.clone(), Arc::clone(&progress));
        Underway { list: self, key: key.clone(), progress }
    }

    /// The recall of a file, if one is under way.
    pub fn get(&self, key: &FileKey) -> Option<Arc<Progress>> {
        self.all().get(key).cloned()
    }
}

impl std::ops::Deref for Underway<'_> {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.list.all().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recall_is_listed_until_it_ends() {
        let all = Progresses::default();
        let key = FileKey { kind: 1, bytes: [1].into() };
        let recall = all.begin(&key);
        recall.step(5);
        recall.step(7);
        assert_eq!(all.get(&key).map(|p| p.bytes()), Some(12));
        assert!(recall.idle() < Duration::from_secs(5));
        drop(recall);
        assert!(all.get(&key).is_none());
    }
}
