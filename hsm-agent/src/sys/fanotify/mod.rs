//! fanotify: groups, marks, permission events and their answers.
//!
//! [`decode`] is pure and parses what `read(2)` delivered; [`Group`] does the system calls.

mod abi;
pub mod decode;
mod group;

pub use abi::{EventMask, MAX_DENY_ERRNO, Verdict};
pub use decode::{ByteRange, DecodeError, Event, events};
pub(crate) use group::take_event_fd;
pub use group::{Class, EVENT_BUFFER, Group, GroupOptions, MarkTarget};
