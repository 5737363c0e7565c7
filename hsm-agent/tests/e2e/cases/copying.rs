//! Programs that copy, and above all those that ask for holes first.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hsm_lab::{Content, Run};

use super::cases;
use crate::fixture::{Pool, Sample};

const MIB: u64 = 1 << 20;

cases! {
    cp_with_every_sparse_mode_copies_identical_bytes,
    cp_with_every_reflink_mode_copies_identical_bytes,
    cp_a_of_a_tree_copies_everything,
    mv_across_file_systems_moves_bytes_and_times,
    tar_stores_identical_bytes,
    tar_sparse_stores_identical_bytes,
    rsync_copies_identical_bytes,
    copying_onto_an_offline_file_replaces_it,
}

/// One full file and one sparse file, both offline.
fn pair(pool: &mut Pool, name: &str) -> Result<[Sample; 2]> {
    let full = pool.offline_file(format!("{name}-full"), 2 * MIB + 11)?;
    let extents = [(0, 4096), (MIB, 8192), (3 * MIB - 4096, 4096)];
    let content = Content::sparse(77, 3 * MIB, &extents);
    let sparse = pool.file_with(format!("{name}-sparse"), content)?;
    pool.offline(&sparse.path)?;
    Ok([full, sparse])
}

fn cp_with_every_sparse_mode_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    for mode in ["auto", "always", "never"] {
        for file in pair(pool, mode)? {
            let copy = pool.outside(format!("copy-{mode}"));
            let option = format!("--sparse={mode}");
            Run::new("cp").args([option.as_ref(), file.path.as_os_str(), copy.as_os_str()]).ok()?;
            file.content.check(&copy).with_context(|| option.clone())?;
            let within = pool.path(format!("copy-{mode}"));
            pool.hsm.must("release", [&file])?;
            Run::new("cp")
                .args([option.as_ref(), file.path.as_os_str(), within.as_os_str()])
                .ok()?;
            file.content.check(&within).with_context(|| option.clone())?;
        }
    }
    Ok(())
}

fn cp_with_every_reflink_mode_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    for mode in ["auto", "always", "never"] {
        for file in pair(pool, mode)? {
            let copy = pool.path(format!("copy-{mode}"));
            let option = format!("--reflink={mode}");
            let args = [option.as_ref(), file.path.as_os_str(), copy.as_os_str()];
            let out = Run::new("cp").args(args).output()?;
            let can = mode != "always" || pool.kind.has_reflinks();
            ensure!(out.status.success() == can, "{option}: {}", out.describe());
            if can {
                file.content.check(&copy).with_context(|| option.clone())?;
                fs::remove_file(&copy)?;
            }
            file.check()?;
        }
    }
    Ok(())
}

fn tree(pool: &mut Pool) -> Result<(PathBuf, Vec<Sample>)> {
    fs::create_dir_all(pool.path("tree/sub/deeper"))?;
    let mut files = Vec::new();
    for (i, dir) in ["tree", "tree/sub", "tree/sub/deeper"].into_iter().enumerate() {
        for j in 0..8 {
            let size = (i as u64 * 8 + j) * 30_011 + 1;
            files.push(pool.file(format!("{dir}/f{j}"), size)?);
        }
    }
    let content = Content::sparse(5, 4 * MIB, &[(2 * MIB, 10_000)]);
    files.push(pool.file_with("tree/sub/sparse", content)?);
    let tree = pool.path("tree");
    pool.sh("ln -s f1 \"$1/link\"; ln \"$1/f2\" \"$1/sub/hard\"; mkfifo \"$1/fifo\"", [&tree])?;
    pool.offline_tree(&tree)?;
    Ok((tree, files))
}

fn check_copies(pool: &Pool, files: &[Sample], to: &Path) -> Result<()> {
    for file in files {
        let copy = to.join(file.path.strip_prefix(pool.mnt())?);
        file.content.check(&copy)?;
        let (from, to) = (fs::metadata(&file.path)?, fs::metadata(&copy)?);
        ensure!(from.modified()? == to.modified()?, "another mtime: {}", copy.display());
    }
    Ok(())
}

fn cp_a_of_a_tree_copies_everything(pool: &mut Pool) -> Result<()> {
    let (tree, files) = tree(pool)?;
    let to = pool.outside("to");
    fs::create_dir(&to)?;
    Run::new("cp").args(["-a"]).args([&tree, &to]).ok()?;
    check_copies(pool, &files, &to)?;
    ensure!(to.join("tree/link").is_symlink(), "the symlink was not copied");
    Ok(())
}

fn mv_across_file_systems_moves_bytes_and_times(pool: &mut Pool) -> Result<()> {
    for file in pair(pool, "move")? {
        let before = fs::metadata(&file.path)?;
        let to = pool.outside("moved");
        Run::new("mv").args([&file.path, &to]).ok()?;
        file.content.check(&to)?;
        ensure!(!file.path.exists(), "the source is still there");
        ensure!(fs::metadata(&to)?.modified()? == before.modified()?, "another mtime");
    }
    Ok(())
}

fn tar_stores_identical_bytes(pool: &mut Pool) -> Result<()> {
    tar(pool, &["--format=posix"])
}

fn tar_sparse_stores_identical_bytes(pool: &mut Pool) -> Result<()> {
    tar(pool, &["--format=posix", "-S"])?;
    tar(pool, &["--format=posix", "-S", "--hole-detection=raw"])
}

fn tar(pool: &mut Pool, options: &[&str]) -> Result<()> {
    let (tree, files) = tree(pool)?;
    let archive = pool.outside("archive.tar");
    let to = pool.outside("to");
    Run::new("tar")
        .args(options)
        .args(["-C".as_ref(), pool.mnt().as_os_str(), "-cf".as_ref(), archive.as_os_str()])
        .args(["tree"])
        .ok()?;
    fs::create_dir(&to)?;
    Run::new("tar")
        .args(["-C".as_ref(), to.as_os_str(), "-xf".as_ref(), archive.as_os_str()])
        .ok()?;
    check_copies(pool, &files, &to)?;
    fs::remove_dir_all(to)?;
    Ok(fs::remove_dir_all(tree)?)
}

fn rsync_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    let (tree, files) = tree(pool)?;
    for options in [["-aH", "--whole-file"], ["-aHS", "--checksum"]] {
        let to = pool.outside(options[0]);
        fs::create_dir(&to)?;
        Run::new("rsync").args(options).args([&tree, &to]).ok()?;
        check_copies(pool, &files, &to)?;
        pool.hsm.must("release", ["-r".as_ref(), tree.as_os_str()])?;
    }
    Ok(())
}

fn copying_onto_an_offline_file_replaces_it(pool: &mut Pool) -> Result<()> {
    for size in [10, 3 * MIB] {
        let target = pool.offline_file(format!("target{size}"), MIB)?;
        let new = Content::new(99, size);
        let source = pool.outside("source");
        new.write(&source)?;
        Run::new("cp").args([source.as_path(), target.path.as_path()]).ok()?;
        new.check(&target.path)?;
        pool.offline(&target.path)?;
        new.check(&target.path)?;
    }
    Ok(())
}
