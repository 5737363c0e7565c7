//! Reader threads: kernel → table.
//!
//! Reading an event makes the kernel open the file for us, and that open waits for leases: those of
//! the engine, which gives them up at once, and those of anybody else (any user may take one on his
//! own file, Samba does), which may take `lease-break-time`. A reader that waits there must not keep
//! the others' events from being read. So each group has a spare-reader thread: whenever events are
//! queued and no reader makes progress, it starts one more.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::pending::{Origin, Unanswered};
use super::protocol::EventFrame;
use super::shared::Shared;
use crate::failpoint::{Point, reach};
use crate::sys::fanotify::{EVENT_BUFFER, Event, EventMask, Group, Verdict, events, take_event_fd};

/// Readers per group to begin with.
const READERS: usize = 4;
/// Readers per group at most; each costs a stack that is hardly used.
const MAX_READERS: usize = 1024;
/// Events that stay queued that long without any reader coming back are not being read.
const STALLED: Duration = Duration::from_millis(5);

/// The readers of one group.
struct Readers {
    shared: Arc<Shared>,
    number: u32,
    group: Arc<Group>,
    /// Reads that came back.
    reads: AtomicU64,
}

/// Starts the reader threads of a group. They end with the process.
pub(super) fn start(shared: &Arc<Shared>, number: u32, group: &Arc<Group>) -> io::Result<()> {
    let (shared, group) = (Arc::clone(shared), Arc::clone(group));
    let readers = Arc::new(Readers { shared, number, group, reads: AtomicU64::new(0) });
    for n in 0..READERS {
        readers.start_one(n)?;
    }
    let watched = Arc::clone(&readers);
    std::thread::Builder::new()
        .name(format!("spare-{number}"))
        .spawn(move || watched.start_spare_ones())?;
    Ok(())
}

impl Readers {
    fn start_one(self: &Arc<Self>, n: usize) -> io::Result<()> {
        let readers = Arc::clone(self);
        std::thread::Builder::new()
            .name(format!("reader-{}-{n}", self.number))
            .spawn(move || readers.read_for_ever())?;
        Ok(())
    }

    fn start_spare_ones(self: &Arc<Self>) {
        let mut count = READERS;
        while count < MAX_READERS {
            let _ = self.group.wait();
            let before = self.reads.load(Ordering::Relaxed);
            std::thread::sleep(STALLED);
            let stalled = self.reads.load(Ordering::Relaxed) == before;
            if stalled && rustix::io::ioctl_fionread(&*self.group).is_ok_and(|n| n > 0) {
                tracing::debug!(count, "all readers wait for leases; starting another");
                match self.start_one(count) {
                    Ok(()) => count += 1,
                    Err(error) => tracing::error!(%error, "no spare reader"),
                }
            }
        }
        tracing::error!("{MAX_READERS} readers wait for leases of others; no more are started");
    }

    fn read_for_ever(&self) {
        let mut buf = [0u8; EVENT_BUFFER];
        loop {
            let turn = self.shared.turns.begin();
            let result = self.group.read(&mut buf);
            self.reads.fetch_add(1, Ordering::Relaxed);
            if let Ok(n) = result {
                take(&self.shared, self.number, &buf[..n]);
            }
            drop(turn);
            let waited = match result {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.group.wait(),
                other => other.map(drop),
            };
            match waited {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // EMFILE and ENFILE: the kernel denied that event itself. Others wait for
                    // descriptors to become free.
                    tracing::error!(%error, "fanotify events cannot be read");
                    std::thread::sleep(Duration::from_millis(10));
                }
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
    let unanswered = Unanswered::new(frame(number, event, &fd), fd, Origin::Fanotify);
    let own = is_own(shared, event.pid);
    if !own {
        // Nobody but the dead knows this event's number: the sentinel, or whoever takes the group
        // over, denies every number that there can be.
        reach(Point::HolderRead);
    }
    if own && event.pid == own_pid() {
        // Openers wait for its thread that takes their requests.
        shared.answer_now(unanswered, Verdict::Allow);
    } else if own {
        // Somebody's recall waits for it.
        shared.answer(unanswered, Verdict::Allow, true);
    } else if shared.is_denying() || shared.waiting() >= shared.capacity {
        shared.answer_now(unanswered, Verdict::Deny(libc::EAGAIN));
    } else {
        shared.list(unanswered);
        reach(Point::HolderListed);
    }
}

/// The engine's and our own accesses move data in and out; they must never wait for themselves.
fn is_own(shared: &Shared, pid: i32) -> bool {
    pid > 0 && (pid == shared.engine_pid.load(Ordering::SeqCst) || pid == own_pid())
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
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
