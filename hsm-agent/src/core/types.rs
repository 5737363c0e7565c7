//! The field's words as types: object identity, data version, residency state.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Identity of one immutable object in the store: 128 random bits, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub [u8; 16]);

impl ObjectId {
    /// A fresh identity. 128 random bits make a collision less likely than a disk fault.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// As [`random`](Self::random), but in the fan-out directory `shard` of a store: still 120
    /// random bits.
    pub fn random_in(shard: u8) -> Self {
        let mut id = Self::random();
        id.0[0] = shard;
        id
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By hand: it names the file of every object.
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectId({self})")
    }
}

/// The text was not 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an object id is 32 hexadecimal digits")]
pub struct ParseObjectIdError;

impl FromStr for ObjectId {
    type Err = ParseObjectIdError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        if s.len() != 32 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseObjectIdError);
        }
        let v = u128::from_str_radix(s, 16).map_err(|_| ParseObjectIdError)?;
        Ok(Self(v.to_be_bytes()))
    }
}

impl Serialize for ObjectId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ObjectId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the kernel says about a file's data at one moment. Equal means unchanged; unequal means
/// that somebody must look (ctime also moves when only metadata changed).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DataVersion {
    /// Inode generation (`FS_IOC_GETVERSION`): tells a reused inode number from the old file.
    pub generation: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i64,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i64,
}

impl DataVersion {
    /// Whether `seen`, the ctime right after our own last change of the inode, proves that nothing
    /// has changed since. A ctime of whole seconds proves nothing: file systems without room for
    /// more (ext4 with inodes of 128 bytes) would show the same one after another change.
    pub fn is_vouched_by(&self, seen: Option<i64>) -> bool {
        seen == Some(self.ctime_ns) && self.ctime_ns.rem_euclid(1_000_000_000) != 0
    }

    /// Equal in everything that a metadata change (chmod, link, our own xattrs) leaves alone.
    pub fn same_data_times(&self, other: &Self) -> bool {
        (self.generation, self.size, self.mtime_ns)
            == (other.generation, other.size, other.mtime_ns)
    }
}

/// Where a file's bytes are. The words are the field's (DMF, Spectrum Protect, Lustre HSM).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileState {
    /// All data local, no copy in the store.
    Resident,
    /// All data local, and a verified, identical copy in the store.
    Archived,
    /// Data only in the store; the inode carries the marker.
    Offline,
    /// Some ranges local, the marker still set.
    Partial,
    /// Archived once, changed since: the copy is stale.
    Dirty,
    /// Marker set, and the store has no usable copy.
    Lost,
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Resident => "resident",
            Self::Archived => "archived",
            Self::Offline => "offline",
            Self::Partial => "partial",
            Self::Dirty => "dirty",
            Self::Lost => "lost",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_id_text_round_trip() {
        let id = ObjectId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("00".parse::<ObjectId>(), Err(ParseObjectIdError));
        assert_eq!("+0000000000000000000000000000000".parse::<ObjectId>(), Err(ParseObjectIdError));
    }
}
