//! What survives a cycle of archive, release and recall: everything but ctime.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Result, ensure};
use hsm_lab::{Content, Run};

use super::cases;
use crate::fixture::Pool;

const MIB: u64 = 1 << 20;

cases! {
    times_survive_a_cycle_exactly,
    mode_and_owner_survive_a_cycle,
    acls_survive_a_cycle,
    xattrs_survive_a_cycle,
    sparse_files_stay_sparse,
    the_inode_number_and_links_survive_a_cycle,
}

/// Archives, releases and recalls, without any reader.
fn cycle(pool: &Pool, path: &Path) -> Result<()> {
    pool.offline(path)?;
    pool.hsm.must("recall", [path])?;
    pool.assert_state(path, &["archived"])
}

fn times(meta: &fs::Metadata) -> [(i64, i64); 2] {
    [(meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec())]
}

fn times_survive_a_cycle_exactly(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    let stamps = "touch -a -d '2001-02-03 04:05:06.123456789' \"$1\"; \
                  touch -m -d '1999-12-31 23:59:59.987654321' \"$1\"";
    pool.sh(stamps, [&file])?;
    let before = times(&fs::metadata(&file.path)?);
    pool.hsm.must("archive", [&file])?;
    ensure!(times(&fs::metadata(&file.path)?) == before, "archive changed the times");
    pool.hsm.must("release", [&file])?;
    ensure!(times(&fs::metadata(&file.path)?) == before, "release changed the times");
    pool.assert_offline(&file.path)?;
    pool.hsm.must("recall", [&file])?;
    ensure!(times(&fs::metadata(&file.path)?) == before, "recall changed the times");
    // A reader's open recalls; the mtime stays (the atime is the reader's own).
    pool.hsm.must("release", [&file])?;
    file.check()?;
    ensure!(times(&fs::metadata(&file.path)?)[1] == before[1], "a read changed the mtime");
    Ok(())
}

fn mode_and_owner_survive_a_cycle(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    pool.sh("chown 1234:4321 \"$1\"; chmod 6751 \"$1\"", [&file])?;
    let key = |meta: fs::Metadata| (meta.mode(), meta.uid(), meta.gid());
    let before = key(fs::metadata(&file.path)?);
    cycle(pool, &file.path)?;
    ensure!(key(fs::metadata(&file.path)?) == before, "mode or owner changed");
    pool.hsm.must("release", [&file])?;
    file.check()?;
    ensure!(key(fs::metadata(&file.path)?) == before, "a read changed mode or owner");
    Ok(())
}

fn acls_survive_a_cycle(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    pool.sh("setfacl -m u:1234:rw,g:4321:r,m::rwx \"$1\"", [&file])?;
    let acl = |pool: &Pool| Ok::<_, anyhow::Error>(pool.sh("getfacl -pn \"$1\"", [&file])?.text());
    let before = acl(pool)?;
    ensure!(before.contains("user:1234:rw-"), "no ACL was set: {before}");
    cycle(pool, &file.path)?;
    ensure!(acl(pool)? == before, "the ACL changed");
    Ok(())
}

fn xattrs_survive_a_cycle(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    pool.sh(
        "setfattr -n user.one -v 'some value' \"$1\"; \
             setfattr -n user.two -v \"$(head -c 300 /dev/zero | tr '\\0' y)\" \"$1\"",
        [&file],
    )?;
    let all = |pool: &Pool| {
        let out = pool.sh("getfattr -d -m '^user\\.' --absolute-names \"$1\"", [&file])?;
        Ok::<_, anyhow::Error>(out.text())
    };
    let before = all(pool)?;
    ensure!(before.contains("some value"), "no xattr was set: {before}");
    pool.offline(&file.path)?;
    ensure!(all(pool)? == before, "xattrs changed while offline");
    pool.hsm.must("recall", [&file])?;
    ensure!(all(pool)? == before, "xattrs changed");
    Ok(())
}

fn sparse_files_stay_sparse(pool: &mut Pool) -> Result<()> {
    let extents = [(0, 65536), (8 * MIB, 65536), (20 * MIB, 4096)];
    let file = pool.file_with("file", Content::sparse(4, 32 * MIB, &extents))?;
    let before = fs::metadata(&file.path)?.blocks();
    cycle(pool, &file.path)?;
    Run::new("sync").args([&file]).ok()?;
    let after = fs::metadata(&file.path)?.blocks();
    // XFS preallocates beyond what is written; a few blocks are xattrs.
    ensure!(after <= before + 1024, "{before} blocks became {after}");
    file.check()
}

fn the_inode_number_and_links_survive_a_cycle(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    fs::hard_link(&file.path, pool.path("link"))?;
    let key = |meta: fs::Metadata| (meta.ino(), meta.nlink(), meta.len());
    let before = key(fs::metadata(&file.path)?);
    cycle(pool, &file.path)?;
    ensure!(key(fs::metadata(&file.path)?) == before, "inode or links changed");
    Ok(())
}
