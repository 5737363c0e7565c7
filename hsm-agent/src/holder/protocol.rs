//! What holder and engine say to each other: one fixed frame per datagram, both ways, over a
//! `SOCK_SEQPACKET` socket pair. Both ends are the same binary, so the frame has no version.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytemuck::{Pod, Zeroable};

use crate::sys::fanotify::{ByteRange, EventMask, Verdict};
use crate::sys::message;

/// Environment variable that tells the engine its end of the socket pair.
pub const SOCKET_VARIABLE: &str = "HSM_HOLDER_SOCKET";
/// Environment variable that tells the engine how many engines there were before it.
pub const RESTARTS_VARIABLE: &str = "HSM_ENGINE_RESTARTS";
/// Longest name of a group (a pool's name) or of a marker attribute.
pub const MAX_NAME: usize = 64;

/// An unanswered event, as the engine gets it, together with a descriptor on the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventFrame {
    /// Identity of the answer.
    pub id: u64,
    /// Group that the event came from.
    pub group: u32,
    /// What somebody wants to do.
    pub mask: EventMask,
    /// Process that waits.
    pub pid: i32,
    /// Range, if the kernel told one.
    pub range: Option<ByteRange>,
    /// The kernel's own number for the event, in case the holder dies.
    pub event_fd: i32,
}

impl EventFrame {
    /// Whether this may be a truncation. The kernel tells of the page in which the new end is (Linux 6.18, 7.3:
    /// `fsnotify_pre_content()` rounds a range to pages; one that ends with a page is empty), as of a read from
    /// that page.
    pub fn may_be_a_cut(&self) -> bool {
        let page = rustix::param::page_size() as u64;
        self.mask.intersects(EventMask::PRE_ACCESS | EventMask::PRE_MODIFY)
            && self.range.is_none_or(|range| range.count <= page)
    }
}

/// From the holder to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToEngine {
    /// First message: now the engine may touch managed file systems.
    Hello,
    /// The group that was asked for; its descriptor comes along.
    Group {
        /// Number of the group in [`EventFrame::group`].
        group: u32,
    },
    /// [`ToHolder::Programs`] or [`ToHolder::Cover`] is carried out, or was not.
    Done {
        /// 0, or the error number.
        errno: i32,
    },
    /// Somebody waits.
    Event(EventFrame),
    /// Are you there? Takes the way of an event, and wants [`ToHolder::Alive`].
    Ping,
}

/// From the engine to the holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToHolder {
    /// Give me the group of this name; make it if there is none.
    OpenGroup {
        /// The name, zero-padded.
        name: [u8; MAX_NAME],
        /// Whether it is to deny when nobody has it any more ([`Class::FailClosed`]). Part of the
        /// name: one name never means groups of two classes.
        ///
        /// [`Class::FailClosed`]: crate::sys::fanotify::Class::FailClosed
        fail_closed: bool,
    },
    /// Serve the requests of the kernel programs that are pinned in the directory that comes along,
    /// and have them pass over this engine and the holder.
    Programs,
    /// The programs ask about the file system of the directory that comes along.
    Cover {
        /// The group that watches are put in.
        group: u32,
        /// Name of the marker attribute, zero-padded.
        marker: [u8; MAX_NAME],
    },
    /// The answer to an event.
    Answer {
        /// Identity of the event.
        id: u64,
        /// What to tell the kernel.
        verdict: Verdict,
        /// Not with the answers of others (`holder/pace.rs`).
        urgent: bool,
    },
    /// The engine takes events: tell it about those that wait.
    Serving,
    /// The pools are served: tell the service manager.
    Ready,
    /// The answer to [`ToEngine::Ping`].
    Alive,
    /// Deny whatever this process asks: the engine of a dead holder, whose end is waited for. It must not wait for
    /// an answer that only its successor can give. 0: nobody.
    Refuse {
        /// Its process id.
        pid: i32,
    },
}

const HELLO: u32 = 1;
const GROUP: u32 = 2;
const EVENT: u32 = 3;
const OPEN_GROUP: u32 = 4;
const ANSWER: u32 = 5;
const READY: u32 = 6;
const PROGRAMS: u32 = 7;
const COVER: u32 = 8;
const DONE: u32 = 9;
const SERVING: u32 = 10;
const PING: u32 = 16;
const ALIVE: u32 = 17;
const REFUSE: u32 = 18;
const NO_RANGE: u32 = 0;
const RANGE: u32 = 1;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Frame {
    kind: u32,
    group: u32,
    id: u64,
    mask: u64,
    offset: u64,
    count: u64,
    pid: i32,
    event_fd: i32,
    has_range: u32,
    response: u32,
    name: [u8; MAX_NAME],
}

impl Frame {
    fn new(kind: u32) -> Self {
        Self { kind, ..Self::zeroed() }
    }
}

impl ToEngine {
    /// Sends this frame without waiting; `WouldBlock` when the engine is behind.
    pub fn send(self, socket: impl AsFd, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let frame = match self {
            Self::Hello => Frame::new(HELLO),
            Self::Ping => Frame::new(PING),
            Self::Group { group } => Frame { group, ..Frame::new(GROUP) },
            Self::Done { errno } => Frame { response: errno.cast_unsigned(), ..Frame::new(DONE) },
            Self::Event(e) => Frame {
                group: e.group,
                id: e.id,
                mask: e.mask.bits(),
                offset: e.range.map_or(0, |r| r.offset),
                count: e.range.map_or(0, |r| r.count),
                pid: e.pid,
                event_fd: e.event_fd,
                has_range: if e.range.is_some() { RANGE } else { NO_RANGE },
                ..Frame::new(EVENT)
            },
        };
        message::send(socket, bytemuck::bytes_of(&frame), fd, false)
    }

    /// Waits for the next frame. `Ok(None)`: the holder is gone.
    pub fn receive(socket: impl AsFd) -> io::Result<Option<(Self, Option<OwnedFd>)>> {
        let Some((f, fd)) = receive(socket, true)? else { return Ok(None) };
        let message = match f.kind {
            HELLO => Self::Hello,
            PING => Self::Ping,
            GROUP => Self::Group { group: f.group },
            DONE => Self::Done { errno: f.response.cast_signed() },
            EVENT => Self::Event(EventFrame {
                id: f.id,
                group: f.group,
                mask: EventMask::from_bits_retain(f.mask),
                pid: f.pid,
                range: (f.has_range == RANGE)
                    .then_some(ByteRange { offset: f.offset, count: f.count }),
                event_fd: f.event_fd,
            }),
            other => return Err(unknown(other)),
        };
        Ok(Some((message, fd)))
    }
}

impl ToHolder {
    /// Sends this frame, waiting for room.
    pub fn send(self, socket: impl AsFd, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let frame = match self {
            Self::OpenGroup { name, fail_closed } => {
                Frame { name, group: fail_closed.into(), ..Frame::new(OPEN_GROUP) }
            }
            Self::Programs => Frame::new(PROGRAMS),
            Self::Cover { group, marker } => Frame { group, name: marker, ..Frame::new(COVER) },
            Self::Answer { id, verdict, urgent } => {
                let response = verdict.to_response();
                Frame { id, response, group: urgent.into(), ..Frame::new(ANSWER) }
            }
            Self::Serving => Frame::new(SERVING),
            Self::Ready => Frame::new(READY),
            Self::Alive => Frame::new(ALIVE),
            Self::Refuse { pid } => Frame { pid, ..Frame::new(REFUSE) },
        };
        message::send(socket, bytemuck::bytes_of(&frame), fd, true)
    }

    /// The next frame if there is one (`WouldBlock`). `Ok(None)`: the engine is gone.
    pub fn receive(socket: impl AsFd) -> io::Result<Option<(Self, Option<OwnedFd>)>> {
        let Some((f, fd)) = receive(socket, false)? else { return Ok(None) };
        let message = match f.kind {
            OPEN_GROUP => Self::OpenGroup { name: f.name, fail_closed: f.group != 0 },
            PROGRAMS => Self::Programs,
            COVER => Self::Cover { group: f.group, marker: f.name },
            ANSWER => {
                let verdict = Verdict::from_response(f.response);
                Self::Answer { id: f.id, verdict, urgent: f.group != 0 }
            }
            SERVING => Self::Serving,
            READY => Self::Ready,
            ALIVE => Self::Alive,
            REFUSE => Self::Refuse { pid: f.pid },
            other => return Err(unknown(other)),
        };
        Ok(Some((message, fd)))
    }
}

/// A name as it is sent.
pub fn padded(name: &str) -> io::Result<[u8; MAX_NAME]> {
    let mut padded = [0; MAX_NAME];
    padded
        .get_mut(..name.len())
        .ok_or_else(|| io::Error::other(format!("the name {name} is too long")))?
        .copy_from_slice(name.as_bytes());
    Ok(padded)
}

fn receive(socket: impl AsFd, block: bool) -> io::Result<Option<(Frame, Option<OwnedFd>)>> {
    let mut buf = [0u8; size_of::<Frame>()];
    match message::receive(socket, &mut buf, block)? {
        (0, _) => Ok(None),
        (n, fd) if n == buf.len() => Ok(Some((bytemuck::pod_read_unaligned(&buf), fd))),
        (n, _) => Err(io::Error::other(format!("frame of {n} bytes, {} expected", buf.len()))),
    }
}

fn unknown(kind: u32) -> io::Error {
    io::Error::other(format!("unknown frame {kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_looks_like_a_read_of_one_page() {
        let frame = |mask, range| EventFrame { id: 1, group: 0, mask, pid: 1, range, event_fd: 3 };
        let page = rustix::param::page_size() as u64;
        let range = |count| Some(ByteRange { offset: 3 * page, count });
        for (count, may) in [(0, true), (page, true), (2 * page, false)] {
            assert_eq!(frame(EventMask::PRE_ACCESS, range(count)).may_be_a_cut(), may, "{count}");
        }
        assert!(frame(EventMask::PRE_ACCESS, None).may_be_a_cut());
        assert!(!frame(EventMask::OPEN_PERM, None).may_be_a_cut());
    }

    #[test]
    fn frames_arrive_as_sent() {
        let (a, b) = message::pair().unwrap();
        let event = EventFrame {
            id: u64::MAX - 1,
            group: 3,
            mask: EventMask::OPEN_PERM,
            pid: 42,
            range: Some(ByteRange { offset: 1 << 40, count: 0 }),
            event_fd: 17,
        };
        let done = ToEngine::Done { errno: -1 };
        let group = ToEngine::Group { group: 9 };
        for m in [ToEngine::Hello, group, done, ToEngine::Event(event), ToEngine::Ping] {
            let file = std::fs::File::open("/dev/null").unwrap();
            m.send(&a, Some(file.as_fd())).unwrap();
            let (got, fd) = ToEngine::receive(&b).unwrap().unwrap();
            assert_eq!(got, m);
            assert!(fd.is_some());
        }
        for m in [
            ToHolder::OpenGroup { name: padded("media").unwrap(), fail_closed: false },
            ToHolder::OpenGroup { name: padded("media").unwrap(), fail_closed: true },
            ToHolder::Programs,
            ToHolder::Cover { group: 3, marker: padded("security.bpf.hsm").unwrap() },
            ToHolder::Answer { id: 7, verdict: Verdict::Deny(libc::EIO), urgent: false },
            ToHolder::Answer { id: 8, verdict: Verdict::Allow, urgent: true },
            ToHolder::Serving,
            ToHolder::Ready,
            ToHolder::Alive,
        ] {
            let file = std::fs::File::open("/dev/null").unwrap();
            m.send(&b, Some(file.as_fd())).unwrap();
            let (got, fd) = ToHolder::receive(&a).unwrap().unwrap();
            assert_eq!(got, m);
            assert!(fd.is_some());
        }
        assert!(padded(&"x".repeat(65)).is_err());
        drop(b);
        assert!(ToHolder::receive(&a).unwrap().is_none());
    }

    #[test]
    fn question_and_answer_keep_their_bytes() {
        let (a, b) = message::pair().unwrap();
        ToEngine::Ping.send(&a, None).unwrap();
        ToHolder::Alive.send(&b, None).unwrap();
        for (socket, kind) in [(&b, 16), (&a, 17)] {
            let (frame, _) = receive(socket, false).unwrap().unwrap();
            let mut want = [0; size_of::<Frame>()];
            want[0] = kind;
            assert_eq!(bytemuck::bytes_of(&frame), want);
        }
    }
}
