//! How many files jobs may have in their hands: each holds descriptors, which readers need as well.
//!
//! A candidate takes a place when it is found and gives it back when it is done. Who finds no place has what is
//! queued worked off first, and waits. A quarter of the process's descriptors is for jobs: half of that for
//! those of root, all together; of the other half each job of another user has a part of its own, so that one that
//! does not read its reports stands in nobody's way.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Descriptors of a file in work: the candidate's own, one with its lease, and one that is opened in passing.
const PER_FILE: u64 = 3;
/// Jobs of others than root that may run at once.
const OTHERS: usize = 8;
/// Fewer make no progress worth the name.
const LEAST: usize = 8;

/// Descriptors that are not for readers, of so many.
pub(in crate::daemon) fn for_jobs(descriptors: u64) -> u64 {
    descriptors / 4
}

/// The places.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Places {
    root: Arc<Semaphore>,
    of_another: usize,
}

impl Places {
    /// As many as a process with this descriptor limit has.
    pub(in crate::daemon) fn new(descriptors: u64) -> Self {
        let files = usize::try_from(for_jobs(descriptors) / PER_FILE).unwrap_or(usize::MAX);
        let half = (files / 2).min(Semaphore::MAX_PERMITS);
        let root = Arc::new(Semaphore::new(half.max(LEAST)));
        Self { root, of_another: (half / OTHERS).max(LEAST) }
    }

    /// Those that a job of this user takes from.
    pub(in crate::daemon) fn for_a_job(&self, of_root: bool) -> Arc<Semaphore> {
        if of_root { Arc::clone(&self.root) } else { Arc::new(Semaphore::new(self.of_another)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_leave_descriptors_for_readers() {
        let places =
            |descriptors, of_root| Places::new(descriptors).for_a_job(of_root).available_permits();
        assert_eq!((places(524_288, true), places(524_288, false)), (21_845, 2730));
        assert_eq!((places(4096, true), places(4096, false)), (170, 21));
        assert_eq!((places(64, true), places(64, false)), (LEAST, LEAST));
        assert!(places(u64::MAX, true) <= Semaphore::MAX_PERMITS, "no limit");
    }

    #[test]
    fn all_jobs_of_root_share_and_others_do_not() {
        let places = Places::new(4096);
        let taken = places.for_a_job(true).try_acquire_many_owned(170).unwrap();
        assert!(places.for_a_job(true).try_acquire().is_err());
        assert!(places.for_a_job(false).try_acquire().is_ok());
        drop(taken);
        assert!(places.for_a_job(true).try_acquire().is_ok());
    }
}
