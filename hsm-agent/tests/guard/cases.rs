//! What the guard promises, case by case.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData};
use hsm_agent::bpf::{Answer, Disarmed, Guard, Maps, Mode};
use hsm_agent::sys::fanotify::{Class, EventMask, Group, GroupOptions};
use hsm_agent::sys::lease::{self, LeaseKind};
use hsm_agent::sys::{bpf, signal, xattr};
use hsm_common::filter::{ANSWERS, Counter, SERVER};
use hsm_common::marker::{MAP_XATTR, MARKER_XATTR, RECORD_XATTR};
use hsm_lab::FsKind;
use hsm_lab::run::{Run, Running, kill};
use rustix::fs::OFlags;
use rustix::process::Signal;

use crate::counts::assert_count;
use crate::kernel_lab::access::{errno, python};
use crate::kernel_lab::{Case, EAGAIN, Lab, assert_errno, marker, wait_for};
use crate::server::own_error;

/// `EPERM` of `<errno.h>`.
const EPERM: i32 = 1;

macro_rules! cases {
    ($($name:ident,)*) => {
        /// All cases.
        pub(crate) const ALL: &[Case] = &[$(Case { name: stringify!($name), run: $name },)*];
    };
}

cases! {
    every_program_is_loaded_and_pinned,
    marked_files_are_refused_without_an_agent,
    marked_files_are_refused_in_guard_mode,
    online_files_work_and_are_cached,
    other_file_systems_are_not_touched,
    attributes_are_the_agents,
    cached_verdicts_follow_the_marker,
    installing_twice_changes_nothing,
    programs_outlive_their_loader,
    unpinning_restores,
    programs_of_another_version_that_serve_are_seen,
    the_answer_online_passes,
    the_answer_with_an_error_refuses,
    a_silent_server_is_given_up,
    a_dead_server_is_not_waited_for,
    a_killed_opener_leaves_at_once,
    a_signal_for_another_thread_ends_no_wait,
    an_answer_reaches_only_whom_it_is_for,
    a_watch_lets_fanotify_ask,
    a_strangers_watch_is_not_enough,
    who_waited_for_a_lease_is_looked_at_again,
    nobody_gets_a_file_whose_release_died,
    what_passed_before_says_nothing_of_the_next_file,
    who_opens_by_xfs_own_handle_waits_for_the_file,
    truncation_waits_while_there_is_progress,
    truncation_of_online_files_needs_no_agent,
    truncation_without_a_path_has_the_file_recalled,
    guard_mode_needs_watch_and_server,
    a_server_that_was_not_asked_does_not_vouch,
    a_server_whose_end_nobody_saw_serves_no_more,
    unreadable_files_are_asked_about,
    fiemap_of_a_marked_file_is_refused,
    an_exemption_is_not_inherited,
    another_version_replaces_this_one,
    a_marked_file_brings_the_second_net_back,
    nobody_passes_where_the_second_net_does_not_come,
    who_is_under_way_keeps_the_second_net,
    an_open_that_failed_keeps_the_second_net_until_its_thread_ends,
    only_who_serves_takes_the_second_net_away,
}

const READ: &str = "open(p, 'rb').read()";
const READ_WRITE: &str = "os.close(os.open(p, os.O_RDWR))";
const WRITE: &str = "os.close(os.open(p, os.O_WRONLY))";
const TRUNCATING: &str = "os.close(os.open(p, os.O_WRONLY | os.O_TRUNC))";
const TRUNCATE: &str = "os.truncate(p, 3)";
const EXECUTE: &str = "subprocess.run([p], check=True)";
const PATH_REOPEN: &str =
    "f = os.open(p, os.O_PATH); os.close(os.open(f'/proc/self/fd/{f}', os.O_RDONLY))";

const ACCESSES: &[&str] = &[READ, READ_WRITE, WRITE, TRUNCATING, TRUNCATE, EXECUTE, PATH_REOPEN];

/// One thread opens the file; another sends its process signals, and takes them. Tells the error number of the open.
const OPEN_UNDER_SIGNALS: &str = "
import os, signal, sys, threading
error = signals = 0

def handle(*_):
    global signals
    signals += 1

def access():
    global error
    try:
        open(sys.argv[1], 'rb')
    except OSError as e:
        error = e.errno

signal.signal(signal.SIGUSR1, handle)
opener = threading.Thread(target=access)
opener.start()
while opener.is_alive():
    os.kill(os.getpid(), signal.SIGUSR1)
print(error, signals > 10)
";

fn all_accesses(path: &Path, wanted: i32) -> Result<()> {
    ACCESSES.iter().try_for_each(|access| assert_errno(access, path, wanted))
}

fn executable(path: &Path) -> Result<()> {
    Ok(rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o755))?)
}

fn every_program_is_loaded_and_pinned(lab: &Lab) -> Result<()> {
    let status = Guard::status(&lab.settings.base)?;
    ensure!(status.programs.len() == 11, "{:?}", status.programs);
    ensure!(status.current == Some(true) && status.others.is_empty(), "{status:?}");
    for program in aya::programs::loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or("?").to_owned();
        if status.programs.iter().any(|full| full.starts_with(&name)) {
            let size = (program.size_translated(), program.size_jitted());
            let verified = program.verified_instruction_count();
            eprintln!("{name}: verified {verified:?} instructions, bytes {size:?}");
        }
    }
    Ok(())
}

fn marked_files_are_refused_without_an_agent(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    executable(&path)?;
    lab.cover(Mode::Filter)?;
    all_accesses(&path, EAGAIN)?;
    ensure!(fs::metadata(&path)?.len() == 17, "stat works");
    assert_count(lab, Counter::Requested, 0)
}

fn marked_files_are_refused_in_guard_mode(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    executable(&path)?;
    lab.cover(Mode::Guard)?;
    all_accesses(&path, EAGAIN)
}

fn online_files_work_and_are_cached(lab: &Lab) -> Result<()> {
    lab.cover(Mode::Filter)?;
    let path = lab.file("online")?;
    executable(&path)?;
    all_accesses(&path, 0).or_else(|e| {
        // Truncated to three bytes, it is no script any more.
        if format!("{e:#}").contains("subprocess") { Ok(()) } else { Err(e) }
    })?;
    let before = lab.count(Counter::PassedCached)?;
    for _ in 0..1000 {
        drop(File::open(&path)?);
    }
    let cached = lab.count(Counter::PassedCached)? - before;
    ensure!(cached >= 1000, "{cached} of 1000 opens used the cached verdict");
    assert_count(lab, Counter::Requested, 0)
}

fn other_file_systems_are_not_touched(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    fs::read(&path).context("not covered")?;
    ensure!(!lab.maps.uncover(lab.uuid)?, "it was not covered");
    lab.cover(Mode::Filter)?;
    assert_errno(READ, &path, EAGAIN)?;
    ensure!(lab.maps.uncover(lab.uuid)?, "it was covered");
    fs::read(&path).context("not covered any more")?;
    ensure!(lab.maps.covered()?.is_empty(), "nothing is covered");
    Ok(())
}

fn attributes_are_the_agents(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    let other = lab.file("other")?;
    lab.cover(Mode::Filter)?;
    for name in [MARKER_XATTR, RECORD_XATTR, MAP_XATTR] {
        assert_errno(&format!("os.setxattr(p, '{name}', b'x')"), &other, EPERM)?;
        assert_errno(&format!("os.removexattr(p, '{name}')"), &path, EPERM)?;
    }
    for name in ["trusted.other", "security.bpf.hsm.x", "user.x"] {
        assert_errno(&format!("os.setxattr(p, '{name}', b'x')"), &other, 0)?;
        assert_errno(&format!("os.removexattr(p, '{name}')"), &other, 0)?;
    }
    assert_count(lab, Counter::XattrDenied, 6)
}

fn cached_verdicts_follow_the_marker(lab: &Lab) -> Result<()> {
    lab.cover(Mode::Filter)?;
    let path = lab.file("changing")?;
    for _ in 0..3 {
        assert_errno(READ, &path, 0)?;
        assert_errno(READ, &path, 0)?;
        lab.mark(&path)?;
        assert_errno(READ, &path, EAGAIN)?;
        assert_errno(READ, &path, EAGAIN)?;
        lab.unmark(&path)?;
    }
    ensure!(lab.count(Counter::Invalidated)? == 6, "each change counts once");
    Ok(())
}

fn installing_twice_changes_nothing(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let before = Guard::pinned(&lab.settings.base)?;
    let maps = Guard::install(&lab.settings)?;
    ensure!(maps.covered()? == [(lab.uuid, Mode::Filter)], "coverage stays");
    ensure!(before == Guard::pinned(&lab.settings.base)?, "the same files");
    assert_errno(READ, &path, EAGAIN)
}

fn programs_outlive_their_loader(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    // This process installed them; take away what it still has open by looking from another one.
    let again = Maps::open(&lab.settings.base)?.context("they are pinned")?;
    ensure!(again.covered()?.len() == 1, "still covered");
    let server = lab.serve("online", &path)?;
    assert_errno(READ, &path, EAGAIN)?;
    drop(server);
    Ok(())
}

fn unpinning_restores(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    assert_errno(READ, &path, EAGAIN)?;
    let would = Guard::pinned(&lab.settings.base)?;
    let removed = Guard::unpin(&lab.settings.base)?;
    ensure!(would == removed, "{would:?}\n{removed:?}");
    // Done, unless a child of a neighbouring case has a copy of a descriptor until it runs its own program.
    let end = Instant::now() + Duration::from_secs(10);
    while errno(READ, &path)? != 0 {
        ensure!(Instant::now() < end, "still refused");
    }
    ensure!(Maps::open(&lab.settings.base)?.is_none(), "nothing is pinned");
    ensure!(Guard::unpin(&lab.settings.base)?.is_empty(), "nothing is left to be removed");
    Ok(())
}

/// A marker that stays is refused by the second check, whatever the agent said.
/// Another version's maps are ours here, under another name. (What else it has pinned, nobody needs to know.)
fn programs_of_another_version_that_serve_are_seen(lab: &Lab) -> Result<()> {
    let (path, base) = (lab.marked("marked")?, &lab.settings.base);
    let installed = Guard::status(base)?.installed.context("installed")?;
    let ours = installed.with_file_name("maps").join(SERVER);
    let other = base.join("v1-other");
    fs::create_dir_all(other.join("maps"))?;
    bpf::pin(bpf::open_pinned(&ours)?.as_fd(), &other.join("maps").join(SERVER))?;
    ensure!(Guard::relied_on(base)?.is_none(), "nobody serves");
    let _server = lab.serve("silent", &path)?;
    ensure!(Guard::relied_on(base)? == Some(other), "somebody does");
    Ok(())
}

fn the_answer_online_passes(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("online", &path)?;
    assert_errno(READ, &path, EAGAIN)?;
    assert_count(lab, Counter::PassedAnswered, 1)?;
    assert_count(lab, Counter::DeniedPostOpen, 1)
}

fn the_answer_with_an_error_refuses(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("refuse", &path)?;
    assert_errno(READ, &path, 5)?;
    assert_errno(TRUNCATE, &path, 5)?;
    assert_count(lab, Counter::Requested, 2)?;
    ensure!(lab.maps.waiting()? == 0, "nobody waits any more");
    Ok(())
}

fn a_silent_server_is_given_up(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("silent", &path)?;
    let begin = Instant::now();
    ensure!(open_errno(&path) == EAGAIN, "not EAGAIN");
    let waited = begin.elapsed();
    ensure!(waited >= Duration::from_millis(990), "gave up after {waited:?}");
    ensure!(waited < Duration::from_secs(5), "gave up only after {waited:?}");
    assert_count(lab, Counter::DeniedTimeout, 1)
}

fn a_dead_server_is_not_waited_for(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let mut server = lab.serve("silent", &path)?;
    let opener = std::thread::spawn({
        let path = path.clone();
        move || (open_errno(&path), Instant::now())
    });
    wait_for(|| Ok(lab.maps.waiting()? == 1))?;
    let killed = Instant::now();
    server.kill();
    let (error, end) = opener.join().ok().context("the opener panicked")?;
    ensure!(error == EAGAIN, "error {error}");
    ensure!(end - killed < Duration::from_millis(500), "waited {:?}", end - killed);
    assert_count(lab, Counter::DeniedNoServer, 1)?;
    wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    let begin = Instant::now();
    ensure!(open_errno(&path) == EAGAIN, "refused at once");
    ensure!(begin.elapsed() < Duration::from_millis(200), "waited {:?}", begin.elapsed());
    assert_count(lab, Counter::DeniedNoServer, 2)?;
    // Nobody's patience ended.
    assert_count(lab, Counter::DeniedTimeout, 0)?;
    assert_count(lab, Counter::ServerGone, 1)
}

fn a_killed_opener_leaves_at_once(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("silent", &path)?;
    let mut opener = Run::new("cat").args([&path]).start()?;
    wait_for(|| Ok(lab.maps.waiting()? == 1))?;
    let begin = Instant::now();
    opener.kill();
    wait_for(|| Ok(!opener.is_running()?))?;
    ensure!(begin.elapsed() < Duration::from_millis(500), "ended after {:?}", begin.elapsed());
    ensure!(lab.maps.waiting()? == 0, "its entry is gone");
    // Before his patience ended.
    assert_count(lab, Counter::Killed, 1)?;
    assert_count(lab, Counter::DeniedTimeout, 0)
}

/// A thread that left for it would have no signal to handle, and its program an error number that there is not. (Seen
/// where there are two processors: with one, a signal is hardly ever pending while the other thread runs.)
fn a_signal_for_another_thread_ends_no_wait(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("silent", &path)?;
    let output = python(OPEN_UNDER_SIGNALS, &path)?;
    ensure!(output.text().trim() == format!("{EAGAIN} True"), "{}", output.describe());
    assert_count(lab, Counter::DeniedTimeout, 1)
}

/// An answer that replaced what the waiting program looks at could be another's by the time it is read: the kernel
/// uses a replaced element of a hash map again at once.
fn an_answer_reaches_only_whom_it_is_for(lab: &Lab) -> Result<()> {
    const FILES: usize = 12;
    let paths = (0..FILES).map(|n| lab.marked(&format!("f{n}"))).collect::<Result<Vec<_>>>()?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("each", &paths[0])?;
    let end = Instant::now() + Duration::from_secs(5);
    let cut = |path: &Path| -> Result<u64> {
        let wanted = own_error(fs::metadata(path)?.ino());
        let mut answers = 0;
        while Instant::now() < end {
            let got = hsm_lab::truncate(path, 3).err().and_then(|error| error.raw_os_error());
            ensure!(got == Some(wanted), "answer {answers} of {path:?}: {got:?}, not {wanted}");
            answers += 1;
        }
        Ok(answers)
    };
    let answers = std::thread::scope(|scope| {
        let cutters = paths.iter().map(|path| scope.spawn(|| cut(path))).collect::<Vec<_>>();
        cutters
            .into_iter()
            .map(|cutter| cutter.join().ok().context("panicked")?)
            .collect::<Result<Vec<_>>>()
    })?;
    eprintln!("{} answers", answers.iter().sum::<u64>());
    // Those that came too late, too. The openers may or may not have come to wait.
    ensure!(!lab.maps.answer(u64::MAX, Answer::Online)?, "nobody waits under that number");
    for _ in 0..20 {
        let openers =
            paths.iter().map(|path| Run::new("truncate").args(["-s3"]).args([path]).start());
        let openers = openers.collect::<Result<Vec<_>>>()?;
        openers.into_iter().for_each(|mut opener| opener.kill());
    }
    wait_for(|| Ok(lab.maps.waiting()? == 0 && answers_left(lab)? == 0))
}

fn answers_left(lab: &Lab) -> Result<usize> {
    let pinned = Guard::pinned(&lab.settings.base)?;
    let path = pinned.iter().find(|path| path.ends_with(ANSWERS)).context("not pinned")?;
    let map = MapData::from_pin(path).and_then(Map::from_map_data)?;
    Ok(aya::maps::HashMap::<_, u64, u64>::try_from(map)?.keys().count())
}

fn a_watch_lets_fanotify_ask(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("watch", &path)?;
    assert_errno(READ, &path, 0)?;
    assert_errno(READ, &path, 0)?;
    assert_count(lab, Counter::Requested, 1)?;
    assert_count(lab, Counter::PassedWatched, 1)
}

fn a_strangers_watch_is_not_enough(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("stranger", &path)?;
    assert_errno(READ, &path, EAGAIN)?;
    assert_count(lab, Counter::PassedWatched, 1)?;
    assert_count(lab, Counter::DeniedPostOpen, 1)
}

/// The verdict was "online" when it was let into the queue for the lease, and is not any more.
fn who_waited_for_a_lease_is_looked_at_again(lab: &Lab) -> Result<()> {
    let path = lab.file("file")?;
    lab.cover(Mode::Guard)?;
    signal::block(&[libc::SIGIO])?;
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR] {
        ensure!(open_errno(&path) == 0, "the verdict is cached");
        let agent = OpenOptions::new().read(true).write(true).open(&path)?;
        ensure!(lease::set(&agent, LeaseKind::Write)?, "somebody has it open");
        let passed = lab.count(Counter::PassedCached)?;
        let opener = std::thread::spawn({
            let path = path.clone();
            move || rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).map(drop)
        });
        wait_for(|| Ok(lab.count(Counter::PassedCached)? > passed))?;
        lab.as_agent(|| Ok(xattr::set(&agent, &marker(), b"marker")?))?;
        lease::unset(&agent)?;
        let result = opener.join().ok().context("the opener panicked")?;
        ensure!(result == Err(rustix::io::Errno::AGAIN), "{flags:?}: {result:?}");
        lab.unmark(&path)?;
    }
    assert_count(lab, Counter::DeniedPostOpen, 3)
}

/// A writer and readers against releases whose agent dies after it has set the marker. Who gets the
/// file then, with the lease that died too, writes what the next agent's recall overwrites.
fn nobody_gets_a_file_whose_release_died(lab: &Lab) -> Result<()> {
    let path = lab.path("file");
    let mut content = [7u8; 4096];
    content[..8].copy_from_slice(&1u64.to_ne_bytes());
    fs::write(&path, content)?;
    lab.cover(Mode::Guard)?;
    let agent = lab.serve("dies", &path)?;
    let (end, written) = (AtomicBool::new(false), AtomicU64::new(1));
    let denied = || lab.count(Counter::DeniedPostOpen);
    let opens = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&end, &path, &written));
        let readers: Vec<_> =
            (0..3).map(|_| scope.spawn(|| read_until(&end, &path, &written))).collect();
        let begin = Instant::now();
        // How often an opener comes at the moment in question is chance.
        let done = loop {
            std::thread::sleep(Duration::from_millis(100));
            let denied = denied();
            let enough = denied.as_ref().map_or(true, |&denied| denied > 10)
                && begin.elapsed() > Duration::from_secs(5);
            if enough || begin.elapsed() > Duration::from_secs(90) {
                break denied;
            }
        };
        end.store(true, Ordering::SeqCst);
        let readers = readers.into_iter().map(|t| t.join().ok().context("a reader panicked")?);
        let reads = readers.sum::<Result<u64>>();
        let writes = writer.join().ok().context("the writer panicked")?;
        Ok::<_, anyhow::Error>((writes?, reads?, done?))
    })?;
    drop(agent);
    let (writes, reads, denied) = opens;
    eprintln!("{writes} writes and {reads} reads; refused after the lease: {denied}");
    ensure!(writes > 10 && reads > 10 && denied > 10, "not tried: {opens:?}");
    Ok(())
}

/// Counts in the file; how often.
fn write_until(end: &AtomicBool, path: &Path, written: &AtomicU64) -> Result<u64> {
    let mut writes = 0;
    while !end.load(Ordering::SeqCst) {
        let Some(file) = try_open(OpenOptions::new().read(true).write(true), path)? else {
            continue;
        };
        let expected = written.load(Ordering::SeqCst);
        let got = number(&file)?;
        ensure!(got == expected, "{got} after {expected} was written");
        file.write_all_at(&(expected + 1).to_ne_bytes(), 0)?;
        drop(file);
        written.store(expected + 1, Ordering::SeqCst);
        writes += 1;
    }
    Ok(writes)
}

/// Finds what was written before it opened, or something newer; how often.
fn read_until(end: &AtomicBool, path: &Path, written: &AtomicU64) -> Result<u64> {
    let mut reads = 0;
    while !end.load(Ordering::SeqCst) {
        let before = written.load(Ordering::SeqCst);
        let Some(file) = try_open(OpenOptions::new().read(true), path)? else { continue };
        let got = number(&file)?;
        ensure!(got >= before, "{got} after {before} was written");
        reads += 1;
    }
    Ok(reads)
}

fn try_open(how: &OpenOptions, path: &Path) -> Result<Option<File>> {
    match how.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.raw_os_error() == Some(EAGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn number(file: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The kernel gives the next open the `struct file` that the last one has just given back.
fn what_passed_before_says_nothing_of_the_next_file(lab: &Lab) -> Result<()> {
    const TIMES: u64 = 100;
    let online = lab.file("online")?;
    let marked = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("stranger", &marked)?;
    for _ in 0..TIMES {
        ensure!(open_errno(&online) == 0, "the online file was refused");
        let error = open_errno(&marked);
        ensure!(error == EAGAIN, "the marked file: error {error}");
    }
    assert_count(lab, Counter::DeniedPostOpen, TIMES)
}

/// `XFS_IOC_PATH_TO_HANDLE` and `XFS_IOC_OPEN_BY_HANDLE` with a `struct xfs_fsop_handlereq`.
const XFS_OPEN: &str = r"
import ctypes, fcntl, os, struct, sys
path = ctypes.create_string_buffer(sys.argv[1].encode())
handle, length = ctypes.create_string_buffer(64), ctypes.c_uint32(64)
mount = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
request = lambda n: (3 << 30) | (56 << 16) | (ord('X') << 8) | n
address = ctypes.addressof
fcntl.ioctl(mount, request(105), struct.pack('=I4xQI4xQI4xQQ', 0, address(path), 0, 0, 0,
            address(handle), address(length)))
try:
    fcntl.ioctl(mount, request(107), struct.pack('=I4xQI4xQI4xQQ', 0, 0, os.O_RDONLY,
                address(handle), length.value, 0, 0))
    print(0)
except OSError as e:
    print(e.errno)
";

/// No second check follows these opens: somebody else's watch must not let them pass, nor the server's.
fn who_opens_by_xfs_own_handle_waits_for_the_file(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    if lab.fs.kind() != FsKind::Xfs {
        return Ok(());
    }
    lab.cover(Mode::Filter)?;
    for (how, wanted) in [("stranger", EAGAIN), ("watch", EAGAIN), ("online", 0)] {
        let mut server = lab.serve(how, &path)?;
        let out = python(XFS_OPEN, &path)?;
        ensure!(out.text().trim() == wanted.to_string(), "{how}: {}", out.describe());
        server.kill();
        wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    }
    Ok(())
}

fn truncation_waits_while_there_is_progress(lab: &Lab) -> Result<()> {
    let path = lab.file("online")?;
    lab.cover(Mode::Filter)?;
    let _server = lab.serve("beats", &path)?;
    let begin = Instant::now();
    assert_errno(TRUNCATE, &path, 0)?;
    ensure!(begin.elapsed() > Duration::from_secs(3), "ended after {:?}", begin.elapsed());
    assert_count(lab, Counter::TruncateAsked, 1)
}

fn truncation_of_online_files_needs_no_agent(lab: &Lab) -> Result<()> {
    let path = lab.file("online")?;
    for mode in [Mode::Filter, Mode::Guard] {
        lab.cover(mode)?;
        assert_errno(TRUNCATE, &path, 0)?;
    }
    assert_count(lab, Counter::TruncateAsked, 0)
}

/// Overlayfs changes the size of a file of its upper layer as nfsd does: no path, nobody is asked, and the
/// inode is locked.
fn truncation_without_a_path_has_the_file_recalled(lab: &Lab) -> Result<()> {
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(lab.path(name))?;
    }
    let file = lab.marked("upper/file")?;
    let merged = lab.path("merged");
    let layer = |name: &str| format!("{name}dir={}", lab.path(name).display());
    let options = ["lower", "upper", "work"].map(layer).join(",");
    let mount = Run::new("mount").args(["-t", "overlay", "-o", &options, "overlay"]);
    mount.args([&merged]).ok()?;
    let result = truncation_above(lab, &file, &merged.join("file"));
    Run::new("umount").args([&merged]).ok()?;
    result
}

fn truncation_above(lab: &Lab, file: &Path, above: &Path) -> Result<()> {
    lab.cover(Mode::Filter)?;
    assert_errno(TRUNCATE, above, EAGAIN)?;
    assert_count(lab, Counter::RecallWanted, 0)?;
    let _server = lab.serve("filesystem", file)?;
    for (mode, asked) in [(Mode::Filter, 1), (Mode::Guard, 2)] {
        lab.cover(mode)?;
        assert_errno(TRUNCATE, above, EAGAIN)?;
        assert_count(lab, Counter::RecallWanted, asked)?;
    }
    lab.unmark(file)?;
    assert_errno(TRUNCATE, above, 0)?;
    assert_count(lab, Counter::RecallWanted, 2)
}

fn guard_mode_needs_watch_and_server(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Guard)?;
    let mut server = lab.serve("filesystem", &path)?;
    assert_errno(READ, &path, 0)?;
    // Its listener was asked, and let it pass without a recall.
    assert_errno(TRUNCATE, &path, EAGAIN)?;
    assert_errno("os.truncate(p, 0)", &path, 0)?;
    server.kill();
    wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    assert_errno(READ, &path, EAGAIN)
}

/// In guard mode: the agent dies while an opener waits for its answer, and a new one serves by the time that the open
/// is through.
fn a_server_that_was_not_asked_does_not_vouch(lab: &Lab) -> Result<()> {
    let (marked, online) = (lab.marked("marked")?, lab.file("online")?);
    lab.cover(Mode::Guard)?;
    let _server = lab.serve("successor", &marked)?;
    for turn in 1..=3 {
        assert_errno(READ, &marked, EAGAIN)?;
        assert_count(lab, Counter::DeniedPostOpen, turn)?;
        assert_errno(READ, &online, 0)?;
    }
    Ok(())
}

/// The kernel may leave out the program at the end of threads: here it does so always. A dead server's word is
/// worth nothing before the eyes of another listener either.
fn a_server_whose_end_nobody_saw_serves_no_more(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Guard)?;
    let mut server = lab.serve("silent", &path)?;
    let links = Guard::status(&lab.settings.base)?.installed.context("installed")?;
    detach_link(&links.join("server_gone"))?;
    let (group, root) = (
        Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?,
        File::open(lab.fs.path())?,
    );
    group.watch_filesystem(root.as_fd(), EventMask::OPEN_PERM)?;
    server.kill();
    wait_for(|| Ok(!server.is_running()?))?;
    ensure!(lab.maps.server()?.is_none(), "the agent's view");
    assert_errno(READ, &path, EAGAIN)?;
    assert_count(lab, Counter::DeniedUnwatched, 1)?;
    group.unwatch_filesystem(root.as_fd(), EventMask::OPEN_PERM)?;
    lab.cover(Mode::Filter)?;
    ensure!(open_errno(&path) == EAGAIN, "refused");
    assert_count(lab, Counter::DeniedNoServer, 1)?;
    assert_count(lab, Counter::DeniedTimeout, 0)?;
    assert_count(lab, Counter::ServerGone, 0)
}

/// When this returns, the program does not run any more.
fn detach_link(path: &Path) -> Result<()> {
    let link = bpf::open_pinned(path)?;
    fs::remove_file(path)?;
    drop(link);
    Ok(())
}

/// Whoever may write but not read cannot have the marker read in his name.
fn unreadable_files_are_asked_about(lab: &Lab) -> Result<()> {
    let path = lab.file("online")?;
    rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o622))?;
    lab.cover(Mode::Filter)?;
    let write = "os.setgroups([]); os.setgid(65534); os.setuid(65534); \
                 os.close(os.open(p, os.O_WRONLY))";
    assert_errno(write, &path, EAGAIN)?;
    let server = lab.serve("online", &path)?;
    assert_errno(write, &path, 0)?;
    assert_count(lab, Counter::Requested, 1)?;
    drop(server);
    wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    assert_errno(write, &path, 0).context("the answer is cached")
}

fn fiemap_of_a_marked_file_is_refused(lab: &Lab) -> Result<()> {
    let path = lab.file("changing")?;
    lab.cover(Mode::Filter)?;
    // From the beginning to the end; the number of extents.
    const PROGRAM: &str = "import fcntl\n\
        fcntl.ioctl(0, 0xC020660B, bytearray(8) + bytearray(b'\\xff' * 8) + bytearray(16))";
    let fiemap = |file: &File| -> Result<String> {
        let output = std::process::Command::new("/usr/bin/python3")
            .args(["-c", PROGRAM])
            .stdin(file.try_clone()?)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = File::open(&path)?;
    ensure!(fiemap(&file)?.is_empty(), "an online file tells");
    lab.as_agent(|| Ok(xattr::set(&file, &marker(), b"marker")?))?;
    let errors = fiemap(&file)?;
    ensure!(errors.contains("BlockingIOError"), "{errors}");
    assert_count(lab, Counter::IoctlDenied, 1)
}

fn an_exemption_is_not_inherited(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    lab.as_agent(|| {
        fs::read(&path).context("exempt")?;
        assert_errno(READ, &path, EAGAIN).context("a child of the agent")
    })?;
    ensure!(open_errno(&path) == EAGAIN, "the exemption was taken back");
    ensure!(!lab.maps.is_exempt(std::process::id())?, "it says so");
    Ok(())
}

fn another_version_replaces_this_one(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    // Other limits: other programs on the same maps.
    let mut settings = lab.settings.clone();
    settings.open_limit = Duration::from_secs(2);
    let maps = Guard::install(&settings)?;
    ensure!(maps.covered()?.len() == 1, "the same maps");
    assert_errno(READ, &path, EAGAIN)?;
    // Another record: other maps, into which the coverage is copied.
    settings.record = "trusted.hsm.other".into();
    let maps = Guard::install(&settings)?;
    ensure!(maps.covered()? == [(lab.uuid, Mode::Filter)], "copied");
    assert_errno(READ, &path, EAGAIN)?;
    let status = Guard::status(&settings.base)?;
    ensure!(status.others.is_empty() && status.programs.len() == 11, "{status:?}");
    Ok(())
}

/// Takes the second net away, as the engine of this server.
fn detach(lab: &Lab, server: &Running) -> Result<()> {
    let begin = Instant::now();
    let result = lab.maps.disarm(server.pid())?;
    eprintln!("detached after {:.1?}", begin.elapsed());
    ensure!(result == Disarmed::Yes, "{result:?}");
    ensure!(!lab.maps.is_armed()?, "it says so");
    let status = Guard::status(&lab.settings.base)?;
    ensure!(status.programs.len() == 10 && !status.armed, "{status:?}");
    Ok(())
}

fn a_marked_file_brings_the_second_net_back(lab: &Lab) -> Result<()> {
    let (path, online) = (lab.marked("marked")?, lab.file("online")?);
    for (mode, how) in [(Mode::Filter, "watch"), (Mode::Guard, "filesystem")] {
        lab.cover(mode)?;
        let server = lab.serve(how, &path)?;
        detach(lab, &server)?;
        assert_errno(READ, &online, 0)?;
        ensure!(!lab.maps.is_armed()?, "an online file needs none");
        assert_errno(READ, &path, 0)?;
        ensure!(lab.maps.is_armed()? && lab.maps.in_flight()? == 0, "attached, and through");
        ensure!(Guard::status(&lab.settings.base)?.programs.len() == 11, "all of them");
        if mode == Mode::Filter {
            lab.mark(&path)?;
        }
    }
    // In this process, to tell how long it takes.
    let server = lab.serve("silent", &path)?;
    for _ in 0..5 {
        detach(lab, &server)?;
        let begin = Instant::now();
        lab.maps.arm()?;
        eprintln!("attached after {:.1?}", begin.elapsed());
    }
    assert_errno(READ, &online, 0)
}

fn nobody_passes_where_the_second_net_does_not_come(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    // A watch, so that only the second net is missing.
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    group.watch_filesystem(File::open(lab.fs.path())?.as_fd(), EventMask::OPEN_PERM)?;
    for mode in [Mode::Guard, Mode::Filter] {
        lab.cover(mode)?;
        let server = lab.serve("silent", &path)?;
        detach(lab, &server)?;
        // The server does nothing, and then it dies.
        for kills in [false, true] {
            let mut opener = Run::new("cat").args([&path]).start()?;
            wait_for(|| Ok(lab.maps.waiting()? == 1))?;
            ensure!(lab.maps.in_flight()? == 1, "he counts while he waits");
            if kills {
                kill(server.pid().cast_signed(), Signal::KILL);
            }
            wait_for(|| Ok(!opener.is_running()?))?;
            let out = opener.finish()?;
            ensure!(out.stdout.is_empty() && out.code() != 0, "{}", out.describe());
            ensure!(lab.maps.in_flight()? == 0, "and then no more");
        }
        drop(server);
        wait_for(|| Ok(lab.maps.server()?.is_none()))?;
        assert_errno(READ, &path, EAGAIN)?;
        ensure!(!group.has_events() && !lab.maps.is_armed()?, "somebody came through");
    }
    Ok(())
}

fn who_is_under_way_keeps_the_second_net(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    for (turn, mode) in (1..).zip([Mode::Guard, Mode::Filter]) {
        lab.cover(mode)?;
        let mut server = lab.serve("mute", &path)?;
        let mut opener = Run::new("cat").args([&path]).start()?;
        wait_for(|| Ok(lab.maps.in_flight()? == 1))?;
        let mut killed = Run::new("cat").args([&path]).start()?;
        wait_for(|| Ok(lab.maps.in_flight()? == 2))?;
        killed.kill();
        wait_for(|| Ok(lab.maps.in_flight()? == 1))?;
        let result = lab.maps.disarm(server.pid())?;
        ensure!(result == Disarmed::InFlight(1) && lab.maps.is_armed()?, "{result:?}");
        // The kernel lets him pass.
        server.kill();
        wait_for(|| Ok(!opener.is_running()?))?;
        let out = opener.finish()?;
        ensure!(out.stdout.is_empty() && out.code() != 0, "{}", out.describe());
        assert_count(lab, Counter::DeniedPostOpen, turn)?;
        ensure!(lab.maps.in_flight()? == 0, "he is through");
        wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    }
    Ok(())
}

fn an_open_that_failed_keeps_the_second_net_until_its_thread_ends(lab: &Lab) -> Result<()> {
    let (path, other) = (lab.marked("marked")?, lab.marked("other")?);
    lab.cover(Mode::Guard)?;
    let server = lab.serve("denies", &path)?;
    let in_flight = |wanted| wait_for(|| Ok(lab.maps.in_flight()? == wanted));
    // A thread fails three times, and counts once; its process lives on.
    const PROGRAM: &str = "import sys, threading, time\n\
        def opens():\n\
        \x20   for p in sys.argv[1:] * 3:\n\
        \x20       try:\n\
        \x20           open(p)\n\
        \x20       except OSError:\n\
        \x20           pass\n\
        \x20   sys.stdin.readline()\n\
        thread = threading.Thread(target=opens)\n\
        thread.start()\n\
        thread.join()\n\
        time.sleep(1000)\n";
    let mut program = std::process::Command::new("/usr/bin/python3")
        .args(["-c", PROGRAM])
        .args([&path, &other])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    let result = (|| {
        wait_for(|| Ok(lab.count(Counter::PassedWatched)? == 6))?;
        in_flight(1)?;
        let result = lab.maps.disarm(server.pid())?;
        ensure!(result == Disarmed::InFlight(1), "{result:?}");
        drop(program.stdin.take());
        in_flight(0).context("the thread has ended")?;
        detach(lab, &server)
    })();
    program.kill()?;
    program.wait()?;
    result
}

fn only_who_serves_takes_the_second_net_away(lab: &Lab) -> Result<()> {
    let path = lab.marked("marked")?;
    lab.cover(Mode::Filter)?;
    let me = std::process::id();
    let result = lab.maps.disarm(me)?;
    ensure!(result == Disarmed::NotServing && lab.maps.is_armed()?, "{result:?}");
    let mut server = lab.serve("watch", &path)?;
    ensure!(lab.maps.disarm(me)? == Disarmed::NotServing, "somebody else serves");
    detach(lab, &server)?;
    // Programs that replace these begin armed, whatever they find.
    let mut settings = lab.settings.clone();
    settings.open_limit = Duration::from_secs(2);
    let maps = Guard::install(&settings)?;
    ensure!(maps.is_armed()? && maps.in_flight()? == 0, "the same maps");
    detach(lab, &server)?;
    server.kill();
    wait_for(|| Ok(lab.maps.server()?.is_none()))?;
    assert_errno(READ, &path, EAGAIN)?;
    // Of other maps it is not known who is under way.
    settings.record = "trusted.hsm.other".into();
    let maps = Guard::install(&settings)?;
    ensure!(maps.is_armed()? && maps.in_flight()? == 1, "armed for ever");
    maps.serve()?;
    ensure!(maps.disarm(me)? == Disarmed::InFlight(1), "it stays");
    Ok(())
}

/// The error of an open in this process.
fn open_errno(path: &Path) -> i32 {
    match OpenOptions::new().read(true).open(path) {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}
