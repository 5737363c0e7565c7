//! Bad luck and bad input: an error that says what is wrong, nothing lost, never zeros.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use hsm_lab::{LoopFs, Run, loopfs};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::cases;
use super::mounts::Mount;
use crate::fixture::{Pool, STORE_IDENTITY, Sample, assert_read_fails};

const MIB: u64 = 1 << 20;
const EIO: i32 = Errno::IO.raw_os_error();
const EAGAIN: i32 = Errno::AGAIN.raw_os_error();
const ENOSPC: i32 = Errno::NOSPC.raw_os_error();

cases! {
    a_missing_object_is_an_error with quick,
    a_flipped_bit_is_an_error with quick,
    a_truncated_object_is_an_error with quick,
    an_object_of_another_file_is_an_error with quick,
    a_full_disk_is_an_error_and_loses_nothing with quick,
    archived_files_make_room_for_a_recall_on_a_full_disk with quick,
    no_room_is_made_where_that_is_not_wanted with |config| {
        quick(config);
        config.pool.push("emergency_release = false".into());
    },
    a_full_store_leaves_the_file_resident,
    an_unmounted_store_denies_until_it_is_mounted with |config| {
        config.store_options.push("retries = 1".into());
    },
    a_marker_with_a_bad_checksum_is_an_error,
    a_marker_of_an_unknown_version_is_an_error,
    config_nonsense_is_explained,
    a_missing_record_is_an_error,
}

/// Errors that no retry heals still cost the retries: few and fast.
fn quick(config: &mut hsm_lab::PoolConfig) {
    config.store_options.push("retries = 1".into());
    config.limits.push("recall_deadline = \"10s\"".into());
}

/// Damages the only object, expects `EIO`, repairs it, and expects the bytes.
fn damaged(pool: &mut Pool, damage: impl Fn(&Path) -> Result<()>) -> Result<()> {
    let (file, object) = pool.offline_with_object("damaged-file", MIB)?;
    let copy = pool.outside("object");
    fs::rename(&object, &copy)?;
    fs::copy(&copy, &object)?;
    damage(&object)?;
    assert_read_fails(&file.path, &[EIO])?;
    assert_read_fails(&file.path, &[EIO])?;
    pool.assert_state(&file.path, &["offline", "lost"])?;
    let report = pool.hsm.verb("recall", [&file])?;
    ensure!(report.code == 1, "{}", report.output.describe());
    let log = pool.agent()?.log();
    ensure!(log.contains("damaged-file"), "the log does not name the file");
    drop(fs::remove_file(&object));
    fs::rename(&copy, &object)?;
    file.check()
}

fn a_missing_object_is_an_error(pool: &mut Pool) -> Result<()> {
    damaged(pool, |object| Ok(fs::remove_file(object)?))
}

fn a_flipped_bit_is_an_error(pool: &mut Pool) -> Result<()> {
    damaged(pool, |object| {
        let file = File::options().read(true).write(true).open(object)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 500_000)?;
        Ok(file.write_all_at(&[byte[0] ^ 0x10], 500_000)?)
    })
}

fn a_truncated_object_is_an_error(pool: &mut Pool) -> Result<()> {
    damaged(pool, |object| {
        let file = File::options().write(true).open(object)?;
        Ok(file.set_len(file.metadata()?.len() / 2)?)
    })
}

fn an_object_of_another_file_is_an_error(pool: &mut Pool) -> Result<()> {
    let (_, other) = pool.offline_with_object("other", MIB)?;
    damaged(pool, |object| Ok(fs::copy(&other, object).map(drop)?))
}

fn a_full_disk_is_an_error_and_loses_nothing(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 40 * MIB)?;
    let filler = fill_up(pool, 8 * MIB)?;
    let result = assert_read_fails(&file.path, &[ENOSPC]);
    let offline = pool.assert_state(&file.path, &["offline", "partial"]);
    fs::remove_file(filler)?;
    pool.sh("sync -f \"$1\"", [pool.mnt()])?;
    result?;
    offline?;
    file.check()
}

/// A full disk, and on it: a file that is offline, archived ones of different age, one of them pinned, and
/// one that was never archived.
struct Full {
    offline: Sample,
    archived: Vec<Sample>,
    pinned: Sample,
    own: Sample,
    filler: PathBuf,
}

fn full(pool: &mut Pool) -> Result<Full> {
    let offline = pool.offline_file("offline", 40 * MIB)?;
    let (pinned, own) = (pool.file("pinned", 8 * MIB)?, pool.file("own", 8 * MIB)?);
    let mut archived = Vec::new();
    for n in 0..12 {
        archived.push(pool.file(format!("archived{n}"), 8 * MIB)?);
    }
    pool.hsm.must("archive", &archived)?;
    pool.hsm.must("archive", [&pinned])?;
    pool.hsm.must("pin", [&pinned])?;
    // The pinned one is the coldest; of the others, each was read a day after the one before.
    let age = |days: u64| SystemTime::now() - Duration::from_secs(days * 86_400);
    for (sample, days) in archived.iter().zip((0..12).rev()).chain([(&pinned, 100)]) {
        let file = File::open(&sample.path)?;
        file.set_times(FileTimes::new().set_accessed(age(days)))?;
    }
    // hsm must not take its word for the content when ctime moved.
    pool.hsm.must("archive", &archived)?;
    pool.hsm.must("archive", [&pinned])?;
    let filler = fill_up(pool, 8 * MIB)?;
    Ok(Full { offline, archived, pinned, own, filler })
}

impl Full {
    /// Makes room as a person does, and reads everything.
    fn check(self, pool: &Pool) -> Result<()> {
        fs::remove_file(self.filler)?;
        pool.sh("sync -f \"$1\"", [pool.mnt()])?;
        let all = self.archived.iter().chain([&self.offline, &self.pinned, &self.own]);
        all.into_iter().try_for_each(Sample::check)
    }
}

fn archived_files_make_room_for_a_recall_on_a_full_disk(pool: &mut Pool) -> Result<()> {
    let full = full(pool)?;
    full.offline.check()?;
    pool.assert_state(&full.pinned.path, &["archived"])?;
    pool.assert_state(&full.own.path, &["resident"])?;
    let mut states = Vec::new();
    for sample in &full.archived {
        states.push(pool.state(&sample.path)? == "offline");
    }
    // 64 MiB at once, and not more: the coldest.
    let released = states.iter().filter(|released| **released).count();
    ensure!((5..=9).contains(&released), "{released} were released: {states:?}");
    ensure!(states.is_sorted_by(|a, b| a >= b), "not the coldest: {states:?}");
    let log = pool.agent()?.log();
    ensure!(log.contains("released for a recall"), "the log does not tell of it");
    full.check(pool)
}

fn no_room_is_made_where_that_is_not_wanted(pool: &mut Pool) -> Result<()> {
    let full = full(pool)?;
    assert_read_fails(&full.offline.path, &[ENOSPC])?;
    for sample in &full.archived {
        pool.assert_state(&sample.path, &["archived"])?;
    }
    full.check(pool)
}

/// Takes the file system's space until at most `rest` bytes are left for users.
fn fill_up(pool: &Pool, rest: u64) -> Result<PathBuf> {
    let path = pool.path("filler");
    let filler = File::create(&path)?;
    let (mut at, mut piece) = (0, 64 * MIB);
    while piece >= MIB {
        let stat = rustix::fs::statvfs(pool.mnt())?;
        let more = (stat.f_bavail * stat.f_frsize).saturating_sub(rest);
        if more == 0 {
            break;
        }
        // Not into what ext4 keeps for root.
        if more < piece {
            piece /= 2;
            continue;
        }
        match fallocate(&filler, FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(Errno::NOSPC) => piece /= 2,
            Err(error) => bail!("fallocate: {error}"),
        }
    }
    filler.sync_all()?;
    Ok(path)
}

fn a_full_store_leaves_the_file_resident(pool: &mut Pool) -> Result<()> {
    pool.stop()?;
    let store = pool.store().to_path_buf();
    let identity = fs::read(store.join(STORE_IDENTITY))?;
    let tmpfs = Run::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]);
    tmpfs.args([&store]).ok()?;
    fs::write(store.join(STORE_IDENTITY), identity)?;
    let result = archive_into_full_store(pool);
    Run::new("umount").args(["-l"]).args([&store]).ok()?;
    let file = result?;
    pool.start()?;
    pool.offline(&file.path)?;
    file.check()
}

fn an_unmounted_store_denies_until_it_is_mounted(pool: &mut Pool) -> Result<()> {
    // A store of its own disk, known to the agent from here on.
    pool.stop()?;
    fs::remove_dir_all(pool.config.state_dir())?;
    let mut disk = LoopFs::create(pool.kind, &pool.outside(""), "disk", loopfs::IMAGE_BYTES)?;
    pool.config.store = disk.path().to_path_buf();
    pool.start()?;
    let file = pool.offline_file("file", MIB)?;
    let other = pool.file("other", MIB)?;
    pool.stop()?;

    disk.unmount()?;
    pool.start()?;
    store_is_away(pool, &file, &other, "not mounted")?;
    ensure!(fs::read_dir(disk.path())?.next().is_none(), "the mount point was written to");

    let wrong = Mount::new(&["-t", "tmpfs"], "tmpfs", disk.path())?;
    fs::write(disk.path().join(STORE_IDENTITY), format!("hsm-store 1 {:032x}\n", 1))?;
    store_is_away(pool, &file, &other, "another store")?;
    drop(wrong);

    disk.mount()?;
    file.check()?;
    pool.offline(&other.path)?;
    other.check()?;

    // In use it cannot be unmounted; taken out of the tree by force, it is still the store.
    pool.offline(&file.path)?;
    let busy = Run::new("umount").args([disk.path()]).output()?;
    ensure!(busy.code() != 0, "the store in use was unmounted");
    Run::new("umount").args(["-l"]).args([disk.path()]).ok()?;
    file.check()?;
    pool.stop()?;
    disk.mount()?;
    pool.start()?;
    pool.offline(&file.path)?;
    file.check()?;
    pool.stop()?;
    disk.unmount()
}

fn store_is_away(pool: &mut Pool, offline: &Sample, resident: &Sample, why: &str) -> Result<()> {
    assert_read_fails(&offline.path, &[EAGAIN])?;
    pool.assert_offline(&offline.path)?;
    let report = pool.hsm.verb("archive", [resident])?;
    ensure!(report.code == 1, "archived without a store: {}", report.output.describe());
    ensure!(report.reason() == "store-unavailable", "{}", report.output.describe());
    pool.assert_state(&resident.path, &["resident"])?;
    let log = pool.agent()?.log();
    ensure!(log.contains(why), "the log does not say: {why}");
    let doctor = pool.hsm.command(["doctor"]).output()?;
    ensure!(doctor.text().contains(why), "doctor does not say {why}: {}", doctor.describe());
    Ok(())
}

fn archive_into_full_store(pool: &mut Pool) -> Result<Sample> {
    pool.start()?;
    let file = pool.file("file", 20 * MIB)?;
    let report = pool.hsm.verb("archive", [&file])?;
    ensure!(report.code == 1, "archived into a full store: {}", report.output.describe());
    pool.assert_state(&file.path, &["resident"])?;
    file.check()?;
    pool.stop()?;
    Ok(file)
}

const MARKER: &str = "security.bpf.hsm";

/// Replaces the marker while the agent runs, and expects an error that names the file.
fn marked(pool: &mut Pool, change: impl Fn(&mut Vec<u8>)) -> Result<()> {
    let file = pool.offline_file("marked-file", MIB)?;
    let mut marker = vec![0; 256];
    let n = rustix::fs::getxattr(&file.path, MARKER, &mut marker)?;
    marker.truncate(n);
    let good = marker.clone();
    change(&mut marker);
    ensure!(marker != good, "the marker was not changed");
    pool.unguarded(|| set_marker(&file.path, &marker))?;
    pool.sh("echo 2 > /proc/sys/vm/drop_caches", [""; 0])?;
    assert_read_fails(&file.path, &[EIO])?;
    let log = pool.agent()?.log();
    ensure!(log.contains("marked-file"), "the log does not name the file");
    for verb in ["release", "recall", "archive"] {
        let report = pool.hsm.verb(verb, [&file])?;
        ensure!(report.code == 1, "hsm {verb}: {}", report.output.describe());
        ensure!(report.output.text().contains("marked-file"), "hsm {verb} does not name it");
    }
    pool.unguarded(|| set_marker(&file.path, &good))?;
    file.check()
}

fn set_marker(path: &Path, bytes: &[u8]) -> Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(path, MARKER, bytes, flags).context("setting the marker")
}

fn a_marker_with_a_bad_checksum_is_an_error(pool: &mut Pool) -> Result<()> {
    marked(pool, |marker| {
        if let Some(last) = marker.last_mut() {
            *last ^= 1;
        }
    })
}

fn a_marker_of_an_unknown_version_is_an_error(pool: &mut Pool) -> Result<()> {
    // Bytes 4 and 5 are the format version, behind the magic: docs/FORMATS.md.
    marked(pool, |marker| marker[4] = 0xfe)?;
    fs::remove_file(pool.path("marked-file"))?;
    marked(pool, Vec::clear)
}

fn a_missing_record_is_an_error(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let mut record = vec![0; 4096];
    let n = rustix::fs::getxattr(&file.path, "trusted.hsm", &mut record)?;
    record.truncate(n);
    pool.unguarded(|| Ok(rustix::fs::removexattr(&file.path, "trusted.hsm")?))?;
    // The marker alone names the object: bytes or an error, both are right.
    match fs::read(&file.path) {
        Ok(bytes) => file.content.check_bytes(&bytes),
        Err(error) => {
            ensure!(error.raw_os_error() == Some(EIO), "{error}");
            let flags = rustix::fs::XattrFlags::empty();
            let put = || rustix::fs::setxattr(&file.path, "trusted.hsm", &record, flags);
            pool.unguarded(|| Ok(put()?))?;
            file.check()
        }
    }
}

fn config_nonsense_is_explained(pool: &mut Pool) -> Result<()> {
    let good = pool.config.render();
    let bad = [
        ("[[pool]]", "[[pool]]\nnonsense = 1", "nonsense"),
        ("kind = \"local\"", "kind = \"tape\"", "kind"),
        ("name = \"lab\"", "name = \"Not Allowed\"", "name"),
        ("[limits]", "[limits]\nrecall_parallel = \"many\"", "recall_parallel"),
        ("[limits]", "[limits", "TOML"),
        ("name = \"lab\"", "name = \"lab\"\ncompression_level = 3", "compression"),
        ("name = \"lab\"", "name = \"lab\"\nrange_programs = [\"*\"]", "range_programs"),
    ];
    for (from, to, key) in bad {
        let text = good.replacen(from, to, 1);
        ensure!(text != good, "{from} is not in the configuration");
        let path = pool.outside("bad.toml");
        fs::write(&path, text)?;
        let hsm = hsm_lab::Hsm::new(crate::fixture::exe(), &path);
        for command in [["config", "check"].as_slice(), ["agent"].as_slice()] {
            let out = hsm.command(command).output()?;
            ensure!(out.code() == 2, "{to}: {}", out.describe());
            ensure!(
                out.stderr.contains(key),
                "{to}: the message does not name {key}: {}",
                out.stderr
            );
            let line = out.stderr.contains("line") || out.stderr.contains("bad.toml:");
            ensure!(line, "{to}: the message names no line: {}", out.stderr);
        }
    }
    pool.hsm.command(["config", "check"]).ok()?;
    Ok(())
}
