//! Plain reads: every byte right, and nothing that only looks recalls anything.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use hsm_lab::Run;
use hsm_lab::content::write_bytes;

use super::cases;
use crate::fixture::Pool;

const MIB: u64 = 1 << 20;

cases! {
    cat_reads_identical_bytes,
    dd_buffered_reads_identical_bytes,
    dd_direct_reads_identical_bytes,
    grep_r_finds_every_match,
    sha256sum_check_passes,
    reading_makes_a_file_local_once,
    looking_recalls_nothing,
    offline_files_keep_their_size_and_occupy_no_blocks,
    parallel_readers_of_one_file_all_get_its_bytes,
    parallel_readers_of_many_files_all_get_their_bytes,
    online_files_are_untouched,
    unprivileged_readers_get_the_bytes,
    compressed_pools_return_identical_bytes with |config| {
        config.pool.push("compression = \"zstd\"".into());
    },
    range_recall_fetches_only_what_is_read with |config| {
        config.pool.push("recall = \"range\"".into());
        config.pool.push("range_programs = [\"*\"]".into());
        config.pool.push("range_min_size = \"1MiB\"".into());
    }; needs Ranges,
    range_recall_is_only_for_the_named_programs with |config| {
        config.pool.push("recall = \"range\"".into());
        config.pool.push("range_programs = [\"/usr/bin/no-such-program\"]".into());
        config.pool.push("range_min_size = \"1MiB\"".into());
    }; needs Ranges,
}

fn cat_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    for (name, size) in [("small", 4096), ("odd", 3 * MIB + 17), ("big", 20 * MIB)] {
        let file = pool.offline_file(name, size)?;
        let out = Run::new("cat").args([&file]).ok()?;
        file.content.check_bytes(&out.stdout)?;
        pool.assert_local(&file.path)?;
    }
    Ok(())
}

fn dd_buffered_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 5 * MIB + 123)?;
    let input = format!("if={}", file.path.display());
    let out = Run::new("dd").args([&input, "bs=777", "skip=3001", "status=none"]).ok()?;
    file.content.check_range(777 * 3001, &out.stdout)?;
    ensure!(out.stdout.len() as u64 == file.content.size - 777 * 3001, "dd read too little");
    let out = Run::new("dd").args([&input, "bs=1M", "status=none"]).ok()?;
    file.content.check_bytes(&out.stdout)
}

fn dd_direct_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    for (name, size, block) in [("aligned", 4 * MIB, "bs=4096"), ("odd", 4 * MIB + 99, "bs=1M")] {
        let file = pool.offline_file(name, size)?;
        let input = format!("if={}", file.path.display());
        let out = Run::new("dd").args([&input, block, "iflag=direct", "status=none"]).ok()?;
        file.content.check_bytes(&out.stdout)?;
    }
    Ok(())
}

fn grep_r_finds_every_match(pool: &mut Pool) -> Result<()> {
    let tree = pool.path("tree");
    for dir in 0..10 {
        fs::create_dir_all(tree.join(format!("d{dir}")))?;
        for file in 0..20 {
            let text =
                format!("{}needle {dir}.{file}\n{}", "hay\n".repeat(2000), "hay\n".repeat(50));
            write_bytes(&tree.join(format!("d{dir}/f{file}")), text.as_bytes())?;
        }
    }
    pool.offline_tree(&tree)?;
    let out = pool.sh("grep -rhn needle \"$1\" | sort -u | wc -l", [&tree])?;
    ensure!(out.text().trim() == "200", "grep found {}", out.text());
    Ok(())
}

fn sha256sum_check_passes(pool: &mut Pool) -> Result<()> {
    let tree = pool.path("tree");
    fs::create_dir(&tree)?;
    for i in 0..50 {
        pool.file(format!("tree/f{i}"), i * 7919 + 1)?;
    }
    let sums = pool.outside("sums");
    let script = "cd \"$1\"; find . -type f -exec sha256sum {} + > \"$2\"";
    pool.sh(script, [&tree, &sums])?;
    pool.offline_tree(&tree)?;
    pool.sh("cd \"$1\"; sha256sum --quiet -c \"$2\"", [&tree, &sums])?;
    Ok(())
}

fn reading_makes_a_file_local_once(pool: &mut Pool) -> Result<()> {
    let (file, object) = pool.offline_with_object("file", MIB)?;
    file.check()?;
    pool.assert_state(&file.path, &["archived"])?;
    // The second read needs no store.
    fs::remove_file(object)?;
    pool.sh("echo 3 > /proc/sys/vm/drop_caches", [""; 0])?;
    file.check()
}

fn looking_recalls_nothing(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("tree"))?;
    let mut files = Vec::new();
    for i in 0..5 {
        files.push(pool.offline_file(format!("tree/f{i}"), 100_000)?);
    }
    let tree = pool.path("tree");
    let looks = "ls -lR \"$1\"; find \"$1\" -printf '%s %b %t\\n'; du -s \"$1\"; stat \"$1\"/*; \
                 getfattr -d -m - \"$1\"/*; test -r \"$1/f0\"; realpath \"$1/f1\"";
    pool.sh(looks, [&tree])?;
    pool.hsm.command(["state".as_ref(), files[0].as_ref()]).ok()?;
    pool.hsm.command(["ls".as_ref(), "-r".as_ref(), tree.as_os_str()]).ok()?;
    pool.hsm.command(["du".as_ref(), tree.as_os_str()]).ok()?;
    files.iter().try_for_each(|file| pool.assert_offline(&file.path))
}

fn offline_files_keep_their_size_and_occupy_no_blocks(pool: &mut Pool) -> Result<()> {
    let before = free_blocks(pool)?;
    let mut files = Vec::new();
    for i in 0..8 {
        files.push(pool.file(format!("f{i}"), 8 * MIB)?);
    }
    let full = free_blocks(pool)?;
    for file in &files {
        pool.offline(&file.path)?;
        ensure!(fs::metadata(&file.path)?.len() == 8 * MIB, "the size changed");
    }
    let after = free_blocks(pool)?;
    ensure!(full + 60 * MIB < before, "the files took no space: {before} {full}");
    ensure!(after + 8 * MIB > before, "the space did not come back: {before} {full} {after}");
    Ok(())
}

fn free_blocks(pool: &Pool) -> Result<u64> {
    // btrfs counts what is committed.
    pool.sh("sync -f \"$1\"", [pool.mnt()])?;
    let stat = rustix::fs::statvfs(pool.mnt())?;
    Ok(stat.f_bfree * stat.f_frsize)
}

fn parallel_readers_of_one_file_all_get_its_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB + 5)?;
    parallel(200, |_| file.check())
}

fn parallel_readers_of_many_files_all_get_their_bytes(pool: &mut Pool) -> Result<()> {
    fs::create_dir(pool.path("tree"))?;
    let mut files = Vec::new();
    for i in 0..200 {
        files.push(pool.file(format!("tree/f{i}"), 50_000 + i)?);
    }
    pool.offline_tree(&pool.path("tree"))?;
    parallel(files.len(), |i| files[i].check())
}

/// `count` threads at once.
fn parallel(count: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|i| scope.spawn(move || work(i))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a reader panicked")))
        })
    })
}

fn online_files_are_untouched(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB)?;
    for _ in 0..100 {
        file.check()?;
    }
    pool.sh("echo more >> \"$1\"; cp \"$1\" \"$1.copy\"; mv \"$1.copy\" \"$1\"", [&file])?;
    pool.assert_state(&file.path, &["resident"])?;
    ensure!(pool.objects()?.is_empty(), "something was archived");
    Ok(())
}

fn unprivileged_readers_get_the_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "cat"];
    let out = Run::new("setpriv").args(nobody).args([&file]).ok()?;
    file.content.check_bytes(&out.stdout)?;
    let secret = pool.offline_file("secret", MIB)?;
    pool.sh("chmod 600 \"$1\"", [&secret])?;
    let out = Run::new("setpriv").args(nobody).args([&secret]).output()?;
    ensure!(out.code() != 0 && out.stdout.is_empty(), "read without permission");
    pool.assert_offline(&secret.path)
}

fn compressed_pools_return_identical_bytes(pool: &mut Pool) -> Result<()> {
    let random = pool.offline_file("random", 3 * MIB)?;
    let text = "the same line again and again\n".repeat(200_000);
    let path = pool.path("text");
    write_bytes(&path, text.as_bytes())?;
    pool.offline(&path)?;
    let stored: u64 = pool.objects()?.iter().flat_map(fs::metadata).map(|m| m.len()).sum();
    ensure!(stored < 3 * MIB + text.len() as u64 / 2, "nothing was compressed: {stored}");
    random.check()?;
    ensure!(fs::read(&path)? == text.as_bytes(), "the text is wrong");
    Ok(())
}

fn range_recall_fetches_only_what_is_read(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 32 * MIB)?;
    for (offset, length) in [(5 * MIB + 3, 1000), (31 * MIB, MIB), (5 * MIB, 4096)] {
        let args = [file.path.display().to_string(), offset.to_string(), length.to_string()];
        let out = pool.helper("pread", args)?.ok()?;
        file.content.check_range(offset, &out.stdout)?;
    }
    pool.assert_state(&file.path, &["partial"])?;
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&file.path)?);
    ensure!(blocks * 512 < 16 * MIB, "{blocks} blocks are local after reading 2 MiB");
    // A partial file survives a restart, and the rest comes when it is read.
    pool.restart()?;
    file.check()?;
    pool.assert_state(&file.path, &["archived"])
}

fn range_recall_is_only_for_the_named_programs(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 16 * MIB)?;
    let copy = pool.outside("copy");
    let cp = Run::new("cp").args([file.path.as_path(), copy.as_path()]);
    cp.limit(Duration::from_secs(30)).ok()?;
    file.content.check(&copy)?;
    pool.assert_state(&file.path, &["archived"])
}
