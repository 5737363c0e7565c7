//! Invisible IO: read-write descriptors whose accesses raise no fanotify events.
//!
//! The agent must write into offline files and take the data of others away. On a watched file
//! system each such access through an ordinary descriptor would be an event of its own that the
//! agent has to answer; worse, to deliver that event the kernel opens the file, and that open
//! waits for the very lease that the agent holds while it punches. The one kind of descriptor
//! that raises nothing is an event's own. So we make an event for ourselves: open the file, put a
//! notification mark for "closed after writing" on it in a private group, close it, and keep the
//! read-write descriptor that comes with the notification.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;

use super::fanotify::{Class, EventMask, Group, GroupOptions, MarkTarget, events};
use super::inode;

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
    /// `WouldBlock`: somebody holds a lease on the file.
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

    /// Reads the private group empty and keeps one descriptor on the inode that was asked for.
    fn take(&self, path: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let wanted = inode::stat(path)?;
        let mut found = Err(io::Error::other("the kernel sent no notification for our own close"));
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
                    if event.fd < 0 && found.is_err() {
                        found = Err(io::Error::from_raw_os_error(-event.fd));
                    }
                    continue;
                };
                let is = inode::stat(&fd)?;
                if (is.dev, is.ino) == (wanted.dev, wanted.ino) {
                    found = Ok(fd);
                }
            }
        }
    }
}
