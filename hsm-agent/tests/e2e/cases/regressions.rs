//! What once went wrong: each case failed before it was mended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use hsm_agent::catalog::{Catalog, IntentOp, NewIntent};
use hsm_agent::sys::handle;
use hsm_lab::hsm::Report;
use hsm_lab::run::kill;
use hsm_lab::{Agent, Content, FsKind, LoopFs, PoolConfig, Run, Tier, loopfs, pace, patience};
use rustix::io::Errno;
use rustix::process::Signal;

use super::cases;
use super::failpoints::Index;
use super::mounts::Mount;
use super::processes::wait_until_up;
use crate::fixture::{Needs, Pool, Sample, assert_read_fails};

const MIB: u64 = 1 << 20;
const MARKER: &str = "security.bpf.hsm";

cases! {
    a_write_after_a_recall_survives_a_power_cut,
    death_of_the_holder_never_lets_a_reader_see_zeros_while_others_open_files,
    a_changed_configuration_never_mixes_pools_up,
    timestamps_of_whole_seconds_prove_nothing,
    who_cuts_a_file_needs_all_of_it with |config| ranges_for(config, "*"); needs Ranges,
    range_reads_past_the_end_return with |config| ranges_for(config, "*"); needs Ranges,
    mappings_that_grow_read_identical_bytes with |config| {
        let this = std::env::current_exe().expect("this program has a path");
        ranges_for(config, &this.display().to_string());
    }; needs Ranges,
    leases_of_others_do_not_stop_the_pool,
    a_truncation_to_nothing_needs_no_recall_to_read with |config| ranges_for(config, "*"); needs Ranges,
    hard_links_in_one_job,
    a_released_file_read_at_once_again_can_be_released_again,
    a_write_that_nobody_watched_is_not_undone,
    a_copied_marker_is_told_and_takes_nothing_away,
    a_cut_off_release_takes_only_what_its_object_has,
    a_cut_off_release_is_finished_once_the_file_is_free,
    a_release_that_came_to_its_end_is_not_done_again with |config| ranges_for(config, "*"); needs Ranges,
}

fn ranges_for(config: &mut PoolConfig, program: &str) {
    config.pool.push("recall = \"range\"".into());
    config.pool.push(format!("range_programs = [{program:?}]"));
    config.pool.push("range_min_size = \"1MiB\"".into());
}

fn a_write_after_a_recall_survives_a_power_cut(pool: &mut Pool) -> Result<()> {
    for round in 0..3 {
        power_cut_after_a_write(pool, &format!("late-{round}"))?;
    }
    if Tier::of_this_run().recalls_at_open() {
        return Ok(());
    }
    pool.config.pool.push("early_answer = true".into());
    pool.restart()?;
    for round in 0..3 {
        power_cut_after_a_write(pool, &format!("early-{round}")).context("early_answer")?;
    }
    Ok(())
}

fn power_cut_after_a_write(pool: &mut Pool, name: &str) -> Result<()> {
    const AT: usize = 300 << 10;
    let file = pool.offline_file(name, MIB)?;
    let change = Content::new(4321, 4096).bytes();
    let open = File::options().read(true).write(true).open(&file.path)?;
    open.write_all_at(&change, AT as u64)?;
    open.sync_data()?;
    let image = image_of_now(pool)?;
    drop(open);
    let options = if pool.kind == FsKind::Xfs { "loop,nouuid" } else { "loop" };
    let options = ["-t", pool.kind.name(), "-o", options];
    let mount = Mount::new(&options, &image.display().to_string(), &pool.outside("copy"))?;
    let copy = mount.0.join(name);
    let (marked, got) = (has_marker(&copy)?, fs::read(&copy)?);
    let mut want = file.content.bytes();
    want[AT..AT + change.len()].copy_from_slice(&change);
    let written = got.get(AT..AT + change.len()) == Some(&change[..]);
    ensure!(!marked, "{name} has its marker after the power cut; and the new bytes: {written}");
    ensure!(got == want, "{name} is wrong after the power cut; the new bytes there: {written}");
    drop(mount);
    fs::remove_file(image)?;
    Ok(())
}

/// The image as a power cut would leave it. The agent stands still meanwhile, so that the copy is
/// of one instant.
fn image_of_now(pool: &mut Pool) -> Result<PathBuf> {
    let agent = pool.agent()?;
    let mut processes = agent.engines();
    processes.push(agent.holder());
    processes.iter().for_each(|pid| kill(*pid, Signal::STOP));
    let (image, copy) = (pool.fs().image().to_path_buf(), pool.outside("copy.img"));
    let copied = Run::new("cp").args(["--sparse=always"]).args([&image, &copy]).ok();
    processes.iter().for_each(|pid| kill(*pid, Signal::CONT));
    copied.map(|_| copy)
}

fn has_marker(path: &Path) -> Result<bool> {
    match rustix::fs::getxattr(path, MARKER, &mut [0; 4096]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA) => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

fn death_of_the_holder_never_lets_a_reader_see_zeros_while_others_open_files(
    pool: &mut Pool,
) -> Result<()> {
    let (waited, quiet) = (tree(pool, "waited", 60, MIB / 4)?, tree(pool, "quiet", 5, MIB / 4)?);
    let online = tree(pool, "online", 300, 8192)?;
    pool.offline_tree(&pool.path("waited"))?;
    pool.offline_tree(&pool.path("quiet"))?;
    pool.restart_slow("1MiB")?;
    let readers: Vec<_> = waited.iter().cloned().map(|f| thread::spawn(move || read(&f))).collect();
    thread::sleep(Duration::from_millis(700));
    let blocked = readers.iter().filter(|reader| !reader.is_finished()).count();
    ensure!(blocked >= 30, "only {blocked} readers were waiting");
    let mut agent = pool.take_agent()?;
    let killer = agent.killer();
    agent.kill_holder()?;
    let result = open_until_answered(&online, &quiet, readers);
    let started = result.and_then(|()| pool.start());
    if started.is_err() {
        killer.kill();
    }
    started?;
    pool.restart_fast()?;
    waited.iter().chain(&quiet).chain(&online).try_for_each(Sample::check)
}

/// Right bytes or an error; fails for wrong ones.
fn read(file: &Sample) -> Result<Option<()>> {
    let Ok(bytes) = fs::read(&file.path) else { return Ok(None) };
    file.content.check_bytes(&bytes).with_context(|| file.path.display().to_string())?;
    Ok(Some(()))
}

fn open_until_answered(
    online: &[Sample],
    quiet: &[Sample],
    readers: Vec<thread::JoinHandle<Result<Option<()>>>>,
) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(60));
    let mut rounds = 0;
    while rounds < 5 || readers.iter().any(|reader| !reader.is_finished()) {
        online.iter().chain(quiet).try_for_each(|file| read(file).map(drop))?;
        ensure!(Instant::now() < end, "readers still wait long after the holder's death");
        rounds += 1;
    }
    for reader in readers {
        reader.join().map_err(|_| anyhow!("a reader panicked"))??;
    }
    Ok(())
}

fn tree(pool: &mut Pool, name: &str, count: usize, size: u64) -> Result<Vec<Sample>> {
    fs::create_dir(pool.path(name))?;
    (0..count).map(|i| pool.file(format!("{name}/{i}"), size)).collect()
}

/// A case that mounts something of its own: the agent lets go of it before it is unmounted.
fn and_stop(pool: &mut Pool, case: impl FnOnce(&mut Pool) -> Result<()>) -> Result<()> {
    let result = case(pool).map_err(|error| {
        let log = pool.agent().map(|agent| Agent::log_tail(agent)).unwrap_or_default();
        anyhow!("{error:#}\n{log}")
    });
    result.and(pool.stop())
}

fn a_changed_configuration_never_mixes_pools_up(pool: &mut Pool) -> Result<()> {
    let other = LoopFs::create(pool.kind, &pool.outside(""), "other", loopfs::IMAGE_BYTES)?;
    and_stop(pool, |pool| change_pools(pool, other.path()))
}

fn change_pools(pool: &mut Pool, other: &Path) -> Result<()> {
    let store = pool.outside("other-store");
    fs::create_dir(&store)?;
    let lab = pool.config.render();
    let (head, lab) = lab.split_once("[[pool]]").context("no pool")?;
    // The filter looks for one marker.
    let marker = if Needs::Filter.are_met() { "" } else { "marker = \"security.bpf.other\"\n" };
    let second = format!(
        "name = \"other\"\nmount = {other:?}\n{marker}\
         [pool.store]\nkind = \"local\"\npath = {store:?}\n"
    );
    pool.config.store_options.push(format!("[[pool]]\n{second}"));
    pool.restart()?;
    let first = pool.offline_file("file", 2 * MIB)?;
    let path = other.join("file");
    let second_file = Sample { path, content: Content::new(99, 2 * MIB) };
    second_file.content.write(&second_file.path)?;
    pool.offline(&second_file.path)?;

    with_pools(pool, &format!("{head}[[pool]]\n{second}[[pool]]{lab}"))?;
    first.check().context("pools swapped, first")?;
    second_file.check().context("pools swapped, second")?;
    for file in [&first, &second_file] {
        pool.offline(&file.path).context("pools swapped")?;
    }

    with_pools(pool, &format!("{head}[[pool]]{lab}"))?;
    let out = Run::new("cat").args([&second_file]).output()?;
    ensure!(!out.status.success() && out.stdout.is_empty(), "{} bytes", out.stdout.len());
    first.check().context("one pool removed, the other")?;

    pool.restart()?;
    pool.assert_offline(&second_file.path)?;
    second_file.check()
}

/// Another configuration and a new engine, but the same holder.
fn with_pools(pool: &mut Pool, text: &str) -> Result<()> {
    fs::write(pool.config.file(), text)?;
    let killed = pool.agent()?.kill_engine();
    ensure!(killed == 1, "{killed} engines were killed");
    wait_until_up(pool)
}

fn timestamps_of_whole_seconds_prove_nothing(pool: &mut Pool) -> Result<()> {
    if pool.kind != FsKind::Ext4 {
        // Their timestamps are always finer; the promise is the same.
        return (0..5).try_for_each(|round| {
            let path = pool.path(format!("file{round}"));
            overwrite_at_once(pool, &path, round).map(drop)
        });
    }
    let image = pool.outside("small.img");
    File::create_new(&image)?.set_len(128 * MIB)?;
    let options = ["-q", "-F", "-b", "4096", "-I", "128", "-E", "lazy_itable_init=0,nodiscard"];
    Run::new("mkfs.ext4").args(options).args([&image]).ok()?;
    let source = image.display().to_string();
    let mount = Mount::new(&["-o", "loop"], &source, &pool.outside("small"))?;
    pool.config.mount = mount.0.clone();
    pool.config.store = pool.outside("small-store");
    // Another store on purpose.
    fs::remove_file(pool.config.state_dir().join("lab.store"))?;
    and_stop(pool, |pool| {
        pool.restart()?;
        let probe = mount.0.join("probe");
        fs::write(&probe, "x")?;
        ensure!(fs::metadata(&probe)?.ctime_nsec() == 0, "the timestamps are finer than a second");
        overwrite_within_a_second(pool, &mount.0)
    })
}

/// Until five were archived and overwritten within a second: a busy machine may take longer for
/// some of them, and these prove nothing.
fn overwrite_within_a_second(pool: &mut Pool, dir: &Path) -> Result<()> {
    let mut within = 0;
    for round in 0..20 {
        within += u32::from(overwrite_at_once(pool, &dir.join(format!("file{round}")), round)?);
        if within == 5 {
            break;
        }
    }
    ensure!(within > 0, "no file could be archived and overwritten within a second");
    Ok(())
}

/// Whether archive and overwriting were within one second.
fn overwrite_at_once(pool: &mut Pool, path: &Path, round: u64) -> Result<bool> {
    const SIZE: u64 = 100_000;
    let (old, new) = (Content::new(100 + round, SIZE), Content::new(200 + round, SIZE));
    begin_a_second();
    old.write(path)?;
    let written = fs::metadata(path)?.ctime();
    pool.hsm.must("archive", [path])?;
    let open = File::options().write(true).open(path)?;
    open.write_all_at(&new.bytes(), 0)?;
    open.sync_all()?;
    let within = open.metadata()?.ctime() == written;
    drop(open);
    let report = pool.hsm.verb("release", [path])?;
    let refused = report.outcome() == "failed" && ["dirty", "changed"].contains(&report.reason());
    ensure!(refused || report.outcome() == "done", "{}", report.output.describe());
    new.check(path).with_context(|| format!("refused: {refused}"))?;
    Ok(within)
}

/// Sleeps until a second has begun, also for the file system, whose clock is a tick late.
fn begin_a_second() {
    const LATE: Duration = Duration::from_millis(20);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let into = Duration::from_nanos(now.subsec_nanos().into());
    thread::sleep(Duration::from_secs(1) - into + LATE);
}

/// The kernel tells of `truncate(2)` as of a read of the page in which the new end is.
fn who_cuts_a_file_needs_all_of_it(pool: &mut Pool) -> Result<()> {
    for left in [MIB + 3, 2 * MIB, 1] {
        let file = pool.offline_file(format!("file{left}"), 4 * MIB)?;
        let exe = std::env::current_exe()?;
        let cut = Run::new(exe).args(["--helper", "truncate"]);
        cut.args([file.path.as_os_str(), left.to_string().as_ref()]).ok()?;
        let left = Sample { content: Content { size: left, ..file.content }, path: file.path };
        left.check().with_context(|| format!("cut to {}", left.content.size))?;
        pool.hsm.must("migrate", [&left.path])?;
        left.check()?;
    }
    Ok(())
}

fn range_reads_past_the_end_return(pool: &mut Pool) -> Result<()> {
    const SIZE: u64 = 8 * MIB;
    let program = "
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(os.pread(fd, int(sys.argv[3]), int(sys.argv[2])))
";
    for (round, (offset, length)) in
        [(SIZE - 100, 8192), (SIZE, 8192), (SIZE + MIB, 1)].into_iter().enumerate()
    {
        let file = pool.offline_file(format!("file{round}"), SIZE)?;
        let args = [file.path.display().to_string(), offset.to_string(), length.to_string()];
        let run = Run::new("/usr/bin/python3").args(["-c", program]).args(args);
        let out = run.limit(Duration::from_secs(10)).ok()?;
        let want = SIZE.saturating_sub(offset).min(length);
        ensure!(out.stdout.len() as u64 == want, "{} bytes, not {want}", out.stdout.len());
        file.content.check_range(offset, &out.stdout)?;
        pool.assert_state(&file.path, &["offline", "partial"])?;
        file.check()?;
    }
    Ok(())
}

fn mappings_that_grow_read_identical_bytes(pool: &mut Pool) -> Result<()> {
    let files = [pool.offline_file("offline", 8 * MIB)?, pool.offline_file("partial", 8 * MIB)?];
    // It reads ranges: otherwise the file would be local before the mapping.
    let args = [files[1].path.display().to_string(), "5000000".into(), "1000".into()];
    let out = pool.helper("pread", args)?.ok()?;
    files[1].content.check_range(5_000_000, &out.stdout)?;
    pool.assert_state(&files[1].path, &["partial"])?;
    for file in &files {
        let out = pool.helper("mmap-grow", [file])?.ok()?;
        file.content.check_bytes(&out.stdout).with_context(|| file.path.display().to_string())?;
        file.check()?;
    }
    Ok(())
}

const TAKE_LEASES: &str = "
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fds = []
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDONLY)
    fds.append(fd)
    for attempt in range(200):
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            break
        except BlockingIOError:
            time.sleep(0.05)
    else:
        sys.exit('no lease on ' + path)
print('ready', flush=True)
sys.stdin.read()
";

/// Somebody without privileges who holds a write lease on each of these files.
struct Leases {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Leases {
    fn take(files: &[Sample]) -> Result<Self> {
        let mut child = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(["/usr/bin/python3", "-c", TAKE_LEASES])
            .args(files)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let leases = Self { child, _stdin: stdin };
        let mut line = String::new();
        BufReader::new(stdout.context("no pipe")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the leases were not given: {line:?}");
        Ok(leases)
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn leases_of_others_do_not_stop_the_pool(pool: &mut Pool) -> Result<()> {
    let own = tree(pool, "own", 10, 100_000)?;
    pool.sh("chown -R 65534:65534 \"$1\"", [pool.path("own")])?;
    pool.offline_tree(&pool.path("own"))?;
    own.iter().try_for_each(Sample::check)?;
    own.iter().try_for_each(|file| pool.assert_state(&file.path, &["archived"]))?;
    let (online, offline) = (pool.file("online", MIB)?, pool.offline_file("offline", MIB)?);
    // The agent has seen nobody open any of them: it knows of none that there is nothing to ask.
    pool.stop()?;
    let leases = Leases::take(&own)?;
    pool.start()?;
    let mut blocked = Vec::new();
    for file in &own {
        blocked.push(Run::new("cat").args([file]).start()?);
    }
    thread::sleep(Duration::from_secs(1));
    for reader in &mut blocked {
        ensure!(reader.is_running()?, "a lease of somebody else stopped nobody");
    }
    let out = Run::new("cat").args([&online]).limit(Duration::from_secs(5)).ok()?;
    online.content.check_bytes(&out.stdout)?;
    let out = Run::new("cat").args([&offline]).limit(Duration::from_secs(10)).ok()?;
    offline.content.check_bytes(&out.stdout)?;
    drop(leases);
    for (file, reader) in own.iter().zip(blocked) {
        file.content.check_bytes(&reader.finish()?.stdout)?;
    }
    Ok(())
}

fn a_truncation_to_nothing_needs_no_recall_to_read(pool: &mut Pool) -> Result<()> {
    // Too small for ranges: recalled at open. Then one that is not recalled before it is read,
    // and one that is there in part.
    let files = [("small", MIB / 2), ("large", 8 * MIB), ("partial", 8 * MIB)];
    for (name, size) in files {
        let file = pool.offline_file(name, size)?;
        if name == "partial" {
            // In a process of its own: this one has threads that map files, for which all of it would come.
            let args = [file.path.display().to_string(), (5 * MIB).to_string(), "100".to_owned()];
            file.content.check_range(5 * MIB, &pool.helper("pread", args)?.ok()?.stdout)?;
            pool.assert_state(&file.path, &["partial"])?;
        }
        truncate_by_a_reader(pool, &file).with_context(|| name.to_owned())?;
    }
    pool.restart()?;
    for (name, _) in files {
        ensure!(fs::read(pool.path(name))?.is_empty(), "{name} is not empty after a restart");
    }
    Ok(())
}

fn truncate_by_a_reader(pool: &Pool, file: &Sample) -> Result<()> {
    let open = File::options().read(true).custom_flags(libc::O_TRUNC).open(&file.path)?;
    ensure!(open.metadata()?.len() == 0, "not truncated");
    ensure!(open.read_at(&mut [0; 100], 0)? == 0, "bytes after the end");
    drop(open);
    ensure!(fs::read(&file.path)?.is_empty(), "not empty when opened again");
    let report = pool.hsm.verb("release", [file])?;
    let empty = report.code == 0 && report.reason() == "empty";
    ensure!(empty, "{}", report.output.describe());
    pool.assert_local(&file.path)
}

fn hard_links_in_one_job(pool: &mut Pool) -> Result<()> {
    let mut names = Vec::new();
    let dirs: Vec<_> = (0..4).map(|i| pool.path(format!("tree/d{i}"))).collect();
    dirs.iter().try_for_each(fs::create_dir_all)?;
    for i in 0..40 {
        let file = pool.file(format!("tree/d{}/f{i}", i % 4), 70_000)?;
        for link in [dirs[i % 4].join(format!("a{i}")), dirs[(i + 1) % 4].join(format!("b{i}"))] {
            fs::hard_link(&file.path, &link)?;
            names.push(Sample { path: link, content: file.content.clone() });
        }
        names.push(file);
    }
    for _ in 0..3 {
        for (verb, state) in
            [("archive", "archived"), ("release", "offline"), ("recall", "archived")]
        {
            let report = over_the_tree(pool, verb)?;
            let fine = report.code == 0 && report.summary.failed == 0;
            ensure!(fine, "{verb}: {}", report.output.describe());
            ensure!(report.summary.done + report.summary.already > 0, "{verb} did nothing");
            for file in names.iter().step_by(7) {
                pool.assert_state(&file.path, &[state])?;
            }
        }
        names.iter().try_for_each(Sample::check)?;
    }
    Ok(())
}

fn over_the_tree(pool: &Pool, verb: &str) -> Result<Report> {
    let tree = pool.path("tree");
    pool.hsm.verb(verb, ["-r".as_ref(), tree.as_os_str()])
}

fn a_released_file_read_at_once_again_can_be_released_again(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB / 4)?;
    pool.hsm.must("archive", [&file])?;
    for cycle in 0..pace::turns(200) {
        release_soon(pool, &file).with_context(|| format!("cycle {cycle}"))?;
        let out = Run::new("cat").args([&file]).ok()?;
        file.content.check_bytes(&out.stdout).with_context(|| format!("cycle {cycle}"))?;
    }
    Ok(())
}

/// Releases a file that somebody may just be closing.
fn release_soon(pool: &Pool, file: &Sample) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(5));
    loop {
        let report = pool.hsm.verb("release", [file])?;
        if report.code == 0 {
            ensure!(report.outcome() == "done", "{}", report.output.describe());
            let blocks = fs::metadata(&file.path)?.blocks();
            ensure!(blocks <= 16, "{blocks} blocks are left");
            return Ok(());
        }
        let passing = ["open-elsewhere", "busy"].contains(&report.reason());
        ensure!(passing && Instant::now() < end, "{}", report.output.describe());
        thread::sleep(Duration::from_millis(20));
    }
}

fn a_write_that_nobody_watched_is_not_undone(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("written-unseen", 3 * MIB)?;
    let other = pool.offline_file("other", MIB)?;
    pool.stop()?;
    pool.unguarded(|| {
        let writer = File::options().write(true).open(&file.path)?;
        Ok(writer.write_all_at(b"nobody watches", MIB + 5000)?)
    })?;
    pool.start()?;
    assert_read_fails(&file.path, &[Errno::IO.raw_os_error()])?;
    pool.assert_state(&file.path, &["offline"])?;
    let log = pool.agent()?.log();
    ensure!(log.contains("written-unseen") && log.contains("no agent watched"), "{log}");
    other.check()?;
    // The operator decides: what is there, or what was archived.
    pool.stop()?;
    pool.unguarded(|| {
        let writer = File::options().write(true).open(&file.path)?;
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&writer, punch, 0, 3 * MIB)?)
    })?;
    pool.start()?;
    file.check()
}

fn a_copied_marker_is_told_and_takes_nothing_away(pool: &mut Pool) -> Result<()> {
    let offline = pool.offline_file("offline", MIB)?;
    let file = pool.file("copied-to", MIB)?;
    pool.hsm.must("archive", [&file])?;
    let object = pool.object_of(&file.path)?;
    pool.stop()?;
    let mut marker = [0; 256];
    let n = rustix::fs::getxattr(&offline.path, MARKER, &mut marker)?;
    let flags = rustix::fs::XattrFlags::empty();
    pool.unguarded(|| Ok(rustix::fs::setxattr(&file.path, MARKER, &marker[..n], flags)?))?;
    // As if the agent had died on the way to release this very file.
    let database = cut_off_releases(pool, &[(&file.path, &object)])?;
    pool.start()?;
    let log = pool.agent()?.log();
    ensure!(log.contains("copied-to") && log.contains("given up"), "the log does not say so");
    foreign_is_told(pool, &file.path)?;
    offline.check()?;
    pool.stop()?;
    let open = Catalog::open(&database)?.open_intents()?;
    ensure!(open.is_empty(), "the intent stays: {open:?}");
    pool.unguarded(|| Ok(rustix::fs::removexattr(&file.path, MARKER)?))?;
    pool.start()?;
    file.check()
}

/// Leaves intents in the catalogue as an agent does that dies in the middle of a release. Returns its file.
fn cut_off_releases(pool: &Pool, files: &[(&Path, &str)]) -> Result<PathBuf> {
    let database = pool.config.state_dir().join("lab.db");
    let intent = |(path, object): &(&Path, &str)| -> Result<NewIntent> {
        let file = rustix::fs::open(
            *path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        Ok(NewIntent {
            op: IntentOp::Release,
            key: handle::of_fd(file)?,
            object: object.parse()?,
            started_ns: 1,
            path_hint: path.as_os_str().as_encoded_bytes().to_vec(),
        })
    };
    Catalog::open(&database)?.begin(&files.iter().map(intent).collect::<Result<Vec<_>>>()?)?;
    Ok(database)
}

/// As if it had never been taken away.
fn put_back(path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
    let times = std::fs::metadata(path)?;
    let file = File::options().write(true).open(path)?;
    file.write_all_at(bytes, offset)?;
    file.set_times(std::fs::FileTimes::new().set_modified(times.modified()?))?;
    Ok(file.sync_all()?)
}

/// Somebody has it open when the agent starts, and his bytes cannot be fetched either.
fn a_cut_off_release_is_finished_once_the_file_is_free(pool: &mut Pool) -> Result<()> {
    let file = pool.file("in-use", 3 * MIB)?;
    let bytes = std::fs::read(&file.path)?;
    pool.offline(&file.path)?;
    let object = pool.object_of(&file.path)?;
    pool.stop()?;
    let open = pool.unguarded(|| {
        put_back(&file.path, &bytes[..MIB as usize], 0)?;
        Ok(File::open(&file.path)?)
    })?;
    cut_off_releases(pool, &[(&file.path, &object)])?;
    let (store, away) = (pool.store().to_owned(), pool.outside("store-away"));
    fs::rename(&store, &away)?;
    pool.start()?;
    thread::sleep(patience(Duration::from_secs(2)));
    ensure!(Index::read(pool)?.has_no_intents().is_err(), "finished under an open file");
    ensure!(file.path.metadata()?.blocks() >= MIB / 512, "its data is gone under an open file");
    fs::rename(&away, &store)?;
    drop(open);
    let end = Instant::now() + patience(Duration::from_secs(20));
    while let Err(error) = Index::read(pool)?.has_no_intents() {
        ensure!(Instant::now() < end, "{error}, though nobody has the file open");
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(file.path.metadata()?.blocks() < 64, "what was left over is still there");
    pool.assert_state(&file.path, &["offline"])?;
    file.check()
}

/// A power cut can take back what the catalogue knows of a release's end, and leave the ranges that were
/// recalled afterwards, with the map that vouches for them.
fn a_release_that_came_to_its_end_is_not_done_again(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 8 * MIB)?;
    let object = pool.object_of(&file.path)?;
    let args = [file.path.display().to_string(), (2 * MIB).to_string(), "1000".to_owned()];
    file.content.check_range(2 * MIB, &pool.helper("pread", args)?.ok()?.stdout)?;
    pool.assert_state(&file.path, &["partial"])?;
    pool.stop()?;
    let database = cut_off_releases(pool, &[(&file.path, &object)])?;
    pool.start()?;
    file.check()?;
    pool.stop()?;
    let open = Catalog::open(&database)?.open_intents()?;
    ensure!(open.is_empty(), "the intent stays: {open:?}");
    pool.start()
}

/// The same times after a power cut prove nothing: an fdatasync of a writer does not make them durable.
fn a_cut_off_release_takes_only_what_its_object_has(pool: &mut Pool) -> Result<()> {
    const LEFT: std::ops::Range<usize> = MIB as usize / 2..2 * MIB as usize;
    let (left, written) = (pool.file("left-over", 3 * MIB)?, pool.file("written-to", 3 * MIB)?);
    let bytes = std::fs::read(&left.path)?;
    let mut objects = Vec::new();
    for file in [&left, &written] {
        pool.offline(&file.path)?;
        objects.push(pool.object_of(&file.path)?);
    }
    pool.stop()?;
    let put = |path: &Path, bytes: &[u8]| put_back(path, bytes, LEFT.start as u64);
    let others = vec![7; LEFT.len()];
    pool.unguarded(|| {
        put(&left.path, &bytes[LEFT])?;
        put(&written.path, &others)
    })?;
    let files = [&left, &written].map(|file| file.path.as_path());
    let of = |n: usize| (files[n], objects[n].as_str());
    let database = cut_off_releases(pool, &[of(0), of(1)])?;
    pool.start()?;
    ensure!(std::fs::metadata(&left.path)?.blocks() < 64, "what was left over is still there");
    left.check()?;
    assert_read_fails(&written.path, &[Errno::IO.raw_os_error()])?;
    pool.stop()?;
    let open = Catalog::open(&database)?.open_intents()?.len();
    ensure!(open == 1, "{open} intents are open: that of the file that was written to must be");
    pool.unguarded(|| {
        let mut now = vec![0; LEFT.len()];
        File::open(&written.path)?.read_exact_at(&mut now, LEFT.start as u64)?;
        ensure!(now == others, "bytes that only this file had are gone");
        Ok(())
    })?;
    pool.start()
}

/// By every verb that looks, as that and not as offline.
fn foreign_is_told(pool: &mut Pool, path: &Path) -> Result<()> {
    assert_read_fails(path, &[Errno::IO.raw_os_error()])?;
    let pool_only: &[&std::ffi::OsStr] = &["--pool".as_ref(), "lab".as_ref()];
    let (this, all) = (&[path.as_os_str()], &["-r".as_ref(), pool.mnt().as_os_str()]);
    for (verb, args) in [
        ("state", this.as_slice()),
        ("ls", all.as_slice()),
        ("du", &all[1..]),
        ("recall", this.as_slice()),
        ("scan", pool_only),
    ] {
        let out = pool.hsm.command(["--json", verb]).args(args).output()?;
        let told =
            out.text().lines().any(|l| l.contains("copied-to") && l.contains("foreign-marker"));
        ensure!(out.code() == 1 && told, "hsm {verb}: {}", out.describe());
    }
    let offline = pool.hsm.count("offline")?;
    ensure!(offline == 1, "{offline} files count as offline");
    Ok(())
}
