//! The format as a whole: round trips, damage, bounds.

use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::core::ObjectId;
use crate::store::{MemoryStore, ObjectKey, Store, StoreError};

const CHUNK: usize = 1 << MIN_CHUNK_SHIFT;
const ID: ObjectId = ObjectId(*b"golden object id");

fn attributes() -> FileAttributes {
    FileAttributes {
        path_hint: b"dir/n\xffame\n".to_vec(),
        uid: 1000,
        gid: 100,
        mode: 0o100_644,
        atime_ns: -1,
        mtime_ns: 1_700_000_000_123_456_789,
        xattrs: vec![Xattr { name: b"user.a".to_vec(), value: b"\0\x01".to_vec() }],
    }
}

/// Bytes that are neither compressible nor equal from chunk to chunk.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// The ranges of `content` that the predicate over 64 KiB blocks calls data.
fn extents_of(content: &[u8], is_data: impl Fn(usize) -> bool) -> Vec<Extent> {
    const BLOCK: usize = 64 << 10;
    let mut extents: Vec<Extent> = Vec::new();
    for (i, block) in content.chunks(BLOCK).enumerate().filter(|&(i, _)| is_data(i)) {
        let (offset, len) = ((i * BLOCK) as u64, block.len() as u64);
        match extents.last_mut() {
            Some(last) if last.offset + last.len == offset => last.len += len,
            _ => extents.push(Extent { offset, len }),
        }
    }
    extents
}

/// Encodes as the archive does: chunk by chunk, whole-hole chunks as holes.
fn encode(content: &[u8], extents: &[Extent], compression: Compression) -> Bytes {
    let mut encoder =
        ObjectEncoder::new(ID, content.len() as u64, MIN_CHUNK_SHIFT, compression).expect("new");
    let mut object = Vec::new();
    for (i, chunk) in content.chunks(CHUNK).enumerate() {
        let range = (i * CHUNK) as u64..(i * CHUNK + chunk.len()) as u64;
        if extents.iter().any(|e| e.offset < range.end && e.offset + e.len > range.start) {
            let frame = encoder.push_chunk(i as u64, Bytes::copy_from_slice(chunk)).expect("push");
            object.extend_from_slice(&frame);
        } else {
            encoder.push_hole(i as u64).expect("hole");
        }
    }
    object.extend_from_slice(&encoder.finish(attributes(), extents.to_vec()).expect("finish"));
    object.into()
}

fn rt<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("runtime").block_on(f)
}

async fn store_with(object: Bytes) -> Arc<dyn Store> {
    let store = MemoryStore::new();
    store.put(&ObjectKey::new(ID), object).await.expect("put");
    Arc::new(store)
}

/// The file that the object gives, or the error.
async fn decode(object: Bytes) -> Result<(FileAttributes, Vec<u8>), StoreError> {
    let reader = ObjectReader::open(store_with(object).await, ID).await?;
    let mut content = vec![0; reader.manifest().size as usize];
    for index in 0..reader.chunk_count() {
        let range = reader.manifest().chunk_range(index).expect("range");
        if let Chunk::Data(bytes) = reader.chunk(index).await? {
            content[range.start as usize..range.end as usize].copy_from_slice(&bytes);
        }
    }
    Ok((reader.manifest().attributes.clone(), content))
}

#[test]
fn sizes_around_the_chunk_round_trip() {
    for size in [0, 1, 4096, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
        for compression in [Compression::None, Compression::Zstd { level: 1 }] {
            let content = noise(size, size as u64);
            let extents = extents_of(&content, |_| true);
            let object = encode(&content, &extents, compression);
            let (got_attributes, got) = rt(decode(object)).expect("decode");
            assert!(got == content, "size {size}");
            assert_eq!(got_attributes, attributes());
        }
    }
}

#[test]
fn the_smaller_form_wins() {
    let zstd = Compression::Zstd { level: 3 };
    let text = vec![b'a'; CHUNK];
    let small = encode(&text, &extents_of(&text, |_| true), zstd);
    assert!(small.len() < 1000, "{}", small.len());
    assert!(rt(decode(small)).expect("decode").1 == text);
    let hard = noise(CHUNK, 1);
    let all = extents_of(&hard, |_| true);
    assert_eq!(encode(&hard, &all, zstd).len(), encode(&hard, &all, Compression::None).len());
}

#[test]
fn encode_whole_equals_the_stream() {
    for compression in [Compression::None, Compression::Zstd { level: 3 }] {
        for content in [vec![], vec![7], noise(5000, 3), b"hsm ".repeat(2000)] {
            let extents = extents_of(&content, |_| true);
            let stream = encode(&content, &extents, compression);
            let whole = encode_whole(ID, content, attributes(), extents, compression);
            assert_eq!(whole.expect("whole"), stream);
        }
    }
}

#[test]
fn a_file_that_is_all_hole_stores_no_data() {
    let object = encode_whole(ID, vec![0; 9000], attributes(), vec![], Compression::None);
    let object = object.expect("whole");
    assert!(object.len() < 500);
    assert_eq!(rt(decode(object)).expect("decode").1, vec![0; 9000]);
}

#[test]
fn small_objects_are_read_in_one_request() {
    let content = noise(4096, 1);
    let object = encode(&content, &extents_of(&content, |_| true), Compression::None);
    rt(async {
        let store = store_with(object).await;
        let reader = ObjectReader::open(store.clone(), ID).await.expect("open");
        store.delete(&ObjectKey::new(ID)).await.expect("delete");
        assert!(reader.is_near(0));
        assert_eq!(reader.chunk(0).await.expect("chunk"), Chunk::Data(content.into()));
    });
}

#[test]
fn a_manifest_longer_than_the_tail_is_fetched() {
    let mut encoder = ObjectEncoder::new(ID, 1, MIN_CHUNK_SHIFT, Compression::None).expect("new");
    let frame = encoder.push_chunk(0, Bytes::from_static(b"x")).expect("push");
    let long = Xattr { name: b"user.long".to_vec(), value: noise(100_000, 1) };
    let attributes = FileAttributes { xattrs: vec![long], ..attributes() };
    let end = encoder.finish(attributes.clone(), vec![Extent { offset: 0, len: 1 }]).expect("end");
    let object = Bytes::from([&frame[..], &end[..]].concat());
    assert_eq!(rt(decode(object)).expect("decode"), (attributes, b"x".to_vec()));
}

#[test]
fn another_objects_bytes_are_corrupt() {
    let object = encode(b"x", &[Extent { offset: 0, len: 1 }], Compression::None);
    let other = ObjectId(*b"another identity");
    rt(async {
        let store = MemoryStore::new();
        store.put(&ObjectKey::new(other), object).await.expect("put");
        let opened = ObjectReader::open(Arc::new(store), other).await;
        assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "{opened:?}");
    });
}

#[test]
fn every_truncation_and_extension_is_noticed() {
    let content = noise(300, 1);
    let object = encode(&content, &extents_of(&content, |_| true), Compression::None);
    for len in 0..object.len() {
        rt(decode(object.slice(..len))).expect_err("truncated at the end");
        rt(decode(object.slice(object.len() - len..))).expect_err("truncated in front");
    }
    rt(decode(Bytes::from([&b"x"[..], &object[..]].concat()))).expect_err("longer in front");
}

#[test]
fn data_outside_the_extents_is_refused() {
    let mut content = vec![0; 200_000];
    content[150_000] = 1;
    let extents = [Extent { offset: 0, len: 100_000 }];
    rt(decode(encode(&content, &extents, Compression::None))).expect_err("byte in a hole");
    content[150_000] = 0;
    rt(decode(encode(&content, &extents, Compression::None))).expect("zeros in a hole");
}

#[test]
fn the_encoder_refuses_what_does_not_fit() {
    let encoder = || ObjectEncoder::new(ID, 10, MIN_CHUNK_SHIFT, Compression::None).expect("new");
    let ten = [Extent { offset: 0, len: 10 }];
    encoder().encode_chunk(1, b"0123456789").expect_err("no such chunk");
    encoder().encode_chunk(0, b"012345678").expect_err("too short");
    encoder().encode_chunk(0, b"01234567890").expect_err("too long");
    encoder().finish(attributes(), ten.to_vec()).expect_err("chunk missing");
    let mut twice = encoder();
    twice.encode_chunk(0, b"0123456789").expect("first");
    twice.encode_chunk(0, b"0123456789").expect_err("second");
    let mut hole = encoder();
    hole.push_hole(0).expect("hole");
    hole.finish(attributes(), ten.to_vec()).expect_err("extent in a hole");
    for extents in [[(0, 0)].as_slice(), &[(0, 11)], &[(5, 2), (0, 2)], &[(0, 5), (4, 2)], &[]] {
        let extents = extents.iter().map(|&(offset, len)| Extent { offset, len }).collect();
        let mut encoder = encoder();
        encoder.encode_chunk(0, b"0123456789").expect("chunk");
        encoder.finish(attributes(), extents).expect_err("bad extents");
    }
    ObjectEncoder::new(ID, u64::MAX, MAX_CHUNK_SHIFT, Compression::None).expect_err("too large");
    ObjectEncoder::new(ID, 0, 19, Compression::None).expect_err("chunk too small");
}

/// Bytes that a store may serve: an object with a manifest of the test's choosing, all hashes right.
fn forge(manifest: &Manifest, data: &[u8]) -> Bytes {
    let bytes = postcard::to_stdvec(manifest).expect("postcard");
    let trailer = Trailer {
        object_id: ID,
        object_len: (data.len() + bytes.len() + TRAILER_LEN) as u64,
        manifest_len: bytes.len() as u32,
        manifest_hash: *blake3::hash(&bytes).as_bytes(),
    };
    [data, &bytes, &trailer.encode()].concat().into()
}

#[test]
fn forged_manifests_are_refused() {
    let frame = Frame { offset: 0, len: 3, hash: *blake3::hash(b"abc").as_bytes() };
    let good = Manifest {
        size: 3,
        chunk_shift: MIN_CHUNK_SHIFT,
        attributes: attributes(),
        extents: vec![Extent { offset: 0, len: 3 }],
        chunks: vec![ChunkEntry::Raw(frame)],
    };
    assert_eq!(rt(decode(forge(&good, b"abc"))).expect("good").1, b"abc");
    let raw = |frame| vec![ChunkEntry::Raw(frame)];
    let huge = Extent { offset: 1, len: u64::MAX };
    let bad = [
        ("size", Manifest { size: 4, ..good.clone() }),
        ("huge size", Manifest { size: u64::MAX, ..good.clone() }),
        ("shift", Manifest { chunk_shift: 19, ..good.clone() }),
        ("wide shift", Manifest { chunk_shift: 64, ..good.clone() }),
        ("no chunk", Manifest { chunks: vec![], ..good.clone() }),
        ("hole", Manifest { chunks: vec![ChunkEntry::Hole], ..good.clone() }),
        ("offset", Manifest { chunks: raw(Frame { offset: 1, ..frame }), ..good.clone() }),
        ("far", Manifest { chunks: raw(Frame { offset: u64::MAX, ..frame }), ..good.clone() }),
        ("length", Manifest { chunks: raw(Frame { len: 2, ..frame }), ..good.clone() }),
        ("kind", Manifest { chunks: vec![ChunkEntry::Zstd(frame)], ..good.clone() }),
        ("extents", Manifest { extents: vec![], ..good.clone() }),
        ("overflow", Manifest { extents: vec![huge], ..good.clone() }),
    ];
    for (what, manifest) in bad {
        rt(decode(forge(&manifest, b"abc"))).expect_err(what);
    }
    rt(decode(forge(&good, b"abcd"))).expect_err("bytes that belong to no frame");
}

/// The object of the golden file: a zstd chunk, a hole, and a raw chunk that was stored first. Its
/// frames' bytes do not matter here, and differ between versions of zstd.
fn golden_manifest() -> Manifest {
    let frame =
        |offset, len, plain: &[u8]| Frame { offset, len, hash: *blake3::hash(plain).as_bytes() };
    let chunk = CHUNK as u64;
    Manifest {
        size: 2 * chunk + 4,
        chunk_shift: MIN_CHUNK_SHIFT,
        attributes: attributes(),
        extents: vec![Extent { offset: 0, len: chunk }, Extent { offset: 2 * chunk, len: 4 }],
        chunks: vec![
            ChunkEntry::Zstd(frame(4, 150, &b"hsm ".repeat(CHUNK / 4))),
            ChunkEntry::Hole,
            ChunkEntry::Raw(frame(0, 4, b"tail")),
        ],
    }
}

fn golden() -> Bytes {
    forge(&golden_manifest(), &[0; 154])
}

fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|b| format!("{b:02x}")).collect::<String>();
    bytes.chunks(32).map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn golden_manifest_and_trailer() {
    let object = golden();
    let trailer = parse_trailer(&object).expect("trailer");
    let (manifest, end) =
        object[trailer.data_len() as usize..].split_at(trailer.manifest_len as usize);
    let got = format!("{}\n\n{}\n", hex(manifest), hex(end));
    let want = include_str!("../../../tests/golden/object-v1.hex");
    assert_eq!(got, want, "the stored format has changed, and needs a new version");
    let spec = include_str!("../../../../docs/formats/objects.md");
    assert!(want.split("\n\n").all(|part| spec.contains(part.trim())), "other bytes in the spec");
    assert_eq!(parse_manifest(manifest, 154), Ok(golden_manifest()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_content_and_hole_layout_round_trips(
        size in prop_oneof![0..70_000usize, (CHUNK - 2)..(3 * CHUNK + 2)],
        layout in vec![any::<bool>(); 49],
        seed in any::<u64>(),
        level in prop_oneof![Just(None), Just(Some(1))],
    ) {
        let mut content = noise(size, seed);
        for (i, block) in content.chunks_mut(64 << 10).enumerate() {
            if !layout[i] { block.fill(0) }
            let half = block.len() / 2;
            if i % 3 == 0 { block[half..].fill(0) } // compressible, not a hole
        }
        let extents = extents_of(&content, |i| layout[i]);
        let compression = level.map_or(Compression::None, |level| Compression::Zstd { level });
        let (_, got) = rt(decode(encode(&content, &extents, compression))).expect("decode");
        prop_assert!(got == content);
    }

    #[test]
    fn a_flipped_byte_is_an_error_or_harmless(
        content in vec(any::<u8>(), 1..3000),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
        compress in any::<bool>(),
    ) {
        let extents = extents_of(&content, |_| true);
        let compression = if compress { Compression::Zstd { level: 1 } } else { Compression::None };
        let mut object = encode(&content, &extents, compression).to_vec();
        let at = at.index(object.len());
        object[at] ^= flip;
        if let Ok((got_attributes, got)) = rt(decode(object.into())) {
            prop_assert_eq!(got_attributes, attributes());
            prop_assert_eq!(got, content);
        }
    }

    #[test]
    fn parsers_survive_anything(bytes in vec(any::<u8>(), 0..400), data_len in any::<u64>()) {
        let _ = parse_trailer(&bytes);
        let _ = parse_manifest(&bytes, data_len);
    }

    #[test]
    fn manifests_with_one_wrong_byte_parse_within_bounds(at in any::<prop::sample::Index>(), byte: u8) {
        let object = golden();
        let trailer = parse_trailer(&object).expect("trailer");
        let start = trailer.data_len() as usize;
        let mut bytes = object[start..start + trailer.manifest_len as usize].to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(manifest) = parse_manifest(&bytes, trailer.data_len()) {
            for frame in manifest.chunks.iter().filter_map(ChunkEntry::frame) {
                prop_assert!(frame.offset + u64::from(frame.len) <= trailer.data_len());
            }
        }
    }
}

/// Every byte of one object, every bit: the exhaustive form of the property above.
#[test]
fn every_flipped_bit_is_an_error_or_harmless() {
    let content = noise(700, 9);
    let object = encode(&content, &extents_of(&content, |_| true), Compression::None);
    for at in 0..object.len() {
        for bit in 0..8 {
            let mut bad = object.to_vec();
            bad[at] ^= 1 << bit;
            if let Ok((_, got)) = rt(decode(bad.into())) {
                assert!(got == content, "byte {at}, bit {bit}");
            }
        }
    }
}
