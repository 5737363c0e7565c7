//! A pool that is limited to some directories of its file system.

use std::fs;

use anyhow::{Result, ensure};

use super::cases;
use crate::fixture::Pool;

cases! {
    directories_limit_what_is_archived_and_released with two_directories,
    files_moved_out_of_their_directory_keep_their_bytes with two_directories,
    hard_links_lead_out_of_a_directory with two_directories,
}

fn two_directories(config: &mut hsm_lab::PoolConfig) {
    config.pool.push("directories = [\"in\", \"deep/er\"]".into());
}

fn directories_limit_what_is_archived_and_released(pool: &mut Pool) -> Result<()> {
    for directory in ["in/sub", "deep/er", "deep/other", "inside-not"] {
        fs::create_dir_all(pool.path(directory))?;
    }
    let inside = [pool.file("in/sub/a", 100_000)?, pool.file("deep/er/b", 100_000)?];
    let outside = [
        pool.file("top", 100_000)?,
        pool.file("deep/other/c", 100_000)?,
        pool.file("inside-not/d", 100_000)?,
    ];
    // Who walks passes by.
    let mount = pool.path("");
    let report = pool.hsm.must("migrate", ["-r".as_ref(), mount.as_os_str()])?;
    ensure!(report.files.len() == inside.len(), "{report:?}");
    for sample in &inside {
        pool.assert_offline(&sample.path)?;
    }
    // Who names is told.
    for verb in ["archive", "release", "migrate"] {
        for sample in &outside {
            let report = pool.hsm.verb(verb, [sample])?;
            ensure!(report.code == 1 && report.reason() == "not-managed", "{verb}: {report:?}");
            ensure!(report.output.text().contains("directories"), "{}", report.output.describe());
        }
        let directory = pool.path("deep/other");
        let report = pool.hsm.verb(verb, ["-r".as_ref(), directory.as_os_str()])?;
        ensure!(report.code == 1 && report.reason() == "not-managed", "{verb}: {report:?}");
    }
    // Neither a symbolic link nor .. leads in.
    std::os::unix::fs::symlink(pool.path("top"), pool.path("in/link"))?;
    for detour in ["in/../top", "in/link"] {
        let report = pool.hsm.verb("archive", [pool.path(detour)])?;
        ensure!(report.code == 1, "{detour}: {report:?}");
    }
    for sample in &outside {
        pool.assert_state(&sample.path, &["resident"])?;
        sample.check()?;
    }
    inside.iter().try_for_each(|sample| sample.check())
}

fn files_moved_out_of_their_directory_keep_their_bytes(pool: &mut Pool) -> Result<()> {
    for directory in ["in/tree", "out"] {
        fs::create_dir_all(pool.path(directory))?;
    }
    let names = ["read", "recalled", "pinned", "kept"];
    let mut samples = Vec::new();
    for name in names {
        samples.push(pool.offline_file(format!("in/tree/{name}"), 300_000)?);
    }
    // A directory above them moves; their own names stay.
    fs::rename(pool.path("in/tree"), pool.path("out/tree"))?;
    for sample in &mut samples {
        sample.path = pool.path("out/tree").join(sample.path.file_name().unwrap_or_default());
        pool.assert_offline(&sample.path)?;
    }
    let [read, recalled, pinned, kept] = &samples[..] else { anyhow::bail!("four samples") };
    read.check()?;
    pool.hsm.must("recall", [recalled])?;
    pool.assert_local(&recalled.path)?;
    pool.hsm.must("pin", [pinned])?;
    pool.hsm.must("unpin", [pinned])?;
    // Online again, they stay so where they are.
    let report = pool.hsm.verb("release", [read])?;
    ensure!(report.reason() == "not-managed", "{report:?}");
    pool.restart()?;
    pool.hsm.command(["scan", "--pool", "lab", "--rebuild"]).ok()?;
    pool.assert_offline(&kept.path)?;
    // Moved back, they may be released again.
    let directory = pool.path("deep/er");
    fs::create_dir(pool.path("deep"))?;
    fs::rename(pool.path("out/tree"), &directory)?;
    pool.hsm.must("migrate", ["-r".as_ref(), directory.as_os_str()])?;
    for sample in &mut samples {
        sample.path = directory.join(sample.path.file_name().unwrap_or_default());
        pool.assert_offline(&sample.path)?;
        sample.check()?;
    }
    Ok(())
}

fn hard_links_lead_out_of_a_directory(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("in"))?;
    let sample = pool.file("in/name", 300_000)?;
    let other = pool.path("other-name");
    fs::hard_link(&sample.path, &other)?;
    let report = pool.hsm.verb("migrate", [&other])?;
    ensure!(report.reason() == "not-managed", "{report:?}");
    pool.hsm.must("migrate", [&sample])?;
    pool.assert_offline(&other)?;
    sample.content.check(&other)?;
    pool.assert_local(&sample.path)?;
    // The name inside goes, and with it the file's membership; never its bytes.
    pool.hsm.must("release", [&sample])?;
    fs::remove_file(&sample.path)?;
    pool.assert_offline(&other)?;
    sample.content.check(&other)
}
