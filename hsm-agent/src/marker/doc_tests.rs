//! The examples in docs/formats/inode.md are what the codecs write.

use super::*;
use crate::core::{DataVersion, ObjectId};

const DOC: &str = include_str!("../../../docs/formats/inode.md");

/// The bytes of the example with that name.
fn example(name: &str) -> Vec<u8> {
    let (_, rest) = DOC.split_once(&format!("```hex {name}\n")).expect("the example");
    let (body, _) = rest.split_once("```").expect("its end");
    let byte = |digits| u8::from_str_radix(digits, 16).expect("hexadecimal digits");
    body.split_whitespace().map(byte).collect()
}

fn object() -> ObjectId {
    ObjectId(std::array::from_fn(|i| i as u8))
}

fn marker(size: u64, state: MarkerState) -> Marker {
    let (object, flags) = (object(), MarkerFlags::empty());
    let (epoch, owner) = (0x0102_0304_0506_0708, Owner::of(42, 0xcafe_d00d));
    Marker { object, size, epoch, owner, chunk_shift: 20, state, flags }
}

#[test]
fn the_documented_marker_is_what_is_written() {
    let expected = marker(12_345, MarkerState::Offline);
    assert_eq!(expected.encode()[..], example("marker"));
}

#[test]
fn the_documented_record_is_what_is_written() {
    let version = DataVersion { generation: 0xcafe_d00d, size: 12_345, mtime_ns: 1, ctime_ns: -1 };
    let archived_at_ns = 1_000_000_000_000_000_000;
    let archived = Some(ArchivedCopy { object: object(), version, archived_at_ns });
    let record = Record { archived, policy: PolicyFlags::PINNED };
    assert_eq!(record.encode()[..], example("record"));
}

#[test]
fn the_documented_map_is_what_is_written() {
    let marker = marker((9 << 20) + 1, MarkerState::Partial);
    let map = ResidencyMap::decode(&example("map"), &marker).expect("valid");
    let local: Vec<_> = (0..map.chunks()).filter(|chunk| map.contains(*chunk)).collect();
    assert_eq!(local, [0, 2, 9]);
    assert_eq!(map.encode(), example("map"));
}
