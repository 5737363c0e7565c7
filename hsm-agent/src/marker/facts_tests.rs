use super::*;
use crate::core::DataVersion;
use crate::marker::MarkerFlags;

const INO: u64 = 12;
const GENERATION: u64 = 34;
const CHUNK: u64 = 1 << 20;

fn stat(size: u64, mtime_ns: i64) -> Stat {
    Stat {
        mode: libc::S_IFREG | 0o644,
        uid: 0,
        gid: 0,
        links: 1,
        ino: INO,
        dev: (1, 1),
        size,
        allocated: 0,
        atime_ns: 0,
        mtime_ns,
        ctime_ns: 0,
    }
}

fn record(policy: PolicyFlags) -> Vec<u8> {
    let version = DataVersion { generation: GENERATION, size: 10, mtime_ns: 20, ctime_ns: 30 };
    let archived = ArchivedCopy { object: ObjectId([7; 16]), version, archived_at_ns: 5 };
    Record { archived: Some(archived), policy }.encode().into()
}

fn marker(state: MarkerState, owner: Owner) -> Vec<u8> {
    let marker = Marker {
        object: ObjectId([8; 16]),
        size: 3 * CHUNK,
        epoch: 9,
        owner,
        chunk_shift: 20,
        state,
        flags: MarkerFlags::empty(),
    };
    marker.encode().into()
}

fn own(state: MarkerState, map: Option<Vec<u8>>) -> RawAttributes {
    let marker = Some(marker(state, Owner::of(INO, GENERATION)));
    RawAttributes { marker, record: Some(record(PolicyFlags::empty())), map }
}

fn facts(raw: &RawAttributes, stat: &Stat) -> Facts {
    judge(raw, stat, Some(GENERATION)).expect("readable")
}

fn state_of(raw: &RawAttributes, stat: &Stat) -> FileState {
    facts(raw, stat).state
}

#[test]
fn without_a_marker_the_record_decides() {
    let none = RawAttributes::default();
    assert_eq!(state_of(&none, &stat(10, 20)), FileState::Resident);
    let raw = RawAttributes { record: Some(record(PolicyFlags::PINNED)), ..none };
    assert_eq!(state_of(&raw, &stat(10, 20)), FileState::Archived);
    assert_eq!(state_of(&raw, &stat(11, 20)), FileState::Dirty);
    assert_eq!(state_of(&raw, &stat(10, 21)), FileState::Dirty);
    let facts = facts(&raw, &stat(10, 20));
    assert!(facts.policy.contains(PolicyFlags::PINNED));
    assert_eq!(facts.object, Some(ObjectId([7; 16])));
    assert_eq!(facts.copy.map(|copy| copy.archived_at_ns), Some(5));
}

#[test]
fn a_copied_record_vouches_for_nothing() {
    let raw = RawAttributes { record: Some(record(PolicyFlags::empty())), ..Default::default() };
    let of = |generation| judge(&raw, &stat(10, 20), generation).expect("readable").state;
    assert_eq!(of(Some(GENERATION + 1)), FileState::Dirty);
    assert_eq!(of(None), FileState::Archived);
}

#[test]
fn a_policy_alone_is_still_resident() {
    let policy = Record { archived: None, policy: PolicyFlags::NOARCHIVE };
    let raw = RawAttributes { record: Some(policy.encode().into()), ..RawAttributes::default() };
    assert_eq!(state_of(&raw, &stat(10, 20)), FileState::Resident);
}

#[test]
fn a_marker_decides_whatever_the_record_says() {
    let size = stat(10, 20);
    assert_eq!(state_of(&own(MarkerState::Offline, None), &size), FileState::Offline);
    assert_eq!(state_of(&own(MarkerState::Lost, None), &size), FileState::Lost);
    assert_eq!(facts(&own(MarkerState::Offline, None), &size).object, Some(ObjectId([8; 16])));
    let mut map = ResidencyMap::empty(9, 3 * CHUNK, 20).expect("fits");
    map.set(1);
    let partial = own(MarkerState::Partial, Some(map.encode()));
    assert_eq!(state_of(&partial, &size), FileState::Partial);
    for bad in [None, Some(vec![1, 2, 3])] {
        let told = bad.is_some();
        let facts = facts(&own(MarkerState::Partial, bad), &size);
        assert_eq!(facts.state, FileState::Offline);
        assert_eq!(facts.detail.contains("wholly offline"), told, "{}", facts.detail);
    }
}

#[test]
fn a_marker_of_another_inode_is_foreign_whatever_its_state() {
    for state in [MarkerState::Offline, MarkerState::Partial, MarkerState::Lost] {
        for owner in [Owner::of(INO, GENERATION + 1), Owner::of(INO + 1, GENERATION)] {
            let raw = RawAttributes { marker: Some(marker(state, owner)), ..own(state, None) };
            assert_eq!(judge(&raw, &stat(10, 20), Some(GENERATION)), Err(Unjudged::Foreign));
            judge(&raw, &stat(10, 20), None).expect("nobody can tell");
        }
    }
}

#[test]
fn an_unreadable_marker_or_record_is_an_error_never_resident() {
    let raw = RawAttributes { marker: Some(vec![0; 64]), ..RawAttributes::default() };
    let error = judge(&raw, &stat(10, 20), None).expect_err("unreadable").to_string();
    assert!(error.starts_with("unreadable marker: "), "{error}");
    let raw = RawAttributes { record: Some(vec![0; 3]), ..RawAttributes::default() };
    let error = judge(&raw, &stat(10, 20), None).expect_err("unreadable").to_string();
    assert!(error.starts_with("unreadable record: "), "{error}");
    let raw = RawAttributes { record: Some(vec![0; 3]), ..own(MarkerState::Offline, None) };
    let facts = facts(&raw, &stat(10, 20));
    assert_eq!(facts.state, FileState::Offline, "the marker is good");
    assert!(facts.detail.contains("unreadable record"));
}
