//! What is left when the holder dies: the engine has descriptors of the same groups, so the watch
//! lives on as long as it does. It keeps offline files closed until a new agent takes over.
//!
//! - Everything that waited when the holder died is denied with EIO. The kernel knows those events by
//!   the numbers of descriptors in the *holder's* table; once we read events ourselves, their numbers
//!   come from *our* table, and the same number could mean both. So all old numbers are denied before
//!   the first read, and nothing else answers any more ([`super::link::Link::answer`] fails).
//! - New events: online files go on, offline files are denied with EAGAIN.
//! - At the end, when a new agent watches, whoever waits is denied before the group is closed
//!   ([`crate::holder::Ending`]).

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::pool::Pool;
use crate::holder::{Ending, Numbers, Turns, deny_numbers};
use crate::marker::InodeFd;
use crate::sys::fanotify::{EVENT_BUFFER, Event, Group, Verdict, events, take_event_fd};
use crate::sys::handle;

/// Of all pools' threads.
static TURNS: Turns = Turns::new();

/// Watches in the dead holder's place, on a thread per pool, for ever.
pub(super) fn start(pools: &[Arc<Pool>]) {
    for pool in pools {
        pool.stopping.store(true, Ordering::SeqCst);
        let pool = Arc::clone(pool);
        let name = format!("sentinel-{}", pool.config.name);
        let spawned = std::thread::Builder::new().name(name).spawn(move || watch(&pool));
        if let Err(error) = spawned {
            tracing::error!(%error, "offline files may read as zeros: no thread for the watch");
        }
    }
}

/// A new agent has its own watch in place. Whoever waits in ours is denied before it goes.
pub(super) fn end(pools: &[Arc<Pool>]) {
    for pool in pools {
        let (name, group) = (&pool.config.name, &pool.kernel);
        let ending = Ending { name, group, turns: &TURNS, numbers: Numbers::Any };
        ending.deny_all(|| (), |_| false);
    }
}

fn watch(pool: &Arc<Pool>) {
    let group = &pool.kernel;
    let denied = deny_numbers(group, Numbers::Any);
    if denied > 0 {
        tracing::error!(denied, "accesses that waited when the holder died were denied");
    }
    let mut buf = [0u8; EVENT_BUFFER];
    loop {
        let turn = TURNS.begin();
        let result = group.read(&mut buf);
        if let Ok(n) = result {
            events(&buf[..n]).flatten().for_each(|e| one(pool, group, &e));
        }
        drop(turn);
        let waited = match result {
            Err(e) if e.kind() == ErrorKind::WouldBlock => group.wait(),
            other => other.map(drop),
        };
        match waited {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "events cannot be read");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// Whether something is still going on with the file, or may be.
fn is_busy(pool: &Pool, fd: &OwnedFd) -> bool {
    handle::of_fd(fd).map_or(true, |key| pool.inflight().is_busy(&key))
}

fn one(pool: &Pool, group: &Group, event: &Event) {
    let Some(fd) = take_event_fd(event) else { return };
    let own = event.pid == rustix::process::getpid().as_raw_nonzero().get();
    let verdict = match pool.attributes.marker(InodeFd::Open(fd.as_fd())) {
        _ if own => Verdict::Allow,
        // A release that was under way may be about to set the marker.
        Ok(None) if is_busy(pool, &fd) => Verdict::Deny(libc::EAGAIN),
        Ok(None) => Verdict::Allow,
        Ok(Some(_)) => Verdict::Deny(libc::EAGAIN),
        Err(_) => Verdict::Deny(libc::EIO),
    };
    if let Err(error) = group.answer(event.fd, verdict)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::error!(%error, "answer not taken");
    }
}
