//! The UUID that the kernel keeps in a file system's superblock (`super_block.s_uuid`).
//!
//! It is what kernel programs know a file system by: it is there before anything can be opened, stays
//! the same over mounts, and a snapshot of a managed file system carries it too.

#![expect(unsafe_code, reason = "system calls without a safe wrapper elsewhere")]

use std::fmt::Write;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl;

/// `struct fsuuid2` of `include/uapi/linux/fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FsUuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID` (Linux 6.9): ext4 and XFS answer it.
const GET_FS_UUID: ioctl::Opcode = ioctl::opcode::read::<FsUuid2>(0x15, 0);

/// The beginning of `struct btrfs_ioctl_fs_info_args` of `include/uapi/linux/btrfs.h`, with its size.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct BtrfsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

const _: () = assert!(size_of::<BtrfsInfo>() == 1024);

/// `BTRFS_IOC_FS_INFO`: btrfs fills `s_uuid` with its fsid but does not tell its length, so that the
/// general request has no answer there.
const BTRFS_INFO: ioctl::Opcode = ioctl::opcode::read::<BtrfsInfo>(0x94, 31);

/// The UUID of the file system that `fd` (not `O_PATH`) is on. `Unsupported`: it has none.
pub fn of(fd: impl AsFd) -> io::Result<[u8; 16]> {
    let fd = fd.as_fd();
    let mut answer = FsUuid2 { len: 0, uuid: [0; 16] };
    // SAFETY: the kernel writes one `struct fsuuid2` through the pointer.
    let general =
        unsafe { ioctl::ioctl(fd, ioctl::Updater::<GET_FS_UUID, FsUuid2>::new(&mut answer)) };
    match general {
        Ok(()) if answer.len == 16 => return some(answer.uuid),
        Ok(()) => return Err(none()),
        Err(rustix::io::Errno::NOTTY) => {}
        Err(error) => return Err(error.into()),
    }
    let mut info = BtrfsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: the kernel writes one `struct btrfs_ioctl_fs_info_args`, whose size the request carries.
    match unsafe { ioctl::ioctl(fd, ioctl::Updater::<BTRFS_INFO, BtrfsInfo>::new(&mut info)) } {
        Ok(()) => some(info.fsid),
        Err(rustix::io::Errno::NOTTY) => Err(none()),
        Err(error) => Err(error.into()),
    }
}

/// As people write it: `01234567-89ab-cdef-0123-456789abcdef`.
pub fn text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads [`text`].
pub fn parse(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b'-').collect();
    let mut uuid = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

fn some(uuid: [u8; 16]) -> io::Result<[u8; 16]> {
    if uuid == [0; 16] { Err(none()) } else { Ok(uuid) }
}

fn none() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "the file system has no UUID")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_both_ways() {
        let uuid = std::array::from_fn(|at| u8::try_from(at * 16 + 1).expect("small"));
        let written = text(&uuid);
        assert_eq!(written, "01112131-4151-6171-8191-a1b1c1d1e1f1");
        assert_eq!(parse(&written), Some(uuid));
        assert_eq!(parse("01112131"), None);
        assert_eq!(parse("zz112131-4151-6171-8191-a1b1c1d1e1f1"), None);
    }
}
