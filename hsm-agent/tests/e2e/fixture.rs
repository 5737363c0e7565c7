//! One case's own world: an image, a file system on it, a store outside, an agent, a watchdog.
//!
//! ```text
//! run dir/NAME-FS/
//!   mnt.img  mnt/      the managed file system (loop mount)
//!   outside/           the host's file system: copies, originals, other mounts
//!   store/ state/ hsm.sock hsm.toml agent.log
//! ```
//!
//! [`run`] catches a panic, stops the agent, unmounts, removes the directory, and reports whichever
//! of these went wrong. The watchdog kills an agent that keeps a case from ending.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hsm_lab::agent::{Kept, Manager, Watchdog};
use hsm_lab::hsm::{FileReport, Report};
use hsm_lab::{
    Agent, Content, FsKind, Hsm, LoopFs, Output, PoolConfig, Run, Tier, loopfs, openers, patience,
    threads,
};

/// After this the agent is killed; every case is far below it on a slow machine.
const WATCHDOG: Duration = Duration::from_secs(150);

/// Cases that take longer are named.
const SLOW: Duration = Duration::from_secs(10);

/// How long a clean stop may take.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long a file that was recalled may count as offline.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Size from which a released file must have given its blocks back.
const SURELY_BLOCKS: u64 = 64 << 10;

/// Says which store a directory is: docs/CONFIGURATION.md.
pub(crate) const STORE_IDENTITY: &str = "hsm-store";

/// The job's directory in the test guest: docs/VM.md.
const GUEST_DIR: &str = "/hsm/job";

/// Blocks (of 512 bytes) that xattrs may occupy.
const XATTR_BLOCKS: u64 = 16;

/// What a case cannot be run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Any tier will do.
    Anything,
    /// Kernel programs that guard the files, whether the agent lives or not.
    Programs,
    /// A filter on the file system's own mark: tier mark-filter.
    Filter,
    /// A watch on the whole file system that ends with its group.
    WholeWatch,
    /// Watches on inodes that end with their group, and kernel programs.
    InodeWatches,
    /// Files that are open while they are offline.
    Ranges,
    /// The test guest: its kernel is nobody else's.
    Guest,
}

impl Needs {
    /// Whether this run has it: a tier that is only the agent's choice is not enough, or a case
    /// might pass without what it is about.
    pub(crate) fn are_met(self) -> bool {
        self.lacking().is_none()
    }

    /// Why this run does not have it.
    pub(crate) fn lacking(self) -> Option<&'static str> {
        let tier = Tier::of_this_run();
        let (met, why) = match self {
            Self::Anything => (true, ""),
            Self::Programs => (tier.has_programs(), "no kernel programs guard the files"),
            Self::Filter => (tier == Tier::MarkFilter, "no filter on a mark"),
            Self::WholeWatch => (
                tier == Tier::UserFilter,
                "no watch on the whole file system that a group's end takes away",
            ),
            Self::InodeWatches => {
                (tier == Tier::LsmFilter, "no watches on inodes that a group's end takes away")
            }
            Self::Ranges => (!tier.recalls_at_open(), "recall at open: no ranges"),
            Self::Guest => (Path::new(GUEST_DIR).is_dir(), "only in the test guest"),
        };
        (!met).then_some(why)
    }
}

/// A case: its name, what is special about its pool, and what it does.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// The paragraph of `docs/SEMANTICS.md`.
    pub(crate) name: &'static str,
    /// Changes the configuration before the agent starts.
    pub(crate) configure: fn(&mut PoolConfig),
    /// What it cannot be run without.
    pub(crate) needs: Needs,
    /// The only file system that has what it is about.
    pub(crate) only: Option<FsKind>,
    /// The case itself.
    pub(crate) run: fn(&mut Pool) -> Result<()>,
}

/// Runs one case on one file system and takes everything down again.
pub(crate) fn run(case: &Case, fs: FsKind, dir: &Path) -> Result<()> {
    let begin = Instant::now();
    let dir = dir.join(format!("{}-{fs}", short(case.name)));
    let mut pool = Pool::new(fs, &dir, case.configure)?;
    let watchdog = Watchdog::new(&dir, WATCHDOG + crate::cases::torture::asked_for());
    let result = panic::catch_unwind(AssertUnwindSafe(|| (case.run)(&mut pool)))
        .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(panic.as_ref()))));
    let mut result = result.map_err(|error| {
        let log = pool.agent.as_ref().map(Agent::log_tail).unwrap_or_default();
        anyhow!("{error:#}\n{log}\n{}", threads::standing(&dir))
    });
    if watchdog.barked() {
        result = Err(anyhow!("stopped by the watchdog: {result:?}"));
    }
    let end = pool.finish();
    fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    if begin.elapsed() > patience(SLOW) {
        eprintln!("slow: {fs}::{} took {:.0?}", case.name, begin.elapsed());
    }
    result.and(end)
}

/// A Unix socket's path has at most 107 bytes.
fn short(name: &str) -> String {
    let hash = blake3::hash(name.as_bytes()).to_hex();
    format!("{}-{}", &name[..name.len().min(20)], &hash[..6])
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

/// The world of a case.
pub(crate) struct Pool {
    /// The managed file system's kind.
    pub(crate) kind: FsKind,
    /// The command line.
    pub(crate) hsm: Hsm,
    /// The configuration, to be changed before [`restart`](Self::restart).
    pub(crate) config: PoolConfig,
    agent: Option<Agent>,
    fs: LoopFs,
    dir: PathBuf,
    seed: u64,
}

/// A file of the managed file system and what it must contain.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it contains.
    pub(crate) content: Content,
}

impl Sample {
    /// Reads it all and compares.
    pub(crate) fn check(&self) -> Result<()> {
        self.content.check(&self.path)
    }
}

impl AsRef<OsStr> for Sample {
    fn as_ref(&self) -> &OsStr {
        self.path.as_os_str()
    }
}

/// The program under test.
pub(crate) fn exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hsm"))
}

impl Pool {
    fn new(kind: FsKind, dir: &Path, configure: fn(&mut PoolConfig)) -> Result<Self> {
        fs::create_dir(dir)?;
        fs::create_dir(dir.join("outside"))?;
        let fs = LoopFs::create(kind, dir, "mnt", loopfs::IMAGE_BYTES)?;
        let mut config = PoolConfig::new(dir, fs.path());
        configure(&mut config);
        let hsm = Hsm::new(exe(), &config.write()?);
        let dir = dir.to_path_buf();
        let mut pool = Self { kind, hsm, config, agent: None, fs, dir, seed: 1 };
        pool.start()?;
        Ok(pool)
    }

    fn finish(&mut self) -> Result<()> {
        let stopped = match self.agent.take() {
            Some(mut agent) => agent.stop(STOP_LIMIT).map(drop),
            None => Ok(()),
        };
        let unmounted = self.fs.unmount();
        let unpinned = self.config.unpin();
        stopped.context("at the end of the case").and(unmounted).and(unpinned)
    }

    /// Starts the agent with the current configuration.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.start_keeping(None)
    }

    /// [`start`](Self::start) with what an earlier agent gave the service manager to keep.
    pub(crate) fn start_keeping(&mut self, kept: Option<Kept>) -> Result<()> {
        self.config.write()?;
        let (environment, keeps) = (self.config.environment.as_slice(), self.config.keeps);
        let manager = Manager { environment, keeps, kept };
        self.agent = Some(Agent::start_by(manager, exe(), &self.dir)?);
        Ok(())
    }

    /// Stops the agent cleanly.
    pub(crate) fn stop(&mut self) -> Result<()> {
        self.agent.take().context("no agent runs")?.stop(STOP_LIMIT).map(drop)
    }

    /// Stops the agent and starts it with the current configuration.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// Does what the kernel programs let nobody do: without them, and without the agent, which puts
    /// them back when it is started (again, if it ran).
    pub(crate) fn unguarded<T>(&mut self, tamper: impl FnOnce() -> Result<T>) -> Result<T> {
        if !Needs::Programs.are_met() {
            return tamper();
        }
        let running = self.agent.is_some();
        if running {
            self.stop()?;
        }
        // In tier mark-filter the watch has to end as well, or everything would be denied.
        self.hsm.command(["guard", "unpin"]).ok()?;
        let result = tamper();
        if running {
            self.start()?;
        }
        result
    }

    /// Restarts it with a store that gives at most `rate` (like `"1MiB"`) per second.
    pub(crate) fn restart_slow(&mut self, rate: &str) -> Result<()> {
        self.config.store_options.push(format!("rate_limit = \"{rate}\""));
        self.restart()
    }

    /// Restarts it without the limit of [`restart_slow`](Self::restart_slow).
    pub(crate) fn restart_fast(&mut self) -> Result<()> {
        self.config.store_options.retain(|line| !line.starts_with("rate_limit"));
        self.restart()
    }

    /// The running agent.
    pub(crate) fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("no agent runs")
    }

    /// Takes the agent out, to be stopped or killed by the case.
    pub(crate) fn take_agent(&mut self) -> Result<Agent> {
        self.agent.take().context("no agent runs")
    }

    /// Puts an agent that was taken out back.
    pub(crate) fn put_agent(&mut self, agent: Agent) {
        self.agent = Some(agent);
    }

    /// The managed file system.
    pub(crate) fn fs(&mut self) -> &mut LoopFs {
        &mut self.fs
    }

    /// The managed file system's mount point.
    pub(crate) fn mnt(&self) -> &Path {
        self.fs.path()
    }

    /// A path on the managed file system.
    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.fs.path().join(name)
    }

    /// A path on the host's file system.
    pub(crate) fn outside(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join("outside").join(name)
    }

    /// The local store.
    pub(crate) fn store(&self) -> &Path {
        &self.config.store
    }

    /// Makes a resident file with content of its own.
    pub(crate) fn file(&mut self, name: impl AsRef<Path>, size: u64) -> Result<Sample> {
        self.seed += 1;
        self.file_with(name, Content::new(self.seed, size))
    }

    /// Makes a resident file with this content.
    pub(crate) fn file_with(&mut self, name: impl AsRef<Path>, content: Content) -> Result<Sample> {
        let path = self.path(name);
        content.write(&path)?;
        Ok(Sample { path, content })
    }

    /// Makes a file and takes its data away.
    pub(crate) fn offline_file(&mut self, name: impl AsRef<Path>, size: u64) -> Result<Sample> {
        let sample = self.file(name, size)?;
        self.offline(&sample.path)?;
        Ok(sample)
    }

    /// Archives and releases one file, and proves that its data is gone: otherwise the case
    /// would read what was never taken away.
    pub(crate) fn offline(&self, path: &Path) -> Result<()> {
        self.hsm.must("archive", [path])?;
        self.hsm.must("release", [path])?;
        self.assert_offline(path)
    }

    /// Once in many runs every file of a tree was refused as if somebody had it open. Who did is not known: a
    /// failure tells.
    fn release_tree(&self, dir: &Path) -> Result<()> {
        let report = self.hsm.verb("release", ["-r".as_ref(), dir.as_os_str()])?;
        if report.code == 0 {
            return Ok(());
        }
        let refused = |file: &&FileReport| file.reason.as_deref() == Some("open-elsewhere");
        let files: Vec<_> =
            report.files.iter().filter(refused).map(|f| Path::new(&f.path)).collect();
        let openers = openers::of(files);
        bail!("hsm release: {:?}\n{openers}\n{}", report.summary, report.output.describe())
    }

    /// Archives and releases a tree, and proves it for each file.
    pub(crate) fn offline_tree(&self, dir: &Path) -> Result<usize> {
        self.hsm.must("archive", ["-r".as_ref(), dir.as_os_str()])?;
        self.release_tree(dir)?;
        let mut count = 0;
        for file in hsm_lab::content::files_below(dir)? {
            let meta = fs::symlink_metadata(&file)?;
            if meta.len() > 0 {
                check_blocks(&file, &meta)?;
                count += 1;
            }
        }
        let output = self
            .hsm
            .command(["--json".as_ref(), "ls".as_ref(), "-r".as_ref(), dir.as_os_str()])
            .ok()?;
        let offline = output.text().matches("\"offline\"").count();
        ensure!(count > 0, "no file below {}", dir.display());
        ensure!(offline >= count, "{offline} of {count} files are offline: {}", output.describe());
        Ok(count)
    }

    /// The state's name.
    pub(crate) fn state(&self, path: &Path) -> Result<String> {
        Ok(self.hsm.state(path)?.state)
    }

    /// Fails unless the file's state is one of these, or becomes so: a recalled file gets its bytes
    /// at once, and is made ordinary again when they are durable.
    pub(crate) fn assert_state(&self, path: &Path, allowed: &[&str]) -> Result<()> {
        let end = Instant::now() + patience(SETTLE_LIMIT);
        loop {
            let state = self.state(path)?;
            if allowed.contains(&state.as_str()) {
                return Ok(());
            }
            let shown = path.display();
            ensure!(Instant::now() < end, "{shown} is {state}, not {allowed:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Offline by what `hsm` says and by what the file system says.
    pub(crate) fn assert_offline(&self, path: &Path) -> Result<()> {
        self.assert_state(path, &["offline"])?;
        check_blocks(path, &fs::symlink_metadata(path)?)
    }

    /// Not offline and not partial.
    pub(crate) fn assert_local(&self, path: &Path) -> Result<()> {
        self.assert_state(path, &["resident", "archived", "dirty"])
    }

    /// A shell script that must succeed; `$1`... are `args`.
    pub(crate) fn sh<S: AsRef<OsStr>>(
        &self,
        script: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        Run::shell(script).args(args).ok()
    }

    /// A Python program that must succeed; `sys.argv[1:]` are `args`.
    pub(crate) fn python<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        Run::new("/usr/bin/python3").args(["-c", program]).args(args).ok()
    }

    /// This program in its helper mode.
    pub(crate) fn helper<S: AsRef<OsStr>>(
        &self,
        mode: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Run> {
        Ok(Run::new(std::env::current_exe()?).args(["--helper", mode]).args(args))
    }

    /// `release` must be refused for this reason, and the file stay readable and local.
    pub(crate) fn assert_release_refused(&self, path: &Path, reasons: &[&str]) -> Result<()> {
        let report = self.hsm.verb("release", [path])?;
        ensure!(report.code == 1, "exit code {}: {}", report.code, report.output.describe());
        refused_for(&report, reasons)?;
        self.assert_local(path)
    }

    /// All objects (files) in the store.
    pub(crate) fn objects(&self) -> Result<Vec<PathBuf>> {
        let mut files = hsm_lab::content::files_below(self.store())?;
        files.retain(|f| fs::metadata(f).is_ok_and(|m| m.len() > 0));
        files.retain(|f| !f.ends_with(STORE_IDENTITY));
        Ok(files)
    }

    /// The number of the object that an archived file has.
    pub(crate) fn object_of(&self, path: &Path) -> Result<String> {
        let state = self.hsm.state(path)?.json;
        let object = state.get("object").and_then(|object| object.as_str());
        Ok(object.with_context(|| format!("{}: no object", path.display()))?.to_owned())
    }

    /// The one object that archiving this one file made.
    pub(crate) fn offline_with_object(
        &mut self,
        name: &str,
        size: u64,
    ) -> Result<(Sample, PathBuf)> {
        let before = self.objects()?;
        let sample = self.offline_file(name, size)?;
        let mut new: Vec<_> = self.objects()?;
        new.retain(|path| !before.contains(path));
        // A small note (a marker of the store, an index) is not the object: that has the bytes.
        new.retain(|path| fs::metadata(path).is_ok_and(|meta| meta.len() >= size));
        match new.as_slice() {
            [object] => Ok((sample, object.clone())),
            other => bail!("{} objects of {size} bytes or more were made: {other:?}", other.len()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            eprintln!("taking a pool down: {error:#}");
        }
    }
}

/// The only file of a report was refused for one of these reasons.
pub(crate) fn refused_for(report: &Report, reasons: &[&str]) -> Result<()> {
    ensure!(report.outcome() == "failed", "outcome {}", report.output.describe());
    let reason = report.reason();
    ensure!(
        reasons.contains(&reason),
        "refused as {reason}, not {reasons:?}: {}",
        report.output.describe()
    );
    Ok(())
}

fn check_blocks(path: &Path, meta: &fs::Metadata) -> Result<()> {
    let released = meta.len() < SURELY_BLOCKS || meta.blocks() <= XATTR_BLOCKS;
    ensure!(released, "{} still has {} blocks of 512 bytes", path.display(), meta.blocks());
    Ok(())
}

/// Reads a file in this process; the error number of a failure.
pub(crate) fn read_errno(path: &Path) -> Result<i32> {
    match fs::read(path) {
        Ok(bytes) => {
            let zeros = bytes.iter().all(|b| *b == 0);
            bail!("{} could be read: {} bytes, all zeros: {zeros}", path.display(), bytes.len())
        }
        Err(error) => error.raw_os_error().context("no error number"),
    }
}

/// Asserts that reading fails with one of these errors.
pub(crate) fn assert_read_fails(path: &Path, allowed: &[i32]) -> Result<()> {
    let errno = read_errno(path)?;
    ensure!(allowed.contains(&errno), "{}: errno {errno}, not one of {allowed:?}", path.display());
    Ok(())
}
