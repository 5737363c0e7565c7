//! Tier lsm-filter: what the kernel programs do for online files, and against everybody else when
//! the agent is gone.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hsm_agent::bpf::Maps;
use hsm_agent::sys::fanotify::{self, Class, EventMask, Group, GroupOptions, MarkTarget, Verdict};
use hsm_common::filter::Counter;
use hsm_lab::run::kill;
use hsm_lab::{Agent, PoolConfig, Run, Tier, patience};
use rustix::fs::{OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use super::cases;
use crate::fixture::{Pool, Sample, assert_read_fails};
use crate::helper::event_file;

const MIB: u64 = 1 << 20;
const MARKER: &str = "security.bpf.hsm";

cases! {
    online_files_raise_no_events_and_no_requests,
    files_that_left_the_cache_are_watched_again,
    without_an_agent_offline_files_refuse_and_online_files_work,
    what_the_programs_refuse_is_told_in_the_agents_log,
    only_the_agent_touches_the_marker,
    xfs_attributes_by_handle_are_closed; only Xfs,
    descriptors_of_other_listeners_show_no_zeros,
    killed_openers_leave_a_stalled_agent_at_once,
    what_root_copies_carries_no_marker,
    io_uring_opens_read_identical_bytes,
    write_only_openers_without_read_permission_get_the_file_recalled,
    executables_without_read_permission_run,
    truncation_by_path_recalls_first,
    unpinned_programs_guard_no_more,
    a_burst_of_openers_is_served,
    the_second_look_is_there_when_it_is_needed with quiet_soon,
}

/// A counter of the pool, or of the kernel programs.
fn counter(pool: &Pool, pointer: &str) -> Result<u64> {
    let status = pool.hsm.status()?;
    let value = status.pointer(pointer).with_context(|| format!("no {pointer} in {status}"))?;
    value.as_u64().with_context(|| format!("{pointer} is {value}"))
}

fn events(pool: &Pool) -> Result<u64> {
    counter(pool, "/pools/0/counters/events")
}

fn program_count(pool: &Pool, name: &str) -> Result<u64> {
    let status = pool.hsm.status()?;
    let programs = status.get("programs").and_then(|p| p.as_array()).context("no programs")?;
    let found = programs.iter().find(|p| p.get("name").is_some_and(|n| n == name));
    Ok(found.and_then(|p| p.get("count")).and_then(|c| c.as_u64()).unwrap_or(0))
}

/// Opens and reads a file many times.
fn read_often(file: &Path, times: u32) -> Result<()> {
    let mut page = [0u8; 4096];
    for _ in 0..times {
        std::io::Read::read_exact(&mut File::open(file)?, &mut page)?;
    }
    Ok(())
}

fn online_files_raise_no_events_and_no_requests(pool: &mut Pool) -> Result<()> {
    let plain = pool.file("plain", 4096)?;
    let archived = pool.file("archived", 4096)?;
    pool.hsm.must("archive", [&archived])?;
    let recalled = pool.offline_file("recalled", 4096)?;
    recalled.check()?;
    pool.assert_local(&recalled.path)?;
    // The watch of the recall is taken away at the next open.
    recalled.check()?;
    let probe = Probe::start()?;
    let before = (events(pool)?, program_count(pool, "requests")?);
    for file in [&plain, &archived, &recalled] {
        read_often(&file.path, 4000)?;
    }
    let after = (events(pool)?, program_count(pool, "requests")?);
    ensure!(before == after, "events and requests: {before:?}, then {after:?}");
    let seen = probe.hits()?;
    ensure!(seen == 0, "{seen} events for fanotify groups");
    // The probe counts at all.
    let offline = pool.offline_file("offline", 4096)?;
    let before = probe.hits()?;
    offline.check()?;
    ensure!(probe.hits()? > before, "a recall raised no event");
    let passed = program_count(pool, "open_passed_cached")?;
    ensure!(passed >= 11_990, "{passed} opens passed on a cached verdict");
    Ok(())
}

/// Counts how often the kernel hands an event of this thread to any fanotify group, independently of
/// hsm: a probe on the function that every such event goes through. Other cases run at the same time, so
/// the thread gets a name of its own and the probe a trace buffer of its own.
struct Probe {
    name: String,
}

impl Probe {
    const TRACING: &str = "/sys/kernel/tracing";

    fn start() -> Result<Self> {
        let name = format!("hsm_{}", std::process::id());
        // 15 bytes is what a thread's name can have.
        let thread = std::ffi::CString::new(name.as_str())?;
        rustix::thread::set_name(&thread)?;
        let this = Self { name };
        this.control(&format!("p:{} fanotify_handle_event", this.name))?;
        let buffer = this.buffer();
        fs::create_dir(&buffer).with_context(|| buffer.clone())?;
        let event = format!("{buffer}/events/kprobes/{}", this.name);
        fs::write(format!("{event}/filter"), format!("comm == \"{}\"", this.name))?;
        fs::write(format!("{event}/enable"), "1")?;
        Ok(this)
    }

    fn buffer(&self) -> String {
        format!("{}/instances/{}", Self::TRACING, self.name)
    }

    fn control(&self, line: &str) -> Result<()> {
        let path = format!("{}/kprobe_events", Self::TRACING);
        let mut file = OpenOptions::new().append(true).open(&path).context(path)?;
        std::io::Write::write_all(&mut file, line.as_bytes()).context(line.to_owned())
    }

    fn hits(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("{}/trace", self.buffer()))?;
        Ok(text.lines().filter(|line| line.contains("fanotify_handle_event")).count() as u64)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let removed = fs::remove_dir(self.buffer()).map_err(anyhow::Error::from);
        if let Err(error) = removed.and_then(|()| self.control(&format!("-:{}", self.name))) {
            eprintln!("a probe stays in the kernel: {error:#}");
        }
    }
}

fn files_that_left_the_cache_are_watched_again(pool: &mut Pool) -> Result<()> {
    let files: Vec<Sample> =
        (0..20).map(|i| pool.offline_file(format!("f{i}"), 8192)).collect::<Result<_>>()?;
    for file in &files[..10] {
        file.check()?;
    }
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let before = events(pool)?;
    files.iter().try_for_each(Sample::check)?;
    ensure!(events(pool)? >= before + 10, "offline files were opened without a question");
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let before = events(pool)?;
    files.iter().try_for_each(Sample::check)?;
    ensure!(events(pool)? == before, "online files raised events after they left the cache");
    Ok(())
}

fn again(result: std::io::Result<File>) -> Result<()> {
    let error = result.err().context("the open succeeded")?;
    ensure!(error.raw_os_error() == Some(Errno::AGAIN.raw_os_error()), "{error}");
    Ok(())
}

/// Kills both processes of the agent.
pub(super) fn kill_agent(pool: &mut Pool) -> Result<()> {
    let mut agent = pool.take_agent()?;
    agent.killer().kill();
    agent.kill_holder()
}

fn without_an_agent_offline_files_refuse_and_online_files_work(pool: &mut Pool) -> Result<()> {
    let offline = pool.offline_file("offline", MIB)?;
    let script = pool.path("script");
    fs::write(&script, "#!/bin/sh\necho ran\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    pool.offline(&script)?;
    let online = pool.file("online", MIB)?;
    let recalled = pool.offline_file("recalled", MIB)?;
    recalled.check()?;
    pool.assert_local(&recalled.path)?;
    kill_agent(pool)?;
    for round in 0..2 {
        let path = &offline.path;
        again(File::open(path)).context("reading")?;
        again(OpenOptions::new().read(true).write(true).open(path)).context("O_RDWR")?;
        again(OpenOptions::new().write(true).open(path)).context("O_WRONLY")?;
        again(OpenOptions::new().append(true).open(path)).context("O_APPEND")?;
        again(OpenOptions::new().write(true).truncate(true).open(path)).context("O_TRUNC")?;
        for command in ["cat \"$1\"", "cp \"$1\" \"$1.copy\"", "truncate -s 10 \"$1\""] {
            let out = Run::shell(command).args([path]).output()?;
            ensure!(out.code() != 0, "{command} succeeded: {}", out.describe());
            let text = out.describe();
            ensure!(text.contains("temporarily unavailable"), "{command}: {text}");
        }
        let cut = Run::new("/usr/bin/python3")
            .args(["-c", "import os, sys\nos.truncate(sys.argv[1], 10)"])
            .args([path])
            .output()?;
        ensure!(cut.code() != 0, "truncate(2) by path succeeded");
        ensure!(Run::new(&script).output().is_err(), "a script without its bytes was executed");
        ensure!(fs::metadata(path)?.len() == MIB, "the size changed");
        online.check()?;
        recalled.check()?;
        fs::write(pool.path(format!("new-{round}")), "new files work")?;
        fs::write(&online.path, online.content.bytes())?;
        // Once more with cold caches.
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    pool.start()?;
    offline.check()?;
    let out = Run::new(&script).ok()?;
    ensure!(out.text() == "ran\n", "{}", out.describe());
    online.check()
}

fn what_the_programs_refuse_is_told_in_the_agents_log(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("told", MIB)?;
    let online = pool.file("online", MIB)?;
    let begin = pool.agent()?.log().len();
    // A living agent says it at once.
    let forge = Run::new("setfattr").args(["-n", MARKER, "-v", "x"]).args([&online]).output()?;
    ensure!(forge.code() != 0, "a marker was forged");
    let forged = format!("change of the marker or record of {}", in_words(&online.path)?);
    says(pool.agent()?, begin, &forged)?;
    // What nobody heard is said by the next one. Nobody reads now, and nobody waits for a reader.
    kill_agent(pool)?;
    let refused = Instant::now();
    for _ in 0..200 {
        again(File::open(&file.path))?;
        online.check()?;
        thread::sleep(Duration::from_millis(10));
    }
    let seconds = refused.elapsed().as_secs() + 2;
    pool.start()?;
    let offline = in_words(&file.path)?;
    says(pool.agent()?, begin, &offline)?;
    let log = pool.agent()?.log();
    let lines: Vec<_> = log[begin..].lines().filter(|line| line.contains(&offline)).collect();
    let told = |line: &&str| line.contains("WARN") && line.contains("hsm_ebpf");
    ensure!(lines.iter().all(told), "{lines:?}");
    // 10 a second and a processor, however many there were.
    let most = 10 * seconds * thread::available_parallelism()?.get() as u64;
    ensure!(lines.len() as u64 <= most, "{} lines in {seconds} seconds", lines.len());
    file.check()
}

/// Waits until the agent's log says this, from a place on.
fn says(agent: &Agent, begin: usize, text: &str) -> Result<()> {
    until(Duration::from_secs(20), || Ok(agent.log()[begin..].contains(text)))
        .with_context(|| format!("the log does not say {text:?}"))
}

/// As the kernel programs call a file.
fn in_words(path: &Path) -> Result<String> {
    Ok(format!("inode {} of device ", fs::metadata(path)?.ino()))
}

fn only_the_agent_touches_the_marker(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let plain = pool.file("plain", 4096)?;
    fs::set_permissions(&plain.path, fs::Permissions::from_mode(0o666))?;
    for agent_lives in [true, false] {
        if !agent_lives {
            kill_agent(pool)?;
        }
        for (what, command) in [
            ("removing the marker", format!("setfattr -x {MARKER} \"$1\"")),
            ("changing the marker", format!("setfattr -n {MARKER} -v x \"$1\"")),
            ("removing the record", "setfattr -x trusted.hsm \"$1\"".to_owned()),
            ("setting a marker", format!("setfattr -n {MARKER} -v x \"$2\"")),
            ("setting a record", "setfattr -n trusted.hsm -v x \"$2\"".to_owned()),
            (
                "setting a marker as somebody",
                format!("setpriv --reuid 65534 --clear-groups setfattr -n {MARKER} -v x \"$2\""),
            ),
            (
                "setting a marker in a user namespace",
                format!("unshare -r setfattr -n {MARKER} -v x \"$2\""),
            ),
        ] {
            let out = Run::shell(&command).args([&file.path, &plain.path]).output()?;
            ensure!(out.code() != 0, "{what} worked (agent lives: {agent_lives})");
            let text = out.describe();
            ensure!(text.contains("not permitted"), "{what}: {text}");
        }
        plain.check()?;
    }
    pool.start()?;
    pool.assert_offline(&file.path)?;
    file.check()?;
    plain.check()
}

/// Removes and sets an attribute through `XFS_IOC_ATTRMULTI_BY_HANDLE`, which calls none of the hooks for
/// attributes. Numbers and layouts are those of `<xfs/xfs_fs.h>` on 64 bits.
const BY_HANDLE: &str = r#"
import ctypes, fcntl, os, struct, sys
mount, path, name, flag = sys.argv[1:]
fd = os.open(mount, os.O_RDONLY)
def text(string): return ctypes.create_string_buffer(string.encode())
def address(buffer): return ctypes.addressof(buffer)
path, name, value = text(path), text(name), text("x")
handle, length = ctypes.create_string_buffer(64), ctypes.c_uint32(64)
request = struct.pack("IxxxxQIxxxxQIxxxxQQ", fd, address(path), 0, 0, 0, address(handle), address(length))
fcntl.ioctl(fd, 0xC0385869, request)  # XFS_IOC_PATH_TO_HANDLE
worked = 0
for operation in 3, 2:  # remove, set
    op = ctypes.create_string_buffer(struct.pack("IiQQII", operation, 0, address(name), address(value), 1, int(flag)))
    request = struct.pack("IxxxxQIxxxxQIxxxxQQIxxxxQ", fd, 0, 0, address(handle), length.value, 0, 0, 1, address(op))
    try:
        fcntl.ioctl(fd, 0x4048587B, request)
        error = -struct.unpack("IiQQII", op.raw[:32])[1]
    except OSError as failed:
        error = failed.errno
    print(operation, error)
    worked += error == 0
sys.exit(0 if worked == 2 else 1)
"#;

fn xfs_attributes_by_handle_are_closed(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let mount = pool.mnt().to_path_buf();
    // `XFS_IOC_ATTR_SECURE` and `XFS_IOC_ATTR_ROOT`: the name spaces `security` and `trusted`.
    let change = |name: &str, flag: &str| {
        let python = Run::new("/usr/bin/python3").args(["-c", BY_HANDLE]);
        python.args([&mount, &file.path]).args([name, flag]).output()
    };
    for agent_lives in [true, false] {
        if !agent_lives {
            kill_agent(pool)?;
        }
        for (name, flag) in [("bpf.hsm", "8"), ("hsm", "2")] {
            let out = change(name, flag)?;
            ensure!(out.text() == "3 1\n2 1\n", "{name}: {}", out.describe());
        }
    }
    pool.start()?;
    pool.assert_offline(&file.path)?;
    file.check()?;
    // Without the programs the same request does what it is asked for.
    pool.unguarded(|| {
        let set_first = change("other", "8")?;
        let out = change("other", "8")?;
        ensure!(out.code() == 0, "{}{}", set_first.describe(), out.describe());
        Ok(())
    })?;
    file.check()
}

/// The kernel opens a listener's descriptor without asking anybody, when the listener reads the event:
/// by then the file may be offline.
fn descriptors_of_other_listeners_show_no_zeros(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    pool.hsm.must("archive", [&file])?;
    for class in [Class::NotifyReadWrite, Class::PreContent] {
        let group = Group::new(GroupOptions { class, nonblock: true })?;
        let mask = EventMask::OPEN | EventMask::CLOSE_NOWRITE;
        group.watch_inode(MarkTarget::Fd(File::open(&file.path)?.as_fd()), mask)?;
        file.check()?;
        pool.hsm.must("release", [&file])?;
        pool.assert_offline(&file.path)?;
        let seen = silent_reads(&group, &file)?;
        ensure!(seen > 0, "there was no event");
        pool.assert_offline(&file.path)?;
        file.check().context("afterwards")?;
        drop(group);
    }
    // A listener that is asked about the open itself may look before the agent has brought the bytes.
    pool.offline(&file.path)?;
    let group = Group::new(GroupOptions { class: Class::PreContent, nonblock: true })?;
    let found =
        rustix::fs::open(&file.path, OFlags::PATH | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    group.watch_inode(MarkTarget::Path(found.as_fd()), EventMask::OPEN_PERM)?;
    let mut reader = Run::new("cat").args([&file.path]).start()?;
    while reader.is_running()? {
        silent_reads(&group, &file)?;
        thread::sleep(Duration::from_millis(1));
    }
    let out = reader.finish()?;
    ensure!(out.code() != 0 || file.content.check_bytes(&out.stdout).is_ok(), "wrong bytes");
    ensure!(out.code() == 0 || out.stdout.is_empty(), "{} bytes were read", out.stdout.len());
    drop(group);
    file.check()
}

/// Takes all events, reads through each one's descriptor, and lets who waits pass. How many there were.
fn silent_reads(group: &Group, file: &Sample) -> Result<u32> {
    let (mut buffer, mut seen) = ([0; 4096], 0);
    loop {
        let length = match group.read(&mut buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(seen),
            Err(error) => return Err(error.into()),
        };
        for event in fanotify::events(&buffer[..length]) {
            let event = event?;
            seen += 1;
            let Some(opened) = event_file(event) else { continue };
            let mut bytes = Vec::new();
            if std::io::Read::read_to_end(&mut &opened, &mut bytes).is_ok() {
                file.content.check_bytes(&bytes).context("through an event's descriptor")?;
            }
            if event.mask.wants_answer() {
                group.answer(event.fd, Verdict::Allow)?;
            }
        }
    }
}

/// Who waits in the kernel programs (the holder does nothing) or in fanotify (the engine does nothing).
fn killed_openers_leave_a_stalled_agent_at_once(pool: &mut Pool) -> Result<()> {
    let files: Vec<Sample> =
        (0..4).map(|i| pool.offline_file(format!("f{i}"), MIB)).collect::<Result<_>>()?;
    // A file that was just released is still watched; a new agent is asked about it in the programs.
    pool.restart()?;
    let maps = Maps::open(&pool.config.bpf_dir)?.context("no programs are pinned")?;
    let (holder, engines) = (pool.agent()?.holder(), pool.agent()?.engines());
    let [engine] = engines[..] else { bail!("engines: {engines:?}") };
    let ways = [(engine, "pread"), (holder, "pread"), (engine, "truncate"), (holder, "truncate")];
    // A file for each: the recall of one that nobody waits for any more is finished all the same.
    for (file, (stalled, how)) in files.iter().zip(ways) {
        // In tier mark-filter the mark itself asks about a truncation.
        let in_programs = match how {
            "truncate" => Tier::of_this_run() != Tier::MarkFilter,
            _ => stalled == holder,
        };
        let left = || Ok::<_, anyhow::Error>(maps.counters()?.get(Counter::Killed));
        let before = left()?;
        kill(stalled, Signal::STOP);
        let numbers = ["0".as_ref(), "9".as_ref()];
        let mut opener =
            pool.helper(how, [file.path.as_os_str()].into_iter().chain(numbers))?.start()?;
        let stack = format!("/proc/{}/stack", opener.pid());
        let waits = until(Duration::from_secs(5), || {
            ensure!(opener.is_running()?, "it has ended");
            let in_fanotify = || fs::read_to_string(&stack).is_ok_and(|s| s.contains("fanotify"));
            Ok(if in_programs { maps.waiting()? == 1 } else { in_fanotify() })
        });
        let begin = Instant::now();
        opener.kill();
        let ended = until(Duration::from_secs(3), || Ok(!opener.is_running()?));
        let took = begin.elapsed();
        kill(stalled, Signal::CONT);
        waits.and(ended).with_context(|| how.to_owned())?;
        eprintln!("{how}, waiting in the programs: {in_programs}: gone after {took:.1?}");
        ensure!(took < Duration::from_secs(1), "{how} ended {took:?} after its death");
        let counted = left()? - before;
        ensure!(counted == u64::from(in_programs), "{how}: {counted} left the programs");
    }
    files.iter().try_for_each(Sample::check)
}

/// Until this holds.
fn until(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + patience(limit);
    while !done()? {
        ensure!(Instant::now() < end, "not within {limit:?}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn what_root_copies_carries_no_marker(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let script = "cp --preserve=all \"$1\" \"$1.cp\" 2>/dev/null || test -s \"$1.cp\"; \
                  rsync -aX \"$1\" \"$1.rsync\" 2>/dev/null || true; mv \"$1\" \"$1.moved\"";
    pool.sh(script, [&file.path])?;
    for name in ["file.cp", "file.moved"] {
        file.content.check(&pool.path(name)).context(name)?;
    }
    let names = Run::shell("getfattr -m - -d \"$1\" 2>/dev/null || true")
        .args([pool.path("file.cp")])
        .ok()?;
    ensure!(!names.text().contains(MARKER), "the copy is marked: {}", names.text());
    Ok(())
}

fn io_uring_opens_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 5)?;
    let out = pool.helper("uring-read", [&file.path])?.ok()?;
    file.content.check_bytes(&out.stdout)
}

/// The program in the kernel may not read the attributes for them; the holder looks.
fn write_only_openers_without_read_permission_get_the_file_recalled(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let online = pool.file("online", MIB)?;
    for path in [&file.path, &online.path] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o222))?;
        let append = "setpriv --reuid 65534 --regid 65534 --clear-groups sh -c 'printf more >> \"$1\"' sh \"$1\"";
        pool.sh(append, [path])?;
    }
    for sample in [&file, &online] {
        let got = fs::read(&sample.path)?;
        ensure!(got.ends_with(b"more"), "the append is missing");
        sample.content.check_bytes(&got[..got.len() - 4])?;
    }
    pool.assert_local(&file.path)
}

fn executables_without_read_permission_run(pool: &mut Pool) -> Result<()> {
    let program = pool.path("true");
    fs::copy("/bin/true", &program)?;
    pool.offline(&program)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o711))?;
    pool.sh("setpriv --reuid 65534 --regid 65534 --clear-groups \"$1\"", [&program])?;
    pool.assert_local(&program)
}

fn truncation_by_path_recalls_first(pool: &mut Pool) -> Result<()> {
    let program = "import os, sys\nos.truncate(sys.argv[1], int(sys.argv[2]))";
    for (name, size) in [("down", 1000), ("up", 3 * MIB), ("zero", 0)] {
        let file = pool.offline_file(name, MIB)?;
        pool.python(program, [file.path.as_os_str(), size.to_string().as_ref()])?;
        let got = fs::read(&file.path)?;
        ensure!(got.len() as u64 == size, "{name}: {} bytes", got.len());
        let kept = usize::try_from(size.min(MIB))?;
        file.content.check_range(0, &got[..kept]).context(name)?;
        ensure!(got[kept..].iter().all(|b| *b == 0), "{name}: rubbish behind the old end");
        pool.assert_local(&file.path)?;
    }
    Ok(())
}

fn unpinned_programs_guard_no_more(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let other = pool.file("other", MIB)?;
    let refused = pool.hsm.command(["guard", "unpin"]).output()?;
    ensure!(refused.code() == 1, "unpinned under a living agent: {}", refused.describe());
    file.check()?;
    pool.offline(&file.path)?;
    kill_agent(pool)?;
    assert_read_fails(&file.path, &[Errno::AGAIN.raw_os_error()])?;
    let status = pool.hsm.command(["--json", "guard", "status"]).ok()?;
    ensure!(status.text().contains("guard_open"), "{}", status.describe());
    pool.hsm.command(["guard", "unpin"]).ok()?;
    // What an operator is warned of: nothing stands between a reader and the hole now, at once.
    File::open(&file.path).context("the programs still refuse")?;
    rustix::fs::setxattr(&other.path, MARKER, b"x", XattrFlags::empty())?;
    OpenOptions::new().append(true).open(&other.path)?.set_len(1)?;
    rustix::fs::removexattr(&other.path, MARKER)?;
    pool.start()?;
    pool.assert_offline(&file.path)?;
    file.check()
}

/// As many openers of as many offline files at once; nobody's patience may end. What it took is told, for
/// the comparison of kernels that preempt in different ways.
fn a_burst_of_openers_is_served(pool: &mut Pool) -> Result<()> {
    const OPENERS: u64 = 1000;
    fs::create_dir(pool.path("d"))?;
    let files: Vec<Sample> =
        (0..OPENERS).map(|i| pool.file(format!("d/{i}"), 4096)).collect::<Result<_>>()?;
    pool.offline_tree(&pool.path("d"))?;
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    let start = std::sync::Barrier::new(files.len());
    let begin = std::time::Instant::now();
    let open = |file: &Sample| {
        start.wait();
        let begin = std::time::Instant::now();
        file.check().map(|()| begin.elapsed())
    };
    let mut waits = thread::scope(|scope| {
        let open = &open;
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(move || open(file))).collect();
        let join = |t: thread::ScopedJoinHandle<'_, Result<_>>| {
            t.join().map_err(|_| anyhow!("an opener panicked"))?
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() * part / 100).min(waits.len() - 1)];
    eprintln!(
        "burst of {OPENERS} openers: all served after {:.2?}; p50 {:.1?}, p99 {:.1?}; {} requests, \
         {} turns of waiting",
        begin.elapsed(),
        at(50),
        at(99),
        program_count(pool, "requests")?,
        program_count(pool, "wait_turns")?
    );
    Ok(())
}

/// Longer than it takes to ask, in a slow guest too.
const QUIET: Duration = Duration::from_secs(6);

fn quiet_soon(config: &mut PoolConfig) {
    let quiet = QUIET.as_millis().to_string();
    config.environment.push(("HSM_SECOND_NET_QUIET_MS".into(), quiet));
}

/// What `hsm guard status` says of the second net: whether it is attached, and how many it is attached for.
fn second_net(pool: &Pool) -> Result<(bool, u64)> {
    let status = pool.hsm.command(["--json", "guard", "status"]).ok()?;
    let status: serde_json::Value = serde_json::from_str(&status.text())?;
    let net = status.pointer("/second_net").and_then(|net| net.as_str()).context("no net")?;
    let in_flight = status.pointer("/in_flight").and_then(|n| n.as_u64()).context("no number")?;
    ensure!(matches!(net, "armed" | "on demand"), "{net}");
    Ok((net == "armed", in_flight))
}

fn until_detached(pool: &Pool) -> Result<()> {
    until(Duration::from_secs(20), || Ok(second_net(pool)? == (false, 0)))
        .context("the second program stays attached")
}

/// A program whose open of the file is refused, and that lives on and opens nothing else: what it opens next may
/// have the same address in the kernel, and is taken for the end of this one.
fn refused_for_life(pool: &mut Pool, path: &Path) -> Result<hsm_lab::run::Running> {
    let program = "import sys, time\ntry:\n    open(sys.argv[1], 'rb')\nexcept OSError:\n    \
                   time.sleep(1000)";
    let begin = pool.agent()?.log().len();
    let running = Run::new("/usr/bin/python3").args(["-c", program]).args([path]).start()?;
    says(pool.agent()?, begin, "recall failed")?;
    Ok(running)
}

fn the_second_look_is_there_when_it_is_needed(pool: &mut Pool) -> Result<()> {
    let files: Vec<Sample> =
        (0..4).map(|i| pool.offline_file(format!("f{i}"), MIB)).collect::<Result<_>>()?;
    let (lost, object) = pool.offline_with_object("lost", MIB)?;
    let online = pool.file("online", MIB)?;
    until_detached(pool)?;
    online.check()?;
    ensure!(!second_net(pool)?.0, "the open of a local file attached it");
    // An open of an offline file waits until it is back.
    let begin = Instant::now();
    files[0].check()?;
    eprintln!(
        "open and read of an offline file with the second program detached: {:.1?}",
        begin.elapsed()
    );
    ensure!(second_net(pool)?.0, "an offline file was opened without it");
    until_detached(pool)?;
    // So does a release.
    pool.hsm.must("release", [&files[0]])?;
    ensure!(second_net(pool)?.0, "a file was released without it");
    // Whose open was refused is thought to be under way until its thread ends.
    let away = pool.outside("object-away");
    fs::rename(&object, &away)?;
    let mut refused = refused_for_life(pool, &lost.path)?;
    fs::rename(&away, &object)?;
    thread::sleep(2 * QUIET);
    ensure!(second_net(pool)? == (true, 1), "{:?}", second_net(pool)?);
    refused.kill();
    until_detached(pool)?;
    // An agent that is killed now leaves programs that refuse.
    kill_agent(pool)?;
    again(File::open(&files[2].path)).context("without an agent")?;
    online.check()?;
    ensure!(second_net(pool)? == (false, 0), "{:?}", second_net(pool)?);
    pool.start()?;
    ensure!(second_net(pool)?.0, "an agent begins without it");
    files[2].check()?;
    until_detached(pool)?;
    // One that dies while an opener waits for it.
    let holder = pool.agent()?.holder();
    kill(holder, Signal::STOP);
    let opener = Run::new("cat").args([&files[3].path]).start()?;
    let maps = Maps::open(&pool.config.bpf_dir)?.context("no programs are pinned")?;
    let waits = until(Duration::from_millis(900), || Ok(maps.waiting()? == 1));
    kill_agent(pool)?;
    let out = opener.finish()?;
    waits?;
    ensure!(out.code() != 0 && out.stdout.is_empty(), "{}", out.describe());
    ensure!(out.describe().contains("temporarily unavailable"), "{}", out.describe());
    ensure!(second_net(pool)? == (false, 0), "{:?}", second_net(pool)?);
    pool.start()?;
    files.iter().chain([&lost]).try_for_each(Sample::check)
}
