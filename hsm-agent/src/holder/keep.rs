//! Groups that the service manager keeps while there is no agent.
//!
//! The kernel lets every access pass that nobody watches, and the watch ends with the last descriptor
//! of its group. So the manager gets a descriptor of each group (systemd's file descriptor store).
//! If holder and engine die together, accesses wait until the next agent comes, instead of reading
//! zeros. The next agent makes groups of its own; once these watch, the kept ones are retired:
//!
//! 1. Their watch ends, so that nothing new comes to them.
//! 2. Every number that a dead holder can have read is denied, before anything is read here: the
//!    kernel knows an event by the number of its descriptor in whichever process read it.
//! 3. What is still queued is read and denied.
//! 4. Only then the manager is told to close its descriptor: the kernel allows what waits in a group
//!    that is closed.
//!
//! Nobody else reads a kept group then: the engine that was left behind as a sentinel has ended,
//! because an engine is ready only after that.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use sd_notify::NotifyState;

use super::run::MAX_WAITING;
use super::shared::Shared;
use crate::sys::fanotify::{Class, EVENT_BUFFER, Group, Verdict, events, take_event_fd};
use crate::sys::inherited;
use crate::sys::process::raise_descriptor_limit;

/// The manager's names for groups begin so; the rest makes each name unique, since it removes by name.
const PREFIX: &str = "hsm-watch-";
/// The holder lets at most [`MAX_WAITING`] events wait and has few other descriptors; the kernel
/// gives the lowest free number.
const MAX_NUMBER: i32 = MAX_WAITING as i32 + 4096;

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
        let ended = group.flush_filesystem_marks().and_then(|()| group.flush_inode_marks());
        if let Err(error) = ended {
            tracing::error!(%error, name, "the watch of an earlier agent could not be ended");
        }
        let shared = Arc::clone(shared);
        let spawned = std::thread::Builder::new().name("retire".into()).spawn(move || {
            let denied = deny_numbers(&group) + deny_queued(&shared, &group);
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

/// Denies every number that a dead holder can have had, and counts who waited.
pub fn deny_numbers(group: &Group) -> usize {
    // The dead one had the same limit. `NotFound` is the rule.
    let numbers = i32::try_from(raise_descriptor_limit()).unwrap_or(i32::MAX).min(MAX_NUMBER);
    (0..numbers).filter(|n| group.answer(*n, Verdict::Deny(libc::EIO)).is_ok()).count()
}

fn deny_queued(shared: &Shared, group: &Group) -> usize {
    let mut buf = [0u8; EVENT_BUFFER];
    let mut denied = 0;
    while is_queued(group) {
        match group.read(&mut buf) {
            Ok(n) => {
                for event in events(&buf[..n]).flatten() {
                    let Some(_fd) = take_event_fd(&event) else { continue };
                    let own = event.pid == shared.engine_pid.load(Ordering::SeqCst);
                    let verdict = if own { Verdict::Allow } else { Verdict::Deny(libc::EAGAIN) };
                    denied += usize::from(group.answer(event.fd, verdict).is_ok() && !own);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "events of an earlier agent cannot be read");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
    denied
}

fn is_queued(group: &Group) -> bool {
    let mut queued = [PollFd::new(group, PollFlags::IN)];
    matches!(poll(&mut queued, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
}
