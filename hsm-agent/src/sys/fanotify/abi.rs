//! Constants of `include/uapi/linux/fanotify.h` and the answer encoding. Those that only our kernel
//! patches know (docs/KERNEL-PATCHES.md) say so.

use bitflags::bitflags;

/// `FANOTIFY_METADATA_VERSION`.
pub(crate) const METADATA_VERSION: u8 = 3;
/// `sizeof(struct fanotify_event_metadata)`.
pub(crate) const METADATA_LEN: usize = 24;
/// `FAN_EVENT_INFO_TYPE_RANGE`.
pub(crate) const INFO_TYPE_RANGE: u8 = 6;

pub(crate) const CLOEXEC: u32 = 0x1;
pub(crate) const NONBLOCK: u32 = 0x2;
pub(crate) const CLASS_NOTIF: u32 = 0x0;
pub(crate) const CLASS_PRE_CONTENT: u32 = 0x8;
pub(crate) const UNLIMITED_QUEUE: u32 = 0x10;
pub(crate) const UNLIMITED_MARKS: u32 = 0x20;
/// A descriptor that could not be opened is reported as `-errno` instead of ending the read.
pub(crate) const REPORT_FD_ERROR: u32 = 0x2000;
/// `FAN_FAIL_CLOSED` of our patches: what waits in the group when it is closed, and what its marks of
/// whole file systems would have asked about afterwards, is denied with EIO.
pub(crate) const FAIL_CLOSED: u32 = 0x8000;

pub(crate) const MARK_ADD: u32 = 0x1;
pub(crate) const MARK_REMOVE: u32 = 0x2;
pub(crate) const MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
pub(crate) const MARK_FLUSH: u32 = 0x80;
pub(crate) const MARK_FILESYSTEM: u32 = 0x100;
pub(crate) const MARK_EVICTABLE: u32 = 0x200;
pub(crate) const MARK_IGNORE: u32 = 0x400;
/// `FAN_MARK_FILTER` of our patches: the group's BPF filter decides which accesses become events.
pub(crate) const MARK_FILTER: u32 = 0x800;

const ALLOW: u32 = 0x1;
const DENY: u32 = 0x2;

bitflags! {
    /// Event bits that hsm uses.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct EventMask: u64 {
        /// `FAN_OPEN`: a file was opened (notification).
        const OPEN = 0x20;
        /// `FAN_CLOSE_WRITE`: a writable file was closed (notification).
        const CLOSE_WRITE = 0x08;
        /// `FAN_CLOSE_NOWRITE`: a read-only file was closed (notification).
        const CLOSE_NOWRITE = 0x10;
        /// `FAN_Q_OVERFLOW`.
        const QUEUE_OVERFLOW = 0x4000;
        /// `FAN_OPEN_PERM`: an open waits for an answer.
        const OPEN_PERM = 0x0001_0000;
        /// `FAN_OPEN_EXEC_PERM`: an open for execution waits for an answer.
        const OPEN_EXEC_PERM = 0x0004_0000;
        /// `FAN_PRE_ACCESS`: an access to a range of the content waits for an answer.
        const PRE_ACCESS = 0x0010_0000;
        /// `FAN_PRE_MODIFY` of our patches, always beside [`Self::PRE_ACCESS`]: the access may change
        /// the content.
        const PRE_MODIFY = 0x0020_0000;
        /// Bits that this build has no name for stay visible.
        const _ = !0;
    }
}

impl EventMask {
    /// Whether somebody waits for an answer to an event with this mask.
    pub fn wants_answer(self) -> bool {
        self.intersects(
            Self::OPEN_PERM | Self::OPEN_EXEC_PERM | Self::PRE_ACCESS | Self::PRE_MODIFY,
        )
    }
}

/// Largest errno that fits the answer: `FAN_DENY | errno << 24`.
pub const MAX_DENY_ERRNO: i32 = 0xff;

/// The answer to a permission event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The access goes on.
    Allow,
    /// The access fails with this errno. The kernel takes EIO, EPERM, EBUSY, ETXTBSY, EAGAIN,
    /// ENOSPC and EDQUOT, for pre-content groups only.
    Deny(i32),
}

impl Verdict {
    /// The `response` field of `struct fanotify_response`.
    pub fn to_response(self) -> u32 {
        match self {
            Self::Allow => ALLOW,
            Self::Deny(errno) if (1..=MAX_DENY_ERRNO).contains(&errno) => {
                DENY | (errno.unsigned_abs() << 24)
            }
            // Not expressible: a plain denial (EPERM for the caller) is still a denial.
            Self::Deny(_) => DENY,
        }
    }

    /// The reverse of [`Self::to_response`]; anything but the one allowing value is a denial.
    pub fn from_response(response: u32) -> Self {
        match response {
            ALLOW => Self::Allow,
            other => match (other >> 24) as i32 {
                0 => Self::Deny(libc::EPERM),
                errno => Self::Deny(errno),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_round_trip_and_never_turn_into_allow() {
        assert_eq!(Verdict::from_response(Verdict::Allow.to_response()), Verdict::Allow);
        for errno in 1..=MAX_DENY_ERRNO {
            let v = Verdict::Deny(errno);
            assert_eq!(Verdict::from_response(v.to_response()), v);
        }
        for strange in [0, 2, 3, 0xff, u32::MAX, 0x100] {
            assert_ne!(Verdict::from_response(strange), Verdict::Allow, "{strange:#x}");
        }
        assert_eq!(Verdict::Deny(4096).to_response(), DENY);
    }
}
