//! Many readers at once, in a process of its own that belongs to any user.
//!
//! [`Readers::start`] starts the caller's own program again, which passes its arguments to [`run`]. Each
//! reader is a thread that reads whole files and compares every byte.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::Content;

/// Stack of a reader. It holds nothing large.
const STACK: usize = 128 << 10;

/// Files in a directory, and whose readers read them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Files {
    /// Where they are. Their names are numbers, which are also the seeds of their content.
    pub dir: PathBuf,
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Bytes in each.
    pub size: u64,
}

impl Files {
    /// Makes them.
    pub fn write(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)?;
        (self.first..self.first + self.count)
            .try_for_each(|n| Ok(fs::write(self.path(n), self.content(n).bytes())?))
    }

    /// Where the file of this number is.
    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:07}"))
    }

    /// Some of them.
    pub fn part(&self, first: u64, count: u64) -> Self {
        Self { first: self.first + first, count, ..self.clone() }
    }

    fn content(&self, number: u64) -> Content {
        Content::new(number + 1, self.size)
    }
}

/// What readers met.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Files with the right bytes.
    pub right: u64,
    /// Files with others, and what was wrong.
    pub wrong: Vec<String>,
    /// Failures by error number.
    pub errors: BTreeMap<i32, u64>,
    /// How long each good read took, in microseconds, in the order in which they ended.
    pub micros: Vec<u64>,
}

impl Tally {
    /// How long good reads took.
    pub fn times(&self) -> Vec<Duration> {
        self.micros.iter().map(|us| Duration::from_micros(*us)).collect()
    }

    /// Everything was read and right.
    pub fn all_right(&self, count: u64) -> Result<()> {
        let Self { right, wrong, errors, .. } = self;
        ensure!(wrong.is_empty(), "WRONG BYTES in {} files: {:?}", wrong.len(), wrong.first());
        ensure!(*right == count, "{right} of {count} files were read; errors: {errors:?}");
        Ok(())
    }
}

/// A process of readers; killed when dropped.
#[derive(Debug)]
pub struct Readers(Child);

impl Readers {
    /// Starts this program again with `prefix` and the arguments of [`run`]: `threads` readers of user `uid`
    /// read each file once.
    pub fn start(prefix: &[&str], uid: u32, threads: u64, files: &Files) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(prefix).args([uid.to_string(), threads.to_string()]);
        command.arg(serde_json::to_string(files)?).stdout(Stdio::piped());
        Ok(Self(command.spawn().context("starting readers")?))
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Result<Tally> {
        let out = self.0.stdout.take().context("no standard output")?;
        let tally = serde_json::from_reader(out).context("the readers say nothing")?;
        ensure!(self.0.wait()?.success(), "the readers failed");
        Ok(tally)
    }

    /// Whether they still read.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The other side of [`Readers::start`]: `UID THREADS FILES`.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let text = |at: usize| arguments.get(at).and_then(|a| a.to_str()).context("UID THREADS FILES");
    let files: Files = serde_json::from_str(text(2)?)?;
    become_user(text(0)?.parse()?)?;
    let tally = read_all(&files, text(1)?.parse()?)?;
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

/// Of this thread, and of those that it starts.
fn become_user(uid: u32) -> Result<()> {
    let nofile = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: nofile.maximum, ..nofile })?;
    if uid != 0 {
        rustix::thread::set_thread_groups(&[])?;
        let gid = rustix::process::Gid::from_raw(uid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    Ok(())
}

fn read_all(files: &Files, threads: u64) -> Result<Tally> {
    let next = AtomicU64::new(files.first);
    let tally = Mutex::new(Tally::default());
    let reader = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= files.first + files.count {
                break;
            }
            let begin = Instant::now();
            let result = fs::read(files.path(number));
            let time = begin.elapsed();
            note(&tally, files, number, result, time);
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        for _ in 0..threads.min(files.count) {
            let builder = std::thread::Builder::new().stack_size(STACK);
            builder.spawn_scoped(scope, reader).context("starting a reader")?;
        }
        Ok(())
    })?;
    Ok(tally.into_inner().unwrap_or_default())
}

fn note(
    tally: &Mutex<Tally>,
    files: &Files,
    number: u64,
    result: std::io::Result<Vec<u8>>,
    time: Duration,
) {
    let checked = result.map(|bytes| files.content(number).check_bytes(&bytes));
    let mut tally = tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match checked {
        Ok(Ok(())) => {
            tally.right += 1;
            tally.micros.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        }
        Ok(Err(error)) => tally.wrong.push(format!("{number}: {error:#}")),
        Err(error) => *tally.errors.entry(error.raw_os_error().unwrap_or(0)).or_default() += 1,
    }
}

/// Memory and descriptors of a process now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// `VmRSS`, in KiB.
    pub rss_kib: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

impl Usage {
    /// Of a process; nothing of one that does not exist.
    pub fn of(pid: i32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        let descriptors = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"));
        Self { rss_kib, descriptors: descriptors.map_or(0, |dir| dir.count() as u64) }
    }

    /// The larger of each.
    pub fn most(self, other: Self) -> Self {
        Self {
            rss_kib: self.rss_kib.max(other.rss_kib),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}
