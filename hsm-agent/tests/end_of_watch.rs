//! A group ends without letting anybody pass, whoever reads it or does not. Needs root and loop mounts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hsm_agent::holder::{Ending, Numbers, Turns};
use hsm_agent::sys::fanotify::{
    Class, EVENT_BUFFER, EventMask, Group, GroupOptions, Verdict, events,
};
use hsm_lab::loopfs::IMAGE_BYTES;
use hsm_lab::{FsKind, LoopFs};

/// Long enough for an opener to be queued, and for an end that does not wait to be over.
const A_WHILE: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// A file system with a group that watches it.
struct Lab {
    group: Group,
    turns: Turns,
    fs: LoopFs,
    _dir: tempfile::TempDir,
}

type Opener = Receiver<io::Result<()>>;

impl Lab {
    fn new() -> Self {
        let root = rustix::process::geteuid().is_root();
        assert!(root, "needs root: sudo -E cargo test --test end_of_watch");
        let dir = tempfile::tempdir().unwrap();
        let fs = LoopFs::create(FsKind::Ext4, dir.path(), "end", IMAGE_BYTES).unwrap();
        fs::write(fs.path().join("f"), b"data").unwrap();
        let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true }).unwrap();
        let root = File::open(fs.path()).unwrap();
        group.watch_filesystem(root.as_fd(), EventMask::OPEN_PERM).unwrap();
        Self { group, turns: Turns::new(), fs, _dir: dir }
    }

    fn file(&self) -> PathBuf {
        self.fs.path().join("f")
    }

    /// Some programs that open the file, all waiting.
    fn openers(&self, n: usize) -> Vec<Opener> {
        let openers = (0..n).map(|_| opener(&self.file())).collect();
        thread::sleep(A_WHILE);
        openers
    }

    /// Takes one event and does not answer it.
    fn hand_out(&self) -> OwnedFd {
        let mut buf = [0u8; EVENT_BUFFER / 2];
        let n = self.group.read(&mut buf).unwrap();
        let event = events(&buf[..n]).next().unwrap().unwrap();
        event_fd(event.fd)
    }

    fn end(&self, numbers: Numbers) -> usize {
        let ending = Ending { name: "lab", group: &self.group, turns: &self.turns, numbers };
        ending.deny_all(|| (), |_| false)
    }
}

fn opener(path: &Path) -> Opener {
    let (tell, told) = mpsc::channel();
    let path = path.to_owned();
    let _detached: JoinHandle<()> =
        thread::spawn(move || drop(tell.send(File::open(path).map(drop))));
    told
}

#[expect(unsafe_code, reason = "takes ownership of an event descriptor")]
fn event_fd(fd: i32) -> OwnedFd {
    assert!(fd >= 0);
    // SAFETY: the reader of the group owns the descriptors of its events and takes each once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[track_caller]
fn assert_denied(openers: Vec<Opener>) {
    for opener in openers {
        assert!(opener.recv_timeout(LONG).unwrap().is_err(), "somebody was let pass");
    }
}

/// What this is about: without an end in order the kernel lets pass.
#[test]
fn closing_a_group_lets_pass_who_waits() {
    let lab = Lab::new();
    let openers = lab.openers(2);
    let Lab { group, fs: _fs, _dir, .. } = lab;
    drop(group);
    for opener in openers {
        opener.recv_timeout(LONG).unwrap().unwrap();
    }
}

/// Nobody reads: the queue is read here. One event was handed out before, and forgotten.
#[test]
fn who_waits_in_a_group_that_nobody_reads_is_denied() {
    for numbers in [Numbers::Own, Numbers::Any] {
        let lab = Lab::new();
        let openers = lab.openers(12);
        let forgotten = lab.hand_out();
        assert_eq!(lab.end(numbers), 12, "{numbers:?}");
        assert_denied(openers);
        drop(forgotten);
        // The watch has ended.
        File::open(lab.file()).unwrap();
    }
}

/// A reader between reading and answering: as long as that lasts, the group must not be closed.
#[test]
fn a_group_stays_open_as_long_as_a_reader_has_not_answered() {
    let lab = Lab::new();
    let openers = lab.openers(1);
    let turn = lab.turns.begin();
    let event = lab.hand_out();
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let (turns, group) = (&lab.turns, &lab.group);
        let ends = scope.spawn(move || {
            let ending = Ending { name: "lab", group, turns, numbers: Numbers::Own };
            ending.deny_all(|| tell.send(()).unwrap_or_default(), |_| false)
        });
        thread::sleep(A_WHILE);
        told.try_recv().unwrap();
        assert!(!ends.is_finished(), "it did not wait for the reader");
        // The late answer finds nobody: the number was denied.
        assert!(lab.group.answer(event.as_raw_fd(), Verdict::Allow).is_err());
        drop(turn);
        assert_eq!(ends.join().unwrap(), 1);
    });
    assert_denied(openers);
}

/// Somebody who is not to be denied is let pass, and does not count.
#[test]
fn own_accesses_pass() {
    let lab = Lab::new();
    let own = lab.openers(1);
    let (turns, group) = (&lab.turns, &lab.group);
    let ending = Ending { name: "lab", group, turns, numbers: Numbers::Any };
    let me = rustix::process::getpid().as_raw_nonzero().get();
    assert_eq!(ending.deny_all(|| (), |pid| pid == me), 0);
    own[0].recv_timeout(LONG).unwrap().unwrap();
}
