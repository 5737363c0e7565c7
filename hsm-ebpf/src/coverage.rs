//! Which file systems the programs care about, and how.

use hsm_common::filter::{MODE_FILTER, MODE_MARK, class};

use crate::maps::{CLASSES, FILESYSTEMS, SERVER};
use crate::object::{Inode, SuperBlock};
use crate::task;

/// What to do about a marked file of a covered file system.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Refuse what nobody watches.
    Guard,
    /// Ask for a watch.
    Filter,
    /// Refuse what fanotify does not ask about.
    Mark,
}

/// The mode of a file system; `None` when it is not covered.
#[inline(always)]
pub fn of(sb: SuperBlock) -> Option<Mode> {
    let uuid = sb.uuid();
    if let Some(covered) = CLASSES.get_ptr(class(&uuid)) {
        // SAFETY: an array's values live as long as the map; volatile, because the agent writes it.
        if unsafe { covered.read_volatile() } == 0 {
            return None;
        }
    }
    // SAFETY: elements live as long as the map, and are changed in their place; volatile, because the agent
    // writes them.
    let coverage =
        FILESYSTEMS.get_ptr(&uuid).map(|coverage| unsafe { coverage.read_volatile() })?;
    Some(match coverage.mode {
        MODE_FILTER => Mode::Filter,
        MODE_MARK => Mode::Mark,
        _ => Mode::Guard,
    })
}

/// Whether somebody serves requests.
#[inline(always)]
pub fn is_served() -> bool {
    server() != 0
}

/// Whether there is an entry of who serves requests. He may have ended.
#[inline(always)]
pub fn is_registered() -> bool {
    // SAFETY: as in `server`.
    SERVER.get_ptr(0).is_some_and(|s| unsafe { (&raw const (*s).serial).read_volatile() } != 0)
}

/// Serial number of who serves requests; zero: nobody, or he is ending (`hsm_common::filter::Server`).
#[inline(always)]
pub fn server() -> u64 {
    let Some(server) = SERVER.get_ptr(0) else { return 0 };
    // SAFETY: an array's values live as long as the map; volatile, because others write it.
    let (serial, number) = unsafe {
        (
            (&raw const (*server).serial).read_volatile(),
            (&raw const (*server).number).read_volatile(),
        )
    };
    if serial != 0 && task::is_alive(number, serial) { serial } else { 0 }
}

/// Guard mode: whether an agent is alive that answers for every open of the file system. The mark
/// alone could be somebody else's.
#[inline(always)]
pub fn is_answered_for(sb: SuperBlock) -> bool {
    sb.is_watched() && is_served()
}

/// Whether fanotify will ask somebody about an open of the inode.
#[inline(always)]
pub fn is_watched(inode: Inode, sb: SuperBlock) -> bool {
    inode.is_watched() || sb.is_watched()
}
