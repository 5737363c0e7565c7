//! A child process begins and commits without pause and says so; it is killed; nothing that it
//! reported may be missing.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::core::{DataVersion, FileKey, FileState, ObjectId};

const CHILD: &str = "catalog::crash_tests::child_that_gets_killed";
const PATH_VARIABLE: &str = "HSM_TEST_CRASH_CATALOG";

fn row(n: u64) -> FileRow {
    FileRow {
        key: FileKey { kind: 1, bytes: n.to_be_bytes().into() },
        object: Some(ObjectId([1; 16])),
        state: FileState::Offline,
        version: DataVersion { generation: 0, size: 1, mtime_ns: 0, ctime_ns: 0 },
        local_bytes: None,
        path_hint: vec![b'x'; 100],
        archived_at_ns: None,
    }
}

fn intents(rows: &[FileRow]) -> Vec<NewIntent> {
    let new = |row: &FileRow| NewIntent {
        op: IntentOp::Release,
        key: row.key.clone(),
        object: ObjectId([1; 16]),
        started_ns: 0,
        path_hint: Vec::new(),
    };
    rows.iter().map(new).collect()
}

/// Says `begun`, `finishing`, `finished` with the first and last intent of each batch.
#[test]
#[ignore = "the child process of the next test"]
fn child_that_gets_killed() {
    let Some(path) = std::env::var_os(PATH_VARIABLE) else { return };
    let catalog = Catalog::open(Path::new(&path)).expect("open");
    let mut out = std::io::stdout();
    let mut say = |what: &str, ids: &[IntentId]| {
        let (first, last) = (ids[0].0, ids[ids.len() - 1].0);
        writeln!(out, "\n@{what} {first} {last}").and_then(|()| out.flush()).expect("say");
    };
    // One batch is always under way while the next begins, so that a kill finds open intents.
    let mut under_way: Option<Batch> = None;
    for round in 0u64.. {
        let upserts: Vec<_> = (0..7).map(|n| row(round * 7 + n)).collect();
        let finished = catalog.begin(&intents(&upserts)).expect("begin");
        say("begun", &finished);
        let next = Batch { upserts, finished, ..Batch::default() };
        if let Some(batch) = under_way.replace(next) {
            say("finishing", &batch.finished);
            catalog.commit(&batch).expect("commit");
            say("finished", &batch.finished);
        }
    }
}

fn spawn(path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env(PATH_VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn")
}

#[derive(Default)]
struct Said {
    begun: HashSet<i64>,
    finishing: HashSet<i64>,
    finished: HashSet<i64>,
}

/// Reads what the child says, kills it after `lines`, and reads the rest.
fn listen_and_kill(path: &Path, lines: usize) -> Said {
    let mut child = spawn(path);
    let out = BufReader::new(child.stdout.take().expect("pipe"));
    let mut said = Said::default();
    let mut count = 0;
    for line in out.lines() {
        let line = line.expect("line");
        let Some(words) = line.strip_prefix('@') else { continue };
        let words: Vec<_> = words.split(' ').collect();
        let [what, first, last] = words[..] else { break };
        let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) else { break };
        match what {
            "begun" => said.begun.extend(first..=last),
            "finishing" => said.finishing.extend(first..=last),
            _ => said.finished.extend(first..=last),
        }
        count += 1;
        if count == lines {
            child.kill().expect("kill");
        }
    }
    child.wait().expect("wait");
    said
}

#[test]
fn a_killed_process_loses_no_intent_that_it_reported() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for round in 0..12 {
        let path = dir.path().join(format!("{round}.db"));
        let said = listen_and_kill(&path, 2 + round * 5);
        let catalog = Catalog::open(&path).expect("open after the kill");
        catalog.check().expect("intact");
        let open: HashSet<_> =
            catalog.open_intents().expect("intents").iter().map(|i| i.id.0).collect();
        let unfinished: Vec<_> = said.begun.difference(&said.finishing).collect();
        assert!(!unfinished.is_empty(), "the child was killed before it began");
        assert!(unfinished.iter().all(|id| open.contains(id)), "begun, not finished, gone");
        assert!(said.finished.is_disjoint(&open), "finished, and open again");
        let rows = said.finished.iter().map(|id| row(*id as u64 - 1).key);
        let rows = catalog.get_many(&rows.collect::<Vec<_>>()).expect("rows");
        assert!(rows.iter().all(Option::is_some), "an outcome without its row");
        assert_eq!(open.len() % 7, 0, "part of a batch");
    }
}
