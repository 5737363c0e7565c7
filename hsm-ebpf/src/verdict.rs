//! Cached verdicts; `hsm_common::filter::Cached` has the argument why they are right.

use core::ptr::null_mut;

use hsm_common::filter::{Cached, VERDICT_MARKED, VERDICT_ONLINE};

use crate::atomic;
use crate::maps::{HELD, VERDICTS};
use crate::marker::Marker;
use crate::object::Inode;

/// What is cached for an inode, if anything.
#[derive(Clone, Copy)]
pub struct Verdict(*mut Cached);

impl Verdict {
    /// Looks, and creates nothing.
    #[inline(always)]
    pub fn peek(inode: Inode) -> Self {
        // SAFETY: the inode is the hook's own argument, or reached from it.
        Self(unsafe { VERDICTS.get_ptr_mut(inode.as_ptr()) })
    }

    /// Makes sure that there is a place for it. There may still be none when memory is short.
    #[inline(always)]
    fn create(inode: Inode) -> Self {
        // SAFETY: as in `peek`.
        Self(unsafe { VERDICTS.get_or_insert_ptr_mut(inode.as_ptr(), None) })
    }

    /// Whether it says, validly, that the file is online.
    #[inline(always)]
    pub fn is_online(self) -> bool {
        self.says(VERDICT_ONLINE)
    }

    /// Whether it says, validly, that the file is marked.
    #[inline(always)]
    pub fn is_marked(self) -> bool {
        self.says(VERDICT_MARKED)
    }

    #[inline(always)]
    fn says(self, verdict: u64) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: the storage lives as long as the inode, which the hook's caller holds. Either
        // word may change between the two reads: the pair then fits only if it fitted before.
        let cached = unsafe {
            Cached {
                word: (&raw const (*self.0).word).read_volatile(),
                seq: (&raw const (*self.0).seq).read_volatile(),
            }
        };
        cached.says(verdict)
    }

    /// Whether there is anything cached.
    #[inline(always)]
    pub fn exists(self) -> bool {
        !self.0.is_null()
    }

    /// Makes whatever is cached invalid.
    #[inline(always)]
    pub fn invalidate(self) {
        if !self.0.is_null() {
            // SAFETY: as in `says`.
            unsafe { atomic::add(&raw mut (*self.0).seq, 1) };
        }
    }
}

/// A look at an inode's marker whose outcome may be cached: holds the `seq` from before.
#[derive(Clone, Copy)]
pub struct Look {
    inode: Inode,
    cached: *mut Cached,
    seq: u64,
}

impl Look {
    /// Looks at the marker, unless the verdict says validly that it is there, and caches what was
    /// seen.
    #[inline(always)]
    pub fn take(inode: Inode, verdict: Verdict, read: impl FnOnce() -> Marker) -> (Marker, Self) {
        let look = Self::begin(inode);
        let marker = if verdict.is_marked() { Marker::Present } else { read() };
        (look.end(marker), look)
    }

    /// Reads `seq`. To be called before anybody looks at the marker.
    #[inline(always)]
    fn begin(inode: Inode) -> Self {
        let Verdict(cached) = Verdict::create(inode);
        if cached.is_null() {
            return Self { inode, cached: null_mut(), seq: 0 };
        }
        // SAFETY: the storage lives as long as the inode. The load is done before the marker is
        // read: the file system's lock around its attributes is released after it.
        let seq = unsafe { (&raw const (*cached).seq).read_volatile() };
        Self { inode, cached, seq }
    }

    /// Stores what was seen, unless the agent wants to be asked all the same. Looks for that after
    /// the marker: see `hsm_common::filter::HELD`.
    #[inline(always)]
    pub fn end(self, marker: Marker) -> Marker {
        let verdict = match marker {
            Marker::Absent if self.is_held() => return Marker::Held,
            Marker::Absent => VERDICT_ONLINE,
            Marker::Present => VERDICT_MARKED,
            Marker::Unreadable | Marker::Held => return marker,
        };
        if !self.cached.is_null() {
            let word = Cached::word(self.seq, verdict);
            // SAFETY: the storage lives as long as the inode; the word is written whole.
            unsafe { (&raw mut (*self.cached).word).write_volatile(word) };
        }
        marker
    }

    #[inline(always)]
    fn is_held(self) -> bool {
        // SAFETY: as in `Verdict::peek`.
        !unsafe { HELD.get_ptr_mut(self.inode.as_ptr()) }.is_null()
    }
}
