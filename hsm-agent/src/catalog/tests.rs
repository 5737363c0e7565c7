use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;
use crate::core::{DataVersion, FileKey, FileState, ObjectId};

fn key(n: u64) -> FileKey {
    FileKey { kind: 1, bytes: n.to_le_bytes().into() }
}

fn row(n: u64, state: FileState) -> FileRow {
    FileRow {
        key: key(n),
        object: Some(object(n)),
        state,
        version: DataVersion { generation: u64::MAX, size: 1000 + n, mtime_ns: -1, ctime_ns: 2 },
        local_bytes: Some(4096),
        path_hint: b"dir/na\nme\xff".to_vec(),
        archived_at_ns: Some(3),
    }
}

fn object(n: u64) -> ObjectId {
    ObjectId(u128::from(n).to_be_bytes())
}

fn intent(n: u64, op: IntentOp) -> NewIntent {
    NewIntent { op, key: key(n), object: object(n), started_ns: 5, path_hint: b"hint".to_vec() }
}

fn fresh() -> (TempDir, Catalog) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let catalog = Catalog::open(&dir.path().join("pool.db")).expect("open");
    (dir, catalog)
}

fn upsert(catalog: &Catalog, rows: Vec<FileRow>) {
    catalog.commit(&Batch { upserts: rows, ..Batch::default() }).expect("commit");
}

#[test]
fn rows_round_trip_and_are_replaced() {
    let (_dir, catalog) = fresh();
    let bare = FileRow {
        object: None,
        local_bytes: None,
        archived_at_ns: None,
        path_hint: Vec::new(),
        ..row(2, FileState::Resident)
    };
    upsert(&catalog, vec![row(1, FileState::Archived), bare.clone()]);
    assert_eq!(catalog.get(&key(1)).expect("get"), Some(row(1, FileState::Archived)));
    upsert(&catalog, vec![row(1, FileState::Offline)]);
    let found = catalog.get_many(&[key(3), key(1), key(2)]).expect("get");
    assert_eq!(found, [None, Some(row(1, FileState::Offline)), Some(bare)]);
}

#[test]
fn ctimes_vouch_only_in_the_boot_that_saw_them() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("pool.db");
    let ctime = |catalog: &Catalog, n| {
        let one = catalog.get(&key(n)).expect("get").expect("row").version.ctime_ns;
        let page = catalog.page(None, 10).expect("page");
        assert!(page.iter().any(|row| row.key == key(n) && row.version.ctime_ns == one));
        assert_eq!(catalog.get_many(&[key(n)]).expect("get"), [catalog.get(&key(n)).expect("get")]);
        one
    };
    let first = Catalog::open_for(&path, b"first boot").expect("open");
    upsert(&first, vec![row(1, FileState::Archived), row(2, FileState::Archived)]);
    assert_eq!(ctime(&first, 1), 2);
    drop(first);
    let again = Catalog::open_for(&path, b"first boot").expect("open");
    assert_eq!(ctime(&again, 1), 2, "the agent restarted, the kernel did not");
    drop(again);
    let second = Catalog::open_for(&path, b"second boot").expect("open");
    assert_eq!(ctime(&second, 1), FileRow::UNKNOWN_CTIME);
    upsert(&second, vec![row(2, FileState::Archived)]);
    assert_eq!((ctime(&second, 1), ctime(&second, 2)), (FileRow::UNKNOWN_CTIME, 2));
    drop(second);
    let back = Catalog::open_for(&path, b"first boot").expect("open");
    assert_eq!(ctime(&back, 1), FileRow::UNKNOWN_CTIME, "numbers are not used twice");
    drop(back);
    drop(Catalog::open(&path).expect("open"));
    let (this, same) = (instance::boot(), instance::boot());
    assert_eq!(this, same);
}

/// The same file with another object.
fn with_object(n: u64, other: u64) -> FileRow {
    FileRow { object: Some(object(other)), ..row(n, FileState::Archived) }
}

#[test]
fn an_object_that_is_replaced_begins_its_retention() {
    let (_dir, catalog) = fresh();
    upsert(&catalog, vec![with_object(1, 100)]);
    upsert(&catalog, vec![with_object(1, 100)]);
    assert_eq!(catalog.retired_count().expect("count"), 0);
    upsert(&catalog, vec![with_object(1, 101)]);
    catalog.set_complete(true).expect("complete");
    assert_eq!(catalog.retired_before(i64::MAX).expect("retired"), [object(100)]);
    assert_eq!(
        catalog.retired_before(1_700_000_000_000_000_000).expect("retired"),
        [],
        "not before"
    );
}

#[test]
fn what_was_seen_earlier_does_not_undo_an_archive() {
    let (_dir, catalog) = fresh();
    let note = |row: FileRow, known: Option<u64>| {
        let notes = vec![Note { row, known: known.map(object) }];
        catalog.commit(&Batch { notes, ..Batch::default() }).expect("commit");
        catalog.get(&key(1)).expect("get").and_then(|row| row.object)
    };
    assert_eq!(note(with_object(1, 100), None), Some(object(100)), "a file that nobody knew");
    upsert(&catalog, vec![with_object(1, 101)]);
    assert_eq!(note(with_object(1, 100), Some(100)), Some(object(101)), "a late word of a recall");
    assert_eq!(note(with_object(1, 102), None), Some(object(101)), "a late word of a scan");
    catalog.set_complete(true).expect("complete");
    assert_eq!(catalog.retired_before(i64::MAX).expect("retired"), [object(100)]);
    // A power cut has taken a record back: what the inode names counts.
    assert_eq!(note(with_object(1, 100), Some(101)), Some(object(100)));
    assert_eq!(catalog.retired_before(i64::MAX).expect("retired"), [object(101)]);
}

#[test]
fn totals_follow_every_change() {
    let (_dir, catalog) = fresh();
    let expect = |state, files, bytes| {
        let totals = catalog.totals().expect("totals").of(state);
        assert_eq!(totals, StateTotals { files, bytes }, "{state}");
    };
    upsert(&catalog, (0..3).map(|n| row(n, FileState::Archived)).collect());
    expect(FileState::Archived, 3, 3003);
    let grown = FileRow {
        version: DataVersion { size: 5, ..row(0, FileState::Archived).version },
        ..row(0, FileState::Archived)
    };
    upsert(&catalog, vec![row(1, FileState::Offline), grown]);
    expect(FileState::Archived, 2, 1007);
    expect(FileState::Offline, 1, 1001);
    catalog
        .commit(&Batch {
            gone: vec![(key(2), Some(object(2))), (key(9), None)],
            ..Batch::default()
        })
        .expect("commit");
    expect(FileState::Archived, 1, 5);
    catalog.clear_files().expect("clear");
    expect(FileState::Archived, 0, 0);
    expect(FileState::Offline, 0, 0);
}

#[test]
fn totals_survive_sums_beyond_63_bits() {
    let (_dir, catalog) = fresh();
    let huge = |n| FileRow {
        version: DataVersion { size: i64::MAX as u64, ..row(n, FileState::Archived).version },
        ..row(n, FileState::Archived)
    };
    upsert(&catalog, vec![huge(1), huge(2)]);
    let totals = catalog.totals().expect("totals").of(FileState::Archived);
    assert_eq!((totals.files, totals.bytes), (2, u64::MAX));
}

#[test]
fn walking_visits_each_wanted_file_once() {
    let (_dir, catalog) = fresh();
    let state = |n| if n % 3 == 0 { FileState::Offline } else { FileState::Archived };
    upsert(&catalog, (0..3000).map(|n| row(n, state(n))).collect());
    let count = |states: &[FileState]| {
        let mut seen = std::collections::HashSet::new();
        catalog
            .for_each(states, |row| {
                assert!(seen.insert(row.key), "visited once");
                ControlFlow::Continue(())
            })
            .expect("walk");
        seen.len()
    };
    assert_eq!(count(&[]), 3000);
    assert_eq!(count(&[FileState::Offline]), 1000);
    assert_eq!(count(&[FileState::Dirty, FileState::Lost]), 0);
    let mut visited = 0;
    let stop = |_| {
        visited += 1;
        ControlFlow::Break(())
    };
    catalog.for_each(&[], stop).expect("walk");
    assert_eq!(visited, 1);
}

#[test]
fn an_intent_is_open_until_the_batch_that_finishes_it() {
    let (_dir, catalog) = fresh();
    let new = [intent(1, IntentOp::Archive), intent(2, IntentOp::Release)];
    let ids = catalog.begin(&new).expect("begin");
    let open = catalog.open_intents().expect("intents");
    assert_eq!(open.iter().map(|i| i.id).collect::<Vec<_>>(), ids);
    assert_eq!(open.into_iter().map(|i| i.what).collect::<Vec<_>>(), new);
    let batch = Batch {
        upserts: vec![row(2, FileState::Offline)],
        finished: vec![ids[1]],
        ..Batch::default()
    };
    catalog.commit(&batch).expect("commit");
    assert_eq!(catalog.open_intents().expect("intents").len(), 1);
    let later = catalog.begin(&new[..1]).expect("begin");
    assert!(later[0] > ids[1], "a finished number is not used again");
}

/// 2 is FULL: SQLite syncs the log at every commit. 1 is NORMAL: only before a checkpoint.
#[test]
fn intents_and_revived_objects_wait_for_the_device() {
    let (_dir, catalog) = fresh();
    let level = || -> i64 {
        let writer = catalog.writer();
        writer.conn.pragma_query_value(None, "synchronous", |row| row.get(0)).expect("pragma")
    };
    catalog.commit(&Batch { retired: vec![(object(1), 1)], ..Batch::default() }).expect("commit");
    assert_eq!(level(), 1);
    catalog.begin(&[intent(1, IntentOp::Release)]).expect("begin");
    assert_eq!(level(), 2);
    upsert(&catalog, vec![row(2, FileState::Archived)]);
    assert_eq!(level(), 1);
    upsert(&catalog, vec![row(1, FileState::Archived)]);
    assert_eq!(level(), 2, "the row names a retired object");
}

#[test]
fn closing_leaves_one_file() {
    let (dir, catalog) = fresh();
    upsert(&catalog, vec![row(1, FileState::Archived)]);
    catalog.get(&key(1)).expect("get");
    drop(catalog);
    assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
}

#[test]
fn a_failing_batch_changes_nothing() {
    let (_dir, catalog) = fresh();
    let ids = catalog.begin(&[intent(1, IntentOp::Release)]).expect("begin");
    let sabotage = "CREATE TRIGGER sabotage BEFORE DELETE ON intents BEGIN
                    SELECT raise(ABORT, 'sabotage'); END;";
    catalog.writer().conn.execute_batch(sabotage).expect("trigger");
    let batch = Batch {
        upserts: vec![row(1, FileState::Offline)],
        retired: vec![(object(9), 1)],
        finished: ids,
        ..Batch::default()
    };
    assert!(matches!(catalog.commit(&batch), Err(CatalogError::Sqlite { .. })));
    assert_eq!(catalog.get(&key(1)).expect("get"), None);
    assert_eq!(catalog.totals().expect("totals"), Totals::default());
    catalog.set_complete(true).expect("complete");
    assert_eq!(catalog.retired_before(100).expect("retired"), []);
    assert_eq!(catalog.open_intents().expect("intents").len(), 1);
}

#[test]
fn rebuilding_keeps_intents_and_retired_objects() {
    let (dir, catalog) = fresh();
    catalog.begin(&[intent(1, IntentOp::Release)]).expect("begin");
    let batch = Batch {
        upserts: vec![row(1, FileState::Archived)],
        retired: vec![(object(9), 10)],
        ..Batch::default()
    };
    catalog.commit(&batch).expect("commit");
    catalog.clear_files().expect("clear");
    drop(catalog);
    let catalog = Catalog::open(&dir.path().join("pool.db")).expect("open again");
    assert_eq!(catalog.get(&key(1)).expect("get"), None);
    assert_eq!(catalog.open_intents().expect("intents").len(), 1);
    catalog.set_complete(true).expect("complete");
    assert_eq!(catalog.retired_before(11).expect("retired"), [object(9)]);
}

#[test]
fn only_what_nothing_refers_to_is_garbage() {
    let (_dir, catalog) = fresh();
    let retired = (1..=4).map(|n| (object(n), 10 * n as i64)).collect();
    catalog.commit(&Batch { retired, ..Batch::default() }).expect("commit");
    let garbage = |ns| catalog.retired_before(ns).expect("retired");
    assert_eq!(catalog.retired_count().expect("count"), 4);
    assert_eq!(garbage(100), [], "an index that is not complete condemns nothing");
    catalog.set_complete(true).expect("complete");
    assert_eq!(garbage(20), [object(1)], "retention");
    assert_eq!(garbage(100).len(), 4);
    upsert(&catalog, vec![row(1, FileState::Offline)]);
    catalog.begin(&[intent(2, IntentOp::Release)]).expect("begin");
    catalog.commit(&Batch { unretired: vec![object(3)], ..Batch::default() }).expect("commit");
    assert_eq!(garbage(100), [object(4)]);
    let again = vec![(object(4), 1), (object(1), 1)];
    catalog.commit(&Batch { retired: again, ..Batch::default() }).expect("commit");
    assert_eq!(garbage(100), [object(4)], "a row names the other one");
    assert_eq!(garbage(20), [], "retiring again never shortens the retention time");
    catalog.forget_retired(&[object(4)]).expect("forget");
    assert_eq!(garbage(100), []);
}

#[test]
fn the_database_is_private() {
    let (dir, catalog) = fresh();
    upsert(&catalog, vec![row(1, FileState::Archived)]);
    for entry in fs::read_dir(dir.path()).expect("list") {
        let entry = entry.expect("entry");
        let mode = entry.metadata().expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{:?}", entry.file_name());
    }
}

#[test]
fn a_newer_schema_is_left_alone_and_named() {
    let (dir, catalog) = fresh();
    catalog.writer().conn.pragma_update(None, "user_version", 7).expect("pragma");
    drop(catalog);
    let path = dir.path().join("pool.db");
    let text = Catalog::open(&path).expect_err("refused").to_string();
    for part in [path.to_str().expect("utf-8"), "version 7", "`hsm scan --rebuild`"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn another_programs_database_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("other.db");
    let other = rusqlite::Connection::open(&path).expect("open");
    other.execute_batch("CREATE TABLE theirs (x)").expect("create");
    assert!(matches!(Catalog::open(&path), Err(CatalogError::Foreign { .. })));
}

#[test]
fn a_full_disk_changes_nothing_and_passes() {
    let (_dir, catalog) = fresh();
    let pages = |most: i64| {
        let writer = catalog.writer();
        writer.conn.pragma_update(None, "max_page_count", most).expect("pragma");
    };
    let used = catalog.writer().conn.pragma_query_value(None, "page_count", |row| row.get(0));
    let many: Vec<_> = (0..1000).map(|n| row(n, FileState::Archived)).collect();
    pages(used.expect("pragma"));
    let full = catalog.commit(&Batch { upserts: many.clone(), ..Batch::default() });
    assert!(matches!(full, Err(CatalogError::Full { .. })), "{full:?}");
    assert_eq!(catalog.totals().expect("totals"), Totals::default());
    let new: Vec<_> = (0..1000).map(|n| intent(n, IntentOp::Release)).collect();
    assert!(matches!(catalog.begin(&new), Err(CatalogError::Full { .. })));
    assert_eq!(catalog.open_intents().expect("intents"), []);
    pages(1 << 20);
    upsert(&catalog, many);
    assert_eq!(catalog.totals().expect("totals").of(FileState::Archived).files, 1000);
}

fn assert_tells_to_rebuild(error: &CatalogError, path: &Path) {
    let text = error.to_string();
    assert!(matches!(error, CatalogError::Corrupt { .. }), "{text}");
    for part in [path.to_str().expect("utf-8"), "`hsm scan --rebuild`"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn damage_is_reported_with_the_remedy() {
    let (dir, catalog) = fresh();
    upsert(&catalog, (0..5000).map(|n| row(n, FileState::Archived)).collect());
    drop(catalog);
    let path = dir.path().join("pool.db");
    let length = fs::metadata(&path).expect("stat").len();
    let mut file = fs::OpenOptions::new().write(true).open(&path).expect("open");
    file.seek(SeekFrom::Start(length / 2 / 4096 * 4096)).expect("seek");
    file.write_all(&[0xee; 65536]).expect("write");
    let catalog = Catalog::open(&path).expect("the damage is not in the first pages");
    assert_tells_to_rebuild(&catalog.check().expect_err("damaged"), &path);
    let walk = catalog.for_each(&[], |_| ControlFlow::Continue(()));
    assert_tells_to_rebuild(&walk.expect_err("damaged"), &path);
    drop(catalog);
    fs::write(&path, [0xee; 8192]).expect("write");
    assert_tells_to_rebuild(&Catalog::open(&path).expect_err("damaged"), &path);
}

#[test]
fn a_value_that_no_version_wrote_is_damage() {
    let (_dir, catalog) = fresh();
    upsert(&catalog, vec![row(1, FileState::Archived)]);
    catalog.writer().conn.execute_batch("UPDATE files SET state = 77").expect("update");
    let error = catalog.get(&key(1)).expect_err("unknown state");
    assert_tells_to_rebuild(&error, catalog.path());
    catalog.writer().conn.execute_batch("UPDATE files SET state = 1, key = x'01'").expect("update");
    let error = catalog.page(None, 10).expect_err("short key");
    assert_tells_to_rebuild(&error, catalog.path());
}

/// Run with `cargo test -p hsm-agent --lib catalog -- --ignored --nocapture release_batch`.
#[test]
#[ignore = "a measurement"]
fn release_batch_of_ten_thousand() {
    let (_dir, catalog) = fresh();
    for round in 0..5 {
        let rows = (0..10_000).map(|n| row(n, FileState::Offline));
        let batch = Batch { upserts: rows.collect(), ..Batch::default() };
        let new: Vec<_> = (0..10_000).map(|n| intent(n, IntentOp::Release)).collect();
        let start = std::time::Instant::now();
        let finished = catalog.begin(&new).expect("begin");
        let begun = start.elapsed();
        catalog.commit(&Batch { finished, ..batch }).expect("commit");
        println!("round {round}: begin {begun:?}, begin + commit {:?}", start.elapsed());
    }
}

/// A scan looks at all rows before it removes those of files that are gone, or have no copy.
#[test]
fn a_row_that_changed_since_it_was_seen_stays() {
    let (_dir, catalog) = fresh();
    let archived_anew = FileRow { object: Some(object(9)), ..row(1, FileState::Archived) };
    let upserts = vec![archived_anew.clone(), row(2, FileState::Archived)];
    catalog.commit(&Batch { upserts, ..Batch::default() }).expect("commit");
    let gone = vec![(key(1), Some(object(1))), (key(2), Some(object(2)))];
    let retired = vec![(object(1), 5), (object(2), 5)];
    catalog.commit(&Batch { gone, retired, ..Batch::default() }).expect("commit");
    assert_eq!(catalog.get(&key(1)).expect("get"), Some(archived_anew));
    assert_eq!(catalog.get(&key(2)).expect("get"), None);
    assert_eq!(catalog.retired_count().expect("count"), 2);
}
