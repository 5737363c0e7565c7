//! What is local of a partial file, as the kernel programs know it: one bit for a group of chunks.
//!
//! The agent's map has a bit for each chunk (`trusted.hsm.map`); this one has a fixed size, so that it
//! can be kept with the inode, and a bit of it stands for one, two or four of those chunks. A bit is
//! set only if all bytes of its group are local: what is left out costs a question, what were wrongly
//! put in would be read as zeros.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::chunk::MAX_CHUNKS;

/// Words of the bitmap.
const WORDS: usize = 64;
/// Groups at most.
pub const MAX_GROUPS: u32 = WORDS as u32 * 64;
/// Largest group, as a power of two: above it every file has one group.
const MAX_SHIFT: u32 = 63;

/// Which groups of chunks are local. Written by the agent, as a whole; it belongs to one release of
/// the file, and is taken away before data is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Resident {
    /// Size of the file, in bytes, for which this holds.
    pub size: u64,
    /// Size of a group as a power of two.
    pub shift: u32,
    /// Zero.
    pub reserved: u32,
    /// Bit `n % 64` of word `n / 64`: all bytes of group `n` are local.
    pub groups: [u64; WORDS],
}

const _: () = {
    assert!(size_of::<Resident>() == 16 + WORDS * 8);
    assert!(offset_of!(Resident, shift) == 8);
    assert!(offset_of!(Resident, groups) == 16);
};

impl Resident {
    /// Of a file of `size` bytes that is cut into `chunks` of `1 << chunk_shift` bytes, of which those
    /// are local that `is_local` says.
    pub fn of(size: u64, chunk_shift: u8, chunks: u32, is_local: impl Fn(u32) -> bool) -> Self {
        let mut more = 0;
        while chunks.div_ceil(1 << more) > MAX_GROUPS {
            more += 1;
        }
        let shift = u32::from(chunk_shift) + more;
        let mut this = Self { size, shift, reserved: 0, groups: [0; WORDS] };
        for group in 0..chunks.div_ceil(1 << more) {
            let end = ((group + 1) << more).min(chunks);
            if (group << more..end).all(&is_local) {
                this.groups[group as usize / 64] |= 1 << (group % 64);
            }
        }
        this
    }

    /// Whether all of the bytes from `position` on, `count` of them, are local in a file that has
    /// `size` bytes now. Bytes behind the end are not there to be read. A count of zero says nothing
    /// about what will be read.
    #[inline(always)]
    pub fn covers(&self, size: u64, position: u64, count: u64) -> bool {
        if size != self.size || count == 0 || self.shift > MAX_SHIFT {
            return false;
        }
        if position >= size {
            return true;
        }
        let end = position.saturating_add(count).min(size);
        let first = position >> self.shift;
        let last = (end - 1) >> self.shift;
        let mut word = first / 64;
        while word <= last / 64 {
            if word >= WORDS as u64 {
                return false;
            }
            // The kernel's verifier has to see a bound on this very register, and the compiler, which knows it
            // already, must not.
            let groups = self.groups[core::hint::black_box(word) as usize & (WORDS - 1)];
            let mut needed = u64::MAX;
            if word == first / 64 {
                needed &= u64::MAX << (first % 64);
            }
            if word == last / 64 {
                needed &= u64::MAX >> (63 - last % 64);
            }
            if groups & needed != needed {
                return false;
            }
            word += 1;
        }
        true
    }
}

const _: () = assert!(MAX_CHUNKS <= MAX_GROUPS << 2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::{MIN_CHUNK_SHIFT, chunk_count, chunk_shift_for};

    const MIB: u64 = 1 << 20;

    fn of(size: u64, is_local: impl Fn(u32) -> bool) -> Resident {
        let shift = chunk_shift_for(size);
        Resident::of(size, shift, chunk_count(size, shift).expect("fits"), is_local)
    }

    #[test]
    fn only_local_ranges_are_covered() {
        let size = 10 * MIB + 5;
        let some = of(size, |chunk| chunk == 2 || chunk == 3 || chunk == 10);
        assert!(some.covers(size, 2 * MIB, 2 * MIB));
        assert!(some.covers(size, 3 * MIB + 4096, 4096));
        assert!(!some.covers(size, 2 * MIB - 1, 2));
        assert!(!some.covers(size, 4 * MIB - 1, 2));
        assert!(some.covers(size, 10 * MIB, 8192), "across the end");
        assert!(some.covers(size, 10 * MIB, u64::MAX), "far across the end");
        assert!(some.covers(size, size, 1) && some.covers(size, u64::MAX, 1), "behind the end");
        assert!(!some.covers(size, 2 * MIB, 0), "not known how much");
        assert!(!some.covers(size + 1, 2 * MIB, 1), "another size");
    }

    #[test]
    fn nothing_is_covered_without_a_word_of_the_agent() {
        let none: Resident = Zeroable::zeroed();
        assert!(!none.covers(1, 0, 1));
        let wide = Resident { size: u64::MAX, shift: 0, reserved: 0, groups: [u64::MAX; WORDS] };
        assert!(!wide.covers(u64::MAX, 0, u64::MAX), "more groups than there are bits");
        assert!(!Resident { shift: 64, ..wide }.covers(u64::MAX, 0, 1));
    }

    #[test]
    fn a_group_counts_only_whole() {
        // 16,384 chunks, four in a group.
        let size = u64::from(MAX_CHUNKS) << MIN_CHUNK_SHIFT;
        let all_but_one = of(size, |chunk| chunk != 4097);
        assert_eq!(all_but_one.shift, u32::from(MIN_CHUNK_SHIFT) + 2);
        assert!(all_but_one.covers(size, 0, 4096 * MIB));
        assert!(!all_but_one.covers(size, 4096 * MIB, 1), "its group is not whole");
        assert!(all_but_one.covers(size, 4100 * MIB, size));
    }

    /// Against a byte-wise look at the chunks, with sizes and places around every edge.
    #[test]
    fn what_is_covered_is_local() {
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut covered = 0;
        for _ in 0..2000 {
            let size = (next() % (40_000 * MIB)).max(1) >> (next() % 20);
            let shift = chunk_shift_for(size);
            let chunks = chunk_count(size, shift).expect("fits");
            let (seed, most) = (next(), next() % 64);
            let local = |chunk: u32| {
                (seed ^ u64::from(chunk / 8)).wrapping_mul(0x2545_f491_4f6c_dd1d) >> 58 <= most
            };
            let map = of(size, local);
            for _ in 0..20 {
                let position = next() % (size + MIB);
                let count = next() % (64 * MIB) >> (next() % 30);
                let end = position.saturating_add(count).min(size);
                let truly = count > 0
                    && (position >= size
                        || (position >> shift..=(end - 1) >> shift).all(|at| local(at as u32)));
                let told = map.covers(size, position, count);
                covered += u32::from(told && position < size);
                assert!(truly || !told, "{size} {position} {count}");
                if map.shift == u32::from(shift) {
                    assert_eq!(told, truly, "{size} {position} {count}");
                }
            }
        }
        assert!(covered > 1000, "not tried: {covered}");
    }
}
