//! A random kernel, agent and operator drive the state machine; a model watches the invariants.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const EIO: i32 = 5;

fn whole(ticket: Ticket) -> Event {
    Event::Access(Access { ticket, want: Want::Whole })
}

#[test]
fn many_readers_share_one_recall() {
    let mut all = Inflight::default();
    assert_eq!(all.apply(&1, whole(1)), [Effect::Look]);
    assert_eq!(all.apply(&1, whole(2)), []);
    assert_eq!(all.apply(&1, Event::Looked(Look::Offline)), [Effect::Recall(Want::Whole)]);
    assert_eq!(all.apply(&1, whole(3)), []);
    let effects = all.apply(&1, Event::Recalled(Ok(Recalled::Complete)));
    assert_eq!(effects, [1, 2, 3].map(|t| Effect::Answer(t, Verdict::Allow)));
    assert!(all.is_empty());
}

#[test]
fn an_access_during_a_release_waits_and_then_looks() {
    let mut all = Inflight::default();
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Granted]);
    assert_eq!(all.apply(&1, whole(1)), []);
    assert_eq!(all.apply(&1, Event::Claim(Job::Archive)), [Effect::Refused]);
    assert_eq!(all.apply(&1, Event::Unclaim(Job::Release)), [Effect::Look]);
    let effects = all.apply(&1, Event::Looked(Look::Unreadable(EIO)));
    assert_eq!(effects, [Effect::Answer(1, Verdict::Deny(EIO))]);
}

#[test]
fn a_release_is_refused_while_anything_else_goes_on() {
    let mut all = Inflight::default();
    let _ = all.apply(&1, whole(1));
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Refused]);
    let _ = all.apply(&1, Event::Looked(Look::Offline));
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Refused]);
    let _ = all.apply(&1, Event::Recalled(Ok(Recalled::Settling)));
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Refused]);
    let _ = all.apply(&1, Event::Settled(Ok(())));
    assert_eq!(all.apply(&1, Event::Claim(Job::Archive)), [Effect::Granted]);
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Refused]);
    assert_eq!(all.apply(&1, Event::Unclaim(Job::Archive)), []);
    assert_eq!(all.apply(&1, Event::Claim(Job::Release)), [Effect::Granted]);
}

#[test]
fn an_archive_job_and_a_recall_keep_out_of_each_others_way() {
    let mut all = Inflight::default();
    // The recall was first: until it is durable there is no claim.
    let _ = all.apply(&1, whole(1));
    let _ = all.apply(&1, Event::Looked(Look::Offline));
    assert_eq!(all.apply(&1, Event::Claim(Job::Archive)), [Effect::Refused]);
    let _ = all.apply(&1, Event::Recalled(Ok(Recalled::Settling)));
    assert_eq!(all.apply(&1, Event::Claim(Job::Archive)), [Effect::Refused]);
    let _ = all.apply(&1, Event::Settled(Ok(())));
    // The claim was first: the recall begins when the job has given the offline file back.
    assert_eq!(all.apply(&1, Event::Claim(Job::Archive)), [Effect::Granted]);
    assert_eq!(all.apply(&1, whole(2)), [Effect::Look]);
    assert_eq!(all.apply(&1, Event::Looked(Look::Offline)), []);
    assert_eq!(all.apply(&1, whole(3)), [Effect::Look]);
    assert_eq!(all.apply(&1, Event::Looked(Look::Offline)), []);
    assert_eq!(all.apply(&1, Event::Unclaim(Job::Archive)), [Effect::Look]);
    assert_eq!(all.apply(&1, Event::Looked(Look::Offline)), [Effect::Recall(Want::Whole)]);
    let allowed = [Effect::Answer(2, Verdict::Allow), Effect::Answer(3, Verdict::Allow)];
    assert_eq!(all.apply(&1, Event::Recalled(Ok(Recalled::Complete))), allowed);
    assert!(all.is_empty());
}

#[test]
fn a_range_that_is_not_covered_starts_another_recall() {
    let mut all = Inflight::default();
    let range =
        |ticket, want: Range<u64>| Event::Access(Access { ticket, want: Want::Range(want) });
    let _ = all.apply(&1, range(1, 0..10));
    let _ = all.apply(&1, range(2, 50..60));
    assert_eq!(all.apply(&1, Event::Looked(Look::Offline)), [Effect::Recall(Want::Range(0..10))]);
    assert_eq!(
        all.apply(&1, Event::Recalled(Ok(Recalled::Partial(0..16)))),
        [Effect::Answer(1, Verdict::Allow), Effect::Recall(Want::Range(50..60))]
    );
    let _ = all.apply(&1, whole(3));
    assert_eq!(
        all.apply(&1, Event::Recalled(Ok(Recalled::Partial(48..64)))),
        [Effect::Answer(2, Verdict::Allow), Effect::Recall(Want::Whole)]
    );
}

#[derive(Debug, Clone)]
enum Step {
    Access,
    /// Lets one outstanding effect come back, with this outcome.
    Finish(usize, u8),
    ClaimRelease,
    EndRelease,
    Abandon(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Access),
        4 => (any::<usize>(), any::<u8>()).prop_map(|(i, o)| Step::Finish(i, o)),
        1 => Just(Step::ClaimRelease),
        2 => Just(Step::EndRelease),
        1 => any::<usize>().prop_map(Step::Abandon),
    ];
    prop::collection::vec(step, 0..60)
}

#[derive(Default)]
struct World {
    machine: Inflight<u8>,
    next: Ticket,
    waiting: HashSet<Ticket>,
    outstanding: Vec<Effect>,
    releasing: bool,
    settling: bool,
    /// Whether the last finished look or recall makes ALLOW right.
    readable: bool,
}

impl World {
    fn apply(&mut self, event: Event) {
        for effect in self.machine.apply(&0, event) {
            match effect {
                Effect::Answer(ticket, verdict) => {
                    assert!(self.waiting.remove(&ticket), "answered twice: {ticket}");
                    if verdict == Verdict::Allow {
                        assert!(!self.releasing, "allowed during a release");
                        assert!(self.readable, "allowed without data");
                    }
                }
                Effect::Granted => {
                    assert!(!self.releasing && !self.settling);
                    self.releasing = true;
                    self.readable = false;
                }
                Effect::Refused => {}
                // As the worker does: what has not begun is forgotten. Here the oldest effect is the one that
                // has begun.
                Effect::Unwanted => {
                    let queued = |e: &Effect| matches!(e, Effect::Recall(_));
                    if let Some(at) = self.outstanding.iter().position(queued).filter(|at| *at > 0)
                    {
                        self.outstanding.remove(at);
                        self.apply(Event::Withdrawn);
                    }
                }
                other => self.outstanding.push(other),
            }
        }
    }

    fn finish(&mut self, index: usize, outcome: u8) {
        if self.outstanding.is_empty() {
            return;
        }
        let effect = self.outstanding.remove(index % self.outstanding.len());
        self.readable = !outcome.is_multiple_of(3);
        match effect {
            Effect::Look => self.apply(Event::Looked(match outcome % 3 {
                0 => Look::Offline,
                1 => Look::Online,
                _ => Look::Unreadable(EIO),
            })),
            Effect::Recall(_) => {
                self.settling = outcome % 3 == 1;
                self.apply(Event::Recalled(match outcome % 3 {
                    0 => Err(EIO),
                    1 => Ok(Recalled::Settling),
                    _ => Ok(Recalled::Complete),
                }));
            }
            Effect::Judge(access) if outcome.is_multiple_of(3) => self.apply(Event::Defer(access)),
            Effect::Judge(access) => drop(self.waiting.remove(&access.ticket)),
            other => unreachable!("{other:?}"),
        }
    }

    fn settle(&mut self) {
        if std::mem::take(&mut self.settling) {
            self.readable = true;
            self.apply(Event::Settled(Ok(())));
        }
    }
}

proptest! {
    #[test]
    fn every_access_is_answered_once_and_never_wrongly(steps in steps()) {
        let mut w = World::default();
        for step in steps {
            match step {
                Step::Access => {
                    w.next += 1;
                    w.waiting.insert(w.next);
                    w.apply(whole(w.next));
                }
                Step::Finish(i, outcome) => w.finish(i, outcome),
                Step::ClaimRelease => w.apply(Event::Claim(Job::Release)),
                Step::EndRelease if w.releasing => {
                    w.releasing = false;
                    w.apply(Event::Unclaim(Job::Release));
                }
                Step::EndRelease => w.settle(),
                Step::Abandon(i) => {
                    if let Some(t) = w.waiting.iter().copied().nth(i % w.waiting.len().max(1)) {
                        w.apply(Event::Abandon(t, EIO));
                    }
                }
            }
        }
        // Let everything come to its end: then nobody waits and nothing is remembered.
        for round in 0..1000 {
            if w.releasing {
                w.releasing = false;
                w.apply(Event::Unclaim(Job::Release));
            }
            w.finish(0, if round % 2 == 0 { 1 } else { 2 });
            if w.outstanding.is_empty() {
                w.settle();
            }
        }
        prop_assert!(w.waiting.is_empty(), "{:?}", w.waiting);
        prop_assert!(w.machine.is_empty());
    }
}

#[test]
fn a_recall_that_nobody_waits_for_is_taken_back() {
    let mut all = Inflight::default();
    let recalling = |all: &mut Inflight<i32>, ticket| {
        assert_eq!(all.apply(&1, whole(ticket)), [Effect::Look]);
        let effects = all.apply(&1, Event::Looked(Look::Offline));
        assert_eq!(effects, [Effect::Recall(Want::Whole)]);
    };
    let denied = |ticket| Effect::Answer(ticket, Verdict::Deny(EIO));
    recalling(&mut all, 1);
    let _ = all.apply(&1, whole(2));
    assert_eq!(all.apply(&1, Event::Abandon(1, EIO)), [denied(1)]);
    assert_eq!(all.apply(&1, Event::Abandon(2, EIO)), [denied(2), Effect::Unwanted]);
    // It had begun: nothing is reported, and it ends as ever.
    assert_eq!(all.apply(&1, Event::Recalled(Ok(Recalled::Complete))), []);
    assert!(all.is_empty());
    recalling(&mut all, 3);
    assert_eq!(all.apply(&1, Event::Abandon(3, EIO)), [denied(3), Effect::Unwanted]);
    // Somebody comes before it is taken back.
    assert_eq!(all.apply(&1, whole(4)), []);
    assert_eq!(all.apply(&1, Event::Withdrawn), [Effect::Recall(Want::Whole)]);
    assert_eq!(all.apply(&1, Event::Abandon(4, EIO)), [denied(4), Effect::Unwanted]);
    assert_eq!(all.apply(&1, Event::Withdrawn), []);
    assert!(all.is_empty());
}

#[test]
fn a_recall_that_does_not_serve_its_waiter_ends_in_a_denial() {
    let mut all = Inflight::default();
    let _ = all.apply(&1, Event::Access(Access { ticket: 1, want: Want::Range(0..20) }));
    let _ = all.apply(&1, Event::Looked(Look::Offline));
    assert_eq!(
        all.apply(&1, Event::Recalled(Ok(Recalled::Partial(0..16)))),
        [Effect::Answer(1, Verdict::Deny(EIO))]
    );
    assert!(all.is_empty());
}
