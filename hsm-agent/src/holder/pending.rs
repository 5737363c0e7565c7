//! The table of unanswered events. Pure but for the descriptors that it owns.
//!
//! Invariant: an event's descriptor stays open until its answer has been written, because its
//! number is the answer's identity for the kernel.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use super::protocol::EventFrame;

/// One unanswered event.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) frame: EventFrame,
    pub(super) fd: OwnedFd,
}

/// All unanswered events, oldest first, and which of them the engine has not been told yet.
#[derive(Debug, Default)]
pub(super) struct Pending {
    last: u64,
    events: BTreeMap<u64, Unanswered>,
    unsent: VecDeque<u64>,
}

impl Pending {
    /// Takes an event in and gives it its identity.
    pub(super) fn insert(&mut self, mut frame: EventFrame, fd: OwnedFd) {
        self.last += 1;
        frame.id = self.last;
        self.events.insert(self.last, Unanswered { frame, fd });
        self.unsent.push_back(self.last);
    }

    /// The answer has come.
    pub(super) fn remove(&mut self, id: u64) -> Option<Unanswered> {
        self.events.remove(&id)
    }

    /// The next event that the engine has not been told. It stays first until [`Self::sent`].
    pub(super) fn next_unsent(&mut self) -> Option<&Unanswered> {
        while let Some(id) = self.unsent.front() {
            if self.events.contains_key(id) {
                break;
            }
            self.unsent.pop_front();
        }
        self.events.get(self.unsent.front()?)
    }

    /// The engine has been told about the event that [`Self::next_unsent`] gave.
    pub(super) fn sent(&mut self) {
        self.unsent.pop_front();
    }

    /// The engine died: the next one must be told everything.
    pub(super) fn forget_sent(&mut self) {
        self.unsent = self.events.keys().copied().collect();
    }

    /// Takes everything out, to deny it.
    pub(super) fn drain(&mut self) -> Vec<Unanswered> {
        self.unsent.clear();
        std::mem::take(&mut self.events).into_values().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn has_unsent(&mut self) -> bool {
        self.next_unsent().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fanotify::EventMask;

    fn fill(n: usize) -> Pending {
        let mut p = Pending::default();
        for _ in 0..n {
            let frame = EventFrame {
                id: 0,
                group: 0,
                mask: EventMask::OPEN_PERM,
                pid: 1,
                range: None,
                event_fd: 9,
            };
            p.insert(frame, std::fs::File::open("/dev/null").unwrap().into());
        }
        p
    }

    fn send_all(p: &mut Pending) -> Vec<u64> {
        let mut ids = Vec::new();
        while let Some(e) = p.next_unsent() {
            ids.push(e.frame.id);
            p.sent();
        }
        ids
    }

    #[test]
    fn a_new_engine_is_told_exactly_what_is_unanswered_in_order() {
        let mut p = fill(4);
        assert_eq!(send_all(&mut p), [1, 2, 3, 4]);
        assert!(p.remove(2).is_some());
        assert!(p.remove(2).is_none());
        p.forget_sent();
        assert_eq!(send_all(&mut p), [1, 3, 4]);
        assert_eq!(p.len(), 3);
    }

    #[test]
    fn an_event_answered_before_it_was_sent_is_not_sent() {
        let mut p = fill(2);
        assert!(p.remove(1).is_some());
        assert_eq!(send_all(&mut p), [2]);
        assert!(!p.has_unsent());
        assert_eq!(p.drain().len(), 1);
        assert_eq!(p.len(), 0);
    }
}
