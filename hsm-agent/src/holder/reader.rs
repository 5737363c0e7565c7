//! Reader threads: kernel → table.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::pending::Unanswered;
use super::protocol::EventFrame;
use super::shared::Shared;
use crate::sys::fanotify::{EVENT_BUFFER, Event, EventMask, Group, Verdict, events, take_event_fd};

/// Readers per group: one may wait for a lease that is being given up while the others go on.
const READERS: usize = 4;

/// Starts the reader threads of a group. They end with the process.
pub(super) fn start(shared: &Arc<Shared>, number: u32, group: &Arc<Group>) -> io::Result<()> {
    for n in 0..READERS {
        let (shared, group) = (Arc::clone(shared), Arc::clone(group));
        std::thread::Builder::new()
            .name(format!("reader-{number}-{n}"))
            .spawn(move || read_for_ever(&shared, number, &group))?;
    }
    Ok(())
}

fn read_for_ever(shared: &Shared, number: u32, group: &Group) {
    let mut buf = [0u8; EVENT_BUFFER];
    loop {
        match group.read(&mut buf) {
            Ok(n) => take(shared, number, &buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // EMFILE and ENFILE: the kernel denied that event itself. Others wait for
                // descriptors to become free.
                tracing::error!(%error, "fanotify events cannot be read");
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
    }
}

fn take(shared: &Shared, number: u32, bytes: &[u8]) {
    for event in events(bytes) {
        match event {
            Ok(event) => one(shared, number, &event),
            Err(error) => {
                // What cannot be parsed cannot be answered: its waiter stays blocked, not allowed.
                tracing::error!(%error, "fanotify event not understood");
                return;
            }
        }
    }
    shared.send_pending();
}

fn one(shared: &Shared, number: u32, event: &Event) {
    let Some(fd) = take_event_fd(event) else {
        if event.mask.contains(EventMask::QUEUE_OVERFLOW) {
            tracing::error!("the event queue overflowed: accesses went on unseen");
        } else {
            tracing::warn!(errno = -event.fd, pid = event.pid, "no descriptor; the kernel denied");
        }
        return;
    };
    if !event.mask.wants_answer() {
        return;
    }
    let unanswered = Unanswered { frame: frame(number, event, &fd), fd };
    if is_own(shared, event.pid) {
        shared.answer(unanswered, Verdict::Allow);
    } else if shared.is_denying() || shared.pending().len() >= shared.capacity {
        shared.answer(unanswered, Verdict::Deny(libc::EAGAIN));
    } else {
        shared.pending().insert(unanswered.frame, unanswered.fd);
    }
}

/// The engine's and our own accesses move data in and out; they must never wait for themselves.
fn is_own(shared: &Shared, pid: i32) -> bool {
    pid > 0
        && (pid == shared.engine_pid.load(Ordering::SeqCst)
            || pid == rustix::process::getpid().as_raw_nonzero().get())
}

fn frame(group: u32, event: &Event, fd: &OwnedFd) -> EventFrame {
    EventFrame {
        id: 0,
        group,
        mask: event.mask,
        pid: event.pid,
        range: event.range,
        event_fd: fd.as_raw_fd(),
    }
}
