//! What hsm takes for granted of the kernel, tried on the running one. Needs root and loop mounts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hsm_agent::marker::{MAP_XATTR, MARKER_XATTR, RECORD_XATTR};
use hsm_agent::sys::fanotify::{
    Class, EVENT_BUFFER, Event, EventMask, Group, GroupOptions, MarkTarget, Verdict, events,
};
use hsm_agent::sys::invisible::InvisibleOpener;
use hsm_agent::sys::lease::{self, LeaseKind};
use hsm_agent::sys::{handle, inode, space, xattr};
use rustix::fs::{Mode, OFlags};

const WATCHED: EventMask = EventMask::OPEN_PERM.union(EventMask::PRE_ACCESS);

struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn new(fs: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(400 << 20).unwrap();
        let mount = dir.path().join("mnt");
        fs::create_dir(&mount).unwrap();
        run(Command::new(format!("mkfs.{fs}")).arg("-q").arg(&image).stdout(Stdio::null()));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Whoever looks at all processes' descriptors, as a starting agent does, has them open for a moment.
        for _ in 0..50 {
            if Command::new("umount").arg(self.path()).status().unwrap().success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        run(Command::new("umount").arg("-l").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

/// Who starts processes all the time is alone: each has a copy of every descriptor until its exec, and the other tests
/// take leases.
static CHILDREN: RwLock<()> = RwLock::new(());

fn on_each_fs(test: impl Fn(&Path)) {
    let _with_others = CHILDREN.read().unwrap_or_else(PoisonError::into_inner);
    alone_on_each_fs(test);
}

fn alone_on_each_fs(test: impl Fn(&Path)) {
    let root = rustix::process::geteuid().is_root();
    assert!(root, "needs root: sudo -E cargo test --test kernel_facts");
    for fs in ["ext4", "xfs", "btrfs"] {
        eprintln!("{fs}");
        let mount = Mount::new(fs);
        test(&mount.path());
    }
}

fn watching(dir: &Path) -> Group {
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: false }).unwrap();
    group.watch_filesystem(File::open(dir).unwrap().as_fd(), WATCHED).unwrap();
    group
}

/// Answers ALLOW to everything and counts, until the test ends.
struct Listener {
    group: Arc<Group>,
    seen: Arc<AtomicUsize>,
}

impl Listener {
    fn on(dir: &Path) -> Self {
        let group = Arc::new(watching(dir));
        let seen = Arc::new(AtomicUsize::new(0));
        let (g, s) = (Arc::clone(&group), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut buf = [0u8; EVENT_BUFFER];
            while let Ok(n) = g.read(&mut buf) {
                for event in events(&buf[..n]).map(Result::unwrap) {
                    s.fetch_add(1, Ordering::SeqCst);
                    let fd = event_fd(&event);
                    g.answer(event.fd, Verdict::Allow).unwrap();
                    drop(fd);
                }
            }
        });
        Self { group, seen }
    }

    fn seen(&self) -> usize {
        self.seen.swap(0, Ordering::SeqCst)
    }
}

fn one_event(group: &Group) -> (Event, OwnedFd) {
    let mut buf = [0u8; EVENT_BUFFER];
    let n = group.read(&mut buf).unwrap();
    let event = events(&buf[..n]).next().unwrap().unwrap();
    (event, event_fd(&event))
}

#[expect(unsafe_code, reason = "takes ownership of an event descriptor")]
fn event_fd(event: &Event) -> OwnedFd {
    assert!(event.fd >= 0, "{event:?}");
    // SAFETY: the reader of the group owns the descriptors of its events and takes each once.
    unsafe { OwnedFd::from_raw_fd(event.fd) }
}

fn o_path(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn invisible_descriptors_raise_no_events() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, vec![7u8; 100_000]).unwrap();
        let listener = Listener::on(dir);
        let path = o_path(&file);
        listener.group.ignore_inode(MarkTarget::Path(path.as_fd()), WATCHED).unwrap();
        let fd = InvisibleOpener::new().unwrap().open(path.as_fd()).unwrap();
        assert_eq!(listener.seen(), 0, "an ignored inode raised an event");
        assert!(listener.group.unignore_inode(MarkTarget::Fd(fd.as_fd()), WATCHED).unwrap());
        // A lease is held while the data goes: an event here would wait for ourselves.
        take_soon(fd.as_fd(), LeaseKind::Write);
        let before = inode::stat(&fd).unwrap();
        xattr::set(&fd, c"security.bpf.hsm", b"x").unwrap();
        space::punch_all(&fd, before.size).unwrap();
        inode::restore_times(&fd, &before).unwrap();
        take_soon(fd.as_fd(), LeaseKind::Write);
        let after = inode::stat(&fd).unwrap();
        assert_eq!((before.mtime_ns, before.size), (after.mtime_ns, after.size));
        assert!(after.allocated <= 8192, "{after:?}");
        assert_eq!(listener.seen(), 0, "invisible IO raised an event");
        drop(fd);
        let mut b = [0u8; 10];
        File::open(&file).unwrap().read_at(&mut b, 5).unwrap();
        assert_eq!(listener.seen(), 2, "the mark must be in force again");
    });
}

/// Until its exec a child has a copy of every descriptor: meanwhile our own close is not the last one, and is told later.
#[test]
fn an_invisible_descriptor_waits_for_children_that_are_being_started() {
    let _alone = CHILDREN.write().unwrap_or_else(PoisonError::into_inner);
    alone_on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, b"data").unwrap();
        let path = o_path(&file);
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !end.load(Ordering::SeqCst) {
                        run(&mut Command::new("true"));
                    }
                });
            }
            let opener = InvisibleOpener::new().unwrap();
            let failed =
                (0..2000).filter_map(|_| opener.open(path.as_fd()).err()).collect::<Vec<_>>();
            end.store(true, Ordering::SeqCst);
            assert!(failed.is_empty(), "{} of 2000: {:?}", failed.len(), failed.first());
        });
    });
}

#[test]
fn a_read_lease_on_the_event_descriptor_tells_readers_from_writers() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, b"data").unwrap();
        let group = watching(dir);
        for (write, expected) in [(false, true), (true, false)] {
            let f = file.clone();
            let opener = std::thread::spawn(move || {
                OpenOptions::new().read(true).write(write).open(f).map(drop)
            });
            let (event, fd) = one_event(&group);
            assert_eq!(lease::set(&fd, LeaseKind::Read).unwrap(), expected, "write={write}");
            lease::unset(&fd).unwrap();
            group.answer(event.fd, Verdict::Allow).unwrap();
            opener.join().unwrap().unwrap();
        }
    });
}

/// Another test of this process may be starting a program: until its exec the child has our files open too.
fn take_soon(fd: BorrowedFd<'_>, kind: LeaseKind) {
    let end = Instant::now() + Duration::from_secs(5);
    while !lease::set(fd, kind).unwrap() {
        assert!(Instant::now() < end, "no lease on a file that nobody else has open");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_exclusive_lease_fails_while_an_opener_waits_for_its_answer() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, b"data").unwrap();
        let group = watching(dir);
        let path = o_path(&file);
        group.ignore_inode(MarkTarget::Path(path.as_fd()), WATCHED).unwrap();
        let mine = InvisibleOpener::new().unwrap().open(path.as_fd()).unwrap();
        group.unignore_inode(MarkTarget::Path(path.as_fd()), WATCHED).unwrap();
        take_soon(mine.as_fd(), LeaseKind::Write);
        let f = file.clone();
        let opener = std::thread::spawn(move || File::open(f).map(drop));
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!lease::set(&mine, LeaseKind::Write).unwrap(), "the opener was not noticed");
        lease::unset(&mine).unwrap();
        let (event, _fd) = one_event(&group);
        group.answer(event.fd, Verdict::Allow).unwrap();
        opener.join().unwrap().unwrap();
    });
}

#[test]
fn a_denial_carries_its_errno() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, b"data").unwrap();
        let group = watching(dir);
        for errno in [libc::EIO, libc::EAGAIN, libc::ENOSPC, libc::EDQUOT, libc::EBUSY] {
            let f = file.clone();
            let opener = std::thread::spawn(move || File::open(f).map(drop));
            let (event, _fd) = one_event(&group);
            group.answer(event.fd, Verdict::Deny(errno)).unwrap();
            assert_eq!(opener.join().unwrap().unwrap_err().raw_os_error(), Some(errno));
        }
    });
}

#[test]
fn handles_name_a_file_until_it_is_gone() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, b"data").unwrap();
        let mount = File::open(dir).unwrap();
        let key = handle::of_fd(o_path(&file)).unwrap();
        fs::rename(&file, dir.join("g")).unwrap();
        let mut text = String::new();
        let opened = handle::open(&mount, &key, OFlags::RDONLY).unwrap();
        File::from(opened).read_to_string(&mut text).unwrap();
        assert_eq!(text, "data");
        fs::remove_file(dir.join("g")).unwrap();
        assert!(handle::is_stale(&handle::open(&mount, &key, OFlags::RDONLY).unwrap_err()));
        File::create(dir.join("h")).unwrap().write_all(b"other").unwrap();
        let other = File::open(dir.join("h")).unwrap();
        assert!(handle::of_fd(&other).unwrap() != key, "a new file has the old identity");
    });
}

/// Kernel programs know a file system by this.
#[test]
fn a_file_system_tells_its_uuid() {
    on_each_fs(|mount| {
        let root = File::open(mount).unwrap();
        let uuid = hsm_agent::sys::fsuuid::of(&root).unwrap();
        let image = mount.parent().unwrap().join("image");
        let out = Command::new("blkid").args(["-o", "value", "-s", "UUID"]).arg(image).output();
        let text = String::from_utf8(out.unwrap().stdout).unwrap().replace('-', "");
        let hex: String = uuid.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, text.trim());
    });
    let none = hsm_agent::sys::fsuuid::of(File::open("/proc").unwrap()).unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::Unsupported);
}

/// Kernel programs tell an inode by its numbers; the holder makes a handle of them.
#[test]
fn a_handle_made_of_an_inodes_numbers_leads_to_the_file() {
    on_each_fs(|mount| {
        let root = File::open(mount).unwrap();
        let path = mount.join("file");
        fs::write(&path, b"content").unwrap();
        let file = File::open(&path).unwrap();
        // btrfs puts the subvolume's number second into its own handles.
        let own = handle::of_fd(&file).unwrap();
        let subvolume =
            own.bytes.get(8..16).map_or(0, |b| u64::from_ne_bytes(b.try_into().unwrap()));
        let generation = u32::try_from(inode::generation(&file).unwrap()).unwrap();
        let ino = inode::stat(&file).unwrap().ino;
        let numbers = handle::InodeNumbers { ino, generation, subvolume };
        let made = handle::from_numbers(&root, numbers).unwrap();
        let found = handle::open(&root, &made, OFlags::PATH).unwrap();
        assert_eq!(inode::stat(&found).unwrap().ino, ino);
        assert_eq!(handle::of_fd(&found).unwrap(), own);
        let other = handle::InodeNumbers { generation: generation ^ 1, ..numbers };
        let other = handle::from_numbers(&root, other).unwrap();
        assert!(handle::is_stale(&handle::open(&root, &other, OFlags::PATH).unwrap_err()));
    });
}

/// The state of a file is derived without opening it, which would recall it.
#[test]
fn a_handle_tells_the_generation_that_the_ioctl_tells() {
    on_each_fs(|dir| {
        for name in ["a", "b"] {
            let path = dir.join(name);
            let file = File::create(&path).unwrap();
            let seen =
                rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let key = handle::of_fd(&seen).unwrap();
            assert_eq!(key.generation(), Some(inode::generation(&file).unwrap()), "{key:?}");
        }
    });
}

/// The archive tells offline files by the list alone.
#[test]
fn the_list_of_attributes_names_all_of_ours() {
    on_each_fs(|dir| {
        let file = dir.join("f");
        fs::write(&file, "data").unwrap();
        let path = o_path(&file);
        assert!(xattr::list_at_path(path.as_fd()).unwrap().is_empty());
        let ours = [MARKER_XATTR, RECORD_XATTR, MAP_XATTR];
        for (n, name) in (1..).zip(ours) {
            let name = CString::new(name).unwrap();
            xattr::set_at_path(path.as_fd(), &name, &[7; 40]).unwrap();
            // In the inode, or with a block of its own.
            xattr::set_at_path(path.as_fd(), c"user.large", &vec![1; 250 * n]).unwrap();
            let names = xattr::list_at_path(path.as_fd()).unwrap();
            assert!(names.contains(&name), "{name:?} is not in {names:?}");
            assert_eq!(names, xattr::list(File::open(&file).unwrap()).unwrap());
        }
    });
}
