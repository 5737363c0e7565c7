//! One function per fuzz target: takes any bytes, must not panic, and checks what can be checked.
//!
//! `fuzz_targets/NAME.rs` hands these to libFuzzer, which begins with what `examples/write_seeds.rs` has
//! put into its corpus; `tests/seeds.rs` feeds them seeds and thousands of mutations on a stable
//! compiler, so that they are kept working.

use hsm_agent::bpf::{self, Btf};
use hsm_agent::config::Config;
use hsm_agent::control::types::{JobRequest, WirePath};
use hsm_agent::core::ObjectId;
use hsm_agent::marker::{
    MapError, Marker, MarkerError, MarkerFlags, MarkerState, Owner, Record, RecordError,
    ResidencyMap,
};
use hsm_agent::store::object::{parse_manifest, parse_trailer};
use hsm_agent::sys::fanotify::decode;

/// A target: its name, itself, and bytes to begin with.
pub struct Target {
    /// As in `fuzz_targets`.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Well-formed inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "fanotify_events", run: fanotify_events, seeds: event_seeds },
    Target { name: "marker", run: marker, seeds: marker_seeds },
    Target { name: "record", run: record, seeds: || vec![Record::default().encode().to_vec()] },
    Target { name: "residency_map", run: residency_map, seeds: map_seeds },
    Target { name: "config", run: config, seeds: config_seeds },
    Target { name: "object_trailer", run: object_trailer, seeds: trailer_seeds },
    Target { name: "object_manifest", run: object_manifest, seeds: manifest_seeds },
    Target { name: "btf", run: btf, seeds: btf_seeds },
    Target { name: "control_request", run: control_request, seeds: request_seeds },
    Target { name: "kfunc", run: kfunc, seeds: || vec![KFUNC_OBJECT.to_vec()] },
];

/// What read(2) on a fanotify group gives. Decoding ends, whatever the lengths say.
pub fn fanotify_events(data: &[u8]) {
    let events = decode::events(data).count();
    assert!(events <= data.len() / 24 + 1, "more events than fit");
}

/// A marker that is accepted is written back the same.
pub fn marker(data: &[u8]) {
    let decode = |data: &[u8]| {
        let marker = Marker::decode(data)?;
        assert_eq!(marker.encode().as_slice(), data);
        Ok(())
    };
    if let Err(MarkerError::Checksum { found, computed }) = decode(data) {
        // What is wrong with the good sum is for the decoder to find.
        let _ = decode(&summed(data, found, computed));
    }
}

/// A record that is accepted is written back the same.
pub fn record(data: &[u8]) {
    let decode = |data: &[u8]| {
        let record = Record::decode(data)?;
        assert_eq!(record.encode().as_slice(), data);
        Ok(())
    };
    if let Err(RecordError::Checksum { found, computed }) = decode(data) {
        let _ = decode(&summed(data, found, computed));
    }
}

/// A map that is accepted fits the marker and is written back the same.
pub fn residency_map(data: &[u8]) {
    let marker = sample_marker();
    let decode = |data: &[u8]| {
        let map = ResidencyMap::decode(data, &marker)?;
        assert_eq!(map.encode(), data);
        assert!(map.missing_chunks(0..marker.size).count() <= map.chunks() as usize);
        Ok(())
    };
    if let Err(MapError::Checksum { found, computed }) = decode(data) {
        let _ = decode(&summed(data, found, computed));
    }
}

/// The input with its checksum made good, which no fuzzer finds by chance.
fn summed(data: &[u8], found: u32, computed: u32) -> Vec<u8> {
    let mut bytes = data.to_vec();
    if let Some(at) = data.windows(4).rposition(|word| word == found.to_le_bytes()) {
        bytes[at..at + 4].copy_from_slice(&computed.to_le_bytes());
    }
    bytes
}

/// A configuration is accepted or explained.
pub fn config(data: &[u8]) {
    match Config::parse_bytes(data, "fuzz.toml") {
        Ok(config) => assert!(!config.explain().is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The end of an object.
pub fn object_trailer(data: &[u8]) {
    if let Ok(trailer) = parse_trailer(data) {
        let _length = trailer.data_len();
    }
}

/// The manifest of an object; its first eight bytes stand for the length of the data before it.
pub fn object_manifest(data: &[u8]) {
    let Some((length, bytes)) = data.split_first_chunk::<8>() else { return };
    if let Ok(manifest) = parse_manifest(bytes, u64::from_le_bytes(*length)) {
        assert_eq!(manifest.chunk_range(u64::MAX), None);
    }
}

/// What anybody may send to the control socket: a job, or a list of paths. What is accepted says the same
/// when it is written and read again, and no path in it ends early.
pub fn control_request(data: &[u8]) {
    let whole = |path: &WirePath| !path.as_path().as_os_str().as_encoded_bytes().contains(&0);
    if let Ok(request) = serde_json::from_slice::<JobRequest>(data) {
        let text = serde_json::to_vec(&request).expect("serialises");
        assert_eq!(serde_json::from_slice::<JobRequest>(&text).expect("parses"), request);
        assert!(request.paths.iter().all(whole));
    }
    if let Ok(paths) = serde_json::from_slice::<Vec<WirePath>>(data) {
        let text = serde_json::to_vec(&paths).expect("serialises");
        assert_eq!(serde_json::from_slice::<Vec<WirePath>>(&text).expect("parses"), paths);
        assert!(paths.iter().all(whole));
    }
}

fn request_seeds() -> Vec<Vec<u8>> {
    let texts = [
        r#"{"op":"recall","paths":[{"path":"/a/b"},{"path":"/\ufffd","path_bytes":"2fff"}],"recursive":true,"dry_run":false,"include":["*.x"],"exclude":[],"jobs":3,"verbose":true}"#,
        r#"{"op":"scan","pool":"media","rebuild":true}"#,
        r#"[{"path":"/a"},{"path":"/b\u0001"}]"#,
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

fn sample_marker() -> Marker {
    Marker {
        object: ObjectId([7; 16]),
        size: 100 << 20,
        epoch: 42,
        owner: Owner::of(12, 1),
        chunk_shift: 20,
        state: MarkerState::Partial,
        flags: MarkerFlags::empty(),
    }
}

fn marker_seeds() -> Vec<Vec<u8>> {
    let partial = sample_marker();
    let offline = Marker { state: MarkerState::Offline, ..partial };
    vec![partial.encode().to_vec(), offline.encode().to_vec()]
}

fn map_seeds() -> Vec<Vec<u8>> {
    let marker = sample_marker();
    let Ok(mut map) = ResidencyMap::empty(marker.epoch, marker.size, marker.chunk_shift) else {
        return Vec::new();
    };
    let empty = map.encode();
    map.set_range(3..50);
    vec![empty, map.encode()]
}

fn config_seeds() -> Vec<Vec<u8>> {
    let text = "[agent]\nlog = \"info\"\n[limits]\nrecall_memory = \"32MiB\"\n[[pool]]\nname = \"a\"\n\
                mount = \"/m\"\n[pool.store]\nkind = \"local\"\npath = \"/s\"\n";
    vec![text.as_bytes().to_vec()]
}

/// `struct fanotify_event_metadata` with and without a range record.
fn event_seeds() -> Vec<Vec<u8>> {
    let mut plain = vec![24, 0, 0, 0, 3, 0, 24, 0];
    plain.extend(0x0001_0000_u64.to_le_bytes());
    plain.extend([5, 0, 0, 0, 9, 1, 0, 0]);
    let mut ranged = plain.clone();
    ranged[0] = 48;
    ranged.extend([6, 0, 24, 0, 0, 0, 0, 0]);
    ranged.extend(4096_u64.to_le_bytes());
    ranged.extend(65536_u64.to_le_bytes());
    vec![plain.clone(), ranged.clone(), [plain, ranged].concat()]
}

/// The object that pins the format: `hsm-agent/tests/golden/object-v1.hex`.
fn golden_object() -> Vec<u8> {
    let text = include_str!("../../hsm-agent/tests/golden/object-v1.hex");
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let nibble = |digit: u8| char::from(digit).to_digit(16).unwrap_or(0) as u8;
    digits.chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
}

fn trailer_seeds() -> Vec<Vec<u8>> {
    let object = golden_object();
    let tail = object[object.len().saturating_sub(80)..].to_vec();
    vec![object, tail]
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let object = golden_object();
    // What the file has before the trailer are the frames, if it holds them, and the manifest.
    let Ok(trailer) = parse_trailer(&object) else { return Vec::new() };
    let end = object.len() - 80;
    let start = end - (trailer.manifest_len as usize).min(end);
    vec![[trailer.data_len().to_le_bytes().as_slice(), &object[start..end]].concat()]
}

/// An object with calls of kernel functions; its source lies beside it.
const KFUNC_OBJECT: &[u8] = include_bytes!("../../hsm-agent/tests/golden/kfunc.bpf.o");

/// Type information is read or refused, whatever it refers to.
pub fn btf(data: &[u8]) {
    if let Ok(btf) = Btf::parse(data.to_vec()) {
        btf.member_offset("inode", "i_mode");
        btf.member_offset("ring", "x");
        btf.function("do_it");
        if let Ok(module) = Btf::parse_module(data.to_vec(), &btf) {
            module.member_offset("inode", "i_mode");
            module.member_offset("ring", "x");
        }
    }
}

/// An object is linked or left as it was.
pub fn kfunc(data: &[u8]) {
    let mut object = data.to_vec();
    if bpf::link(&mut object, |_| Some(1)).is_err() {
        assert_eq!(object, data);
    }
    assert_eq!(object.len(), data.len());
}

/// `struct inode { int i_mode; }`, a structure that contains itself, a function.
fn btf_seeds() -> Vec<Vec<u8>> {
    let strings = b"\0inode\0i_mode\0ring\0do_it\0int\0";
    const INT: [u32; 4] = [25, 1 << 24, 4, 32];
    const INODE: [u32; 6] = [1, (4 << 24) | 1, 4, 7, 1, 0];
    const RING: [u32; 6] = [14, (4 << 24) | 1, 4, 0, 3, 0];
    const DO_IT: [u32; 3] = [19, 12 << 24, 0];
    let types = [&INT[..], &INODE, &RING, &DO_IT].concat();
    let (t, s) = (size_of_val(&types[..]) as u32, strings.len() as u32);
    let header: [u32; 6] = [0x0001_eb9f, 24, 0, t, t, s];
    let words = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes());
    let seed: Vec<u8> = words.chain(*strings).collect();
    assert_eq!(Btf::parse(seed.clone()).expect("well-formed").function("do_it"), Some(4));
    vec![seed]
}
