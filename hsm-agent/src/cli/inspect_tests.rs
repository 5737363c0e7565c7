use super::*;
use crate::core::{DataVersion, ObjectId};
use crate::marker::{MarkerFlags, Owner};

fn stat(size: u64, mtime_ns: i64) -> Stat {
    Stat {
        mode: libc::S_IFREG | 0o644,
        uid: 0,
        gid: 0,
        links: 1,
        ino: 1,
        dev: (1, 1),
        size,
        allocated: 0,
        atime_ns: 0,
        mtime_ns,
        ctime_ns: 0,
    }
}

fn record(policy: PolicyFlags) -> Record {
    let version = DataVersion { generation: 1, size: 10, mtime_ns: 20, ctime_ns: 30 };
    let archived = ArchivedCopy { object: ObjectId([7; 16]), version, archived_at_ns: 5 };
    Record { archived: Some(archived), policy }
}

const CHUNK: u64 = 1 << 20;

fn marker(state: MarkerState) -> Marker {
    Marker {
        object: ObjectId([7; 16]),
        size: 3 * CHUNK,
        epoch: 9,
        owner: Owner::of(1, 1),
        chunk_shift: 20,
        state,
        flags: MarkerFlags::empty(),
    }
}

fn state_of(found: &Attributes, stat: &Stat) -> FileState {
    judge(found, stat).expect("readable").state
}

#[test]
fn without_a_marker_the_record_decides() {
    let none = Attributes::default();
    assert_eq!(state_of(&none, &stat(10, 20)), FileState::Resident);
    let found = Attributes { record: Some(record(PolicyFlags::PINNED).encode().into()), ..none };
    assert_eq!(state_of(&found, &stat(10, 20)), FileState::Archived);
    assert_eq!(state_of(&found, &stat(11, 20)), FileState::Dirty);
    assert_eq!(state_of(&found, &stat(10, 21)), FileState::Dirty);
    let facts = judge(&found, &stat(10, 20)).expect("readable");
    assert!(facts.policy.contains(PolicyFlags::PINNED));
    assert_eq!(facts.object, Some(ObjectId([7; 16])));
}

#[test]
fn a_policy_alone_is_still_resident() {
    let policy = Record { archived: None, policy: PolicyFlags::NOARCHIVE };
    let found = Attributes { record: Some(policy.encode().into()), ..Attributes::default() };
    assert_eq!(state_of(&found, &stat(10, 20)), FileState::Resident);
}

#[test]
fn a_marker_decides_whatever_the_record_says() {
    let with = |state, map: Option<Vec<u8>>| Attributes {
        marker: Some(marker(state).encode().into()),
        record: Some(record(PolicyFlags::empty()).encode().into()),
        map,
    };
    let size = stat(10, 20);
    assert_eq!(state_of(&with(MarkerState::Offline, None), &size), FileState::Offline);
    assert_eq!(state_of(&with(MarkerState::Lost, None), &size), FileState::Lost);
    let mut map = ResidencyMap::empty(9, 3 * CHUNK, 20).expect("fits");
    map.set(1);
    let partial = with(MarkerState::Partial, Some(map.encode()));
    assert_eq!(state_of(&partial, &size), FileState::Partial);
    for bad in [None, Some(vec![1, 2, 3])] {
        assert_eq!(state_of(&with(MarkerState::Partial, bad), &size), FileState::Offline);
    }
}

#[test]
fn an_unreadable_marker_or_record_is_an_error_never_resident() {
    let found = Attributes { marker: Some(vec![0; 64]), ..Attributes::default() };
    let error = judge(&found, &stat(10, 20)).expect_err("unreadable");
    assert!(error.starts_with("unreadable marker: "), "{error}");
    let found = Attributes { record: Some(vec![0; 3]), ..Attributes::default() };
    let error = judge(&found, &stat(10, 20)).expect_err("unreadable");
    assert!(error.starts_with("unreadable record: "), "{error}");
    let found = Attributes {
        marker: Some(marker(MarkerState::Offline).encode().into()),
        record: Some(vec![0; 3]),
        map: None,
    };
    let facts = judge(&found, &stat(10, 20)).expect("the marker is good");
    assert_eq!(facts.state, FileState::Offline);
    assert!(facts.detail.contains("unreadable record"));
}

#[test]
fn the_innermost_pool_names_the_marker() {
    let name = |text: &str| CString::new(text).expect("no NUL");
    let dir = tempfile::tempdir().expect("tempdir");
    let outer = dir.path().canonicalize().expect("real");
    let inner = outer.join("inner");
    std::fs::create_dir(&inner).expect("mkdir");
    std::os::unix::fs::symlink(&inner, outer.join("link")).expect("symlink");
    let names = MarkerNames {
        pools: vec![(outer.clone(), name("security.o")), (inner.clone(), name("security.i"))],
        default: name("security.d"),
    };
    assert_eq!(names.for_path(&outer.join("f")), c"security.o");
    assert_eq!(names.for_path(&inner.join("f")), c"security.i");
    assert_eq!(names.for_path(&outer.join("link/f")), c"security.i");
    assert_eq!(names.for_path(Path::new("/f")), c"security.d");
}

#[test]
fn other_things_than_files_are_refused_unopened() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).expect("symlink");
    let refused = |path: &Path| look(path, c"security.bpf.hsm").expect_err("refused");
    assert_eq!(refused(dir.path()).0, Reason::NotRegular);
    assert_eq!(refused(&dir.path().join("link")).1, "is a symbolic link");
    assert_eq!(refused(&dir.path().join("none")).0, Reason::NotFound);
}
