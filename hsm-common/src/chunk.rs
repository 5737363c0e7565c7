//! How a file is cut into chunks: the unit of checksums in an object and of bits in a residency map.
//!
//! The chunk grows with the file so that [`MAX_CHUNKS`] bits, 2 KiB, describe any file that Linux
//! can hold: the map then fits every file system's extended attributes.

/// Smallest chunk: 1 MiB. Below it the store's cost per request outweighs the bytes saved.
pub const MIN_CHUNK_SHIFT: u8 = 20;

/// Largest chunk shift that any file size up to [`MAX_FILE_SIZE`] asks for.
pub const MAX_CHUNK_SHIFT: u8 = 49;

/// Most chunks of one file; a bitmap of them takes 2 KiB.
pub const MAX_CHUNKS: u32 = 1 << 14;

/// Largest file size that `off_t` can express.
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// The chunk size (as a power of two) for a file of `size` bytes: at least [`MIN_CHUNK_SHIFT`], and
/// as large as it takes for [`MAX_CHUNKS`] chunks to cover the file.
///
/// Defined for every `u64`; beyond [`MAX_FILE_SIZE`] the answer may exceed [`MAX_CHUNK_SHIFT`].
pub const fn chunk_shift_for(size: u64) -> u8 {
    let mut shift = MIN_CHUNK_SHIFT;
    while size.div_ceil(1 << shift) > MAX_CHUNKS as u64 {
        shift += 1;
    }
    shift
}

/// Number of chunks of `1 << shift` bytes that cover `size` bytes; `None` when the shift is outside
/// [`MIN_CHUNK_SHIFT`]`..=`[`MAX_CHUNK_SHIFT`] or more than [`MAX_CHUNKS`] would be needed.
pub const fn chunk_count(size: u64, shift: u8) -> Option<u32> {
    if shift < MIN_CHUNK_SHIFT || shift > MAX_CHUNK_SHIFT {
        return None;
    }
    let count = size.div_ceil(1 << shift);
    if count > MAX_CHUNKS as u64 { None } else { Some(count as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shift_is_the_smallest_that_fits() {
        let limit = u64::from(MAX_CHUNKS) << MIN_CHUNK_SHIFT;
        assert_eq!(chunk_shift_for(0), 20);
        assert_eq!(chunk_shift_for(limit), 20);
        assert_eq!(chunk_shift_for(limit + 1), 21);
        assert_eq!(chunk_shift_for(MAX_FILE_SIZE), MAX_CHUNK_SHIFT);
        assert_eq!(chunk_shift_for(u64::MAX), 50);
    }

    #[test]
    fn count_refuses_what_the_map_cannot_hold() {
        assert_eq!(chunk_count(0, 20), Some(0));
        assert_eq!(chunk_count(1, 20), Some(1));
        assert_eq!(chunk_count((1 << 20) + 1, 20), Some(2));
        assert_eq!(chunk_count((1 << 34) + 1, 20), None);
        assert_eq!(chunk_count(MAX_FILE_SIZE, MAX_CHUNK_SHIFT), Some(MAX_CHUNKS));
        assert_eq!(chunk_count(1, 19), None);
        assert_eq!(chunk_count(1, 50), None);
    }
}
