//! How many readers may wait at once, and how many of one user.
//!
//! Each reader who waits costs two descriptors (one in each process) and some memory, so there is a bound,
//! and a user has less than all of it: whoever exceeds his part is refused with EAGAIN, and nobody else is.
//! The kernel's own queue cannot be the bound: in it, the agent's own accesses and those of other users stand
//! behind the others, and must be answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::jobs;

/// Descriptors of the engine that are neither for readers who wait nor for the files of jobs.
const SPARE_DESCRIPTORS: u64 = 1024;

/// Readers who may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All together.
    pub total: usize,
    /// Of one user.
    pub per_user: usize,
}

impl Room {
    /// What is configured, as far as `descriptors` have room for it. Then too a user gets at most three
    /// quarters.
    pub fn new(total: u32, per_user: u32, descriptors: u64) -> Self {
        let others = jobs::for_jobs(descriptors) + SPARE_DESCRIPTORS;
        let most = descriptors.saturating_sub(others).max(descriptors / 2);
        let total = usize::try_from(most).unwrap_or(usize::MAX).min(total as usize).max(1);
        let mut per_user = (per_user as usize).min(total);
        if (total as u64) == most {
            per_user = per_user.min((total - total / 4).max(1));
        }
        Self { total, per_user }
    }
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    users: HashMap<u32, usize>,
}

/// All who wait, in all pools.
#[derive(Debug)]
pub struct Crowd {
    room: Room,
    counts: Mutex<Counts>,
}

/// Somebody's place among those who wait, given back when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    /// Whose.
    pub uid: u32,
}

impl Crowd {
    /// Nobody waits.
    pub fn new(room: Room) -> Arc<Self> {
        Arc::new(Self { room, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a reader of this user in, if there is room for him.
    pub fn enter(self: &Arc<Self>, uid: u32) -> Option<Place> {
        let mut counts = self.counts();
        let of_user = counts.users.get(&uid).copied().unwrap_or(0);
        if counts.total >= self.room.total || of_user >= self.room.per_user {
            return None;
        }
        counts.total += 1;
        counts.users.insert(uid, of_user + 1);
        Some(Place { crowd: Arc::clone(self), uid })
    }

    /// Whether nearly all who wait are others than this user, who is asked for only if many wait. His answer should not
    /// gather with theirs.
    pub fn is_for_others(&self, uid: impl FnOnce() -> u32) -> bool {
        /// Fewer are answered at once anyway.
        const MANY: usize = 8;
        /// His part at most.
        const PART: usize = 8;
        if self.counts().total <= MANY {
            return false;
        }
        let uid = uid();
        let counts = self.counts();
        counts.users.get(&uid).copied().unwrap_or(0) * PART <= counts.total
    }

    /// The limits.
    pub fn room(&self) -> Room {
        self.room
    }

    /// Readers who wait, by user.
    pub fn by_user(&self) -> HashMap<u32, usize> {
        self.counts().users.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts();
        counts.total -= 1;
        if let Some(of_user) = counts.users.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                counts.users.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_cannot_take_everybodys_place() {
        let crowd = Crowd::new(Room { total: 5, per_user: 3 });
        let many: Vec<_> = (0..9).filter_map(|_| crowd.enter(1)).collect();
        assert_eq!(many.len(), 3);
        let others: Vec<_> = (2..9).filter_map(|uid| crowd.enter(uid)).collect();
        assert_eq!(others.len(), 2);
        drop(many);
        assert!(!crowd.is_for_others(|| unreachable!("few wait")));
        assert!(crowd.enter(1).is_some());
        drop(others);
        assert!(crowd.by_user().is_empty() && crowd.counts().total == 0);
    }

    #[test]
    fn who_has_an_eighth_of_those_who_wait_is_not_one_of_the_crowd() {
        let crowd = Crowd::new(Room { total: 100, per_user: 100 });
        let _many: Vec<_> = (0..21).map(|_| crowd.enter(1)).collect();
        let mut few: Vec<_> = (0..3).map(|_| crowd.enter(2)).collect();
        assert_eq!([1, 2, 3].map(|uid| crowd.is_for_others(|| uid)), [false, true, true]);
        few.push(crowd.enter(2));
        assert!(!crowd.is_for_others(|| 2));
    }

    #[test]
    fn descriptors_bound_what_is_configured() {
        assert_eq!(Room::new(100, 50, 1 << 20), Room { total: 100, per_user: 50 });
        assert_eq!(Room::new(32_768, 16_384, 12_032), Room { total: 8000, per_user: 6000 });
        assert_eq!(Room::new(10, 20, 1 << 20), Room { total: 10, per_user: 10 });
        assert_eq!(Room::new(1000, 1000, 100), Room { total: 50, per_user: 38 });
    }
}
