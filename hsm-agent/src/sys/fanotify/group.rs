//! The system calls on a fanotify group.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::abi::{self, EventMask, Verdict};
use crate::sys::check;

/// Size of the buffer for one `read(2)` of a permission group: one event with a range, or two
/// without. It is small on purpose. While it reads, the kernel opens a descriptor for each event;
/// if that open has to wait (somebody holds a lease on the file), the events that were copied
/// before it in the same call wait too.
pub const EVENT_BUFFER: usize = 48;

/// What the group may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Permission and pre-content events; event descriptors are read-only.
    PreContent,
    /// The same for a kernel with our patches; when the group is closed, its watches of whole file
    /// systems stay and deny. `EINVAL` on other kernels.
    FailClosed,
    /// Notifications only; event descriptors are read-write and, like all event descriptors,
    /// raise no events themselves.
    NotifyReadWrite,
}

/// Options of [`Group::new`].
#[derive(Debug, Clone, Copy)]
pub struct GroupOptions {
    /// Kind of the group.
    pub class: Class,
    /// `read` returns `WouldBlock` instead of waiting.
    pub nonblock: bool,
}

/// An fanotify group. Dropping the last descriptor of a group removes its marks, and the stock
/// kernel *allows* what still waits: answer everything first. (Not so with [`Class::FailClosed`].)
#[derive(Debug)]
pub struct Group {
    fd: OwnedFd,
    class: Class,
}

/// What a mark is put on: an open descriptor (not `O_PATH`), or what a path leads to.
#[derive(Debug, Clone, Copy)]
pub enum MarkTarget<'a> {
    /// The inode (or the file system) behind an open descriptor.
    Fd(BorrowedFd<'a>),
    /// The inode behind an `O_PATH` descriptor, reached through `/proc/self/fd`.
    Path(BorrowedFd<'a>),
}

impl MarkTarget<'_> {
    /// The descriptor itself.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Fd(fd) | Self::Path(fd) => *fd,
        }
    }
}

impl Group {
    /// `fanotify_init(2)`. Needs CAP_SYS_ADMIN; `EINVAL` for pre-content on a kernel without it.
    pub fn new(options: GroupOptions) -> io::Result<Self> {
        let class = match options.class {
            Class::PreContent => abi::CLASS_PRE_CONTENT | abi::REPORT_FD_ERROR,
            Class::FailClosed => abi::CLASS_PRE_CONTENT | abi::REPORT_FD_ERROR | abi::FAIL_CLOSED,
            // An event descriptor must never wait for somebody's lease: O_NONBLOCK below.
            Class::NotifyReadWrite => abi::CLASS_NOTIF | abi::REPORT_FD_ERROR,
        };
        let block = if options.nonblock { abi::NONBLOCK } else { 0 };
        let event_flags = libc::O_LARGEFILE
            | libc::O_CLOEXEC
            | libc::O_NOATIME
            | match options.class {
                Class::PreContent | Class::FailClosed => libc::O_RDONLY,
                Class::NotifyReadWrite => libc::O_RDWR | libc::O_NONBLOCK,
            };
        let flags = class | block | abi::CLOEXEC | abi::UNLIMITED_QUEUE | abi::UNLIMITED_MARKS;
        // SAFETY: no pointers are passed; the result is checked.
        let fd = check(unsafe { libc::fanotify_init(flags, event_flags as u32) })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, class: options.class })
    }

    /// Wraps the descriptor of a group of this class that another process made.
    pub fn from_fd(fd: OwnedFd, class: Class) -> Self {
        Self { fd, class }
    }

    /// Whether the kernel denies by itself once the group is closed.
    pub fn fails_closed(&self) -> bool {
        self.class == Class::FailClosed
    }

    /// A second descriptor of the same group.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, class: self.class })
    }

    /// Marks the whole file system that `target` is on.
    pub fn watch_filesystem(&self, target: BorrowedFd<'_>, mask: EventMask) -> io::Result<()> {
        self.mark(abi::MARK_ADD | abi::MARK_FILESYSTEM, mask, MarkTarget::Fd(target))
    }

    /// Marks the whole file system that `target` is on; the group's BPF filter decides what becomes an
    /// event. `ENOLINK`: the group has no filter. `EINVAL`: the kernel knows no filters.
    pub fn filter_filesystem(&self, target: BorrowedFd<'_>, mask: EventMask) -> io::Result<()> {
        let flags = abi::MARK_ADD | abi::MARK_FILESYSTEM | abi::MARK_FILTER;
        self.mark(flags, mask, MarkTarget::Fd(target))
    }

    /// Takes the mark of the whole file system away.
    pub fn unwatch_filesystem(&self, target: BorrowedFd<'_>, mask: EventMask) -> io::Result<()> {
        self.mark(abi::MARK_REMOVE | abi::MARK_FILESYSTEM, mask, MarkTarget::Fd(target))
    }

    /// Removes every file system mark of this group.
    pub fn flush_filesystem_marks(&self) -> io::Result<()> {
        let any = MarkTarget::Fd(self.fd.as_fd());
        self.mark(abi::MARK_FLUSH | abi::MARK_FILESYSTEM, EventMask::empty(), any)
    }

    /// Removes every inode mark of this group, ignore marks among them.
    pub fn flush_inode_marks(&self) -> io::Result<()> {
        let any = MarkTarget::Fd(self.fd.as_fd());
        self.mark(abi::MARK_FLUSH, EventMask::empty(), any)
    }

    /// Puts an evictable mark on one inode: it does not keep the inode in memory.
    pub fn watch_inode(&self, target: MarkTarget<'_>, mask: EventMask) -> io::Result<()> {
        self.mark(abi::MARK_ADD | abi::MARK_EVICTABLE, mask, target)
    }

    /// Takes [`Self::watch_inode`] back. `Ok(false)`: there was none.
    pub fn unwatch_inode(&self, target: MarkTarget<'_>, mask: EventMask) -> io::Result<bool> {
        absent_is_false(self.mark(abi::MARK_REMOVE, mask, target))
    }

    /// Makes the kernel pass over events of one inode without asking, until the inode leaves
    /// memory or [`Self::unignore_inode`].
    pub fn ignore_inode(&self, target: MarkTarget<'_>, mask: EventMask) -> io::Result<()> {
        let flags =
            abi::MARK_ADD | abi::MARK_EVICTABLE | abi::MARK_IGNORE | abi::MARK_IGNORED_SURV_MODIFY;
        self.mark(flags, mask, target)
    }

    /// Takes the ignore mark away. `Ok(false)`: there was none.
    pub fn unignore_inode(&self, target: MarkTarget<'_>, mask: EventMask) -> io::Result<bool> {
        absent_is_false(self.mark(abi::MARK_REMOVE | abi::MARK_IGNORE, mask, target))
    }

    fn mark(&self, flags: u32, mask: EventMask, target: MarkTarget<'_>) -> io::Result<()> {
        let group = self.fd.as_raw_fd();
        let ret = match target {
            // SAFETY: a null path is allowed and means "the descriptor itself".
            MarkTarget::Fd(fd) => unsafe {
                libc::fanotify_mark(group, flags, mask.bits(), fd.as_raw_fd(), std::ptr::null())
            },
            MarkTarget::Path(fd) => {
                let path = crate::sys::inode::proc_path(fd);
                // SAFETY: `path` is NUL-terminated and lives during the call.
                unsafe {
                    libc::fanotify_mark(group, flags, mask.bits(), libc::AT_FDCWD, path.as_ptr())
                }
            }
        };
        check(ret).map(drop)
    }

    /// Reads events into `buf`; returns the bytes. The descriptors inside belong to the caller.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buf)?)
    }

    /// Waits until an event is queued.
    pub fn wait(&self) -> io::Result<()> {
        self.poll(None)?;
        Ok(())
    }

    /// Waits until an event is queued, a signal comes, or so much time is over.
    pub fn wait_for(&self, limit: Duration) -> io::Result<()> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match self.poll(Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether an event is queued.
    pub fn has_events(&self) -> bool {
        matches!(self.poll(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(n) if n > 0)
    }

    /// More than 0: an event is queued.
    fn poll(&self, limit: Option<&Timespec>) -> Result<usize, Errno> {
        poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], limit)
    }

    /// Answers the permission event that was delivered with descriptor number `event_fd`.
    /// `NotFound`: nobody waits for this number (any more).
    pub fn answer(&self, event_fd: RawFd, verdict: Verdict) -> io::Result<()> {
        let mut response = [0u8; 8];
        response[..4].copy_from_slice(&event_fd.to_ne_bytes());
        response[4..].copy_from_slice(&verdict.to_response().to_ne_bytes());
        let n = rustix::io::write(&self.fd, &response)?;
        if n == response.len() {
            Ok(())
        } else {
            Err(io::Error::other("the kernel took half of a fanotify answer"))
        }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn absent_is_false(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes ownership of an event's descriptor. `None` when the kernel could not open one.
pub(crate) fn take_event_fd(event: &super::Event) -> Option<OwnedFd> {
    // SAFETY: the kernel installed this descriptor for the reader of the group, who calls this
    // exactly once per event.
    (event.fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(event.fd) })
}
