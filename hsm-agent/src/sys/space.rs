//! Allocation: data extents, punching holes; and writing back early.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

/// Punching up to the next multiple of this also frees the block that holds the end of the file.
/// 64 KiB is the largest block size of the supported file systems.
const BLOCK: u64 = 65_536;

/// The ranges of `fd` that hold data, in order, within `size`. Asking raises no fanotify event.
/// Unwritten and punched ranges are holes.
pub fn data_extents(fd: impl AsFd, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(fd.as_fd(), SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(fd.as_fd(), SeekFrom::Hole(start))?.min(size);
        if start >= size || end <= start {
            break;
        }
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

/// Takes all data of a file away; its size stays. Blocks that were allocated in advance behind the
/// end stay too: see [`trim`].
pub fn punch_all(fd: impl AsFd, size: u64) -> io::Result<()> {
    punch(fd, 0..size.next_multiple_of(BLOCK))
}

/// Whether so many bytes are allocated that some probably lie behind the end of the file. (XFS allocates in
/// advance for who appends, and keeps it for minutes where a file is closed and opened again.)
pub fn is_preallocated(fd: impl AsFd, size: u64, allocated: u64) -> io::Result<bool> {
    /// The block size of nearly all file systems.
    const USUAL_BLOCK: u64 = 4096;
    /// For extended attributes, and for the extents' own blocks.
    const OVERHEAD: u64 = 2 * USUAL_BLOCK;
    let dense = size.next_multiple_of(USUAL_BLOCK);
    if allocated <= OVERHEAD || allocated + OVERHEAD >= dense {
        return Ok(allocated > dense + OVERHEAD);
    }
    // With holes in it, the size tells nothing.
    let extents = data_extents(fd, size)?;
    let data = |e: &Range<u64>| e.end.next_multiple_of(USUAL_BLOCK) - e.start;
    Ok(allocated > extents.iter().map(data).sum::<u64>() + OVERHEAD)
}

/// Gives blocks behind the end of the file back, which a punch does not: truncates it to the size
/// that it has. Raises an event whatever the descriptor is (`ftruncate` is asked about by path), and
/// moves mtime.
pub fn trim(fd: impl AsFd, size: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(fd, size)?)
}

/// Takes the data of a range away; the size stays.
fn punch(fd: impl AsFd, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(fd, mode, range.start, range.end - range.start)?)
}

/// Whether the page cache has data of the file that the device does not have yet. `true` when the kernel
/// does not tell.
pub fn is_dirty(fd: impl AsFd) -> bool {
    /// `struct cachestat_range` of `<linux/mman.h>`; a length of 0 reaches to the end.
    #[repr(C)]
    struct CachestatRange {
        off: u64,
        len: u64,
    }
    /// `struct cachestat` of `<linux/mman.h>`: numbers of pages.
    #[repr(C)]
    #[derive(Default)]
    struct Cachestat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    /// The same number on all architectures; libc knows it for some only.
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = CachestatRange { off: 0, len: 0 };
    let mut pages = Cachestat::default();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both structures outlive the call and are the ones that the kernel (6.5) reads and writes.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, fd, &raw const range, &raw mut pages, 0) };
    result != 0 || pages.dirty + pages.writeback > 0
}

/// Starts writing the dirty pages of a range to the device, and does not wait for them: less is left
/// for the sync that follows. It makes nothing durable, and says nothing of errors: the sync does,
/// through any descriptor that was open before the data was written.
pub fn write_back(fd: impl AsFd, range: Range<u64>) {
    let (Ok(offset), Ok(len)) =
        (i64::try_from(range.start), i64::try_from(range.end.saturating_sub(range.start)))
    else {
        return;
    };
    // A length of 0 would mean everything up to the end.
    if len > 0 {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: no pointers are passed.
        let _ = unsafe { libc::sync_file_range(fd, offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    }
}
