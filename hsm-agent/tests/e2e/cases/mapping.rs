//! Memory maps: page faults ask nobody, so everything must be there before.

use anyhow::{Result, ensure};

use super::cases;
use crate::fixture::Pool;

const MIB: u64 = 1 << 20;

cases! {
    python_mmap_shared_reads_identical_bytes,
    python_mmap_private_reads_identical_bytes,
    python_mmap_shared_writes_arrive,
    mapping_a_part_reads_identical_bytes,
}

const HASH: &str = "
import mmap, os, sys, hashlib
fd = os.open(sys.argv[1], os.O_RDONLY)
flags = mmap.MAP_SHARED if sys.argv[2] == 'shared' else mmap.MAP_PRIVATE
m = mmap.mmap(fd, 0, flags=flags, prot=mmap.PROT_READ)
os.close(fd)
sys.stdout.buffer.write(m[:])
";

fn python_mmap_shared_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    mapped_read(pool, "shared")
}

fn python_mmap_private_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    mapped_read(pool, "private")
}

fn mapped_read(pool: &mut Pool, how: &str) -> Result<()> {
    let file = pool.offline_file("file", 3 * MIB + 77)?;
    let out = pool.python(HASH, [file.path.as_os_str(), how.as_ref()])?;
    file.content.check_bytes(&out.stdout)
}

fn python_mmap_shared_writes_arrive(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 2 * MIB)?;
    let program = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(fd, 0)
m[1000000:1000005] = b'hello'
m.flush()
";
    pool.python(program, [&file])?;
    let mut want = file.content.bytes();
    want[1_000_000..1_000_005].copy_from_slice(b"hello");
    ensure!(std::fs::read(&file.path)? == want, "the file is wrong after the write");
    pool.assert_state(&file.path, &["dirty", "resident"])?;
    pool.offline(&file.path)?;
    ensure!(std::fs::read(&file.path)? == want, "the write was lost on the way");
    Ok(())
}

fn mapping_a_part_reads_identical_bytes(pool: &mut Pool) -> Result<()> {
    let file = pool.offline_file("file", 8 * MIB)?;
    let program = "
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
m = mmap.mmap(fd, 1 << 20, prot=mmap.PROT_READ, offset=5 << 20)
sys.stdout.buffer.write(m[:])
";
    let out = pool.python(program, [&file])?;
    ensure!(out.stdout.len() as u64 == MIB, "too short");
    file.content.check_range(5 * MIB, &out.stdout)
}
