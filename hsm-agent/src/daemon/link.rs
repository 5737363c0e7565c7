//! The engine's end of the socket pair with the holder.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;

use crate::holder::protocol::{
    EventFrame, RESTARTS_VARIABLE, SOCKET_VARIABLE, ToEngine, ToHolder, padded,
};
use crate::sys::fanotify::{Class, Group, Verdict};

/// What the holder wants of an engine that serves.
#[derive(Debug)]
pub enum Incoming {
    /// Somebody waits.
    Event(EventFrame, OwnedFd),
    /// The holder asks whether we are there.
    Ping,
}

/// Connection to the holder.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

/// The holder tells each engine how many there were before it.
pub(super) fn restarts() -> u64 {
    std::env::var(RESTARTS_VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(0)
}

impl Link {
    /// Takes the socket that the holder left for us and waits for its greeting: before that, the
    /// engine must not touch a managed file system.
    pub fn from_holder() -> io::Result<Self> {
        let number = std::env::var(SOCKET_VARIABLE).map_err(io::Error::other)?;
        let number: i32 = number.parse().map_err(io::Error::other)?;
        let socket = adopt(number)?;
        match ToEngine::receive(&socket)? {
            Some((ToEngine::Hello, _)) => Ok(Self { socket }),
            other => Err(io::Error::other(format!("no greeting from the holder: {other:?}"))),
        }
    }

    /// Asks for the group of a pool, of class [`Class::PreContent`] or [`Class::FailClosed`].
    pub fn open_group(&self, pool: &str, class: Class) -> io::Result<(u32, Group)> {
        let fail_closed = class == Class::FailClosed;
        let message = ToHolder::OpenGroup { name: padded(pool)?, fail_closed };
        message.send(&self.socket, None)?;
        // No events come before we say that we take them.
        match ToEngine::receive(&self.socket)? {
            Some((ToEngine::Group { group }, Some(fd))) => Ok((group, Group::from_fd(fd, class))),
            Some(other) => Err(io::Error::other(format!("unexpected: {other:?}"))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Has the holder serve the kernel programs that are pinned in `directory`, and has them pass
    /// over this process and the holder.
    pub fn serve_programs(&self, directory: BorrowedFd<'_>) -> io::Result<()> {
        ToHolder::Programs.send(&self.socket, Some(directory))?;
        self.done()
    }

    /// Tells the holder which group belongs to the file system of `root`, before the programs are
    /// told to ask about it.
    pub fn cover(&self, group: u32, root: BorrowedFd<'_>, marker: &str) -> io::Result<()> {
        ToHolder::Cover { group, marker: padded(marker)? }.send(&self.socket, Some(root))?;
        self.done()
    }

    fn done(&self) -> io::Result<()> {
        match ToEngine::receive(&self.socket)? {
            Some((ToEngine::Done { errno: 0 }, _)) => Ok(()),
            Some((ToEngine::Done { errno }, _)) => Err(io::Error::from_raw_os_error(errno)),
            Some(other) => Err(io::Error::other(format!("unexpected: {other:?}"))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// What comes next. `Ok(None)`: the holder is gone. Several threads may call this.
    pub fn next(&self) -> io::Result<Option<Incoming>> {
        loop {
            match ToEngine::receive(&self.socket)? {
                Some((ToEngine::Event(event), Some(fd))) => {
                    return Ok(Some(Incoming::Event(event, fd)));
                }
                Some((ToEngine::Ping, _)) => return Ok(Some(Incoming::Ping)),
                // A descriptor that did not fit our limit: the holder still has the event.
                Some((ToEngine::Event(event), None)) => {
                    self.answer(&event, Verdict::Deny(libc::EAGAIN), false)?;
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Answers an event, `urgent`ly where others' answers can wait. Fails when the holder is gone: then the sentinel denies all that it knew.
    pub fn answer(&self, event: &EventFrame, verdict: Verdict, urgent: bool) -> io::Result<()> {
        ToHolder::Answer { id: event.id, verdict, urgent }.send(self.socket.as_fd(), None)
    }

    /// Whether the holder is gone: then [`Self::next`] is about to say so. In doubt it is.
    pub fn is_broken(&self) -> bool {
        let mut ends = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match rustix::io::retry_on_intr(|| poll(&mut ends, Some(&now))) {
            Ok(_) => ends.iter().any(|end| end.revents().contains(PollFlags::HUP)),
            Err(_) => true,
        }
    }

    /// Has the holder deny whatever this process asks. 0: nobody.
    pub fn refuse(&self, pid: i32) -> io::Result<()> {
        ToHolder::Refuse { pid }.send(self.socket.as_fd(), None)
    }

    /// Answers the holder that asks.
    pub fn alive(&self) -> io::Result<()> {
        ToHolder::Alive.send(self.socket.as_fd(), None)
    }

    /// Tells that the engine takes events.
    pub fn serving(&self) -> io::Result<()> {
        ToHolder::Serving.send(self.socket.as_fd(), None)
    }

    /// Tells that the pools are served.
    pub fn ready(&self) -> io::Result<()> {
        ToHolder::Ready.send(self.socket.as_fd(), None)
    }
}

#[expect(unsafe_code, reason = "takes over an inherited descriptor")]
fn adopt(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::other(format!(
            "{SOCKET_VARIABLE}={number} is no descriptor for us"
        )));
    }
    // SAFETY: the holder left this descriptor open for us alone, and says its number in a
    // variable that only it sets; this runs once, before anything else opens descriptors.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}
