//! The record: what the store holds of a file, and what the owner wants done with it.
//!
//! 68 bytes is the largest value that fits, under this name, into the free space of an ext4 inode
//! of 256 bytes: a longer record would cost every archived file a block of its own.

use std::mem::{offset_of, size_of};

use bitflags::bitflags;
use bytemuck::{Pod, Zeroable, pod_read_unaligned};

use crate::core::{DataVersion, ObjectId};
use crate::marker::wire::crc_around;

const MAGIC: [u8; 4] = *b"HSMR";
const VERSION: u8 = 1;

/// The record as stored. Byte arrays instead of integers: little-endian, and no alignment.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RecordBytes {
    magic: [u8; 4],
    version: u8,
    /// 1: the fields from `object` to `archived_at_ns` count. 0: they are zero.
    archived: u8,
    policy: [u8; 2],
    object: [u8; 16],
    generation: [u8; 8],
    size: [u8; 8],
    mtime_ns: [u8; 8],
    ctime_ns: [u8; 8],
    archived_at_ns: [u8; 8],
    crc32c: [u8; 4],
}

/// Size of a stored record in bytes.
pub const RECORD_LEN: usize = size_of::<RecordBytes>();
const CRC_OFFSET: usize = offset_of!(RecordBytes, crc32c);

const _: () = {
    assert!(RECORD_LEN == 68);
    assert!(offset_of!(RecordBytes, policy) == 6);
    assert!(offset_of!(RecordBytes, object) == 8);
    assert!(offset_of!(RecordBytes, generation) == 24);
    assert!(offset_of!(RecordBytes, size) == 32);
    assert!(offset_of!(RecordBytes, mtime_ns) == 40);
    assert!(offset_of!(RecordBytes, ctime_ns) == 48);
    assert!(offset_of!(RecordBytes, archived_at_ns) == 56);
    assert!(CRC_OFFSET == 64);
};

bitflags! {
    /// What the owner wants of one file.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    pub struct PolicyFlags: u16 {
        /// Never release.
        const PINNED = 1;
        /// Never archive.
        const NOARCHIVE = 2;
    }
}

/// The copy in the store and the data it is a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArchivedCopy {
    /// The object.
    pub object: ObjectId,
    /// The file's data version when its bytes were read.
    pub version: DataVersion,
    /// When the copy was complete, nanoseconds since the epoch.
    pub archived_at_ns: i64,
}

/// Everything that hsm remembers on the inode of a file, beside the marker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Record {
    /// `None`: never archived.
    pub archived: Option<ArchivedCopy>,
    /// The owner's wishes.
    pub policy: PolicyFlags,
}

/// Why bytes are not a record. Such a file counts as unknown: neither archived nor releasable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the size of a record.
    #[error("record is {0} bytes long, not {RECORD_LEN}")]
    Length(usize),
    /// Written by something else.
    #[error("record does not begin with HSMR")]
    Magic,
    /// Written by another version of hsm.
    #[error("record has version {0}, this hsm knows version {VERSION}")]
    Version(u8),
    /// Damaged.
    #[error("record checksum is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// The stored sum.
        found: u32,
        /// The sum of the bytes.
        computed: u32,
    },
    /// Neither "archived" nor "not archived", or leftovers in the fields of a copy that is absent.
    #[error("record has kind {0} or fields that contradict it")]
    Kind(u8),
    /// Policy flags that this version does not define.
    #[error("record has unknown policy flags {0:#x}")]
    Policy(u16),
}

impl Record {
    /// Nothing to remember: such a record is not written, and an existing one is removed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The bytes to store.
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut raw = RecordBytes {
            magic: MAGIC,
            version: VERSION,
            policy: self.policy.bits().to_le_bytes(),
            ..RecordBytes::zeroed()
        };
        if let Some(copy) = &self.archived {
            raw.archived = 1;
            raw.object = copy.object.0;
            raw.generation = copy.version.generation.to_le_bytes();
            raw.size = copy.version.size.to_le_bytes();
            raw.mtime_ns = copy.version.mtime_ns.to_le_bytes();
            raw.ctime_ns = copy.version.ctime_ns.to_le_bytes();
            raw.archived_at_ns = copy.archived_at_ns.to_le_bytes();
        }
        raw.crc32c = crc_around(bytemuck::bytes_of(&raw), CRC_OFFSET).to_le_bytes();
        bytemuck::cast(raw)
    }

    /// Reads a record, or says which rule the bytes break.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw = checked(bytes)?;
        let bits = u16::from_le_bytes(raw.policy);
        let policy = PolicyFlags::from_bits(bits).ok_or(RecordError::Policy(bits))?;
        let archived = match raw.archived {
            0 if bytes[offset_of!(RecordBytes, object)..CRC_OFFSET].iter().all(|b| *b == 0) => None,
            1 => Some(copy(&raw)),
            other => return Err(RecordError::Kind(other)),
        };
        Ok(Self { archived, policy })
    }
}

/// The raw record once length, magic, version and checksum hold.
fn checked(bytes: &[u8]) -> Result<RecordBytes, RecordError> {
    if bytes.len() != RECORD_LEN {
        return Err(RecordError::Length(bytes.len()));
    }
    let raw: RecordBytes = pod_read_unaligned(bytes);
    if raw.magic != MAGIC {
        return Err(RecordError::Magic);
    }
    if raw.version != VERSION {
        return Err(RecordError::Version(raw.version));
    }
    let (found, computed) = (u32::from_le_bytes(raw.crc32c), crc_around(bytes, CRC_OFFSET));
    if found != computed {
        return Err(RecordError::Checksum { found, computed });
    }
    Ok(raw)
}

fn copy(raw: &RecordBytes) -> ArchivedCopy {
    ArchivedCopy {
        object: ObjectId(raw.object),
        version: DataVersion {
            generation: u64::from_le_bytes(raw.generation),
            size: u64::from_le_bytes(raw.size),
            mtime_ns: i64::from_le_bytes(raw.mtime_ns),
            ctime_ns: i64::from_le_bytes(raw.ctime_ns),
        },
        archived_at_ns: i64::from_le_bytes(raw.archived_at_ns),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: [u8; RECORD_LEN] = [
        0x48, 0x53, 0x4d, 0x52, 0x01, 0x01, 0x01, 0x00, // magic, version, archived, policy
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, // object
        0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, //
        0x0d, 0xd0, 0xfe, 0xca, 0x00, 0x00, 0x00, 0x00, // generation
        0x39, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // size
        0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // mtime
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // ctime
        0x00, 0x00, 0x64, 0xa7, 0xb3, 0xb6, 0xe0, 0x0d, // archived at
        0x36, 0x2e, 0x5f, 0x74, // crc
    ];

    fn golden() -> Record {
        let version =
            DataVersion { generation: 0xcafe_d00d, size: 12_345, mtime_ns: 1, ctime_ns: -1 };
        Record {
            archived: Some(ArchivedCopy {
                object: ObjectId(std::array::from_fn(|i| i as u8)),
                version,
                archived_at_ns: 1_000_000_000_000_000_000,
            }),
            policy: PolicyFlags::PINNED,
        }
    }

    /// `record` with one byte changed and the checksum made good again.
    fn forged(record: &Record, at: usize, value: u8) -> [u8; RECORD_LEN] {
        let mut bytes = record.encode();
        bytes[at] = value;
        let crc = crc_around(&bytes, CRC_OFFSET);
        bytes[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(golden().encode(), GOLDEN);
        assert_eq!(Record::decode(&GOLDEN), Ok(golden()));
    }

    #[test]
    fn policy_alone_is_a_record_and_nothing_is_not() {
        let pinned = Record { archived: None, policy: PolicyFlags::PINNED };
        assert!(!pinned.is_empty());
        assert_eq!(Record::decode(&pinned.encode()), Ok(pinned));
        assert!(Record::default().is_empty());
        assert!(!golden().is_empty());
    }

    #[test]
    fn each_broken_rule_has_its_own_error() {
        let (full, bare) = (golden(), Record::default());
        assert_eq!(Record::decode(&[0; 3]), Err(RecordError::Length(3)));
        assert_eq!(Record::decode(&[0; RECORD_LEN]), Err(RecordError::Magic));
        assert_eq!(Record::decode(&forged(&full, 4, 9)), Err(RecordError::Version(9)));
        assert_eq!(Record::decode(&forged(&full, 5, 2)), Err(RecordError::Kind(2)));
        assert_eq!(Record::decode(&forged(&full, 5, 0)), Err(RecordError::Kind(0)));
        assert_eq!(Record::decode(&forged(&bare, 63, 1)), Err(RecordError::Kind(0)));
        assert_eq!(Record::decode(&forged(&full, 6, 4)), Err(RecordError::Policy(4)));
        let mut bytes = full.encode();
        bytes[CRC_OFFSET] ^= 1;
        assert!(matches!(Record::decode(&bytes), Err(RecordError::Checksum { .. })));
    }

    prop_compose! {
        fn archived()(
            object: [u8; 16], generation: u64, size: u64, mtime_ns: i64, ctime_ns: i64,
            archived_at_ns: i64
        ) -> ArchivedCopy {
            let version = DataVersion { generation, size, mtime_ns, ctime_ns };
            ArchivedCopy { object: ObjectId(object), version, archived_at_ns }
        }
    }

    prop_compose! {
        fn record()(archived in proptest::option::of(archived()), bits in 0u16..4) -> Record {
            Record { archived, policy: PolicyFlags::from_bits_truncate(bits) }
        }
    }

    proptest! {
        #[test]
        fn round_trip(r in record()) {
            prop_assert_eq!(Record::decode(&r.encode()), Ok(r));
        }

        #[test]
        fn any_flipped_bit_is_refused(r in record(), bit in 0..RECORD_LEN * 8) {
            let mut bytes = r.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn decoded_fields_are_what_is_stored(r in record(), at in 0..CRC_OFFSET, value: u8) {
            let bytes = forged(&r, at, value);
            if let Ok(decoded) = Record::decode(&bytes) {
                prop_assert_eq!(decoded.encode(), bytes);
            }
        }
    }
}
