//! What hsm writes on an inode: marker, record, residency map.
//!
//! Three extended attributes, three codecs, one discipline: fixed little-endian layout, magic,
//! version, CRC-32C over everything else. Decoding is pure, never panics, and refuses whatever it
//! does not know in full: a caller that gets an error must deny the access. Only marker and map
//! decide residency; the record only says what the store holds.

mod codec;
mod facts;
mod inode;
mod map;
mod record;
mod wire;

pub use codec::{Marker, MarkerError, MarkerFlags, MarkerState, Owner};
pub use facts::{Facts, RawAttributes, Unjudged, judge};
pub use hsm_common::chunk::{chunk_count, chunk_shift_for};
pub use hsm_common::marker::{MAP_XATTR, MARKER_LEN, MARKER_XATTR, RECORD_XATTR};
pub use inode::{Attributes, InodeError, InodeFd, Seen};
pub use map::{MAX_MAP_LEN, MapError, ResidencyMap};
pub use record::{ArchivedCopy, PolicyFlags, RECORD_LEN, Record, RecordError};

#[cfg(test)]
mod doc_tests;
