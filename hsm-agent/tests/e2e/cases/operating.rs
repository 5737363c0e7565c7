//! The command line as an operator or a script meets it.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hsm_lab::patience;

use super::cases;
use crate::fixture::{Pool, Sample};

cases! {
    exit_codes_tell_the_outcome,
    repeating_a_verb_is_no_error,
    a_dry_run_changes_nothing,
    lists_of_files_and_globs_are_read,
    include_and_exclude_choose_below_directories,
    doctor_names_a_working_tier,
    status_counts_by_state,
    du_tells_local_from_logical_size,
    an_interrupt_stops_between_files,
    users_may_recall_and_pin_what_they_own,
    symlinks_and_relative_paths_lead_to_files,
}

/// The least size of a file of [`some`].
const SIZE: u64 = 100_000;

fn some(pool: &mut Pool, count: u64) -> Result<Vec<Sample>> {
    fs::create_dir(pool.path("d"))?;
    (0..count).map(|i| pool.file(format!("d/f{i}.dat"), SIZE + i)).collect()
}

fn exit_codes_tell_the_outcome(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 1)?;
    let code = |args: &[&str]| anyhow::Ok(pool.hsm.command(args).output()?.code());
    let path = files[0].path.display().to_string();
    ensure!(code(&["release", &path])? == 1, "a refused file");
    ensure!(code(&["archive", &path])? == 0, "success");
    ensure!(code(&["archive", "/no/such/file"])? == 1, "a missing file");
    ensure!(code(&["--no-such-option"])? == 2, "usage");
    ensure!(code(&["archive"])? == 2, "no path");
    pool.stop()?;
    let out = pool.hsm.command(["status"]).output()?;
    ensure!(out.code() == 3, "no agent: {}", out.describe());
    pool.start()
}

fn repeating_a_verb_is_no_error(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 1)?;
    for verb in ["archive", "release", "recall", "pin", "unpin"] {
        let first = pool.hsm.must(verb, [&files[0]])?;
        ensure!(first.outcome() == "done", "{}", first.output.describe());
        let second = pool.hsm.must(verb, [&files[0]])?;
        ensure!(second.outcome() == "already", "{}", second.output.describe());
    }
    files[0].check()
}

fn a_dry_run_changes_nothing(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 3)?;
    let dir = pool.path("d");
    let report =
        pool.hsm.verb("archive", ["--dry-run".as_ref(), "-r".as_ref(), dir.as_os_str()])?;
    ensure!(report.code == 0 && report.files.len() == 3, "{}", report.output.describe());
    ensure!(report.files.iter().all(|file| file.outcome == "would"), "{report:?}");
    ensure!(pool.objects()?.is_empty(), "something was stored");
    pool.hsm.must("archive", ["-r".as_ref(), dir.as_os_str()])?;
    pool.hsm.verb("release", ["--dry-run".as_ref(), "-r".as_ref(), dir.as_os_str()])?;
    files.iter().try_for_each(|file| pool.assert_state(&file.path, &["archived"]))
}

fn lists_of_files_and_globs_are_read(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 4)?;
    let one = [files[0].path.as_os_str().as_bytes(), b"\n"].concat();
    pool.hsm.command(["archive", "--files-from", "-"]).stdin(one).ok()?;
    pool.assert_state(&files[0].path, &["archived"])?;
    pool.assert_state(&files[1].path, &["resident"])?;
    let list = pool.outside("list");
    fs::write(&list, format!("{}/d/f[12].dat\n", pool.mnt().display()))?;
    pool.hsm.command(["archive".as_ref(), "--files-from".as_ref(), list.as_os_str()]).ok()?;
    pool.assert_state(&files[1].path, &["archived"])?;
    pool.assert_state(&files[2].path, &["archived"])?;
    pool.assert_state(&files[3].path, &["resident"])
}

fn include_and_exclude_choose_below_directories(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 3)?;
    let other = pool.file("d/other.txt", 1000)?;
    let dir = pool.path("d");
    let options = ["-r", "--include", "*.dat", "--exclude", "f1.*"].map(std::ffi::OsStr::new);
    pool.hsm.must("archive", options.into_iter().chain([dir.as_os_str()]))?;
    pool.assert_state(&files[0].path, &["archived"])?;
    pool.assert_state(&files[1].path, &["resident"])?;
    pool.assert_state(&other.path, &["resident"])
}

fn doctor_names_a_working_tier(pool: &mut Pool) -> Result<()> {
    let out = pool.hsm.command(["doctor"]).ok()?;
    ensure!(out.text().contains("user-filter"), "{}", out.describe());
    Ok(())
}

fn status_counts_by_state(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 3)?;
    pool.offline(&files[0].path)?;
    pool.hsm.must("archive", [&files[1]])?;
    let counts = (pool.hsm.count("offline")?, pool.hsm.count("archived")?);
    ensure!(counts == (1, 1), "{counts:?} are offline and archived");
    Ok(())
}

fn du_tells_local_from_logical_size(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 2)?;
    pool.offline(&files[0].path)?;
    let out =
        pool.hsm.command(["--json".as_ref(), "du".as_ref(), pool.path("d").as_os_str()]).ok()?;
    ensure!(out.text().contains("200001"), "{}", out.describe());
    pool.assert_offline(&files[0].path)
}

fn an_interrupt_stops_between_files(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 30)?;
    pool.restart_slow("1MiB")?;
    let dir = pool.path("d");
    let args = ["archive".as_ref(), "-r".as_ref(), dir.as_os_str()];
    let running = pool.hsm.command(args).start()?;
    wait_for_an_object(pool)?;
    let pid = i32::try_from(running.pid())?;
    hsm_lab::run::kill(pid, rustix::process::Signal::INT);
    let out = running.finish()?;
    ensure!(out.code() == 130, "{}", out.describe());
    pool.restart_fast()?;
    let mut archived = 0;
    for file in &files {
        pool.assert_state(&file.path, &["resident", "archived"])?;
        archived += u32::from(pool.state(&file.path)? == "archived");
        file.check()?;
    }
    ensure!((1..30).contains(&archived), "{archived} of 30 were archived");
    Ok(())
}

/// Until the first file is in the store.
fn wait_for_an_object(pool: &Pool) -> Result<()> {
    let end = Instant::now() + patience(Duration::from_secs(20));
    let whole = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.len() >= SIZE);
    while !pool.objects()?.iter().any(whole) {
        ensure!(Instant::now() < end, "nothing is archived");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// `hsm` as the user nobody.
fn as_nobody(pool: &Pool, args: &[&std::ffi::OsStr]) -> Result<hsm_lab::Output> {
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let config = pool.config.file();
    hsm_lab::Run::new("setpriv")
        .args(nobody)
        .args([crate::fixture::exe().as_os_str(), "--config".as_ref(), config.as_os_str()])
        .args(args)
        .output()
}

fn users_may_recall_and_pin_what_they_own(pool: &mut Pool) -> Result<()> {
    let own = pool.offline_file("own", 100_000)?;
    let other = pool.offline_file("other", 100_000)?;
    pool.sh("chown 65534:65534 \"$1\"; chmod 666 \"$2\"", [&own, &other])?;
    for verb in ["recall", "pin", "unpin"] {
        let out = as_nobody(pool, &[verb.as_ref(), own.as_ref()])?;
        ensure!(out.code() == 0, "{}", out.describe());
        let out = as_nobody(pool, &[verb.as_ref(), other.as_ref()])?;
        ensure!(out.code() != 0, "{}", out.describe());
    }
    pool.assert_local(&own.path)?;
    pool.assert_offline(&other.path)?;
    for verb in ["archive", "release", "migrate"] {
        let out = as_nobody(pool, &[verb.as_ref(), own.as_ref()])?;
        ensure!(out.code() != 0, "{}", out.describe());
    }
    pool.assert_state(&own.path, &["archived"])
}

fn symlinks_and_relative_paths_lead_to_files(pool: &mut Pool) -> Result<()> {
    let files = some(pool, 2)?;
    let link = pool.outside("link");
    std::os::unix::fs::symlink(pool.mnt(), &link)?;
    pool.hsm.must("migrate", [link.join("d/f0.dat")])?;
    let run = pool.hsm.command(["migrate", "d/../d/f1.dat"]).dir(pool.mnt());
    run.ok()?;
    files.iter().try_for_each(|file| pool.assert_offline(&file.path))?;
    files.iter().try_for_each(Sample::check)
}
