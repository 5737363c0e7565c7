//! The UUID by which the kernel knows a file system (`super_block.s_uuid`).

#![expect(unsafe_code, reason = "ioctls without a safe wrapper elsewhere")]

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `struct fsuuid2` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct Uuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `struct btrfs_ioctl_fs_info_args` of `<linux/btrfs.h>`.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u64; 124],
}

/// `FS_IOC_GETFSUUID`, since Linux 6.9: `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;
/// `BTRFS_IOC_FS_INFO`: `_IOR(0x94, 31, struct btrfs_ioctl_fs_info_args)`.
const BTRFS_IOC_FS_INFO: libc::c_ulong = 0x8400_941f;

const _: () = assert!(size_of::<Uuid2>() == 0x11);
const _: () = assert!(size_of::<FsInfo>() == 0x400);

/// UUID of the file system that `fd` lies on. `None`: it has none that could be told.
pub fn of(fd: impl AsFd) -> io::Result<Option<[u8; 16]>> {
    let fd = fd.as_fd();
    let mut answer = Uuid2::default();
    // SAFETY: the kernel writes one `struct fsuuid2`, which `answer` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    match super::check(result) {
        Ok(_) => Ok((answer.len == 16 && answer.uuid != [0; 16]).then_some(answer.uuid)),
        Err(e) if is_unknown(&e) => btrfs(fd),
        Err(e) => Err(e),
    }
}

/// Btrfs has a UUID, but does not tell it in the common way (Linux 7.3).
fn btrfs(fd: BorrowedFd<'_>) -> io::Result<Option<[u8; 16]>> {
    let mut answer = FsInfo { max_id: 0, num_devices: 0, fsid: [0; 16], rest: [0; 124] };
    // SAFETY: the kernel writes one `struct btrfs_ioctl_fs_info_args`, which `answer` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BTRFS_IOC_FS_INFO, &raw mut answer) };
    match super::check(result) {
        // The second mount of a copied device gets a random UUID, and keeps the real one inside.
        Ok(_) if is_temporary(&answer.fsid) => Ok(None),
        Ok(_) => Ok(Some(answer.fsid)),
        Err(e) if is_unknown(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_temporary(uuid: &[u8; 16]) -> bool {
    let path = format!("/sys/fs/btrfs/{}/temp_fsid", text(uuid));
    std::fs::read(path).is_ok_and(|value| value.starts_with(b"1"))
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EOPNOTSUPP | libc::EINVAL))
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

    #[test]
    fn a_file_system_without_a_uuid_has_none() {
        let proc = std::fs::File::open("/proc/self").expect("procfs");
        assert_eq!(of(proc).expect("an answer"), None);
    }
}
