//! Descriptors that the service manager kept for us (`sd_listen_fds(3)`).

#![expect(unsafe_code, reason = "takes over inherited descriptors")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// All of them with their names. Only the first call gets any.
pub fn kept_by_manager() -> io::Result<Vec<(String, OwnedFd)>> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let kept = sd_notify::listen_fds_with_names()?;
    // SAFETY: LISTEN_PID is this process, so whoever started it left these descriptors open for it
    // alone; nothing else here takes inherited descriptors by number, and this runs once.
    Ok(kept.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
