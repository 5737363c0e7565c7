//! Every way that leads to a file's bytes, in every condition of the agent.
//!
//! [`WAYS`] is the table: a way is a line of shell, and what it does to the file when it gets through
//! ([`Effect`]). Each case walks the whole table under one condition; what fails names its way. Who does
//! not get through must have seen nothing: no output, no copy, no change ([`World::check_refused`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hsm_lab::Run;
use hsm_lab::run::{Output, Running};
use rustix::io::Errno;

use super::cases;
use super::guarded::kill_agent;
use super::mounts::Mount;
use super::processes::wait_until_up;
use crate::fixture::Pool;

cases! {
    every_way_leads_to_the_bytes,
    every_way_survives_the_death_of_the_engine,
    without_an_agent_no_way_leads_to_an_offline_file; needs Programs,
    a_killed_agent_in_the_middle_of_a_recall_lets_nobody_through; needs Programs,
    a_kept_watch_stops_every_way_when_both_processes_die with |config| {
        config.keeps = true;
    }; needs InodeWatches,
}

/// What a way does when it gets through.
#[derive(Clone, Copy)]
enum Effect {
    /// The bytes go to standard output.
    Reads,
    /// This goes to standard output.
    Says(&'static str),
    /// The bytes go to `$copy`.
    Copies,
    /// The bytes and four more are in the overlay's upper layer.
    CopiesUp,
    /// The file becomes this.
    Changes(fn(Vec<u8>) -> Vec<u8>),
}

use Effect::{Changes, Copies, CopiesUp, Reads, Says};

/// One way: its name, its effect, its script.
struct Way(&'static str, Effect, &'static str);

/// Bytes of a file. A multiple of what a loop device counts in.
const SIZE: u64 = 256 << 10;

/// `$f` is the file, `$name` its path below the mount point `$mnt`; `$bound`, `$frozen` (read-only) and
/// `$merged` (overlay) are other mounts of the same tree.
const WAYS: &[Way] = &[
    Way("cat", Reads, "cat $f"),
    Way("direct", Reads, "dd if=$f iflag=direct bs=4096 status=none"),
    Way("mmap", Reads, "helper mmap-grow $f"),
    Way("o-path", Reads, "helper reopen $f"),
    Way("handle", Reads, "helper handle-read $f"),
    Way("io-uring", Reads, "helper uring-read $f"),
    Way("mount-namespace", Reads, "unshare -m cat $f"),
    Way("user-namespace", Reads, "unshare -rpf cat $f"),
    Way("another-user", Reads, "setpriv --reuid 65534 --regid 65534 --clear-groups cat $f"),
    Way("chroot", Reads, "helper chroot $f"),
    Way("bind", Reads, "cat $bound/$name"),
    Way("bind-read-only", Reads, "cat $frozen/$name"),
    Way("overlay-lower", Reads, "cat $merged/$name"),
    Way("overlay-mmap", Reads, "helper mmap-grow $merged/$name"),
    Way("overlay-copy-up", CopiesUp, "printf more >> $merged/$name"),
    Way("hard-link", Reads, "ln $f $copy; cat $copy"),
    Way("symbolic-link", Reads, "ln -s $f $copy; cat $copy"),
    Way("loop", Reads, "d=$(losetup -r -f --show $f); trap 'losetup -d $d' EXIT; cat $d"),
    Way("sendfile", Reads, "helper sendfile $f"),
    Way("copy-file-range", Copies, "helper copy-range $f $copy"),
    Way("clone", Copies, "helper clone $f $copy"),
    Way("cp", Copies, "cp $f $copy"),
    Way("tar-sparse", Copies, "tar -cSf - -C $mnt $name | tar -xOf - > $copy; test -s $copy"),
    Way("exec", Says("ran\n"), "setpriv --reuid 65534 --regid 65534 --clear-groups $f ran"),
    Way("seek-data", Says("0 262144\n"), "helper seek-data $f"),
    Way("write-only", Changes(overwritten), "printf more | dd of=$f conv=notrunc status=none"),
    Way("open-truncate", Changes(|_| b"more".to_vec()), "printf more > $f"),
    Way("truncate", Changes(cut), "helper truncate $f 1000"),
];

fn overwritten(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[..4].copy_from_slice(b"more");
    bytes
}

fn cut(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(1000);
    bytes
}

/// A way and an offline file of its own.
struct Subject {
    way: &'static Way,
    path: PathBuf,
    bytes: Vec<u8>,
}

/// The pool's tree, its offline files, and the other mounts that lead there.
struct World {
    subjects: Vec<Subject>,
    upper: PathBuf,
    prelude: String,
    // Unmounted at the end.
    _mounts: [Mount; 3],
}

impl World {
    fn new(pool: &mut Pool) -> Result<Self> {
        fs::create_dir(pool.path("d"))?;
        let clones = pool.kind.has_reflinks();
        let ways = WAYS.iter().filter(|way| clones || way.0 != "clone");
        let subjects = ways.map(|way| subject(pool, way)).collect::<Result<_>>()?;
        pool.offline_tree(&pool.path("d"))?;
        let [bound, frozen, merged, upper, work] =
            ["bound", "frozen", "merged", "upper", "work"].map(|name| pool.outside(name));
        let source = pool.mnt().display().to_string();
        let mounts = [
            Mount::new(&["--bind"], &source, &bound)?,
            Mount::new(&["--bind"], &source, &frozen)?,
            overlay(&source, [&upper, &work, &merged])?,
        ];
        Run::new("mount").args(["-o", "remount,bind,ro"]).args([&frozen]).ok()?;
        let prelude = format!(
            "mnt={source} bound={} frozen={} merged={} exe={}; helper() {{ $exe --helper \"$@\"; }}",
            bound.display(),
            frozen.display(),
            merged.display(),
            std::env::current_exe()?.display(),
        );
        Ok(Self { subjects, upper, prelude, _mounts: mounts })
    }

    fn command(&self, subject: &Subject) -> Run {
        let script =
            format!("{}; f=$1 name=d/${{1##*/}} copy=$1.copy; {}", self.prelude, subject.way.2);
        Run::shell(&script).args([&subject.path])
    }

    fn start_all(&self) -> Result<Vec<Running>> {
        self.subjects.iter().map(|subject| self.command(subject).start()).collect()
    }

    /// What a way that got through must have done.
    fn check_through(&self, subject: &Subject, output: &Output) -> Result<()> {
        ensure!(output.code() == 0, "{}", output.describe());
        match subject.way.1 {
            Reads => same(&output.stdout, &subject.bytes),
            Says(words) => same(&output.stdout, words.as_bytes()),
            Copies => same(&fs::read(subject.copy())?, &subject.bytes),
            CopiesUp => {
                same(&fs::read(self.upper(subject))?, &[&subject.bytes, &b"more"[..]].concat())
            }
            Changes(_) => Ok(()),
        }
    }

    /// A way that did not get through has shown and left nothing.
    fn check_refused(&self, subject: &Subject, output: &Output) -> Result<()> {
        ensure!(output.code() != 0, "it got through: {}", output.describe());
        ensure!(output.stdout.is_empty(), "{} bytes were read", output.stdout.len());
        if matches!(subject.way.1, Copies) {
            let copied = fs::metadata(subject.copy()).map_or(0, |meta| meta.len());
            ensure!(copied == 0, "{copied} bytes were copied");
        }
        ensure!(!self.upper(subject).exists(), "there is a copy in the upper layer");
        Ok(())
    }

    /// After a kill in the middle: everything or nothing, and some must have got nothing.
    fn check_each_got_through_or_nothing(&self, outputs: &[Output]) -> Result<()> {
        let mut outputs = outputs.iter();
        let mut refused = 0;
        self.each(|subject| {
            let output = outputs.next().context("no output")?;
            if output.code() == 0 {
                return self.check_through(subject, output);
            }
            refused += 1;
            self.check_refused(subject, output)?;
            match fs::read(&subject.path) {
                // Its recall was over before.
                Ok(bytes) => same(&bytes, &subject.bytes),
                Err(error) => {
                    let errno = error.raw_os_error();
                    ensure!(errno == Some(Errno::AGAIN.raw_os_error()), "afterwards: {error}");
                    Ok(())
                }
            }
        })?;
        ensure!(refused > 0, "nobody was in the middle of anything");
        Ok(())
    }

    /// What every file must contain in the end.
    fn check_files(&self, outputs: &[Output]) -> Result<()> {
        let mut through = outputs.iter().map(|output| output.code() == 0);
        self.each(|subject| subject.check_file(through.next().unwrap_or(false)))
    }

    fn upper(&self, subject: &Subject) -> PathBuf {
        self.upper.join("d").join(subject.way.0)
    }

    /// Something about each way.
    fn each(&self, mut check: impl FnMut(&Subject) -> Result<()>) -> Result<()> {
        let mut wrong = String::new();
        for subject in &self.subjects {
            if let Err(error) = check(subject) {
                wrong += &format!("\n{}: {error:#}", subject.way.0);
            }
        }
        ensure!(wrong.is_empty(), "{wrong}");
        Ok(())
    }
}

impl Subject {
    fn copy(&self) -> PathBuf {
        self.path.with_extension("copy")
    }

    /// What the file must contain.
    fn check_file(&self, changed: bool) -> Result<()> {
        match self.way.1 {
            Changes(change) if changed => same(&fs::read(&self.path)?, &change(self.bytes.clone())),
            _ => same(&fs::read(&self.path)?, &self.bytes),
        }
    }
}

fn subject(pool: &mut Pool, way: &'static Way) -> Result<Subject> {
    let path = pool.path("d").join(way.0);
    if way.0 == "exec" {
        fs::copy("/bin/echo", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
    } else {
        pool.file(&path, SIZE)?;
    }
    let bytes = fs::read(&path)?;
    Ok(Subject { way, path, bytes })
}

fn overlay(lower: &str, [upper, work, merged]: [&Path; 3]) -> Result<Mount> {
    fs::create_dir(upper)?;
    fs::create_dir(work)?;
    let [upper, work] = [upper, work].map(|path| path.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    Mount::new(&["-t", "overlay", "-o", &options], "overlay", merged)
}

fn same(got: &[u8], want: &[u8]) -> Result<()> {
    let zeros = got.iter().filter(|byte| **byte == 0).count();
    let (is, should) = (got.len(), want.len());
    ensure!(got == want, "wrong bytes: {is} ({zeros} of them zeros) instead of {should}");
    Ok(())
}

fn every_way_leads_to_the_bytes(pool: &mut Pool) -> Result<()> {
    let world = World::new(pool)?;
    world.each(|subject| {
        world.check_through(subject, &world.command(subject).output()?)?;
        subject.check_file(true)
    })
}

/// Starts all ways while the store is slow, waits until they wait, and does something to the agent.
fn interrupted(
    pool: &mut Pool,
    world: &World,
    interrupt: impl FnOnce(&mut Pool) -> Result<()>,
) -> Result<Vec<Output>> {
    pool.restart_slow("512KiB")?;
    let mut running = world.start_all()?;
    thread::sleep(Duration::from_millis(1000));
    let mut waiting = 0;
    for program in &mut running {
        waiting += usize::from(program.is_running()?);
    }
    ensure!(waiting > running.len() / 3, "only {waiting} of {} wait", running.len());
    interrupt(pool)?;
    running.into_iter().map(Running::finish).collect()
}

fn every_way_survives_the_death_of_the_engine(pool: &mut Pool) -> Result<()> {
    let world = World::new(pool)?;
    let outputs = interrupted(pool, &world, |pool| {
        for _ in 0..2 {
            ensure!(pool.agent()?.kill_engine() == 1, "no engine was killed");
            wait_until_up(pool)?;
        }
        Ok(())
    })?;
    let mut outputs = outputs.iter();
    world.each(|subject| {
        world.check_through(subject, outputs.next().context("no output")?)?;
        subject.check_file(true)
    })
}

fn without_an_agent_no_way_leads_to_an_offline_file(pool: &mut Pool) -> Result<()> {
    let world = World::new(pool)?;
    kill_agent(pool)?;
    world.each(|subject| world.check_refused(subject, &world.command(subject).output()?))?;
    let file = &world.subjects[0].path;
    for (what, command) in [
        (
            "renamed",
            "mv \"$1\" \"$1.moved\"; cat \"$1.moved\" || { mv \"$1.moved\" \"$1\"; exit 1; }",
        ),
        ("filefrag", "filefrag \"$1\" && false"),
        ("swapon", "swapon \"$1\""),
        ("cp --reflink", "cp --reflink=always \"$1\" \"$1.clone\""),
    ] {
        let out = Run::shell(command).args([file]).output()?;
        ensure!(out.code() != 0, "{what} got through: {}", out.describe());
        ensure!(out.stdout.iter().all(|byte| *byte != 0), "{what} gave zeros: {}", out.describe());
    }
    pool.start()?;
    world.each(|subject| {
        pool.assert_offline(&subject.path)?;
        drop(fs::remove_file(subject.copy()));
        world.check_through(subject, &world.command(subject).output()?)?;
        subject.check_file(true)
    })
}

fn a_killed_agent_in_the_middle_of_a_recall_lets_nobody_through(pool: &mut Pool) -> Result<()> {
    let world = World::new(pool)?;
    let outputs = interrupted(pool, &world, kill_agent)?;
    world.check_each_got_through_or_nothing(&outputs)?;
    pool.config.store_options.retain(|line| !line.starts_with("rate_limit"));
    pool.start()?;
    world.check_files(&outputs)
}

fn a_kept_watch_stops_every_way_when_both_processes_die(pool: &mut Pool) -> Result<()> {
    let world = World::new(pool)?;
    let outputs = interrupted(pool, &world, |pool| {
        let kept = pool.agent()?.take_kept().pop();
        ensure!(kept.is_some(), "nothing was given to be kept");
        kill_agent(pool)?;
        pool.config.store_options.retain(|line| !line.starts_with("rate_limit"));
        pool.start_keeping(kept)
    })?;
    world.check_each_got_through_or_nothing(&outputs)?;
    world.check_files(&outputs)
}
