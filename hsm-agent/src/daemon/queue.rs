//! What `hsm status` tells about recalls that wait for their turn.

use std::collections::BTreeMap;

use super::crowd::Crowd;
use super::work::Workers;
use crate::control::types::{Queue, UserQueue};
use crate::core::Owner;

/// The queue now. Its parts are looked at one after the other, so sums may differ by what happened between.
pub(super) fn report(workers: &Workers, crowd: &Crowd) -> Queue {
    let (most_running, share) = workers.limits();
    let room = crowd.room();
    let mut queue = Queue {
        most_running: most_running as u64,
        most_running_per_user: share.per_user as u64,
        most_local_per_user: share.near_per_user.min(share.per_user) as u64,
        most_waiting: room.total as u64,
        most_waiting_per_user: room.per_user as u64,
        ..Queue::default()
    };
    let mut users: BTreeMap<u32, UserQueue> = BTreeMap::new();
    for line in workers.report() {
        queue.running += line.running as u64;
        match line.owner {
            Owner::Bulk => queue.bulk_queued = line.queued as u64,
            Owner::User(uid) => {
                let user = users.entry(uid).or_default();
                (user.running, user.queued) = (line.running as u64, line.queued as u64);
            }
        }
    }
    for (uid, waiting) in crowd.by_user() {
        queue.waiting += waiting as u64;
        users.entry(uid).or_default().waiting = waiting as u64;
    }
    queue.users = users.into_iter().map(|(uid, user)| UserQueue { uid, ..user }).collect();
    queue
}
