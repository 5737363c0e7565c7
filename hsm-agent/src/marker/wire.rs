//! The checks that all three codecs share, on untrusted bytes of any length.

/// CRC-32C of all bytes except the four of the checksum itself at `crc_at`.
pub(super) fn crc_around(bytes: &[u8], crc_at: usize) -> u32 {
    let (head, rest) = bytes.split_at(crc_at.min(bytes.len()));
    crc32c::crc32c_append(crc32c::crc32c(head), rest.get(4..).unwrap_or_default())
}
