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
    /// The inode's generation, as `FS_IOC_GETVERSION` tells it, out of the handle: the way to it
    /// that opens nothing. `None`: a kind of handle that is not known here.
    ///
    /// Layouts from `include/linux/exportfs.h`, `fs/xfs/libxfs/xfs_fs.h` and `fs/btrfs/export.h`;
    /// integers in the machine's byte order.
    pub fn generation(&self) -> Option<u64> {
        let at = match (self.kind, self.bytes.len()) {
            // FILEID_INO32_GEN: number, generation (ext4; XFS with small inode numbers).
            (0x01, 8) => 4,
            // The same with a number of 64 bits (XFS).
            (0x81, 12) => 8,
            // FILEID_BTRFS_WITHOUT_PARENT: object, subvolume, generation.
            (0x4d, 20) => 16,
            _ => return None,
        };
        let generation = self.bytes.get(at..)?.first_chunk::<4>()?;
        Some(u64::from(u32::from_ne_bytes(*generation)))
    }

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

    #[test]
    fn generations_come_out_of_known_handles_only() {
        let generation = 0x8765_4321_u32;
        for (kind, before, known) in
            [(0x01, 4, true), (0x81, 8, true), (0x4d, 16, true), (2, 4, false)]
        {
            let mut bytes = vec![0xff; before];
            bytes.extend(generation.to_ne_bytes());
            let key = FileKey { kind, bytes: bytes.clone().into() };
            assert_eq!(key.generation(), known.then_some(u64::from(generation)));
            bytes.push(0);
            assert_eq!(FileKey { kind, bytes: bytes.into() }.generation(), None);
        }
    }
}
