//! Unusual files and names, and names that change while bytes are on their way.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use hsm_lab::{Content, Run};

use super::cases;
use crate::fixture::{Pool, Sample};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

cases! {
    empty_files_have_nothing_to_release,
    one_byte_files_come_back,
    three_gigabyte_sparse_files_come_back,
    hard_links_share_one_recall,
    renames_during_a_recall_do_no_harm,
    unlinking_during_a_recall_does_no_harm,
    unlinked_and_remade_files_are_new,
    names_with_newlines_and_invalid_utf8_work,
    deep_trees_work,
    files_of_every_size_around_a_block_come_back,
}

fn empty_files_have_nothing_to_release(pool: &mut Pool) -> Result<()> {
    let file = pool.file("empty", 0)?;
    let archived = pool.hsm.verb("archive", [&file])?;
    ensure!(archived.code == 0, "{}", archived.output.describe());
    let report = pool.hsm.verb("release", [&file])?;
    ensure!(report.code == 0, "{}", report.output.describe());
    ensure!((report.outcome(), report.reason()) == ("skipped", "empty"), "{report:?}");
    file.check()
}

fn one_byte_files_come_back(pool: &mut Pool) -> Result<()> {
    pool.offline_file("one", 1)?.check()
}

fn three_gigabyte_sparse_files_come_back(pool: &mut Pool) -> Result<()> {
    let extents = [(0, 4096), (GIB + 123, 2 * MIB), (3 * GIB - 10, 10)];
    let content = Content::sparse(9, 3 * GIB, &extents);
    let file = pool.file_with("sparse", content)?;
    let before = allocated(&file)?;
    pool.offline(&file.path)?;
    let stored: u64 = pool.objects()?.iter().flat_map(fs::metadata).map(|m| m.len()).sum();
    ensure!(stored < 64 * MIB, "{stored} bytes are stored for 2 MiB of data");
    file.check()?;
    let after = allocated(&file)?;
    ensure!(after < before + 4 * MIB, "{before} bytes were allocated, now {after}");
    Ok(())
}

fn allocated(file: &Sample) -> Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&file.path)?) * 512)
}

fn hard_links_share_one_recall(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    let link = pool.path("link");
    fs::hard_link(&file.path, &link)?;
    pool.offline(&file.path)?;
    pool.assert_offline(&link)?;
    file.content.check(&link)?;
    pool.assert_local(&file.path)?;
    file.check()?;
    pool.offline(&link)?;
    fs::remove_file(&file.path)?;
    file.content.check(&link)
}

/// A reader that is blocked in a slow recall of `file`.
fn slow_reader(pool: &mut Pool, file: &Sample) -> Result<thread::JoinHandle<Result<()>>> {
    pool.restart_slow("1MiB")?;
    let reader = {
        let file = file.clone();
        thread::spawn(move || file.check())
    };
    thread::sleep(Duration::from_millis(700));
    ensure!(!reader.is_finished(), "the recall was not slow");
    Ok(reader)
}

fn joined(reader: thread::JoinHandle<Result<()>>) -> Result<()> {
    reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the reader panicked")))
}

fn renames_during_a_recall_do_no_harm(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 3 * MIB)?;
    let reader = slow_reader(pool, &file)?;
    let moved = pool.path("moved");
    fs::rename(&file.path, &moved)?;
    // Another file gets the old name in the middle of it.
    let other = pool.file("file", MIB)?;
    joined(reader)?;
    file.content.check(&moved)?;
    other.check()?;
    pool.assert_state(&moved, &["archived"])
}

fn unlinking_during_a_recall_does_no_harm(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 3 * MIB)?;
    let reader = slow_reader(pool, &file)?;
    fs::remove_file(&file.path)?;
    let other = pool.file("file", MIB)?;
    joined(reader)?;
    other.check()?;
    pool.assert_state(&other.path, &["resident"])
}

fn unlinked_and_remade_files_are_new(pool: &mut Pool) -> Result<()> {
    for round in 0..20 {
        let old = pool.offline_file("file", 200_000)?;
        if round % 2 == 0 {
            old.check()?;
        }
        fs::remove_file(&old.path)?;
        let new = pool.file("file", 100_000)?;
        pool.assert_state(&new.path, &["resident"])?;
        new.check()?;
        fs::remove_file(&new.path)?;
    }
    Ok(())
}

fn names_with_newlines_and_invalid_utf8_work(pool: &mut Pool) -> Result<()> {
    let names: [&[u8]; 6] =
        [b"new\nline", b"bad\xff\xfeutf8", b"-r", b" space ", b"*glob?[x]", b"\"quote'\\\x1b[31m"];
    let dir = pool.path("d");
    fs::create_dir(&dir)?;
    let mut files = Vec::new();
    for name in names {
        files.push(pool.file(PathBuf::from("d").join(OsStr::from_bytes(name)), 70_000)?);
    }
    files.iter().try_for_each(|file| pool.offline(&file.path))?;
    files.iter().try_for_each(Sample::check)?;
    pool.offline_tree(&dir)?;
    // The same names through a list with NULs, read back by `recall`.
    let list = files.iter().flat_map(|f| [f.path.as_os_str().as_bytes(), b"\0"].concat()).collect();
    pool.hsm.command(["recall", "-0", "--files-from", "-"]).stdin(list).ok()?;
    files.iter().try_for_each(|file| pool.assert_local(&file.path))?;
    files.iter().try_for_each(Sample::check)
}

fn deep_trees_work(pool: &mut Pool) -> Result<()> {
    let script = "cd \"$1\"; i=0; while [ $i -lt 60 ]; do mkdir \"$2\"; cd -P \"$2\"; i=$((i+1)); \
                  head -c 5000 /dev/zero | tr '\\0' x > leaf; done";
    let part = "d".repeat(40);
    pool.sh(script, [pool.mnt().as_os_str(), part.as_ref()])?;
    let top = pool.path(&part);
    pool.hsm.must("archive", ["-r".as_ref(), top.as_os_str()])?;
    let report = pool.hsm.must("release", ["-r".as_ref(), top.as_os_str()])?;
    ensure!(report.summary.done == 60, "released {:?}", report.summary);
    let out = Run::shell(
        "find \"$1\" -name leaf -exec cat {} + | tr -d x | wc -c; \
                          find \"$1\" -name leaf -exec cat {} + | wc -c",
    );
    let out = out.args([&top]).ok()?;
    ensure!(out.text() == "0\n300000\n", "{}", out.describe());
    Ok(())
}

fn files_of_every_size_around_a_block_come_back(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("d"))?;
    let sizes = [2, 7, 511, 512, 2047, 2048, 4095, 4096, 4097, 65535, 65537];
    let edges = [MIB - 1, MIB, MIB + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1];
    let mut files = Vec::new();
    for size in sizes.into_iter().chain(edges) {
        files.push(pool.file(format!("d/{size}"), size)?);
    }
    pool.offline_tree(&pool.path("d"))?;
    files.iter().try_for_each(Sample::check)
}
