//! `truncate(2)` by path, which opens nothing, and which neither std nor rustix has.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Makes the file this long.
#[expect(unsafe_code, reason = "truncate(2) has no safe wrapper")]
pub fn truncate(path: &Path, size: u64) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let size = i64::try_from(size).map_err(io::Error::other)?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    match unsafe { libc::truncate(name.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
