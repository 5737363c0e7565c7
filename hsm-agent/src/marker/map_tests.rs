use hsm_common::chunk::{MAX_FILE_SIZE, chunk_shift_for};
use proptest::prelude::*;

use super::*;
use crate::core::ObjectId;
use crate::marker::{MarkerFlags, MarkerState, Owner};

const MIB: u64 = 1 << 20;

fn marker(size: u64) -> Marker {
    Marker {
        object: ObjectId([7; 16]),
        size,
        epoch: 0x0102_0304_0506_0708,
        owner: Owner::of(42, 1),
        chunk_shift: chunk_shift_for(size),
        state: MarkerState::Partial,
        flags: MarkerFlags::empty(),
    }
}

fn map(size: u64, set: &[u32]) -> ResidencyMap {
    let m = marker(size);
    let mut map = ResidencyMap::empty(m.epoch, m.size, m.chunk_shift).expect("fits");
    set.iter().for_each(|chunk| map.set(*chunk));
    map
}

/// `bytes` with one byte changed and the checksum made good again.
fn forged(map: &ResidencyMap, at: usize, value: u8) -> Vec<u8> {
    let mut bytes = map.encode();
    bytes[at] = value;
    let crc = crc_around(&bytes, CRC_OFFSET).to_le_bytes();
    bytes[CRC_OFFSET..HEADER_LEN].copy_from_slice(&crc);
    bytes
}

const GOLDEN: [u8; 34] = [
    0x48, 0x53, 0x4d, 0x50, 0x01, 0x14, 0x00, 0x00, // magic, version, shift, reserved
    0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01, // epoch
    0x01, 0x00, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, // size 9 MiB + 1
    0x0a, 0x00, 0x00, 0x00, 0xc6, 0x79, 0x96, 0xc2, // 10 chunks, crc
    0x05, 0x02, // chunks 0, 2, 9
];

#[test]
fn golden_bytes() {
    let map = map(9 * MIB + 1, &[0, 2, 9]);
    assert_eq!(map.encode(), GOLDEN);
    assert_eq!(ResidencyMap::decode(&GOLDEN, &marker(9 * MIB + 1)), Ok(map));
}

#[test]
fn a_map_of_another_release_or_another_cut_is_refused() {
    let (m, bytes) = (marker(9 * MIB), map(9 * MIB, &[1]).encode());
    let later = Marker { epoch: m.epoch + 1, ..m };
    let error = MapError::Epoch { found: m.epoch, expected: later.epoch };
    assert_eq!(ResidencyMap::decode(&bytes, &later), Err(error));
    let geometry = MapError::Geometry { size: 9 * MIB, chunk_shift: 20 };
    for other in [Marker { size: 9 * MIB - 1, ..m }, Marker { chunk_shift: 21, ..m }] {
        assert_eq!(ResidencyMap::decode(&bytes, &other), Err(geometry));
    }
    let impossible = Marker { chunk_shift: 70, ..m };
    assert!(matches!(ResidencyMap::decode(&bytes, &impossible), Err(MapError::TooLarge { .. })));
}

#[test]
fn each_broken_rule_has_its_own_error() {
    let (m, map) = (marker(9 * MIB), map(9 * MIB, &[1]));
    let decode = |bytes: &[u8]| ResidencyMap::decode(bytes, &m);
    assert_eq!(decode(&[]), Err(MapError::Length(0)));
    assert_eq!(decode(&[0; 34]), Err(MapError::Magic));
    assert_eq!(decode(&forged(&map, 4, 2)), Err(MapError::Version(2)));
    assert_eq!(decode(&forged(&map, 6, 1)), Err(MapError::StrayBits));
    assert_eq!(decode(&forged(&map, 33, 2)), Err(MapError::StrayBits), "bit of chunk 9 of 9");
    let geometry = MapError::Geometry { size: 9 * MIB, chunk_shift: 20 };
    assert_eq!(decode(&forged(&map, 24, 10)), Err(geometry));
    let mut longer = map.encode();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(MapError::Checksum { .. })));
    let crc = crc_around(&longer, CRC_OFFSET).to_le_bytes();
    longer[CRC_OFFSET..HEADER_LEN].copy_from_slice(&crc);
    assert_eq!(decode(&longer), Err(MapError::Length(35)));
}

#[test]
fn ranges_are_clipped_and_an_empty_range_is_the_whole_file() {
    let map = map(9 * MIB + 1, &[0, 2, 9]);
    assert!(map.is_resident(0..MIB));
    assert!(!map.is_resident(0..MIB + 1));
    assert!(map.is_resident(9 * MIB..u64::MAX), "the tail, read past the end");
    assert!(map.is_resident(10 * MIB..11 * MIB), "behind the end");
    assert!(!map.is_resident(8 * MIB..u64::MAX));
    assert!(!map.is_resident(0..0), "unknown length");
    assert!(!map.is_resident(9 * MIB..9 * MIB));
    assert_eq!(map.missing_chunks(0..4 * MIB).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(map.missing_chunks(5..5).count(), 7);
}

#[test]
fn complete_when_every_chunk_is_set_and_not_before() {
    let mut map = map(9 * MIB + 1, &[]);
    map.set_range(0..9);
    assert!(!map.is_complete());
    map.set_range(9..4000);
    map.set(10);
    assert!(map.is_complete());
    assert_eq!(map.encode().len(), 34);
    assert!(!ResidencyMap::empty(1, 1, 20).expect("fits").is_complete());
}

#[test]
fn the_largest_file_fits() {
    let map = map(MAX_FILE_SIZE, &[0, MAX_CHUNKS - 1]);
    let bytes = map.encode();
    assert_eq!(bytes.len(), MAX_MAP_LEN);
    assert_eq!(ResidencyMap::decode(&bytes, &marker(MAX_FILE_SIZE)), Ok(map.clone()));
    assert!(map.is_resident(MAX_FILE_SIZE - 1..u64::MAX));
    assert_eq!(map.missing_chunks(0..u64::MAX).count(), MAX_CHUNKS as usize - 2);
}

prop_compose! {
    fn any_map()(size in 1..64 * MIB, extra in 0u32..30, set: Vec<u16>)
        -> (Marker, ResidencyMap) {
        let size = size << extra;
        let m = marker(size);
        let mut map = ResidencyMap::empty(m.epoch, size, m.chunk_shift).expect("fits");
        set.iter().for_each(|chunk| map.set(u32::from(*chunk) % map.chunks()));
        (m, map)
    }
}

proptest! {
    #[test]
    fn round_trip((m, map) in any_map()) {
        let bytes = map.encode();
        prop_assert!(bytes.len() <= MAX_MAP_LEN);
        prop_assert_eq!(ResidencyMap::decode(&bytes, &m), Ok(map));
    }

    #[test]
    fn any_flipped_bit_is_refused((m, map) in any_map(), bit: prop::sample::Index) {
        let mut bytes = map.encode();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(ResidencyMap::decode(&bytes, &m).is_err());
    }

    #[test]
    fn any_cut_is_refused((m, map) in any_map(), cut: prop::sample::Index) {
        let bytes = map.encode();
        prop_assert!(ResidencyMap::decode(&bytes[..cut.index(bytes.len())], &m).is_err());
    }

    #[test]
    fn any_bytes_decode_without_panic(bytes: Vec<u8>, size: u64, shift: u8) {
        let m = Marker { size, chunk_shift: shift, ..marker(1) };
        prop_assert!(ResidencyMap::decode(&bytes, &m).is_err());
    }

    /// A range is resident exactly if each of its bytes lies in a chunk that was set.
    #[test]
    fn agrees_with_a_set_of_bytes(
        size in 1..20 * MIB, set in prop::collection::btree_set(0u32..20, 0..20),
        start in 0..22 * MIB, len in 1..6 * MIB
    ) {
        let map = map(size, &set.iter().copied().collect::<Vec<_>>());
        let expected = (start..start + len)
            .step_by(4096)
            .chain([(start + len).min(size) - 1])
            .filter(|at| *at < size && *at >= start)
            .all(|at| set.contains(&((at / MIB) as u32)));
        prop_assert_eq!(map.is_resident(start..start + len), expected);
    }
}
