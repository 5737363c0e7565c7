//! The object format: what the bytes of one stored file are.
//!
//! ```text
//! | frame | frame | … | manifest (postcard) | trailer (80 bytes) |
//! ```
//!
//! A frame is one chunk of the file, raw or as a zstd frame, whichever is smaller; chunks without
//! data have none. The manifest describes the file and every frame, with the BLAKE3 hash of each
//! chunk's plain bytes; the trailer holds the manifest's hash and the object's identity. So one
//! read of the end of an object verifies all there is to know about it, gives a small file whole,
//! and the namespace can be rebuilt from the store alone. `docs/formats/objects.md` specifies it.
//!
//! **Invariant:** what a reader gets was hashed and found equal to what the encoder hashed, under
//! the identity that was asked for. Nothing is allocated and no offset is followed on the word of
//! bytes that are not verified. Parsing ([`parse_trailer`], [`parse_manifest`]) is pure.

mod chunks;
mod encode;
mod manifest;
mod read;
mod trailer;

#[cfg(test)]
mod tests;

pub use chunks::{MAX_CHUNK_SHIFT, MAX_CHUNKS, MIN_CHUNK_SHIFT, chunk_shift_for};
pub use encode::{Compression, EncodeError, ObjectEncoder, encode_whole};
pub use manifest::{
    ChunkEntry, Extent, FileAttributes, Frame, MAX_MANIFEST_LEN, Manifest, Xattr, parse_manifest,
};
pub use read::{Chunk, ObjectReader, TAIL_LEN};
pub use trailer::{FORMAT_VERSION, TRAILER_LEN, Trailer, parse_trailer};

/// Bytes are not what the format says. The text tells the operator what does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormatError(pub(crate) String);

/// A condition of the format; the text says what does not hold.
macro_rules! ensure {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err($crate::store::object::FormatError(format!($($why)+)));
        }
    };
}
pub(crate) use ensure;
