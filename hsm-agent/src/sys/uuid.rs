//! The UUID by which the kernel knows a file system.

#![expect(unsafe_code, reason = "an ioctl without a safe wrapper elsewhere")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `struct fsuuid2` of `<linux/fs.h>`.
#[repr(C)]
#[derive(Default)]
struct Uuid2 {
    len: u8,
    uuid: [u8; 16],
}

/// `FS_IOC_GETFSUUID`, since Linux 6.9: `_IOR(0x15, 0, struct fsuuid2)`.
const FS_IOC_GETFSUUID: libc::c_ulong = 0x8011_1500;

const _: () = assert!(size_of::<Uuid2>() == 0x11);

/// UUID of the file system that `fd` lies on (`super_block.s_uuid`). `None`: it has none.
pub fn of(fd: impl AsFd) -> io::Result<Option<[u8; 16]>> {
    let mut answer = Uuid2::default();
    // SAFETY: the kernel writes one `struct fsuuid2`, which `answer` is.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FS_IOC_GETFSUUID, &raw mut answer) };
    match super::check(result) {
        Ok(_) => Ok((answer.len == 16 && answer.uuid != [0; 16]).then_some(answer.uuid)),
        Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
        Err(e) => Err(e),
    }
}
