//! Tier lsm-filter: what the kernel programs do for online files, and against everybody else when
//! the agent is gone.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use hsm_lab::Run;
use rustix::io::Errno;

use super::cases;
use super::mounts::Mount;
use super::processes::wait_until_up;
use crate::fixture::{Pool, Sample, assert_read_fails, read_errno};

const MIB: u64 = 1 << 20;
const MARKER: &str = "security.bpf.hsm";

cases! {
    online_files_raise_no_events_and_no_requests,
    files_that_left_the_cache_are_watched_again,
    without_an_agent_offline_files_refuse_and_online_files_work,
    without_an_agent_no_way_leads_to_an_offline_file,
    a_killed_agent_in_the_middle_of_a_recall_lets_nobody_through,
    only_the_agent_touches_the_marker,
    what_root_copies_carries_no_marker,
    io_uring_opens_read_identical_bytes,
    write_only_openers_without_read_permission_get_the_file_recalled,
    executables_without_read_permission_run,
    truncation_by_path_recalls_first,
    unpinned_programs_guard_no_more,
    a_burst_of_openers_is_served,
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
fn kill_agent(pool: &mut Pool) -> Result<()> {
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

/// The attack table: every way that leads to a file but the plain open.
fn without_an_agent_no_way_leads_to_an_offline_file(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    fs::set_permissions(&file.path, fs::Permissions::from_mode(0o666))?;
    let open_path = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&file.path)?;
    kill_agent(pool)?;
    let refused = [Errno::AGAIN.raw_os_error()];

    fs::hard_link(&file.path, pool.path("link"))?;
    assert_read_fails(&pool.path("link"), &refused).context("hard link")?;
    fs::create_dir(pool.path("d"))?;
    fs::rename(pool.path("link"), pool.path("d/renamed"))?;
    assert_read_fails(&pool.path("d/renamed"), &refused).context("renamed")?;
    std::os::unix::fs::symlink(&file.path, pool.outside("symlink"))?;
    assert_read_fails(&pool.outside("symlink"), &refused).context("symlink")?;

    use std::os::fd::AsRawFd;
    let reopened = format!("/proc/self/fd/{}", open_path.as_raw_fd());
    assert_read_fails(Path::new(&reopened), &refused).context("O_PATH reopened through /proc")?;

    let source = pool.mnt().display().to_string();
    {
        let bound = Mount::new(&["--bind"], &source, &pool.outside("bound"))?;
        assert_read_fails(&bound.0.join("file"), &refused).context("bind mount")?;
        Run::new("mount").args(["-o", "remount,bind,ro"]).args([&bound.0]).ok()?;
        assert_read_fails(&bound.0.join("file"), &refused).context("read-only bind mount")?;
    }
    {
        let (upper, work) = (pool.outside("upper"), pool.outside("work"));
        fs::create_dir(&upper)?;
        fs::create_dir(&work)?;
        let options =
            format!("lowerdir={source},upperdir={},workdir={}", upper.display(), work.display());
        let merged = pool.outside("merged");
        let mount = Mount::new(&["-t", "overlay", "-o", &options], "overlay", &merged)?;
        assert_read_fails(&mount.0.join("file"), &refused).context("overlay lower layer")?;
        let copied = OpenOptions::new().append(true).open(mount.0.join("file"));
        ensure!(copied.is_err(), "overlay copied up what is not there");
        ensure!(!upper.join("file").exists(), "a copy without the bytes is in the upper layer");
    }
    for (what, command) in [
        ("private mount namespace", "unshare -m cat \"$1\""),
        ("user and pid namespace", "unshare -rpf cat \"$1\""),
        ("another user", "setpriv --reuid 65534 --regid 65534 --clear-groups cat \"$1\""),
        ("dd direct", "dd if=\"$1\" of=/dev/null iflag=direct bs=4096"),
        (
            "sendfile",
            "python3 -c 'import os,sys; os.sendfile(1, os.open(sys.argv[1], 0), 0, 9)' \"$1\"",
        ),
        ("loop device", "losetup -r -f --show \"$1\""),
        ("filefrag", "filefrag \"$1\" && false"),
        ("swapon", "swapon \"$1\""),
        ("cp --reflink", "cp --reflink=always \"$1\" \"$1.clone\""),
        ("tar -S", "tar -cSf \"$1.tar\" \"$1\""),
    ] {
        let out = Run::shell(command).args([&file.path]).output()?;
        ensure!(out.code() != 0, "{what} got through: {}", out.describe());
        ensure!(!out.stdout.contains(&0), "{what} gave zeros: {}", out.describe());
    }
    for mode in ["handle-read", "uring-read"] {
        let out = pool.helper(mode, [&file.path])?.output()?;
        ensure!(out.code() != 0 && out.stdout.is_empty(), "{mode} got through: {}", out.describe());
        ensure!(out.describe().contains("temporarily unavailable"), "{mode}: {}", out.describe());
    }
    // A new agent looks for programs that have offline files open.
    drop(open_path);
    pool.start()?;
    pool.assert_offline(&file.path)?;
    file.check()
}

fn a_killed_agent_in_the_middle_of_a_recall_lets_nobody_through(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 4 * MIB)?;
    for _ in 0..2 {
        pool.restart_slow("1MiB")?;
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let path = file.path.clone();
                thread::spawn(move || fs::read(path))
            })
            .collect();
        thread::sleep(std::time::Duration::from_millis(700));
        kill_agent(pool)?;
        for reader in readers {
            // Bytes or an error, never zeros.
            if let Ok(bytes) = reader.join().map_err(|_| anyhow!("a reader panicked"))? {
                file.content.check_bytes(&bytes)?;
            }
        }
        let errno = read_errno(&file.path)?;
        ensure!(errno == Errno::AGAIN.raw_os_error(), "afterwards: errno {errno}");
        pool.config.store_options.retain(|line| !line.starts_with("rate_limit"));
        pool.start()?;
        wait_until_up(pool)?;
        file.check()?;
        pool.offline(&file.path)?;
    }
    Ok(())
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
    let refused = pool.hsm.command(["guard", "unpin"]).output()?;
    ensure!(refused.code() == 1, "unpinned under a living agent: {}", refused.describe());
    file.check()?;
    pool.offline(&file.path)?;
    kill_agent(pool)?;
    assert_read_fails(&file.path, &[Errno::AGAIN.raw_os_error()])?;
    let status = pool.hsm.command(["--json", "guard", "status"]).ok()?;
    ensure!(status.text().contains("guard_open"), "{}", status.describe());
    pool.hsm.command(["guard", "unpin"]).ok()?;
    // What an operator is warned of: nothing stands between a reader and the hole now.
    pool.wait_until_unguarded()?;
    File::open(&file.path).context("the programs still refuse")?;
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
