//! Who waits for a file: readers in the kernel, and users who asked for a recall.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::crowd::Place;
use super::pool::FileRef;
use crate::core::{FileKey, Ticket};
use crate::holder::protocol::EventFrame;
use crate::sys::fanotify::Verdict;

/// Who waits.
#[derive(Debug, Clone)]
pub enum Who {
    /// A process, blocked in the kernel.
    Kernel(EventFrame, Arc<OwnedFd>),
    /// A job of a user; told by message.
    User(mpsc::Sender<Verdict>),
}

/// One who waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Who.
    pub who: Who,
    /// For which file.
    pub file: FileRef,
    /// Since when.
    pub since: Instant,
    /// His place in the crowd, once he has one.
    place: Option<Arc<Place>>,
}

impl Waiting {
    /// Under whose name, once he has a place.
    pub fn uid(&self) -> Option<u32> {
        self.place.as_ref().map(|place| place.uid)
    }
}

/// All who wait in one pool.
#[derive(Debug, Default)]
pub struct Waiters {
    last: AtomicU64,
    all: Mutex<HashMap<Ticket, Waiting>>,
}

impl Waiters {
    fn all(&self) -> MutexGuard<'_, HashMap<Ticket, Waiting>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes somebody in.
    pub fn add(&self, who: Who, file: FileRef) -> Ticket {
        let ticket = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.all().insert(ticket, Waiting { who, file, since: Instant::now(), place: None });
        ticket
    }

    /// Whether he still waits.
    pub fn has(&self, ticket: Ticket) -> bool {
        self.all().contains_key(&ticket)
    }

    /// Gives somebody his place; if he does not wait any more, it is free again.
    pub fn settle_in(&self, ticket: Ticket, place: Place) {
        if let Some(waiting) = self.all().get_mut(&ticket) {
            waiting.place = Some(Arc::new(place));
        }
    }

    /// Looks somebody up.
    pub fn get(&self, ticket: Ticket) -> Option<Waiting> {
        self.all().get(&ticket).cloned()
    }

    /// Lets somebody go.
    pub fn remove(&self, ticket: Ticket) -> Option<Waiting> {
        self.all().remove(&ticket)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Those in the kernel who have waited longer than `limit`. (A user can stop his job.)
    pub fn older_than(&self, limit: Duration) -> Vec<(Ticket, FileRef)> {
        let all = self.all();
        let blocked = |w: &Waiting| matches!(w.who, Who::Kernel(..));
        let old = all.iter().filter(|(_, w)| blocked(w) && w.since.elapsed() > limit);
        old.map(|(t, w)| (*t, w.file.clone())).collect()
    }

    /// The process that has been blocked longest on this file. Looks at all who wait.
    pub fn first_blocked(&self, key: &FileKey) -> Option<i32> {
        let all = self.all();
        let blocked = all.iter().filter_map(|(ticket, waiting)| match &waiting.who {
            Who::Kernel(frame, _) if waiting.file.key == *key => Some((ticket, frame.pid)),
            Who::Kernel(..) | Who::User(_) => None,
        });
        blocked.min_by_key(|(ticket, _)| **ticket).map(|(_, pid)| pid)
    }

    /// Everybody, longest waiting first.
    pub fn list(&self) -> Vec<(Ticket, Waiting)> {
        let mut list: Vec<_> = self.all().iter().map(|(t, w)| (*t, w.clone())).collect();
        list.sort_by_key(|(_, w)| w.since);
        list
    }
}
