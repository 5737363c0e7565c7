//! Invisible IO: read-write descriptors whose accesses raise no fanotify events.
//!
//! The agent must write into offline files and take the data of others away. On a watched file
//! system each such access through an ordinary descriptor would be an event of its own that the
//! agent has to answer; worse, to deliver that event the kernel opens the file, and that open
//! waits for the very lease that the agent holds while it punches. The one kind of descriptor
//! that raises nothing is an event's own. So we make an event for ourselves: open the file, put a
//! notification mark for "closed after writing" on it in a private group, close it, and keep the
//! read-write descriptor that comes with the notification.
//!
//! The notification comes with the last close. A child that is being started has a copy of every descriptor until
//! its exec, also of the one that is closed here, so it may come a moment later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::fanotify::{Class, EventMask, Group, GroupOptions, MarkTarget, events};
use super::inode;

/// How long a child may take to its exec: as long as a busy machine needs.
const PATIENCE: Duration = Duration::from_secs(2);

/// Makes invisible descriptors. One per thread: the private group must not be shared.
#[derive(Debug)]
pub struct InvisibleOpener {
    group: Group,
}

impl InvisibleOpener {
    /// A private notification group.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            group: Group::new(GroupOptions { class: Class::NotifyReadWrite, nonblock: true })?,
        })
    }

    /// A read-write descriptor on the inode behind `path` (an `O_PATH` descriptor on a writable
    /// mount). The open itself does raise an event unless the inode is ignored.
    /// `WouldBlock`: somebody holds a lease on the file. `TimedOut`: a child that does not come to its exec has a copy
    /// of what was closed here.
    pub fn open(&self, path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::NOATIME | OFlags::NONBLOCK;
        let visible = inode::reopen(path, flags)?;
        self.group.watch_inode(MarkTarget::Fd(visible.as_fd()), EventMask::CLOSE_WRITE)?;
        drop(visible);
        let found = self.take(path);
        let forget = self.group.unwatch_inode(MarkTarget::Path(path), EventMask::CLOSE_WRITE);
        let fd = found?;
        forget?;
        Ok(fd)
    }

    /// The notification's descriptor, once there is one.
    fn take(&self, path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let wanted = inode::stat(path)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(fd) = self.queued(&wanted)? {
                return Ok(fd);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT.into());
            }
            self.group.wait_for(left)?;
        }
    }

    /// Reads the private group empty and keeps one descriptor on the inode that was asked for.
    fn queued(&self, wanted: &inode::Stat) -> io::Result<Option<OwnedFd>> {
        let mut found = Ok(None);
        let mut buf = [0u8; 4096];
        loop {
            let n = match self.group.read(&mut buf) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return found,
                Err(e) => return Err(e),
            };
            for event in events(&buf[..n]) {
                let event = event.map_err(io::Error::other)?;
                let Some(fd) = super::fanotify::take_event_fd(&event) else {
                    if event.fd < 0 && !matches!(found, Ok(Some(_))) {
                        found = Err(io::Error::from_raw_os_error(-event.fd));
                    }
                    continue;
                };
                let is = inode::stat(&fd)?;
                if (is.dev, is.ino) == (wanted.dev, wanted.ino) {
                    found = Ok(Some(fd));
                }
            }
        }
    }
}
