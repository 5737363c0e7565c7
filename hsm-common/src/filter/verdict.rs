//! What the programs remember of an inode.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

/// An inode's cached verdict (inode storage).
///
/// The programs behind `inode_post_setxattr` and `inode_post_removexattr` add 1 to `seq` whenever
/// the marker or the record changed. An opener makes sure that the storage exists, reads `seq`,
/// *then* reads the marker, and stores what it saw together with that `seq`. Whoever finds a word
/// of another `seq` looks at the marker again. So a word "online" that is valid after a marker was
/// set and counted cannot exist: its opener has read `seq` after the count, hence the marker after
/// it was set. While the marker is set and not yet counted, an old word still passes openers; they
/// have raised the inode's open count before, and the second lease of a release, which is asked for
/// after `setxattr` has returned (and so counted), finds them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Cached {
    /// Changes of marker and record so far. Wraps after 2^62.
    pub seq: u64,
    /// `seq` as the opener saw it, shifted left by [`VERDICT_BITS`], and [`VERDICT_ONLINE`] or
    /// [`VERDICT_MARKED`]. Zero: nothing known.
    pub word: u64,
}

/// Low bits of [`Cached::word`] that hold the verdict.
pub const VERDICT_BITS: u32 = 2;
/// The marker was absent.
pub const VERDICT_ONLINE: u64 = 1;
/// The marker was there.
pub const VERDICT_MARKED: u64 = 2;

impl Cached {
    /// The word for a verdict that was seen after `seq` had been read.
    #[inline(always)]
    pub const fn word(seq: u64, verdict: u64) -> u64 {
        (seq << VERDICT_BITS) | verdict
    }

    /// Whether this says, validly, `verdict`.
    #[inline(always)]
    pub const fn says(&self, verdict: u64) -> bool {
        self.word == Self::word(self.seq, verdict)
    }
}

const _: () = {
    assert!(size_of::<Cached>() == 16);
    assert!(offset_of!(Cached, seq) == 0);
    assert!(offset_of!(Cached, word) == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_valid_for_its_own_seq_only() {
        let cached = Cached { seq: 5, word: Cached::word(5, VERDICT_ONLINE) };
        assert!(cached.says(VERDICT_ONLINE));
        assert!(!cached.says(VERDICT_MARKED));
        assert!(!Cached { seq: 6, ..cached }.says(VERDICT_ONLINE));
        assert!(!Cached::default().says(VERDICT_ONLINE), "nothing is known at first");
        assert!(!Cached::default().says(VERDICT_MARKED));
    }
}
