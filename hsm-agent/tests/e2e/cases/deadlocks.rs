//! Waiting in a circle: whoever waits for the agent must not be what the agent waits for.
//!
//! Each case closes such a circle, or seems to. It has to be refused beforehand, or to end by itself: in the
//! bytes or in an error. Every program here has a time limit, and whoever is beyond it fails the case.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hsm_lab::run::{Running, kill};
use hsm_lab::{PoolConfig, Run, patience};
use rustix::process::Signal;

use super::cases;
use super::mounts::Mount;
use super::processes::wait_until_up;
use crate::fixture::{Pool, Sample};

const MIB: u64 = 1 << 20;

cases! {
    own_files_on_the_managed_file_system_are_refused,
    a_freeze_with_waiters_ends with short_deadlines,
    an_unmount_with_waiters_ends with short_deadlines,
    readers_in_a_full_memory_cgroup_get_the_bytes,
    an_agent_whose_memory_is_taken_away_serves,
    mapped_stubs_are_buffers_of_writes,
    a_suspended_agent_serves_afterwards with hangs_soon,
}

/// A recall that makes no progress for so long is an error.
fn short_deadlines(config: &mut PoolConfig) {
    config.limits.push("recall_deadline = \"4s\"".into());
}

fn own_files_on_the_managed_file_system_are_refused(pool: &mut Pool) -> Result<()> {
    pool.stop()?;
    let good = pool.config.clone();
    fs::create_dir(pool.path("own"))?;
    // By the path, through a symbolic link, through another mount.
    std::os::unix::fs::symlink(pool.path("own"), pool.outside("link"))?;
    let mnt = pool.mnt().display().to_string();
    let bound = Mount::new(&["--bind"], &mnt, &pool.outside("bound"))?;
    let ways = [pool.path("own"), pool.outside("link"), bound.0.join("own")];
    let keys = [("state_dir", "state"), ("socket", "hsm.sock"), ("path", "store")];
    for way in &ways {
        for dir in ["state", "store"] {
            fs::create_dir_all(way.join(dir))?;
        }
        for (key, name) in keys {
            let text = good.render();
            let text = text.lines().map(|old| match old.split_once(" = ") {
                Some((old, _)) if old == key => format!("{key} = {:?}", way.join(name)),
                _ => old.to_owned(),
            });
            let text = text.collect::<Vec<_>>().join("\n") + "\n";
            ensure!(text != good.render(), "{key} is not in the configuration");
            let file = pool.outside("own.toml");
            fs::write(&file, text)?;
            refused(&file, way).with_context(|| format!("{key} at {}", way.display()))?;
        }
    }
    for way in &ways {
        let file = way.join("hsm.toml");
        fs::write(&file, good.render())?;
        // Told by its real name: it is looked up before anything is watched.
        let real = if way.starts_with(&bound.0) { way } else { &ways[0] };
        refused(&file, real).with_context(|| format!("configuration at {}", way.display()))?;
    }
    drop(bound);
    pool.start()?;
    pool.offline_file("file", MIB)?.check()
}

/// The agent does not start, names the path, and says what to do.
fn refused(config: &Path, way: &Path) -> Result<()> {
    let hsm = hsm_lab::Hsm::new(crate::fixture::exe(), config);
    let out = hsm.command(["agent"]).limit(Duration::from_secs(30)).output()?;
    ensure!(out.code() != 0, "the agent ran: {}", out.describe());
    let said = format!("{}{}", out.text(), out.stderr);
    ensure!(said.contains(&way.display().to_string()), "names no path: {said}");
    ensure!(said.contains("move it"), "names no remedy: {said}");
    Ok(())
}

/// Offline files, a store that takes long, and programs that wait for it: a reader, an appender, who empties
/// and who cuts.
fn waiters(pool: &mut Pool) -> Result<(Vec<Sample>, Vec<Running>)> {
    let mut files = Vec::new();
    for name in ["read", "appended", "emptied", "cut"] {
        files.push(pool.offline_file(name, 2 * MIB)?);
    }
    pool.restart_slow("1MiB")?;
    let script = |script: &str, file: &Sample| Run::shell(script).args([file]).start();
    let waiters = vec![
        script("cat \"$1\"", &files[0])?,
        script("printf x >> \"$1\"", &files[1])?,
        script(": > \"$1\"", &files[2])?,
        pool.helper("truncate", [files[3].path.as_os_str(), "1000".as_ref()])?.start()?,
    ];
    thread::sleep(Duration::from_millis(500));
    Ok((files, waiters))
}

/// Everybody came back, with success or an error, and the files are what they then must be.
fn all_came_back(pool: &mut Pool, files: &[Sample], waiters: Vec<Running>) -> Result<()> {
    let mut done = Vec::new();
    for waiter in waiters {
        done.push(waiter.finish()?);
    }
    pool.restart_fast()?;
    if done[0].code() == 0 {
        files[0].content.check_bytes(&done[0].stdout)?;
    }
    let after = |n: usize, changed: Vec<u8>| -> Result<()> {
        let got = fs::read(&files[n].path)?;
        let old = files[n].content.bytes();
        let right = if done[n].code() == 0 { got == changed } else { got == old || got == changed };
        ensure!(right, "{}: {} bytes; {}", files[n].path.display(), got.len(), done[n].describe());
        Ok(())
    };
    files[0].check()?;
    after(1, [files[1].content.bytes(), b"x".to_vec()].concat())?;
    after(2, Vec::new())?;
    after(3, files[3].content.range(0, 1000))
}

/// Thaws when dropped: a frozen file system cannot be unmounted.
struct Frozen(PathBuf);

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may still be freezing: then there is nothing to thaw yet.
        let end = Instant::now() + patience(Duration::from_secs(20));
        while Instant::now() < end {
            match Run::new("fsfreeze").args(["--unfreeze".as_ref(), self.0.as_os_str()]).output() {
                Ok(out) if out.code() != 0 => thread::sleep(Duration::from_millis(100)),
                _ => return,
            }
        }
        eprintln!("{} could not be thawed", self.0.display());
    }
}

fn a_freeze_with_waiters_ends(pool: &mut Pool) -> Result<()> {
    let (files, waiters) = waiters(pool)?;
    let mnt = pool.mnt().to_path_buf();
    let frozen = Frozen(mnt.clone());
    let freeze = Run::new("fsfreeze").args(["--freeze".as_ref(), mnt.as_os_str()]);
    let out = freeze.limit(Duration::from_secs(30)).output().context("the freeze")?;
    ensure!(out.code() == 0, "{}", out.describe());
    // Longer than a recall may stand still.
    thread::sleep(Duration::from_secs(6));
    drop(frozen);
    all_came_back(pool, &files, waiters)
}

fn an_unmount_with_waiters_ends(pool: &mut Pool) -> Result<()> {
    let (files, waiters) = waiters(pool)?;
    let mnt = pool.mnt().to_path_buf();
    let out = Run::new("umount").args([&mnt]).limit(Duration::from_secs(20)).output()?;
    ensure!(out.code() == 32, "a file system in use was unmounted: {}", out.describe());
    ensure!(out.stderr.contains("busy"), "{}", out.describe());
    Run::new("umount").args(["--lazy".as_ref(), mnt.as_os_str()]).ok()?;
    let mut done = Vec::new();
    for waiter in waiters {
        done.push(waiter.finish()?);
    }
    if done[0].code() == 0 {
        files[0].content.check_bytes(&done[0].stdout)?;
    }
    // The agent has the file system as long as it runs; its end lets go of it.
    pool.stop()?;
    let end = Instant::now() + patience(Duration::from_secs(20));
    while let Err(error) = pool.fs().mount() {
        ensure!(Instant::now() < end, "not free again: {error:#}");
        thread::sleep(Duration::from_millis(100));
    }
    pool.start()?;
    pool.restart_fast()?;
    files[0].check()
}

/// A control group with so many bytes of memory; removed when dropped.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None`: this machine lets nobody limit memory.
    fn new(bytes: u64) -> Result<Option<Self>> {
        let name = format!("hsm-lab-{}", std::process::id());
        let unified = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
        let (root, limit) = match unified {
            Ok(controllers) if controllers.split_whitespace().any(|c| c == "memory") => {
                fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
                ("/sys/fs/cgroup", "memory.max")
            }
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let dir = Path::new(root).join(name);
        if fs::create_dir(&dir).is_err() {
            return Ok(None);
        }
        let group = Self(dir);
        match fs::write(group.0.join(limit), bytes.to_string()) {
            Ok(()) => Ok(Some(group)),
            Err(_) => Ok(None),
        }
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

fn readers_in_a_full_memory_cgroup_get_the_bytes(pool: &mut Pool) -> Result<()> {
    const LIMIT: u64 = 6 * MIB;
    let Some(group) = MemoryGroup::new(LIMIT)? else {
        eprintln!("NOT APPLICABLE: no control group of this machine limits memory");
        return Ok(());
    };
    let mut files = Vec::new();
    for n in 0..3 {
        files.push(pool.offline_file(format!("file{n}"), 16 * MIB)?);
    }
    let into = "echo $$ > \"$2/cgroup.procs\" && exec sha256sum \"$1\"";
    let start = |file: &Sample| Run::shell(into).args([&file.path, &group.0]).start();
    let readers = files.iter().map(start).collect::<Result<Vec<_>>>()?;
    for (file, reader) in files.iter().zip(readers) {
        let out = reader.finish()?;
        ensure!(out.code() == 0, "{}", out.describe());
        let want = Run::new("sha256sum").stdin(file.content.bytes()).ok()?.text();
        let sum = |text: &str| text.split_whitespace().next().map(str::to_owned);
        ensure!(sum(&out.text()) == sum(&want), "{} has other bytes", file.path.display());
    }
    Ok(())
}

/// `MADV_PAGEOUT` of every mapping of a process, by `process_madvise(2)`.
const PAGE_OUT: &str = r#"
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
class Part(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
PROCESS_MADVISE, PAGEOUT = 440, 21
taken, end = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for process in map(int, sys.argv[2:]):
        fd = os.pidfd_open(process)
        for line in open(f"/proc/{process}/maps"):
            at, to = (int(x, 16) for x in line.split(" ", 1)[0].split("-"))
            part = Part(at, to - at)
            got = libc.syscall(PROCESS_MADVISE, fd, ctypes.byref(part), 1, PAGEOUT, 0)
            taken += max(got, 0)
        os.close(fd)
    open("/proc/sys/vm/drop_caches", "w").write("3")
print(taken)
"#;

/// Its program and its catalogue are on a file system that is not managed: so what it pages in is never
/// behind itself.
fn an_agent_whose_memory_is_taken_away_serves(pool: &mut Pool) -> Result<()> {
    const SECONDS: &str = "4";
    let mut files = Vec::new();
    for n in 0..12 {
        files.push(pool.offline_file(format!("file{n}"), MIB)?);
    }
    let mut processes = pool.agent()?.engines();
    processes.push(pool.agent()?.holder());
    let processes = processes.into_iter().map(|pid| pid.to_string());
    let taker = Run::new("/usr/bin/python3").args(["-c", PAGE_OUT, SECONDS]).args(processes);
    let mut taker = taker.start()?;
    let mut rounds = 0;
    while taker.is_running()? {
        files.iter().try_for_each(Sample::check)?;
        let paths = files.iter().map(|file| &file.path);
        pool.hsm.command(["release"]).args(paths).ok()?;
        rounds += 1;
    }
    let out = taker.finish()?;
    ensure!(out.code() == 0, "{}", out.describe());
    let taken: u64 = out.text().trim().parse()?;
    ensure!(taken > 0 && rounds > 0, "{taken} bytes were paged out in {rounds} rounds");
    Ok(())
}

/// The kernel reads the buffer while it holds locks of the file that is written to.
fn mapped_stubs_are_buffers_of_writes(pool: &mut Pool) -> Result<()> {
    let program = "import mmap, os, sys
source, target = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
memory = mmap.mmap(source, 0, mmap.MAP_SHARED, mmap.PROT_READ)
os.close(source)
assert os.pwrite(target, memory, 4096) == len(memory)";
    let source = pool.offline_file("source", 2 * MIB + 5)?;
    let target = pool.offline_file("target", 3 * MIB)?;
    pool.python(program, [&source, &target])?;
    let mut want = target.content.bytes();
    want[4096..4096 + source.content.bytes().len()].copy_from_slice(&source.content.bytes());
    ensure!(fs::read(&target.path)? == want, "the target has other bytes");
    source.check()?;
    // And the file itself.
    pool.offline(&source.path)?;
    pool.python(program, [&source, &source])?;
    let got = fs::read(&source.path)?;
    let old = source.content.bytes();
    ensure!(got[..4096] == old[..4096], "the head has other bytes");
    ensure!(got.len() == old.len() + 4096, "{} bytes", got.len());
    ensure!(!got.chunks(4096).any(|page| page.iter().all(|byte| *byte == 0)), "zeros");
    Ok(())
}

/// Silence of one second is a hang.
fn hangs_soon(config: &mut PoolConfig) {
    config.environment.push(("HSM_ENGINE_HANG_LIMIT_MS".into(), "1000".into()));
}

/// Both processes, as a suspended machine or a frozen control group does it; several times the limit after
/// which a silent engine is given up.
fn a_suspended_agent_serves_afterwards(pool: &mut Pool) -> Result<()> {
    let mut files = Vec::new();
    for n in 0..4 {
        files.push(pool.offline_file(format!("file{n}"), MIB)?);
    }
    let mut processes = pool.agent()?.engines();
    processes.push(pool.agent()?.holder());
    processes.iter().for_each(|pid| kill(*pid, Signal::STOP));
    let start = |file: &Sample| Run::new("cat").args([file]).start();
    let mut readers = files.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut killed = Run::new("cat").args([&files[0]]).start()?;
    thread::sleep(Duration::from_secs(5));
    let waiting = readers.iter_mut().map(Running::is_running).collect::<Result<Vec<_>>>()?;
    killed.kill();
    let gone = killed.finish();
    processes.iter().for_each(|pid| kill(*pid, Signal::CONT));
    gone.context("a killed reader of a suspended agent")?;
    for (file, reader) in files.iter().zip(readers) {
        let out = reader.finish()?;
        match out.code() {
            0 => file.content.check_bytes(&out.stdout)?,
            // The kernel programs do not wait for a silent agent for ever.
            _ if out.stderr.contains("Resource temporarily unavailable") => {}
            code => bail!("exit code {code}: {}", out.describe()),
        }
    }
    ensure!(waiting.iter().any(|waits| *waits) || !pool_waits(), "nobody waited");
    wait_until_up(pool)?;
    files.iter().try_for_each(Sample::check)
}

/// Whether readers wait for a silent agent, whatever the time: the wait in the kernel programs has a limit.
fn pool_waits() -> bool {
    !hsm_lab::Tier::of_this_run().has_programs()
}
