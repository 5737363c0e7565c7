//! The durability barrier: one `syncfs` for everything that was written before it.
//!
//! Release drops the local copy of a file on the strength of this, so here is the argument.
//!
//! - `syncfs` writes all dirty data and metadata of the file system and commits its journal with a
//!   device cache flush, so objects, their names and new fan-out directories are durable together.
//!   A request is served by a `syncfs` that *starts* after the request was made: requests that
//!   arrive meanwhile share the next one (`covered`).
//! - A write-back error is reported by `syncfs` once per open file description: to whoever calls
//!   first. The descriptor used here is open since before the first write, so no error escapes it;
//!   but of two callers whose objects were both hit, only the first would see it. Therefore the
//!   first error is kept (`broken`) and every later barrier of this store value fails too: nobody
//!   can tell any more which objects are whole. Opening the store anew starts afresh, and the
//!   objects in question have no record that refers to them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// See the module head.
#[derive(Debug)]
pub(super) struct Barrier {
    root: OwnedFd,
    tickets: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Requests with a ticket up to this one are served.
    covered: u64,
    broken: Option<Errno>,
}

impl Barrier {
    /// `root`: a descriptor of the file system, not `O_PATH`, opened before anything is written.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, tickets: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Returns when everything written before the call is durable.
    pub(super) fn wait(&self) -> Result<(), Errno> {
        self.wait_with(|root| rustix::fs::syncfs(root.as_fd()))
    }

    fn wait_with(&self, sync: impl Fn(&OwnedFd) -> Result<(), Errno>) -> Result<(), Errno> {
        let ticket = self.tickets.fetch_add(1, Ordering::SeqCst) + 1;
        // A holder that panicked did not advance `covered`, so its state is still true.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(e) = state.broken {
            return Err(e);
        }
        if state.covered >= ticket {
            return Ok(());
        }
        let upto = self.tickets.load(Ordering::SeqCst);
        let synced = rustix::io::retry_on_intr(|| sync(&self.root));
        match synced {
            Ok(()) => state.covered = upto,
            Err(e) => state.broken = Some(e),
        }
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn barrier() -> Barrier {
        Barrier::new(std::fs::File::open("/").expect("root directory").into())
    }

    #[test]
    fn a_failed_barrier_fails_everybody_after_it() {
        let b = barrier();
        assert_eq!(b.wait_with(|_| Ok(())), Ok(()));
        assert_eq!(b.wait_with(|_| Err(Errno::IO)), Err(Errno::IO));
        assert_eq!(b.wait_with(|_| Ok(())), Err(Errno::IO));
    }

    #[test]
    fn requests_made_during_a_sync_share_the_next_one() {
        let (b, syncs) = (barrier(), AtomicUsize::new(0));
        let sync = |_: &OwnedFd| {
            // The first sync lasts until three more requests wait behind it.
            while syncs.load(Ordering::SeqCst) == 0 && b.tickets.load(Ordering::SeqCst) < 4 {
                std::thread::yield_now();
            }
            syncs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| b.wait_with(sync));
            }
        });
        assert!(syncs.load(Ordering::SeqCst) <= 2, "{syncs:?}");
        assert_eq!(b.wait_with(|_| Err(Errno::IO)), Err(Errno::IO), "a later request syncs anew");
    }
}
