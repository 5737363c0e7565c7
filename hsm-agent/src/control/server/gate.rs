//! Fair limits: root has a share that nobody else can take, every other user a small one of theirs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many of something may exist at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// Root's own.
    pub root: usize,
    /// Of each other user.
    pub per_user: usize,
    /// Of all other users together.
    pub others: usize,
}

/// Counts what is held, by user.
#[derive(Debug)]
pub(super) struct Gate {
    shares: Shares,
    held: Mutex<HashMap<u32, usize>>,
}

/// The right to one; given back when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    uid: u32,
}

impl Gate {
    pub(super) fn new(shares: Shares) -> Arc<Self> {
        Arc::new(Self { shares, held: Mutex::default() })
    }

    /// A pass, unless the user's share is used up.
    pub(super) fn enter(self: &Arc<Self>, uid: u32) -> Option<Pass> {
        let mut held = self.lock();
        let own = held.get(&uid).copied().unwrap_or(0);
        let others: usize = held.iter().filter(|(uid, _)| **uid != 0).map(|(_, n)| n).sum();
        let full = match uid {
            0 => own >= self.shares.root,
            _ => own >= self.shares.per_user || others >= self.shares.others,
        };
        if full {
            return None;
        }
        held.insert(uid, own + 1);
        Some(Pass { gate: self.clone(), uid })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        // The map is whole between any two statements that can panic.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut held = self.gate.lock();
        match held.get_mut(&self.uid) {
            Some(n) if *n > 1 => *n -= 1,
            _ => drop(held.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_share_of_another() {
        let gate = Gate::new(Shares { root: 1, per_user: 2, others: 3 });
        let a = gate.enter(1000);
        let b = gate.enter(1000);
        assert!(a.is_some() && b.is_some());
        assert!(gate.enter(1000).is_none(), "own share");
        let c = gate.enter(1001);
        assert!(c.is_some());
        assert!(gate.enter(1002).is_none(), "share of all others");
        let root = gate.enter(0);
        assert!(root.is_some() && gate.enter(0).is_none());
        drop(a);
        assert!(gate.enter(1002).is_some());
        drop((b, c, root));
        assert!(gate.lock().is_empty(), "forgets users that are gone");
    }
}
