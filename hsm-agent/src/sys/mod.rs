//! Safe wrappers around the kernel interfaces that hsm stands on: the only unsafe code of the crate.
//!
//! Each leaf wraps one interface, turns errno into `io::Error` and owns every descriptor it
//! makes. No policy lives here: what an error means for a file is decided by the callers.

pub mod bpf;
pub mod fanotify;
pub mod fsuuid;
pub mod handle;
pub mod inherited;
pub mod inode;
pub mod invisible;
pub mod lease;
pub mod local_storage;
pub mod message;
pub mod probe;
pub mod process;
pub mod signal;
pub mod space;
pub mod xattr;

use std::io;

/// Turns the `-1 with errno` convention of libc into a `Result`.
fn check(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}
