//! The table of unanswered events. Pure but for the descriptors that it owns.
//!
//! Invariant: an event's descriptor stays open until its answer has been written, because its
//! number is the answer's identity for the kernel.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;

use super::protocol::EventFrame;
use crate::sys::handle::InodeNumbers;

/// An event that so many engines knew when they died is suspected of killing them.
const MAX_DEATHS: u32 = 20;

/// Who waits for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// fanotify, which knows the event by its descriptor's number.
    Fanotify,
    /// A kernel program.
    Program(Question),
    /// Nobody: the file is wanted by one who was refused, and comes again.
    Wanted(Wanted),
}

/// What a kernel program waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question {
    /// Number of the set of programs: [`Maps::id`](crate::bpf::Maps::id).
    pub(super) set: u32,
    /// Number of its request, which is the set's own.
    pub(super) request: u64,
}

/// A file that is wanted: its group's number, and the inode.
pub(super) type Wanted = (u32, InodeNumbers);

/// One unanswered event.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) frame: EventFrame,
    pub(super) fd: OwnedFd,
    pub(super) origin: Origin,
    /// Engines that had been told of it when they died.
    pub(super) deaths: u32,
}

impl Unanswered {
    pub(super) fn new(frame: EventFrame, fd: OwnedFd, origin: Origin) -> Self {
        Self { frame, fd, origin, deaths: 0 }
    }
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
    pub(super) fn insert(&mut self, mut event: Unanswered) {
        self.last += 1;
        event.frame.id = self.last;
        self.events.insert(self.last, event);
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

    /// The engine died: the next one must be told everything. Returns the events that too many
    /// engines have died over: they are not told to another.
    pub(super) fn forget_sent(&mut self) -> Vec<Unanswered> {
        let unsent: HashSet<u64> = std::mem::take(&mut self.unsent).into_iter().collect();
        for (_, event) in self.events.iter_mut().filter(|(id, _)| !unsent.contains(id)) {
            event.deaths += 1;
        }
        let deadly: Vec<u64> =
            self.events.iter().filter(|(_, e)| e.deaths >= MAX_DEATHS).map(|(id, _)| *id).collect();
        let deadly = deadly.into_iter().filter_map(|id| self.events.remove(&id)).collect();
        self.unsent = self.events.keys().copied().collect();
        deadly
    }

    /// Takes out what one process waits for.
    pub(super) fn take_of(&mut self, pid: i32) -> Vec<Unanswered> {
        self.events
            .extract_if(.., |_, event| event.frame.pid == pid)
            .map(|(_, event)| event)
            .collect()
    }

    /// Takes everything out, to deny it.
    pub(super) fn drain(&mut self) -> Vec<Unanswered> {
        self.unsent.clear();
        std::mem::take(&mut self.events).into_values().collect()
    }

    /// What kernel programs wait for.
    pub(super) fn questions(&self) -> impl Iterator<Item = Question> {
        self.events.values().filter_map(|event| match event.origin {
            Origin::Program(question) => Some(question),
            Origin::Fanotify | Origin::Wanted(_) => None,
        })
    }

    /// Whether the file is being recalled for somebody who was refused. Few are at a time.
    pub(super) fn has_wanted(&self, file: Wanted) -> bool {
        self.events.values().any(|event| event.origin == Origin::Wanted(file))
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
            let fd = std::fs::File::open("/dev/null").unwrap().into();
            p.insert(Unanswered::new(frame, fd, Origin::Fanotify));
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
        assert!(p.forget_sent().is_empty());
        assert_eq!(send_all(&mut p), [1, 3, 4]);
        assert_eq!(p.len(), 3);
    }

    #[test]
    fn an_event_that_kills_engines_is_given_up() {
        let mut p = fill(1);
        for _ in 1..MAX_DEATHS {
            send_all(&mut p);
            assert!(p.forget_sent().is_empty());
        }
        // Deaths before it was told do not count.
        assert!(p.forget_sent().is_empty());
        send_all(&mut p);
        assert_eq!(p.forget_sent().len(), 1);
        assert_eq!(p.len(), 0);
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
