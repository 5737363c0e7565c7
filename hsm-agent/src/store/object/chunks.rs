//! How a file is cut into chunks.

use std::ops::Range;

pub use hsm_common::chunk::MIN_CHUNK_SHIFT;
/// Chunks of 1 GiB at most, so the largest file is 16 TiB (ext4's own limit with 4 KiB blocks).
/// A chunk is held in memory as a whole, and its frame's length must fit 32 bits.
pub const MAX_CHUNK_SHIFT: u8 = 30;
/// No object has more chunks: 16,384 bits are the residency map of a partial file.
pub const MAX_CHUNKS: u64 = hsm_common::chunk::MAX_CHUNKS as u64;

/// The smallest chunk size (as a power of two) that cuts `size` bytes into at most [`MAX_CHUNKS`],
/// or `None` for a file that is too large for any.
pub fn chunk_shift_for(size: u64) -> Option<u8> {
    let shift = hsm_common::chunk::chunk_shift_for(size);
    (shift <= MAX_CHUNK_SHIFT).then_some(shift)
}

/// Number of chunks of a file.
pub(super) fn chunk_count(size: u64, shift: u8) -> u64 {
    size.div_ceil(1 << shift)
}

/// Bytes of the file that chunk `index` covers; only the last one may be shorter than the others.
/// `None` if the file ends before it.
pub(super) fn chunk_range(size: u64, shift: u8, index: u64) -> Option<Range<u64>> {
    let start = index.checked_mul(1 << shift).filter(|&start| start < size)?;
    Some(start..size.min(start.saturating_add(1 << shift)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_grows_when_the_chunks_run_out() {
        const GIB: u64 = 1 << 30;
        assert_eq!(chunk_shift_for(0), Some(20));
        assert_eq!(chunk_shift_for(16 * GIB), Some(20));
        assert_eq!(chunk_shift_for(16 * GIB + 1), Some(21));
        assert_eq!(chunk_shift_for(16 * 1024 * GIB), Some(30));
        assert_eq!(chunk_shift_for(16 * 1024 * GIB + 1), None);
        assert_eq!(chunk_shift_for(u64::MAX), None);
    }

    #[test]
    fn ranges_cover_the_file() {
        assert_eq!(chunk_range(0, 20, 0), None);
        assert_eq!(chunk_range(5, 20, 0), Some(0..5));
        assert_eq!(chunk_range((1 << 20) + 1, 20, 1), Some(1 << 20..(1 << 20) + 1));
        assert_eq!(chunk_range(1 << 20, 20, 1), None);
        assert_eq!(chunk_range(5, 20, u64::MAX), None);
    }
}
