//! A file's identity within its file system.

use std::fmt;

/// The kernel's file handle: names an inode for as long as it lives, whatever its paths are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Handle type, a number that only the file system understands.
    pub kind: i32,
    /// Handle bytes, at most 128.
    pub bytes: Box<[u8]>,
}

impl FileKey {
    /// One byte string for databases: the type in little-endian, then the bytes.
    pub fn to_blob(&self) -> Vec<u8> {
        let mut blob = self.kind.to_le_bytes().to_vec();
        blob.extend_from_slice(&self.bytes);
        blob
    }

    /// The reverse of [`Self::to_blob`]. `None` for fewer than four bytes.
    pub fn from_blob(blob: &[u8]) -> Option<Self> {
        let (kind, bytes) = blob.split_first_chunk::<4>()?;
        Some(Self { kind: i32::from_le_bytes(*kind), bytes: bytes.into() })
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:", self.kind)?;
        self.bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blob_round_trip() {
        let key = FileKey { kind: -7, bytes: [1, 2, 3].into() };
        assert_eq!(FileKey::from_blob(&key.to_blob()), Some(key));
        assert_eq!(FileKey::from_blob(&[1, 2, 3]), None);
    }
}
