//! `cargo xtask demo`: the product's main job on a real tree, every byte checked.
//!
//! The checks compare with the tree that the files were copied from, which hsm never touches.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hsm_lab::content::{files_below, hash_file};
use hsm_lab::sandbox::Role;
use hsm_lab::stats::{bytes, percentile};
use hsm_lab::{FsKind, Run};

use self::source::{Source, choose};
use crate::lab::{LIMIT, Lab, drop_caches, enter, exe, read_latency, timed};
use crate::steps::{note, step};

mod source;

/// Options of `cargo xtask demo`.
#[derive(Args)]
pub(crate) struct Options {
    /// The managed file system
    #[arg(long, default_value = "ext4", value_parser = parse_fs)]
    fs: FsKind,
    /// Where the tree is taken from; by default the machine's own documentation and data
    #[arg(long)]
    tree: Option<PathBuf>,
}

/// clap wants a function.
pub(crate) fn parse_fs(text: &str) -> Result<FsKind, String> {
    text.parse()
}

/// Single recalls that are timed.
const SAMPLES: usize = 300;

/// Runs the demo.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match enter(&format!("cargo xtask demo --fs {}", options.fs))? {
        Role::Done(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        Role::Inside(dir) => inside(options, &dir),
    }
}

fn inside(options: &Options, dir: &Path) -> Result<ExitCode> {
    let source = choose(options.tree.as_deref())?;
    let exe = exe()?;
    let what = format!(
        "making a {} file system in an image, mounting it over a loop device, starting `hsm agent` \
         (managed files there, store in a directory on the disk below)",
        options.fs
    );
    let size = (source.bytes * 3).max(1 << 30) + source.files * 8192;
    let lab = step(&what, || Lab::new(options.fs, dir, size, &exe))?;
    let result = Demo { lab: &lab, source: &source, sums: lab.host("sums") }.run();
    let log = lab.agent.log_tail();
    let closed = lab.close();
    if result.is_err() {
        eprintln!("{log}");
    }
    result.and(closed)?;
    println!("\nEvery byte was right. Nothing of this is left on the machine.");
    Ok(ExitCode::SUCCESS)
}

struct Demo<'a> {
    lab: &'a Lab,
    source: &'a Source,
    sums: PathBuf,
}

impl Demo<'_> {
    fn run(&self) -> Result<()> {
        let tree = self.lab.managed("tree");
        let Source { root, parts, files, bytes: size } = self.source;
        let what = format!("copying {files} files ({}) of {}", bytes(*size), root.display());
        step(&format!("{what} to the managed file system"), || {
            fs::create_dir(&tree)?;
            Run::new("cp")
                .args(["-a", "--"])
                .args(parts.iter().map(|p| root.join(p)))
                .args([&tree])
                .limit(LIMIT)
                .ok()
        })?;
        step("sha256 of every original (where they came from; hsm never sees these)", || {
            let script = "cd \"$1\"; out=$2; shift 2; find \"$@\" -type f -print0 | sort -z | xargs -0r sha256sum > \"$out\"";
            Run::shell(script).args([root, &self.sums]).args(parts).limit(LIMIT).ok()
        })?;
        self.archive_and_release(&tree)?;
        self.latencies(&tree)?;
        self.programs(&tree)?;
        let memory = self.lab.agent.peak_memory();
        note(&format!(
            "agent's memory at most: holder {}, engine {}",
            bytes(memory.holder << 10),
            bytes(memory.engine << 10)
        ));
        Ok(())
    }

    fn archive_and_release(&self, tree: &Path) -> Result<()> {
        step("hsm archive: a copy of every file, with checksums, goes to the store", || {
            let time = self.lab.verb("archive", tree)?;
            self.rate("archived", time);
            Ok(())
        })?;
        self.du("before the release", tree)?;
        step("hsm release: the data leaves the file system, names and sizes stay", || {
            let time = self.lab.verb("release", tree)?;
            self.rate("released", time);
            self.assert_gone(tree)
        })?;
        self.du("after the release", tree)
    }

    /// Otherwise what follows would prove nothing: every file is offline by what hsm counts, and
    /// the large ones by what the file system says.
    fn assert_gone(&self, tree: &Path) -> Result<()> {
        let mut inodes = HashSet::new();
        for file in files_below(tree)? {
            let meta = fs::symlink_metadata(&file)?;
            let kept = meta.len() >= 64 << 10 && meta.blocks() > 16;
            ensure!(!kept, "{} still has {} blocks", file.display(), meta.blocks());
            if meta.len() > 0 {
                inodes.insert(meta.ino());
            }
        }
        let (offline, all) = (self.lab.hsm.count("offline")?, inodes.len() as u64);
        ensure!(offline == all, "{offline} of {all} files are offline");
        note(&format!("{offline} files are offline"));
        Ok(())
    }

    fn rate(&self, what: &str, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "printed rounded")]
        let (files, size) = (self.source.files as f64, self.source.bytes as f64);
        let mib = size / seconds / f64::from(1 << 20);
        note(&format!("{what}: {:.0} files/s, {mib:.0} MiB/s", files / seconds));
    }

    fn du(&self, when: &str, tree: &Path) -> Result<()> {
        let script = "du -sh \"$1\" | cut -f1; du -sh --apparent-size \"$1\" | cut -f1";
        let out = Run::shell(script).args([tree]).limit(LIMIT).ok()?.text();
        let mut lines = out.lines();
        let (used, apparent) = (lines.next().unwrap_or("?"), lines.next().unwrap_or("?"));
        note(&format!("du {when}: {used} on disk for {apparent} of files"));
        Ok(())
    }

    /// Opens and reads single offline files from all over the tree.
    fn latencies(&self, tree: &Path) -> Result<()> {
        step("reading single offline files, as any program would", || {
            let files = files_below(tree)?;
            let stride = (files.len() / SAMPLES).max(1);
            let mut times = Vec::new();
            drop_caches()?;
            for file in files.iter().step_by(stride) {
                let (got, time) = read_latency(file)?;
                let original = self.source.root.join(file.strip_prefix(tree)?);
                let same = blake3::hash(&got) == hash_file(&original)?;
                ensure!(same, "WRONG BYTES in {}", file.display());
                times.push(time);
            }
            let show = |p| percentile(&times, p).map_or(0.0, |t| t.as_secs_f64() * 1e3);
            let (p50, p99) = (show(50), show(99));
            note(&format!(
                "{} recalls, open to close: p50 {p50:.2} ms, p99 {p99:.2} ms",
                times.len()
            ));
            Ok(())
        })
    }

    /// Releases everything, lets a program read it all, and compares.
    fn programs(&self, tree: &Path) -> Result<()> {
        let copy = self.lab.host("copy");
        let check = "cd \"$1\"; sha256sum --quiet --strict -c \"$2\"";
        self.offline("sha256sum -c", tree, || timed(Run::shell(check).args([tree, &self.sums])))?;
        self.offline("cp -a", tree, || {
            let time = timed(Run::new("cp").args(["-a"]).args([tree, &copy]))?;
            timed(Run::shell(check).args([&copy, &self.sums])).context("in the copy")?;
            fs::remove_dir_all(&copy)?;
            Ok(time)
        })?;
        self.offline("tar | tar x", tree, || {
            fs::create_dir(&copy)?;
            let script = "tar -C \"$1\" -cf - . | tar -C \"$2\" -xf -";
            let time = timed(Run::shell(script).args([tree, &copy]))?;
            timed(Run::shell(check).args([&copy, &self.sums])).context("in the copy")?;
            fs::remove_dir_all(&copy)?;
            Ok(time)
        })?;
        self.offline("grep -r", tree, || self.grep(tree))
    }

    fn grep(&self, tree: &Path) -> Result<Duration> {
        let script = "cd \"$1\"; shift; grep -rac e -- \"$@\" | sort | sha256sum";
        let parts = &self.source.parts;
        let ours = Run::shell(script).args([tree]).args(parts).limit(LIMIT).ok()?;
        let theirs = Run::shell(script).args([&self.source.root]).args(parts).limit(LIMIT).ok()?;
        ensure!(ours.stdout == theirs.stdout, "grep found something else than in the originals");
        Ok(ours.elapsed)
    }

    fn offline(
        &self,
        what: &str,
        tree: &Path,
        work: impl FnOnce() -> Result<Duration>,
    ) -> Result<()> {
        step(&format!("{what} on the whole tree, all of it offline, caches cold"), || {
            self.lab.verb("release", tree)?;
            drop_caches()?;
            let time =
                work().with_context(|| format!("{what}: THE BYTES ARE WRONG or it failed"))?;
            self.rate("identical", time);
            Ok(())
        })
    }
}
