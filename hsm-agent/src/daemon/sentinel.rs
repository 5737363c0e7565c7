//! What is left when the holder dies: the engine has descriptors of the same groups, so the watch
//! lives on as long as it does. It keeps offline files closed until a new agent takes over.
//!
//! - Events that the engine knows are answered as before, directly.
//! - Events that the holder had read but not handed over are known to nobody. Their numbers are:
//!   each is denied with EIO.
//! - New events: online files go on, offline files are denied with EAGAIN.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::pool::Pool;
use crate::marker::InodeFd;
use crate::sys::fanotify::{EVENT_BUFFER, Event, Group, Verdict, events, take_event_fd};

/// Numbers of event descriptors that the dead holder may have had. The kernel gives the lowest
/// free one, so they lie below the number of events that ever waited at once.
const NUMBERS: i32 = 65_536;

/// Watches in the dead holder's place, on a thread per pool, for ever.
pub(super) fn start(pools: &[Arc<Pool>]) {
    for pool in pools {
        pool.stopping.store(true, Ordering::SeqCst);
        for (_, waiting) in pool.waiters.list() {
            tracing::debug!(since = ?waiting.since, "still in work");
        }
        let pool = Arc::clone(pool);
        let name = format!("sentinel-{}", pool.config.name);
        let spawned = std::thread::Builder::new().name(name).spawn(move || watch(&pool));
        if let Err(error) = spawned {
            tracing::error!(%error, "offline files may read as zeros: no thread for the watch");
        }
    }
}

fn watch(pool: &Arc<Pool>) {
    let group = &pool.kernel;
    deny_unknown(pool, group);
    let mut buf = [0u8; EVENT_BUFFER];
    loop {
        match group.read(&mut buf) {
            Ok(n) => events(&buf[..n]).flatten().for_each(|e| one(pool, group, &e)),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "events cannot be read");
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}

/// Denies every number that is not one of ours. `NotFound` is the rule.
fn deny_unknown(pool: &Pool, group: &Group) {
    let ours = pool.waiters.event_numbers();
    let denied = (0..NUMBERS)
        .filter(|n| !ours.contains(n))
        .filter(|n| group.answer(*n, Verdict::Deny(libc::EIO)).is_ok())
        .count();
    if denied > 0 {
        tracing::error!(denied, "accesses that the dead holder knew alone were denied");
    }
}

fn one(pool: &Pool, group: &Group, event: &Event) {
    let Some(fd) = take_event_fd(event) else { return };
    let own = event.pid == rustix::process::getpid().as_raw_nonzero().get();
    let verdict = match pool.attributes.marker(InodeFd::Open(fd.as_fd())) {
        _ if own => Verdict::Allow,
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
