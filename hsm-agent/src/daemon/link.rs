//! The engine's end of the socket pair with the holder.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::holder::protocol::{EventFrame, SOCKET_VARIABLE, ToEngine, ToHolder, group_name};
use crate::sys::fanotify::{Group, Verdict};

/// Connection to the holder.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// Our descriptors of the groups, by the holder's number.
    groups: Mutex<Vec<Option<Group>>>,
}

impl Link {
    /// Takes the socket that the holder left for us and waits for its greeting: before that, the
    /// engine must not touch a managed file system.
    pub fn from_holder() -> io::Result<Self> {
        let number = std::env::var(SOCKET_VARIABLE).map_err(io::Error::other)?;
        let number: i32 = number.parse().map_err(io::Error::other)?;
        let socket = adopt(number)?;
        match ToEngine::receive(&socket)? {
            Some((ToEngine::Hello, _)) => Ok(Self { socket, groups: Mutex::default() }),
            other => Err(io::Error::other(format!("no greeting from the holder: {other:?}"))),
        }
    }

    /// Asks for the group of a pool.
    pub fn open_group(&self, pool: &str) -> io::Result<(u32, Group)> {
        ToHolder::OpenGroup { name: group_name(pool)? }.send(&self.socket)?;
        // No events come before we say that we are ready.
        match ToEngine::receive(&self.socket)? {
            Some((ToEngine::Group { group }, Some(fd))) => {
                let opened = Group::from_fd(fd);
                self.remember(group, opened.try_clone()?);
                Ok((group, opened))
            }
            Some(other) => Err(io::Error::other(format!("unexpected: {other:?}"))),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn remember(&self, number: u32, group: Group) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let number = number as usize;
        if groups.len() <= number {
            groups.resize_with(number + 1, || None);
        }
        groups[number] = Some(group);
    }

    /// The next event. `Ok(None)`: the holder is gone. Several threads may call this.
    pub fn next_event(&self) -> io::Result<Option<(EventFrame, OwnedFd)>> {
        loop {
            match ToEngine::receive(&self.socket)? {
                Some((ToEngine::Event(event), Some(fd))) => return Ok(Some((event, fd))),
                // A descriptor that did not fit our limit: the holder still has the event.
                Some((ToEngine::Event(event), None)) => {
                    self.answer(&event, Verdict::Deny(libc::EAGAIN))?;
                }
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// Answers an event. If the holder is gone, the kernel is told directly: the number of the
    /// event is not reused, because whoever would reuse it is gone.
    pub fn answer(&self, event: &EventFrame, verdict: Verdict) -> io::Result<()> {
        let sent = ToHolder::Answer { id: event.id, verdict }.send(self.socket.as_fd());
        let Err(error) = sent else { return Ok(()) };
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        match groups.get(event.group as usize) {
            Some(Some(group)) => group.answer(event.event_fd, verdict),
            _ => Err(error),
        }
    }

    /// Tells that the engine serves.
    pub fn ready(&self) -> io::Result<()> {
        ToHolder::Ready.send(self.socket.as_fd())
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
