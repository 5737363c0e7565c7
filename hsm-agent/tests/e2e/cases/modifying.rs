//! Changes to offline files: what is not overwritten stays, what is overwritten is never undone.
//!
//! The reference is a twin: a resident file with the same content, outside every promise of ours,
//! to which the same is done. Bytes, size and error of both must agree.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use hsm_lab::Content;
use rustix::fs::{FallocateFlags, fallocate};

use super::cases;
use crate::fixture::{Pool, Sample};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 2 * MIB + 4096;

cases! {
    truncate_down_keeps_the_head,
    truncate_up_adds_zeros,
    truncate_to_the_same_size_changes_nothing,
    truncate_to_zero_is_empty,
    appending_keeps_the_old_bytes,
    writing_in_place_keeps_the_rest,
    writing_the_last_block_keeps_the_rest,
    fallocate_punch_hole_zeroes_only_its_range,
    fallocate_zero_range_zeroes_only_its_range,
    fallocate_collapse_range_shifts_the_rest,
    fallocate_insert_range_shifts_the_rest,
    fallocate_keep_size_changes_no_byte,
    blocks_behind_the_end_of_sparse_files_are_given_back,
    fallocate_beyond_the_end_adds_zeros,
    o_trunc_starts_empty_and_stays_so,
    a_changed_file_is_dirty_until_archived_again,
    writing_through_a_rename_replaces_the_file,
}

/// As [`once_like_its_twin`]; then compares once more after another cycle through the store.
fn like_its_twin(pool: &mut Pool, change: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    let (file, twin) = once_like_its_twin(pool, change)?;
    if fs::metadata(&twin.path)?.len() > 0 {
        pool.offline(&file.path)?;
        same(&file, &twin)?;
    }
    Ok(())
}

/// Does the same to an offline file and to its resident twin, and compares.
fn once_like_its_twin(
    pool: &mut Pool,
    change: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<(Sample, Sample)> {
    let file = pool.file("file", SIZE)?;
    let twin = pool.file_with("twin", file.content.clone())?;
    pool.offline(&file.path)?;
    let expected = change(&twin.path).map_err(|e| e.raw_os_error());
    let got = change(&file.path).map_err(|e| e.raw_os_error());
    ensure!(got == expected, "{got:?} instead of {expected:?}");
    same(&file, &twin)?;
    Ok((file, twin))
}

fn same(file: &Sample, twin: &Sample) -> Result<()> {
    let (got, want) = (fs::read(&file.path)?, fs::read(&twin.path)?);
    ensure!(got.len() == want.len(), "{} bytes instead of {}", got.len(), want.len());
    let wrong = got.iter().zip(&want).position(|(a, b)| a != b);
    ensure!(wrong.is_none(), "wrong byte at {wrong:?}");
    Ok(())
}

fn both_truncates(pool: &mut Pool, size: u64) -> Result<()> {
    like_its_twin(pool, |path| File::options().write(true).open(path)?.set_len(size))?;
    like_its_twin(pool, |path| hsm_lab::truncate(path, size))
}

fn truncate_down_keeps_the_head(pool: &mut Pool) -> Result<()> {
    both_truncates(pool, MIB + 5)
}

fn truncate_up_adds_zeros(pool: &mut Pool) -> Result<()> {
    both_truncates(pool, 5 * MIB + 3)
}

fn truncate_to_the_same_size_changes_nothing(pool: &mut Pool) -> Result<()> {
    both_truncates(pool, SIZE)
}

fn truncate_to_zero_is_empty(pool: &mut Pool) -> Result<()> {
    both_truncates(pool, 0)?;
    // And it stays so: no late recall brings the old bytes back.
    pool.restart()?;
    ensure!(fs::read(pool.path("file"))?.is_empty(), "the old bytes came back");
    Ok(())
}

fn appending_keeps_the_old_bytes(pool: &mut Pool) -> Result<()> {
    like_its_twin(pool, |path| File::options().append(true).open(path)?.write_all(b"appended"))
}

fn writing_in_place_keeps_the_rest(pool: &mut Pool) -> Result<()> {
    like_its_twin(pool, |path| {
        File::options().write(true).open(path)?.write_all_at(b"in place", MIB + 77)
    })
}

fn writing_the_last_block_keeps_the_rest(pool: &mut Pool) -> Result<()> {
    like_its_twin(pool, |path| {
        File::options().write(true).open(path)?.write_all_at(&[7; 4096], SIZE - 4096)
    })
}

fn fallocated(pool: &mut Pool, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
    like_its_twin(pool, |path| {
        let file = File::options().write(true).open(path)?;
        Ok(fallocate(&file, flags, offset, length)?)
    })
}

fn fallocate_punch_hole_zeroes_only_its_range(pool: &mut Pool) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocated(pool, flags, 100_000, 300_000)
}

fn fallocate_zero_range_zeroes_only_its_range(pool: &mut Pool) -> Result<()> {
    fallocated(pool, FallocateFlags::ZERO_RANGE, 100_000, 300_000)
}

fn fallocate_collapse_range_shifts_the_rest(pool: &mut Pool) -> Result<()> {
    fallocated(pool, FallocateFlags::COLLAPSE_RANGE, 65536, 131_072)
}

fn fallocate_insert_range_shifts_the_rest(pool: &mut Pool) -> Result<()> {
    fallocated(pool, FallocateFlags::INSERT_RANGE, 65536, 131_072)
}

fn fallocate_keep_size_changes_no_byte(pool: &mut Pool) -> Result<()> {
    let preallocate = |path: &Path| {
        let file = File::options().write(true).open(path)?;
        Ok(fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 6 * MIB)?)
    };
    let (file, twin) = once_like_its_twin(pool, preallocate)?;
    // A release may keep the blocks beyond the end: they hold no byte of the file.
    pool.hsm.must("archive", [&file])?;
    let release = pool.hsm.must("release", [&file])?;
    // The kernel lets whoever breaks a lease wait for 45 s; nobody else has this file.
    let time = release.output.elapsed;
    ensure!(time.as_secs() < 20, "the release took {time:?}: it waited for its own lease");
    pool.assert_state(&file.path, &["offline"])?;
    same(&file, &twin)
}

fn blocks_behind_the_end_of_sparse_files_are_given_back(pool: &mut Pool) -> Result<()> {
    let sample = pool.file("file", MIB)?;
    let file = File::options().write(true).open(&sample.path)?;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 262_144, 524_288)?;
    fallocate(&file, FallocateFlags::KEEP_SIZE, MIB, 65_536)?;
    drop(file);
    let before = fs::read(&sample.path)?;
    pool.offline(&sample.path)?;
    ensure!(fs::read(&sample.path)? == before, "other bytes");
    Ok(())
}

fn fallocate_beyond_the_end_adds_zeros(pool: &mut Pool) -> Result<()> {
    fallocated(pool, FallocateFlags::empty(), MIB, 6 * MIB)
}

fn o_trunc_starts_empty_and_stays_so(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    pool.sh(": > \"$1\"", [&file])?;
    ensure!(fs::read(&file.path)?.is_empty(), "not empty after O_TRUNC");
    pool.assert_local(&file.path)?;
    let file = pool.offline_file("other", MIB)?;
    pool.sh("echo new > \"$1\"", [&file])?;
    ensure!(fs::read(&file.path)? == b"new\n", "wrong after O_TRUNC and a write");
    pool.restart()?;
    ensure!(fs::read(&file.path)? == b"new\n", "wrong after a restart");
    pool.offline(&file.path)?;
    ensure!(fs::read(&file.path)? == b"new\n", "wrong after a cycle");
    Ok(())
}

fn a_changed_file_is_dirty_until_archived_again(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    file.check()?;
    let new = Content::new(1234, MIB);
    File::options().write(true).open(&file.path)?.write_all_at(&new.bytes(), 0)?;
    pool.assert_state(&file.path, &["dirty"])?;
    pool.assert_release_refused(&file.path, &["dirty", "changed"])?;
    pool.hsm.must("archive", [&file])?;
    pool.assert_state(&file.path, &["archived"])?;
    pool.hsm.must("release", [&file])?;
    pool.assert_offline(&file.path)?;
    new.check(&file.path)
}

fn writing_through_a_rename_replaces_the_file(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let new = pool.file("file.new", 3 * MIB)?;
    fs::rename(&new.path, &file.path)?;
    new.content.check(&file.path)?;
    pool.assert_state(&file.path, &["resident"])?;
    pool.offline(&file.path)?;
    new.content.check(&file.path)
}
