//! What others wrote to be hard on file systems, with releases beside it: it must find nothing, as on a file
//! system of the same kind that nobody manages.
//!
//! `HSM_TORTURE_SECONDS` (`cargo xtask torture --external`) makes it longer.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use hsm_lab::{Hsm, LoopFs, Output, Run, loopfs};

use super::cases;
use super::torture::asked;
use crate::fixture::Pool;

cases! {
    external_fsx_finds_nothing,
    external_stress_ng_ends_as_without_hsm,
}

/// `fsx` closes and opens the file often: only then can it be released. Weights are relative.
const FSX: &str = "flen = 262144
[weights]
close_open = 20
read = 10
write = 10
mapread = 10
mapwrite = 10
truncate = 10
punch_hole = 10
fsync = 1
fdatasync = 1
sendfile = 5
copy_file_range = 5
invalidate = 1
";

/// Operations of one `fsx`, and for each second that was asked for.
const FSX_OPERATIONS: u64 = 2000;

fn external_fsx_finds_nothing(pool: &mut Pool) -> Result<()> {
    let config = pool.outside("fsx.toml");
    fs::write(&config, FSX)?;
    let operations = FSX_OPERATIONS * asked("HSM_TORTURE_SECONDS")?.unwrap_or(1);
    let plain = LoopFs::create(pool.kind, &pool.outside(""), "plain", loopfs::IMAGE_BYTES)?;
    let (artifacts, fsx) = (pool.outside("fsx"), hsm_lab::tool("fsx")?);
    fs::create_dir(&artifacts)?;
    let run = |dir: &Path, seed: u64| {
        let numbers = ["-N".into(), operations.to_string(), "-S".into(), seed.to_string()];
        let file = dir.join(format!("fsx{seed}"));
        let run = Run::new(&fsx).args(["-q", "-f"]).args([&config]).args(numbers);
        run.args(["-P"]).args([&artifacts, &file]).limit(Duration::from_secs(600)).start()
    };
    let all = |dir: &Path| -> Result<()> {
        let running = (1..=3).map(|seed| run(dir, seed)).collect::<Result<Vec<_>>>()?;
        for running in running {
            let out = running.finish()?;
            ensure!(out.code() == 0, "on {}: {}", dir.display(), out.describe());
        }
        Ok(())
    };
    all(plain.path()).context("fsx without hsm")?;
    fs::create_dir(pool.path("d"))?;
    let dir = pool.path("d");
    let archived = with_releases(&pool.hsm, &dir, || all(&dir))?;
    ensure!(archived > 0, "nothing was archived or released meanwhile");
    Ok(())
}

const STRESS_NG: &str = "stress-ng";

/// These mount, for which a guest need not have the modules; they touch no file.
const MOUNTERS: [&str; 2] = ["bind-mount", "binderfs"];

/// How long each stressor is run at least, in seconds, and how long it may take to end.
const STRESS_SECONDS: u64 = 1;
const STRESS_LIMIT: Duration = Duration::from_secs(120);

/// `stress-ng` found something wrong: a failed verification, for one. (Others: 3, no room or descriptors; 4, not
/// to be had on this file system.)
const STRESSOR_FAILED: i32 = 2;

/// A stressor that ends in another way than without hsm is run so often, on both file systems: what it ends with
/// may depend on time and on room, and then does so without hsm too.
const ROUNDS: usize = 5;

/// Of each stressor, so that they are in each other's way.
const STRESSORS: &str = "2";

/// One stressor after the other, on both file systems at once. (All at once would be short of room and of
/// descriptors, now here and now there.)
fn external_stress_ng_ends_as_without_hsm(pool: &mut Pool) -> Result<()> {
    let plain = LoopFs::create(pool.kind, &pool.outside(""), "plain", loopfs::IMAGE_BYTES)?;
    let dir = pool.path("d");
    fs::create_dir(&dir)?;
    let stressors = stressors()?;
    let share = asked("HSM_TORTURE_SECONDS")?.unwrap_or(0) / stressors.len() as u64;
    let seconds = share.max(STRESS_SECONDS).to_string();
    let start = |stressor: &str, dir: &Path| {
        let run = Run::new(STRESS_NG).args(["--verify", "--oomable", "--timeout", &seconds]);
        let option = format!("--{stressor}");
        run.args([&option, STRESSORS, "--temp-path"]).args([dir]).limit(STRESS_LIMIT).start()
    };
    let both = |stressor: &str| -> Result<(Output, Output)> {
        let (without, with) = (start(stressor, plain.path())?, start(stressor, &dir)?);
        Ok((without.finish()?, with.finish()?))
    };
    let archived = with_releases(&pool.hsm, &dir, || {
        stressors
            .iter()
            .try_for_each(|stressor| ends_alike(|| both(stressor)).context(stressor.clone()))
    })?;
    ensure!(archived > 0, "nothing was archived or released meanwhile");
    Ok(())
}

/// What was short once need not be again: in some round it ends with hsm as it ended without. What was wrong was
/// wrong, and stays so until it is wrong without hsm too.
fn ends_alike(both: impl Fn() -> Result<(Output, Output)>) -> Result<()> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (plain, ours) = both()?;
        without.push(plain);
        with.push(ours);
        if are_alike(&codes(&without), &codes(&with)) {
            return Ok(());
        }
    }
    let all =
        |outputs: &[Output]| outputs.iter().map(Output::describe).collect::<Vec<_>>().join("\n");
    bail!("with hsm:\n{}\n\nwithout:\n{}", all(&with), all(&without))
}

fn codes(outputs: &[Output]) -> Vec<i32> {
    outputs.iter().map(Output::code).collect()
}

fn are_alike(without: &[i32], with: &[i32]) -> bool {
    let failed = with.contains(&STRESSOR_FAILED) && !without.contains(&STRESSOR_FAILED);
    !failed && with.iter().any(|code| without.contains(code))
}

/// The stressors of class `filesystem`.
fn stressors() -> Result<Vec<String>> {
    let out = Run::new(STRESS_NG).args(["--class", "filesystem?"]).output()?;
    let text = out.text();
    let (_, names) = text.split_once("stressors:").with_context(|| out.describe())?;
    let names = names.split_whitespace().filter(|name| !MOUNTERS.contains(name));
    Ok(names.map(str::to_owned).collect())
}

/// Archives and releases everything again and again while `work` is done. How many files were archived.
fn with_releases(hsm: &Hsm, dir: &Path, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let end = Arc::new(AtomicBool::new(false));
    let (stop, hsm, dir) = (Arc::clone(&end), hsm.clone(), dir.to_path_buf());
    let releases = thread::spawn(move || -> Result<usize> {
        let mut archived = 0;
        while !stop.load(Ordering::Relaxed) {
            // Most are refused: somebody has them open, or has removed them.
            let args = ["--json".as_ref(), "migrate".as_ref(), "-r".as_ref(), dir.as_os_str()];
            archived += hsm.command(args).output()?.text().matches("\"op\":\"migrate\"").count();
        }
        Ok(archived)
    });
    let result = work();
    end.store(true, Ordering::Relaxed);
    let archived = releases.join().map_err(|_| anyhow!("the releases panicked"))??;
    result.map(|()| archived)
}
