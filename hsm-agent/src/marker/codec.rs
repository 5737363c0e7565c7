//! Marker bytes to [`Marker`] and back.

use bitflags::bitflags;
use bytemuck::pod_read_unaligned;
use hsm_common::chunk::{MAX_FILE_SIZE, chunk_count};
use hsm_common::marker::{
    MARKER_CRC_OFFSET, MARKER_LEN, MARKER_MAGIC, MARKER_VERSION, MarkerBytes, STATE_LOST,
    STATE_OFFLINE, STATE_PARTIAL,
};

use crate::core::ObjectId;
use crate::marker::wire::crc_around;

/// What a marked inode lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MarkerState {
    /// Nothing is local.
    Offline = STATE_OFFLINE,
    /// The residency map says what is local; without a valid map, nothing is.
    Partial = STATE_PARTIAL,
    /// The store has no usable copy.
    Lost = STATE_LOST,
}

bitflags! {
    /// What a set bit says; one that is not here is refused.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
    pub struct MarkerFlags: u32 {
        /// A recall writes, or was cut off while it did: the mtime may be the time of that.
        const FILLING = 1;
    }
}

/// Which inode a marker was written for.
///
/// A copy of the attribute on another file decodes well and names an object that exists. Only this
/// tells that it does not speak for the file that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u64);

impl Owner {
    /// The owner of that inode number and generation, as `docs/formats/inode.md` defines it.
    pub fn of(ino: u64, generation: u64) -> Owner {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&ino.to_le_bytes()).update(&generation.to_le_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        Owner(u64::from_le_bytes(first))
    }
}

/// "The data of this file is in the store."
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Marker {
    /// The object that holds the data.
    pub object: ObjectId,
    /// File size in bytes at release.
    pub size: u64,
    /// Random per release; the residency map repeats it.
    pub epoch: u64,
    /// The file that it speaks for. Decoding cannot check it: whoever acts on the data must.
    pub owner: Owner,
    /// Chunk size as a power of two; see [`hsm_common::chunk`].
    pub chunk_shift: u8,
    /// What is missing.
    pub state: MarkerState,
    /// See [`MarkerFlags`].
    pub flags: MarkerFlags,
}

/// Why bytes are not a marker. The file is to be treated as offline and every access denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkerError {
    /// Not the size of a marker.
    #[error("marker is {0} bytes long, not {MARKER_LEN}")]
    Length(usize),
    /// Written by something else.
    #[error("marker does not begin with HSMM")]
    Magic,
    /// Written by another version of hsm.
    #[error("marker has version {0}, this hsm knows version {MARKER_VERSION}")]
    Version(u8),
    /// Damaged.
    #[error("marker checksum is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// The stored sum.
        found: u32,
        /// The sum of the bytes.
        computed: u32,
    },
    /// A state that this version does not define.
    #[error("marker has unknown state {0}")]
    State(u8),
    /// Flags or reserved bits that this version does not define.
    #[error("marker has unknown flags {0:#x}")]
    Flags(u64),
    /// A size that no file can have.
    #[error("marker has impossible file size {0}")]
    Size(u64),
    /// A chunk size that cannot cover the file, or is outside the allowed range.
    #[error("marker has chunk shift {shift}, impossible for {size} bytes")]
    ChunkShift {
        /// The stored shift.
        shift: u8,
        /// The stored file size.
        size: u64,
    },
}

impl Marker {
    /// The bytes to store. Only a marker that [`Marker::decode`] would accept may be stored.
    pub fn encode(&self) -> [u8; MARKER_LEN] {
        let mut raw = MarkerBytes {
            magic: MARKER_MAGIC,
            version: MARKER_VERSION,
            state: self.state as u8,
            chunk_shift: self.chunk_shift,
            reserved: 0,
            object: self.object.0,
            size: self.size.to_le(),
            epoch: self.epoch.to_le(),
            owner: self.owner.0.to_le(),
            flags: self.flags.bits().to_le(),
            crc32c: 0,
        };
        raw.crc32c = crc_around(bytemuck::bytes_of(&raw), MARKER_CRC_OFFSET).to_le();
        bytemuck::cast(raw)
    }

    /// Reads a marker, or says which rule the bytes break.
    pub fn decode(bytes: &[u8]) -> Result<Self, MarkerError> {
        let raw = checked(bytes)?;
        let size = u64::from_le(raw.size);
        if size > MAX_FILE_SIZE {
            return Err(MarkerError::Size(size));
        }
        if chunk_count(size, raw.chunk_shift).is_none() {
            return Err(MarkerError::ChunkShift { shift: raw.chunk_shift, size });
        }
        Ok(Self {
            object: ObjectId(raw.object),
            size,
            epoch: u64::from_le(raw.epoch),
            owner: Owner(u64::from_le(raw.owner)),
            chunk_shift: raw.chunk_shift,
            state: state(raw.state)?,
            flags: flags(u32::from_le(raw.flags), raw.reserved)?,
        })
    }
}

/// The raw marker once length, magic, version and checksum hold.
fn checked(bytes: &[u8]) -> Result<MarkerBytes, MarkerError> {
    if bytes.len() != MARKER_LEN {
        return Err(MarkerError::Length(bytes.len()));
    }
    let raw: MarkerBytes = pod_read_unaligned(bytes);
    if raw.magic != MARKER_MAGIC {
        return Err(MarkerError::Magic);
    }
    if raw.version != MARKER_VERSION {
        return Err(MarkerError::Version(raw.version));
    }
    let (found, computed) = (u32::from_le(raw.crc32c), crc_around(bytes, MARKER_CRC_OFFSET));
    if found != computed {
        return Err(MarkerError::Checksum { found, computed });
    }
    Ok(raw)
}

fn state(raw: u8) -> Result<MarkerState, MarkerError> {
    match raw {
        STATE_OFFLINE => Ok(MarkerState::Offline),
        STATE_PARTIAL => Ok(MarkerState::Partial),
        STATE_LOST => Ok(MarkerState::Lost),
        other => Err(MarkerError::State(other)),
    }
}

fn flags(raw: u32, reserved: u8) -> Result<MarkerFlags, MarkerError> {
    let unknown = MarkerError::Flags(u64::from(reserved) << 32 | u64::from(raw));
    match MarkerFlags::from_bits(raw) {
        Some(flags) if reserved == 0 => Ok(flags),
        _ => Err(unknown),
    }
}

#[cfg(test)]
mod tests {
    use hsm_common::chunk::chunk_shift_for;
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: [u8; MARKER_LEN] = [
        0x48, 0x53, 0x4d, 0x4d, 0x01, 0x01, 0x14,
        0x00, // magic, version, state, shift, reserved
        0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, // object
        0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f, //
        0x39, 0x30, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // size 12,345
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, // epoch
        0x1a, 0x6c, 0x42, 0x3a, 0x2a, 0x8c, 0xbc, 0x31, // owner
        0x00, 0x00, 0x00, 0x00, 0x49, 0x3f, 0x71, 0xfb, // flags, crc
    ];

    fn golden() -> Marker {
        Marker {
            object: ObjectId(std::array::from_fn(|i| i as u8)),
            size: 12_345,
            epoch: 0x0102_0304_0506_0708,
            owner: Owner::of(42, 0xcafe_d00d),
            chunk_shift: 20,
            state: MarkerState::Offline,
            flags: MarkerFlags::empty(),
        }
    }

    /// A marker with one byte changed and the checksum made good again.
    fn forged(at: usize, value: u8) -> [u8; MARKER_LEN] {
        let mut bytes = golden().encode();
        bytes[at] = value;
        let crc = crc_around(&bytes, MARKER_CRC_OFFSET);
        bytes[MARKER_CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(golden().encode(), GOLDEN);
        assert_eq!(Marker::decode(&GOLDEN), Ok(golden()));
    }

    #[test]
    fn each_broken_rule_has_its_own_error() {
        assert_eq!(Marker::decode(&[]), Err(MarkerError::Length(0)));
        assert_eq!(Marker::decode(&[0; 57]), Err(MarkerError::Length(57)));
        assert_eq!(Marker::decode(&[0; 56]), Err(MarkerError::Magic));
        assert_eq!(Marker::decode(&forged(4, 2)), Err(MarkerError::Version(2)));
        assert_eq!(Marker::decode(&forged(5, 0)), Err(MarkerError::State(0)));
        assert_eq!(Marker::decode(&forged(5, 4)), Err(MarkerError::State(4)));
        assert_eq!(Marker::decode(&forged(7, 1)), Err(MarkerError::Flags(1 << 32)));
        assert_eq!(Marker::decode(&forged(51, 0x80)), Err(MarkerError::Flags(1 << 31)));
        let noted = Marker { flags: MarkerFlags::FILLING, ..golden() };
        assert_eq!(Marker::decode(&forged(48, 1)), Ok(noted));
        assert_eq!(Marker::decode(&forged(48, 3)), Err(MarkerError::Flags(3)));
        for shift in [0, 19, 50, 64, 255] {
            let error = MarkerError::ChunkShift { shift, size: 12_345 };
            assert_eq!(Marker::decode(&forged(6, shift)), Err(error));
        }
        assert_eq!(
            Marker::decode(&forged(31, 0x80)),
            Err(MarkerError::Size(12_345 | 1 << 63)),
            "size"
        );
        assert_eq!(
            Marker::decode(&forged(29, 1)),
            Err(MarkerError::ChunkShift { shift: 20, size: 12_345 | 1 << 40 }),
            "more chunks than the map can hold"
        );
        let mut bytes = golden().encode();
        bytes[MARKER_CRC_OFFSET] ^= 1;
        assert!(matches!(Marker::decode(&bytes), Err(MarkerError::Checksum { .. })));
    }

    #[test]
    fn an_owner_is_one_inode_of_one_generation() {
        let owner = Owner::of(42, 7);
        assert_eq!(owner, Owner::of(42, 7));
        for other in [Owner::of(43, 7), Owner::of(42, 8), Owner::of(7, 42), Owner::of(0, 0)] {
            assert_ne!(owner, other);
        }
        let hash = blake3::hash(&[[42, 0, 0, 0, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0, 0, 0]].concat());
        assert_eq!(owner.0.to_le_bytes(), hash.as_bytes()[..8], "as documented");
    }

    prop_compose! {
        fn marker()(
            object: [u8; 16], size in 0..=MAX_FILE_SIZE, bits in 0u32..64, epoch: u64,
            owner: u64, state in 1u8..=3
        ) -> Marker {
            let size = size >> bits;
            let state = super::state(state).expect("a known state");
            let (chunk_shift, flags) = (chunk_shift_for(size), MarkerFlags::empty());
            let (object, owner) = (ObjectId(object), Owner(owner));
            Marker { object, size, epoch, owner, chunk_shift, state, flags }
        }
    }

    proptest! {
        #[test]
        fn round_trip(m in marker()) {
            prop_assert_eq!(Marker::decode(&m.encode()), Ok(m));
        }

        #[test]
        fn any_flipped_bit_is_refused(m in marker(), bit in 0..MARKER_LEN * 8) {
            let mut bytes = m.encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Marker::decode(&bytes).is_err());
        }

        #[test]
        fn any_bytes_decode_without_panic(bytes: Vec<u8>) {
            prop_assert!(Marker::decode(&bytes).is_err());
        }

        #[test]
        fn decoded_fields_are_what_is_stored(at in 0..MARKER_CRC_OFFSET, value: u8) {
            let bytes = forged(at, value);
            if let Ok(m) = Marker::decode(&bytes) {
                prop_assert_eq!(m.encode(), bytes);
            }
        }
    }
}
