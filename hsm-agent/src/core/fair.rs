//! Whose recall comes next: fair between users, however much each of them has queued.
//!
//! Every user has a line of his own, and jobs (bulk) share one. A free worker goes to the user with the
//! fewest recalls running, and among equals to the one who has waited longest for his turn; so each gets the
//! same share of the workers, and nobody's place depends on how long another's line is. A recall that runs
//! is never taken back. Therefore users who have one running leave some workers free (all but
//! [`Share::per_user`]) for those who have none: with ten thousand files of one user queued, another user's
//! single recall starts at once. Bulk comes after all readers.
//!
//! Recalls from a distant store mostly wait. Those from a near one ([`Distance::Near`]) compete for the processors,
//! and with readers whom each answer wakes: more of them at once finish no sooner, and hold up whoever wants only
//! one. So fewer of them run ([`Share::near_per_user`]), and half of those while somebody's only recall is one.
//!
//! A recall belongs to who asked first, and stands in the line of everybody who asked: whoever's turn comes
//! first takes it out of all lines, and it counts as his while it runs.
//!
//! Invariants (see the tests): a task is given out exactly once; nothing is kept of users who have nothing
//! queued and nothing running; if [`Fair::take`] gives nothing out, every user who queues has a recall running.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// Who a recall is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// This user, of whom a process is blocked in the kernel.
    User(u32),
    /// Jobs: nobody is blocked.
    Bulk,
}

/// Where a recall's bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    /// A store of this machine.
    Near,
    /// A store behind a network.
    Far,
}

/// How many recalls may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Workers that users with something running may occupy: for one user alone, and for all of them
    /// together. The rest is for users who have nothing running.
    pub per_user: usize,
    /// Of these, such whose store is near; half of it while somebody's only recall is one.
    pub near_per_user: usize,
    /// Of bulk.
    pub bulk: usize,
}

/// One line, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Whose.
    pub owner: Owner,
    /// Recalls that stand in it. One that several users asked for stands in the line of each.
    pub queued: usize,
    /// Recalls that were started on its account.
    pub running: usize,
}

/// A task that was given out: on whose account it runs, until [`Fair::done`].
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Turn {
    owner: Owner,
    distance: Distance,
}

/// Orders the lines that have something queued: the least is served next.
type Rank = (bool, usize, u64, Owner);

#[derive(Debug, Default)]
struct Account {
    /// Serial numbers of tasks by place, first come first.
    queue: BTreeMap<u64, u64>,
    running: usize,
    /// Of these, from a near store.
    near: usize,
    /// When its turn last began to be waited for.
    turn: u64,
}

impl Account {
    fn rank(&self, owner: Owner) -> Rank {
        (owner == Owner::Bulk, self.running, self.turn, owner)
    }

    /// Whether this user has one near recall, and wants no other.
    fn is_single(&self, owner: Owner) -> bool {
        owner != Owner::Bulk && (self.running, self.near) == (1, 1) && self.queue.is_empty()
    }
}

#[derive(Debug)]
struct Queued<K, T> {
    key: K,
    distance: Distance,
    task: T,
    places: Vec<(Owner, u64)>,
}

/// The lines. `K` names what is recalled, `T` is what is to be done.
#[derive(Debug)]
pub struct Fair<K, T> {
    share: Share,
    tick: u64,
    running: usize,
    /// Of these, from a near store.
    near: usize,
    /// Users with one near recall who want no other.
    singles: usize,
    accounts: HashMap<Owner, Account>,
    ready: BTreeSet<Rank>,
    tasks: HashMap<u64, Queued<K, T>>,
    by_key: HashMap<K, u64>,
}

impl<K: Hash + Eq + Clone, T> Fair<K, T> {
    /// Empty lines.
    pub fn new(share: Share) -> Self {
        Self {
            share,
            tick: 0,
            running: 0,
            near: 0,
            singles: 0,
            accounts: HashMap::new(),
            ready: BTreeSet::new(),
            tasks: HashMap::new(),
            by_key: HashMap::new(),
        }
    }

    /// Puts a task at the end of its owner's line.
    pub fn push(&mut self, key: K, owner: Owner, distance: Distance, task: T) {
        self.tick += 1;
        let serial = self.tick;
        let queued = Queued { key: key.clone(), distance, task, places: Vec::new() };
        self.tasks.insert(serial, queued);
        self.by_key.insert(key, serial);
        self.line_up(owner, serial);
    }

    /// Somebody else wants what is queued under this key: it stands at the end of his line as well. Does
    /// nothing if it is in his line already, or not queued (any more).
    pub fn join(&mut self, key: &K, owner: Owner) {
        let Some(&serial) = self.by_key.get(key) else { return };
        let stands = |q: &Queued<K, T>| q.places.iter().any(|(o, _)| *o == owner);
        if owner != Owner::Bulk && self.tasks.get(&serial).is_some_and(|q| !stands(q)) {
            self.line_up(owner, serial);
        }
    }

    /// Takes back what is queued under this key. `None`: nothing is (any more).
    pub fn withdraw(&mut self, key: &K) -> Option<T> {
        let serial = self.by_key.remove(key)?;
        let queued = self.tasks.remove(&serial)?;
        for (stood, place) in queued.places {
            self.change(stood, |account| {
                account.queue.remove(&place);
            });
        }
        Some(queued.task)
    }

    fn line_up(&mut self, owner: Owner, serial: u64) {
        self.tick += 1;
        let place = self.tick;
        if let Some(queued) = self.tasks.get_mut(&serial) {
            queued.places.push((owner, place));
        }
        self.change(owner, |account| {
            if account.queue.is_empty() {
                account.turn = place;
            }
            account.queue.insert(place, serial);
        });
    }

    /// The next task for a worker that is free.
    pub fn take(&mut self) -> Option<(Turn, T)> {
        // Lines whose turn it is not are few: each has one running at least.
        let (owner, serial) = self.ready.iter().find_map(|&(_, running, _, owner)| {
            let serial = *self.accounts.get(&owner)?.queue.first_key_value()?.1;
            let distance = self.tasks.get(&serial)?.distance;
            self.may_run(owner, running, distance).then_some((owner, serial))
        })?;
        let queued = self.tasks.remove(&serial)?;
        if self.by_key.get(&queued.key) == Some(&serial) {
            self.by_key.remove(&queued.key);
        }
        let distance = queued.distance;
        let near = usize::from(distance == Distance::Near);
        self.running += 1;
        self.near += near;
        self.tick += 1;
        let now = self.tick;
        for (stood, place) in queued.places {
            self.change(stood, |account| {
                account.queue.remove(&place);
                if stood == owner {
                    account.running += 1;
                    account.near += near;
                    account.turn = now;
                }
            });
        }
        Some((Turn { owner, distance }, queued.task))
    }

    fn may_run(&self, owner: Owner, running: usize, distance: Distance) -> bool {
        let near = match (self.singles, self.share.near_per_user) {
            (0, most) => most,
            (_, most) => most / 2,
        };
        let crowded = distance == Distance::Near && self.near >= near;
        let shared = self.running < self.share.per_user && !crowded;
        match owner {
            Owner::User(_) => running == 0 || shared,
            Owner::Bulk => running < self.share.bulk && shared,
        }
    }

    /// The task has ended.
    pub fn done(&mut self, Turn { owner, distance }: Turn) {
        let near = usize::from(distance == Distance::Near);
        self.running = self.running.saturating_sub(1);
        self.near = self.near.saturating_sub(near);
        self.change(owner, |account| {
            account.running = account.running.saturating_sub(1);
            account.near = account.near.saturating_sub(near);
        });
    }

    /// Changes an account and puts it where it then belongs.
    fn change(&mut self, owner: Owner, change: impl FnOnce(&mut Account)) {
        let account = self.accounts.entry(owner).or_default();
        self.ready.remove(&account.rank(owner));
        self.singles -= usize::from(account.is_single(owner));
        change(account);
        self.singles += usize::from(account.is_single(owner));
        if !account.queue.is_empty() {
            self.ready.insert(account.rank(owner));
        } else if account.running == 0 {
            self.accounts.remove(&owner);
        }
    }

    /// All lines, in no order.
    pub fn lines(&self) -> Vec<Line> {
        let line = |(owner, account): (&Owner, &Account)| Line {
            owner: *owner,
            queued: account.queue.len(),
            running: account.running,
        };
        self.accounts.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests;
