//! Every other way to a file's bytes that the kernel has.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom as Seeking};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, bail, ensure};
use hsm_lab::{Content, Run};
use rustix::fs::{Advice, Mode, OFlags, SeekFrom, copy_file_range, fadvise, open, seek, sendfile};
use rustix::pipe::{SpliceFlags, pipe, splice};

use super::cases;
use crate::fixture::{Pool, Sample};

const MIB: u64 = 1 << 20;

cases! {
    sendfile_sends_identical_bytes,
    splice_moves_identical_bytes,
    copy_file_range_copies_identical_bytes,
    reflink_by_ioctl_shares_identical_bytes,
    seek_data_tells_the_truth,
    fiemap_after_open_tells_the_truth,
    o_path_descriptors_reopen_to_identical_bytes,
    open_by_handle_at_reads_identical_bytes,
    readahead_and_fadvise_do_no_harm,
    write_only_openers_find_the_old_bytes_kept,
    locks_and_polls_do_no_harm,
}

fn sendfile_sends_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB + 3)?;
    let to = pool.outside("to");
    let (from, out) = (File::open(&file.path)?, File::create(&to)?);
    while sendfile(&out, &from, None, 1 << 20)? > 0 {}
    file.content.check(&to)
}

fn splice_moves_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 3)?;
    let from = File::open(&file.path)?;
    let (read, write) = pipe()?;
    let mut got = Vec::new();
    loop {
        let n = splice(&from, None, &write, None, 4096, SpliceFlags::empty())?;
        if n == 0 {
            break;
        }
        let mut piece = vec![0; n];
        let mut done = 0;
        while done < n {
            done += rustix::io::read(&read, &mut piece[done..])?;
        }
        got.extend_from_slice(&piece);
    }
    file.content.check_bytes(&got)
}

fn copy_file_range_copies_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB + 3)?;
    let to = pool.path("to");
    let (from, out) = (File::open(&file.path)?, File::create(&to)?);
    while copy_file_range(&from, None, &out, None, 1 << 30)? > 0 {}
    file.content.check(&to)?;
    // An offline file as the target: what is not overwritten stays.
    let target = pool.offline_file("target", MIB)?;
    let (from, out) = (File::open(&to)?, File::options().write(true).open(&target.path)?);
    let (mut a, mut b) = (0, 8192);
    let n = copy_file_range(&from, Some(&mut a), &out, Some(&mut b), 4096)?;
    let mut want = target.content.bytes();
    want[8192..8192 + n].copy_from_slice(&file.content.range(0, n as u64));
    ensure!(fs::read(&target.path)? == want, "the target is wrong");
    Ok(())
}

fn reflink_by_ioctl_shares_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB)?;
    let to = pool.path("clone");
    let (from, out) = (File::open(&file.path)?, File::create(&to)?);
    match rustix::fs::ioctl_ficlone(&out, &from) {
        Ok(()) => file.content.check(&to)?,
        Err(error) if !pool.kind.has_reflinks() => {
            ensure!(error == rustix::io::Errno::OPNOTSUPP, "{error}");
        }
        Err(error) => bail!("FICLONE: {error}"),
    }
    file.check()
}

fn sparse(pool: &mut Pool) -> Result<Sample> {
    let content = Content::sparse(8, 4 * MIB, &[(MIB, MIB), (3 * MIB, MIB)]);
    let file = pool.file_with("file", content)?;
    pool.offline(&file.path)?;
    Ok(file)
}

fn seek_data_tells_the_truth(pool: &mut Pool) -> Result<()> {
    let file = sparse(pool)?;
    let open = File::open(&file.path)?;
    let found = [
        seek(&open, SeekFrom::Data(0))?,
        seek(&open, SeekFrom::Hole(MIB))?,
        seek(&open, SeekFrom::Data(2 * MIB))?,
        seek(&open, SeekFrom::Hole(3 * MIB))?,
    ];
    ensure!(found == [MIB, 2 * MIB, 3 * MIB, 4 * MIB], "SEEK_DATA and SEEK_HOLE said {found:?}");
    file.check()
}

fn fiemap_after_open_tells_the_truth(pool: &mut Pool) -> Result<()> {
    let file = sparse(pool)?;
    let out = Run::new("filefrag").args(["-b4096", "-v"]).args([&file]).ok()?;
    // Columns: number, logical first..last, ...
    let mut blocks = 0;
    for line in out.text().lines() {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let range = fields.get(1).and_then(|range| range.split_once(".."));
        if let (Ok(_), Some((first, last))) = (fields[0].parse::<u32>(), range) {
            blocks += last.trim().parse::<u64>()? + 1 - first.trim().parse::<u64>()?;
        }
    }
    ensure!(blocks == 2 * MIB / 4096, "{blocks} blocks are mapped: {}", out.describe());
    Ok(())
}

fn o_path_descriptors_reopen_to_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.file("file", MIB + 9)?;
    // Opened before the release: an O_PATH descriptor is no open file and must not stop it.
    let early = open(&file.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    pool.offline(&file.path)?;
    let late = open(&file.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    pool.assert_offline(&file.path)?;
    for fd in [&late, &early] {
        let mut bytes = Vec::new();
        File::open(format!("/proc/self/fd/{}", fd.as_raw_fd()))?.read_to_end(&mut bytes)?;
        file.content.check_bytes(&bytes)?;
        pool.hsm.must("release", [&file])?;
    }
    Ok(())
}

fn open_by_handle_at_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB + 9)?;
    let out = pool.helper("handle-read", [&file])?.ok()?;
    file.content.check_bytes(&out.stdout)
}

fn readahead_and_fadvise_do_no_harm(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB)?;
    let mut open = File::open(&file.path)?;
    fadvise(&open, 0, None, Advice::WillNeed)?;
    fadvise(&open, 0, None, Advice::Sequential)?;
    fadvise(&open, 0, None, Advice::DontNeed)?;
    open.seek(Seeking::Start(MIB))?;
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes)?;
    file.content.check_range(MIB, &bytes)?;
    file.check()
}

fn write_only_openers_find_the_old_bytes_kept(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", MIB)?;
    // Opened for writing, nothing written, closed.
    drop(File::options().write(true).open(&file.path)?);
    file.check()?;
    let file = pool.offline_file("direct", MIB)?;
    let direct = File::options().write(true).custom_flags(libc::O_DIRECT).open(&file.path)?;
    drop(direct);
    file.check()
}

fn locks_and_polls_do_no_harm(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 100_000)?;
    let program = "
import fcntl, os, select, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)
fcntl.lockf(fd, fcntl.LOCK_EX)
select.select([fd], [], [], 0)
sys.stdout.buffer.write(os.pread(fd, 1 << 20, 0))
";
    let out = pool.python(program, [&file])?;
    file.content.check_bytes(&out.stdout)
}
