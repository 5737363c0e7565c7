//! `cargo xtask bench`: archive, release and recall against `cp` from and to the same places.
//!
//! Fair means: both sides move the same bytes between the same disk and the same kind of file
//! system in the same run, in turns and with turns at going first, each from the same state of the
//! caches, each until the data is durable (`cp` is followed by `sync -f`; without that it is shown as
//! well). "Cold" means that all caches were emptied, "warm" that nothing was, and that the source was
//! read just before. `cp` works on a twin that no agent watches, so that it does not pay for us. Every
//! number is the median of its rounds. This is no test: it fails only when something does not work.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use hsm_lab::sandbox::Role;
use hsm_lab::stats::{bytes, median, percentile};
use hsm_lab::{Content, FsKind, LoopFs, Run};

use self::results::{Latency, Results, Row};
use crate::demo::parse_fs;
use crate::lab::{LIMIT, Lab, drop_caches, enter, exe, read_latency, timed};
use crate::steps::{note, step};

mod instructions;
mod results;

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of 4 KiB files
    #[arg(long, default_value_t = 10_000)]
    files: u64,
    /// Size of the large file
    #[arg(long, default_value = "2GiB", value_parser = parse_size)]
    big: u64,
    /// The managed file system
    #[arg(long, default_value = "ext4", value_parser = parse_fs)]
    fs: FsKind,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Count the instructions of an open and a read of an online file instead, in the guest
    #[arg(long)]
    instructions: bool,
    /// The guest's part of that
    #[arg(long, hide = true)]
    instructions_inside: bool,
    /// Where the numbers go as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|e| format!("{text}: {e}"))?;
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        unit => return Err(format!("unknown unit {unit}; use KiB, MiB or GiB")),
    };
    Ok(number << shift)
}

const SMALL: u64 = 4096;
/// Single recalls that are timed.
const SAMPLES: u64 = 1000;

/// Runs the bench.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.instructions {
        return instructions::host(options.fs);
    }
    let role = if options.instructions_inside {
        // What is run was built on the host.
        hsm_lab::sandbox::enter()?
    } else {
        enter("cargo xtask bench")?
    };
    match role {
        Role::Done(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(101))),
        Role::Inside(dir) => inside(options, &dir).map(|()| ExitCode::SUCCESS),
    }
}

fn inside(options: &Options, dir: &Path) -> Result<()> {
    if options.instructions_inside {
        return instructions::guest(options.fs, dir);
    }
    let image = options.big * 3 + options.files * 3 * 8192 + (1 << 30);
    let mut plain = LoopFs::create(options.fs, dir, "plain", image)?;
    let lab = Lab::new(options.fs, dir, image, &exe()?)?;
    let mut bench = Bench { lab: &lab, plain: plain.path(), options, rows: Vec::new() };
    let result = bench.run();
    let rows = std::mem::take(&mut bench.rows);
    let memory = lab.agent.peak_memory();
    let log = lab.agent.log_tail();
    let closed = lab.close().and(plain.unmount());
    if result.is_err() {
        eprintln!("{log}");
    }
    let latency = result?;
    closed?;
    let results = Results {
        fs: options.fs.to_string(),
        files: options.files,
        big: options.big,
        rounds: options.rounds,
        rows,
        latency,
        holder_peak_kib: memory.holder,
        engine_peak_kib: memory.engine,
    };
    println!("{}", results.render());
    fs::write(&options.json, serde_json::to_vec_pretty(&results)?)?;
    note(&format!("the same as JSON: {}", options.json.display()));
    Ok(())
}

struct Bench<'a> {
    lab: &'a Lab,
    /// An unwatched file system for cp.
    plain: &'a Path,
    options: &'a Options,
    rows: Vec<Row>,
}

/// One of the two things that are moved.
struct Load {
    name: String,
    path: PathBuf,
    /// The same files where no agent watches.
    twin: PathBuf,
    files: u64,
    bytes: u64,
}

/// All rounds of one load in one state of the caches.
#[derive(Default)]
struct Times {
    archive: Vec<Duration>,
    cp_out: Vec<Cp>,
    release: Vec<Duration>,
    recall: Vec<Duration>,
    cp_in: Vec<Cp>,
    read: Vec<Duration>,
}

/// One run of cp.
struct Cp {
    /// Until it ended.
    alone: Duration,
    /// Until its copy was durable.
    durable: Duration,
}

/// Both, and the second one first if `swapped`.
fn in_turns(
    swapped: bool,
    one: impl FnOnce() -> Result<()>,
    two: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if swapped {
        two()?;
        return one();
    }
    one()?;
    two()
}

impl Bench<'_> {
    fn run(&mut self) -> Result<Latency> {
        let small = Load {
            name: format!("{} x 4 KiB", self.options.files),
            path: self.lab.managed("small"),
            twin: self.plain.join("small"),
            files: self.options.files,
            bytes: self.options.files * SMALL,
        };
        let big = Load {
            name: bytes(self.options.big),
            path: self.lab.managed("big"),
            twin: self.plain.join("big"),
            files: 1,
            bytes: self.options.big,
        };
        step("making the files, twice", || {
            fs::create_dir(&small.path)?;
            fs::create_dir(&big.path)?;
            for i in 0..small.files {
                fs::write(file(&small, i), Content::new(i, SMALL).bytes())?;
            }
            Content::new(1 << 40, big.bytes).write(&file(&big, 0))?;
            Run::new("cp")
                .args(["-r"])
                .args([&small.path, &big.path])
                .args([self.plain])
                .limit(LIMIT)
                .ok()
        })?;
        let latency = self.load(&small)?.context("no latency")?;
        self.load(&big)?;
        Ok(latency)
    }

    /// All rounds of one load; latencies only of small files.
    fn load(&mut self, load: &Load) -> Result<Option<Latency>> {
        for cache in ["cold", "warm"] {
            let what = format!("{}, cache {cache}, {} rounds", load.name, self.options.rounds);
            let times = step(&what, || self.rounds(load, cache))?;
            self.row(load, "archive", cache, &times.archive, Some(&times.cp_out));
            self.row(load, "release", cache, &times.release, None);
            self.row(load, "recall", cache, &times.recall, Some(&times.cp_in));
            self.row(load, "cat of it offline", cache, &times.read, Some(&times.cp_in));
        }
        if load.files == 1 {
            return Ok(None);
        }
        step("single recalls", || self.latency(load)).map(Some)
    }

    fn rounds(&self, load: &Load, cache: &str) -> Result<Times> {
        let mut times = Times::default();
        for round in 0..self.options.rounds {
            touch(load, round)?;
            self.round(load, cache == "cold", round % 2 == 1, &mut times)?;
        }
        Ok(times)
    }

    fn round(&self, load: &Load, cold: bool, cp_first: bool, times: &mut Times) -> Result<()> {
        let (copy, back) = (self.lab.host("copy"), self.plain.join("copy"));
        let cat = "find \"$1\" -type f -exec cat {} + > /dev/null";
        let caches = |source: &Path| -> Result<()> {
            if cold {
                return drop_caches();
            }
            rustix::fs::sync();
            Run::shell(cat).args([source]).limit(LIMIT).ok().map(drop)
        };
        let verb = |verb: &str, source: &Path| -> Result<Duration> {
            caches(source)?;
            self.lab.verb(verb, &load.path)
        };
        let cp = |from: &Path, to: &Path| -> Result<Cp> {
            caches(from)?;
            let alone = timed(Run::new("cp").args([Path::new("-r"), from, to]))?;
            let sync = timed(Run::new("sync").args([Path::new("-f"), to]))?;
            Ok(Cp { alone, durable: alone + sync })
        };
        let store = self.lab.host("store");
        in_turns(
            cp_first,
            || {
                times.archive.push(verb("archive", &load.path)?);
                Ok(())
            },
            || {
                times.cp_out.push(cp(&load.twin, &copy)?);
                Ok(())
            },
        )?;
        times.release.push(verb("release", &load.path)?);
        let offline = self.lab.hsm.count("offline")?;
        ensure!(offline >= load.files, "only {offline} files are offline");
        in_turns(
            cp_first,
            || {
                times.recall.push(verb("recall", &store)?);
                Ok(())
            },
            || {
                times.cp_in.push(cp(&copy, &back)?);
                Ok(())
            },
        )?;
        fs::remove_dir_all(&back)?;
        fs::remove_dir_all(&copy)?;
        self.lab.verb("release", &load.path)?;
        caches(&store)?;
        times.read.push(timed(Run::shell(cat).args([&load.path]))?);
        Ok(())
    }

    fn row(
        &mut self,
        load: &Load,
        verb: &str,
        cache: &'static str,
        ours: &[Duration],
        cp: Option<&[Cp]>,
    ) {
        let seconds = |times: &[Duration]| median(times).map_or(0.0, |time| time.as_secs_f64());
        let hsm_seconds = seconds(ours);
        let of_cp = |which: fn(&Cp) -> Duration| {
            cp.map(|all| seconds(&all.iter().map(which).collect::<Vec<_>>()))
        };
        let cp_seconds = of_cp(|cp| cp.durable);
        let cp_alone_seconds = of_cp(|cp| cp.alone);
        #[expect(clippy::cast_precision_loss, reason = "printed rounded")]
        let (files, mib) = (load.files as f64, load.bytes as f64 / f64::from(1 << 20));
        let rate = if load.files > 1 {
            format!("{:.0} files/s", files / hsm_seconds)
        } else {
            format!("{:.0} MiB/s", mib / hsm_seconds)
        };
        let times_cp = cp_seconds.map(|cp| cp / hsm_seconds);
        let times_cp_alone = cp_alone_seconds.map(|cp| cp / hsm_seconds);
        let what = format!("{verb} {}", load.name);
        self.rows.push(Row {
            what,
            cache,
            hsm_seconds,
            cp_seconds,
            times_cp,
            times_cp_alone,
            rate,
        });
    }

    fn latency(&self, load: &Load) -> Result<Latency> {
        let count = SAMPLES.min(load.files);
        let stride = load.files / count;
        let sample = || -> Result<Vec<Duration>> {
            let one = |i: u64| {
                let path = file(load, i * stride);
                let (got, time) = read_latency(&path)?;
                ensure!(
                    got.len() as u64 == SMALL && got.iter().any(|b| *b != 0),
                    "{}",
                    path.display()
                );
                Ok(time)
            };
            (0..count).map(one).collect()
        };
        self.lab.verb("release", &load.path)?;
        drop_caches()?;
        let recall = sample()?;
        self.lab.verb("recall", &load.path)?;
        drop_caches()?;
        let cold = sample()?;
        let warm = sample()?;
        let ms =
            |times: &[Duration], p| percentile(times, p).map_or(0.0, |t| t.as_secs_f64() * 1e3);
        Ok(Latency {
            samples: recall.len(),
            recall_p50_ms: ms(&recall, 50),
            recall_p99_ms: ms(&recall, 99),
            online_cold_p50_ms: ms(&cold, 50),
            online_warm_p50_ms: ms(&warm, 50),
        })
    }
}

fn file(load: &Load, i: u64) -> PathBuf {
    load.path.join(format!("d{}", i % 100)).with_extension(format!("f{i}"))
}

/// Changes a byte of every file, so that there is something to archive again.
fn touch(load: &Load, round: u32) -> Result<()> {
    for i in 0..load.files {
        let file = File::options().write(true).open(file(load, i))?;
        file.write_all_at(&[round.to_le_bytes()[0] | 1], 7)?;
    }
    rustix::fs::sync();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("17"), Ok(17));
        assert!(parse_size("3GB").is_err());
    }
}
