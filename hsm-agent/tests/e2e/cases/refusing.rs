//! Release refuses whenever somebody could see the data go, or it is not safe in the store.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use hsm_lab::content::hash_file;
use hsm_lab::patience;

use super::cases;
use crate::fixture::{Pool, Sample};
use crate::helper::Holder;

const MIB: u64 = 1 << 20;

/// What a release says when somebody else has the file.
const OPEN: &[&str] = &["open-elsewhere", "busy"];
/// What it says when the copy is not of these bytes.
const DIRTY: &[&str] = &["dirty", "changed"];

cases! {
    release_refuses_files_open_for_reading,
    release_refuses_files_open_for_writing,
    release_refuses_mapped_files,
    release_refuses_changed_files,
    release_refuses_hidden_changes,
    release_refuses_pinned_files,
    release_refuses_files_that_were_never_archived,
    release_refuses_swap_files,
    release_refuses_loop_backing_files,
    release_refuses_running_programs,
    release_refuses_files_open_since_before_the_agent,
    directories_need_recursive,
    special_files_are_refused,
    writers_during_an_archive_leave_no_stale_copy,
    mapped_writers_during_an_archive_leave_no_stale_copy,
    readers_during_releases_never_see_zeros,
    files_outside_every_pool_are_refused,
}

fn archived(pool: &mut Pool) -> Result<Sample> {
    let file = pool.file("file", MIB)?;
    pool.hsm.must("archive", [&file])?;
    pool.assert_state(&file.path, &["archived"])?;
    Ok(file)
}

/// Refused while held; possible afterwards.
fn refused_while(pool: &mut Pool, file: &Sample, held: impl FnOnce()) -> Result<()> {
    pool.assert_release_refused(&file.path, OPEN)?;
    file.check()?;
    held();
    pool.hsm.must("release", [file])?;
    pool.assert_offline(&file.path)?;
    file.check()
}

fn release_refuses_files_open_for_reading(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    let open = File::open(&file.path)?;
    refused_while(pool, &file, || drop(open))
}

fn release_refuses_files_open_for_writing(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    let open = File::options().write(true).open(&file.path)?;
    refused_while(pool, &file, || drop(open))
}

fn release_refuses_mapped_files(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    let holder = Holder::start("mmap-hold", &file)?;
    refused_while(pool, &file, || drop(holder))
}

fn release_refuses_changed_files(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    File::options().write(true).open(&file.path)?.write_all_at(b"x", 77)?;
    pool.assert_release_refused(&file.path, DIRTY)
}

fn release_refuses_hidden_changes(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    let script = "touch -r \"$1\" \"$2\"; printf changed | dd of=\"$1\" conv=notrunc status=none; \
                  touch -r \"$2\" \"$1\"";
    let before = fs::metadata(&file.path)?.modified()?;
    pool.sh(script, [file.path.clone(), pool.outside("stamp")])?;
    ensure!(fs::metadata(&file.path)?.modified()? == before, "the change was not hidden");
    let hash = hash_file(&file.path)?;
    pool.assert_release_refused(&file.path, DIRTY)?;
    // Archived anew, the changed bytes come back.
    pool.offline(&file.path)?;
    ensure!(hash_file(&file.path)? == hash, "the old bytes came back");
    Ok(())
}

fn release_refuses_pinned_files(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    pool.hsm.must("pin", [&file])?;
    pool.assert_release_refused(&file.path, &["pinned"])?;
    pool.hsm.must("unpin", [&file])?;
    pool.hsm.must("release", [&file])?;
    pool.assert_offline(&file.path)?;
    file.check()
}

fn release_refuses_files_that_were_never_archived(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    pool.assert_release_refused(&file.path, &["not-archived"])?;
    file.check()
}

fn release_refuses_swap_files(pool: &mut Pool) -> Result<()> {
    let path = pool.path("swap");
    // btrfs swaps only to files without copy-on-write.
    let script = "touch \"$1\"; chmod 600 \"$1\"; chattr +C \"$1\" 2>/dev/null || true; \
                  dd if=/dev/zero of=\"$1\" bs=1M count=16 status=none; mkswap \"$1\"";
    pool.sh(script, [&path])?;
    pool.hsm.must("archive", [&path])?;
    pool.sh("swapon \"$1\"", [&path])?;
    let report = pool.hsm.verb("release", [&path]);
    pool.sh("swapoff \"$1\"", [&path])?;
    let report = report?;
    ensure!(report.code == 1, "a swap file was released: {}", report.output.describe());
    pool.assert_local(&path)
}

fn release_refuses_loop_backing_files(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    let device = pool.sh("losetup -f --show \"$1\"", [&file])?.text().trim().to_owned();
    let refused = pool.assert_release_refused(&file.path, OPEN);
    pool.sh("losetup -d \"$1\"", [&device])?;
    refused
}

fn release_refuses_running_programs(pool: &mut Pool) -> Result<()> {
    let path = pool.path("sleep");
    fs::copy("/bin/sleep", &path)?;
    pool.hsm.must("archive", [&path])?;
    let mut running = hsm_lab::Run::new(&path).args(["60"]).start()?;
    thread::sleep(Duration::from_millis(100));
    let refused = pool.assert_release_refused(&path, OPEN);
    running.kill();
    drop(running.finish());
    refused
}

fn release_refuses_files_open_since_before_the_agent(pool: &mut Pool) -> Result<()> {
    let file = archived(pool)?;
    pool.stop()?;
    let open = File::open(&file.path)?;
    pool.start()?;
    refused_while(pool, &file, || drop(open))
}

fn directories_need_recursive(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("d"))?;
    let file = pool.file("d/file", MIB)?;
    for verb in ["archive", "release", "migrate", "recall"] {
        let out = pool.hsm.command([verb.as_ref(), pool.path("d").as_os_str()]).output()?;
        ensure!(out.code() == 2, "hsm {verb} of a directory: {}", out.describe());
    }
    pool.assert_state(&file.path, &["resident"])?;
    pool.hsm.must("migrate", ["-r".as_ref(), pool.path("d").as_os_str()])?;
    pool.assert_offline(&file.path)?;
    file.check()
}

fn special_files_are_refused(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    let script = "cd \"$1\"; ln -s file symlink; mkfifo fifo; mknod null c 1 3; \
                  python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"socket\")'";
    pool.sh(script, [pool.mnt()])?;
    for name in ["symlink", "fifo", "null", "socket"] {
        for verb in ["archive", "release"] {
            let report = pool.hsm.verb(verb, [pool.path(name)])?;
            ensure!(report.code == 1, "hsm {verb} {name}: {}", report.output.describe());
            ensure!(report.reason() == "not-regular", "hsm {verb} {name}: {report:?}");
        }
    }
    pool.assert_state(&file.path, &["resident"])?;
    // In a tree they are simply no files.
    pool.hsm.must("migrate", ["-r".as_ref(), pool.mnt().as_os_str()])?;
    pool.assert_offline(&file.path)
}

/// Archives again and again while `write` goes on; at last release and compare.
fn churn(pool: &mut Pool, file: &Sample, stop_writing: impl FnOnce() -> Result<()>) -> Result<()> {
    for _ in 0..8 {
        let archive = pool.hsm.verb("archive", [file])?;
        ensure!([0, 1].contains(&archive.code), "{}", archive.output.describe());
        let release = pool.hsm.verb("release", [file])?;
        ensure!(release.code == 1, "released under a writer: {}", release.output.describe());
    }
    stop_writing()?;
    let hash = hash_file(&file.path)?;
    let release = pool.hsm.verb("release", [file])?;
    if release.code == 0 {
        ensure!(hash_file(&file.path)? == hash, "a stale copy came back");
    }
    pool.offline(&file.path)?;
    ensure!(hash_file(&file.path)? == hash, "a stale copy came back after a new archive");
    Ok(())
}

fn writers_during_an_archive_leave_no_stale_copy(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", 8 * MIB)?;
    let script = "exec 3<>\"$1\"; i=0; while :; do i=$((i+1)); printf '%09d' $i; done 1<>\"$1\"";
    let mut writer = hsm_lab::Run::shell(script).args([&file]).start()?;
    churn(pool, &file, || {
        writer.kill();
        while writer.is_running()? {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    })
}

fn mapped_writers_during_an_archive_leave_no_stale_copy(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", 8 * MIB)?;
    let writer = Holder::start("mmap-write", &file)?;
    churn(pool, &file, || writer.end())
}

fn readers_during_releases_never_see_zeros(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", 200_000)?;
    pool.hsm.must("archive", [&file])?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = || stop.load(std::sync::atomic::Ordering::SeqCst);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|i| {
                let (file, stopped) = (&file, &stopped);
                // Where reading takes longer, the time without a reader must be longer, too.
                let pause = patience(Duration::from_millis(17 + 10 * i));
                scope.spawn(move || {
                    while !stopped() {
                        file.check()?;
                        thread::sleep(pause);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let mut released = 0;
        for _ in 0..80 {
            released += u32::from(pool.hsm.verb("release", [&file])?.outcome() == "done");
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a reader panicked")))?;
        }
        ensure!(released > 0, "no release succeeded between the reads");
        Ok(())
    })
}

fn files_outside_every_pool_are_refused(pool: &mut Pool) -> Result<()> {
    let path = pool.outside("file");
    fs::write(&path, "bytes")?;
    let report = pool.hsm.verb("archive", [&path])?;
    ensure!(report.code == 1, "{}", report.output.describe());
    ensure!(report.reason() == "not-managed", "{report:?}");
    Ok(())
}
