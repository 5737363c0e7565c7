//! Groups that the service manager keeps while there is no agent.
//!
//! The kernel lets every access pass that nobody watches, and the watch ends with the last descriptor
//! of its group. So the manager gets a descriptor of each group (systemd's file descriptor store).
//! If holder and engine die together, accesses wait until the next agent comes, instead of reading
//! zeros. The next agent makes groups of its own; once these watch, the kept ones are retired: whoever waits in
//! them is denied ([`super::end`]), and only then the manager is told to close its descriptor.
//!
//! Nobody else reads a kept group then: the engine that was left behind as a sentinel has ended,
//! because an engine is ready only after that.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sd_notify::NotifyState;

use super::end::{Ending, Numbers, Turns, end_marks};
use super::shared::Shared;
use crate::sys::fanotify::{Class, Group};
use crate::sys::inherited;

/// The manager's names for groups begin so; the rest makes each name unique, since it removes by name.
const PREFIX: &str = "hsm-watch-";

/// Gives the manager a descriptor of a new group. Without a manager, or with one that keeps nothing,
/// the group ends with the agent. A group that denies when it is closed needs no keeping.
pub(super) fn keep(group: &Group) {
    if group.fails_closed() {
        return;
    }
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{number}", since.as_nanos());
    let state = [NotifyState::FdStore, NotifyState::FdName(&name)];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[group.as_fd()]) {
        tracing::debug!(%error, "no service manager to keep the watch");
    }
}

/// The groups of earlier agents, with the manager's names.
pub(super) fn kept() -> Vec<(String, Group)> {
    let kept = inherited::kept_by_manager().unwrap_or_else(|error| {
        tracing::error!(%error, "what the service manager kept cannot be taken");
        Vec::new()
    });
    let ours = kept.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
    ours.map(|(name, fd)| (name, Group::from_fd(fd, Class::PreContent))).collect()
}

/// Retires the groups of earlier agents. Our own watch must be in place. When this returns, they
/// raise no events any more; who waits in them is denied on another thread, because reading an
/// event may wait for somebody's lease.
pub(super) fn retire(shared: &Arc<Shared>, groups: Vec<(String, Group)>) {
    for (name, group) in groups {
        if let Err(error) = end_marks(&group) {
            tracing::error!(%error, name, "the watch of an earlier agent could not be ended");
        }
        let shared = Arc::clone(shared);
        let spawned = std::thread::Builder::new().name("retire".into()).spawn(move || {
            let turns = Turns::new();
            let numbers = Numbers::Any;
            let ending = Ending { name: &name, group: &group, turns: &turns, numbers };
            let is_own = |pid| pid == shared.engine_pid.load(Ordering::SeqCst);
            let denied = ending.deny_all(|| (), is_own);
            if denied > 0 {
                tracing::warn!(denied, "took over from an agent that died; who waited was denied");
            }
            let state = [NotifyState::FdStoreRemove, NotifyState::FdName(&name)];
            if let Err(error) = sd_notify::notify(&state) {
                tracing::error!(%error, name, "the service manager keeps an old watch");
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread: who waited for an earlier agent waits on");
        }
    }
}
