//! Guard mode: what `guard_open` tells `guard_post_open` about a marked file that it lets pass: who served then.
//!
//! In guard mode a marked file may be open, as long as an agent watches it. That there is one when the open is
//! through proves nothing: if holder and engine die in between, the kernel lets the open pass, and a new
//! agent that serves by then was never asked. So `guard_open` leaves the server's serial number, which
//! no other server has, and `guard_post_open` passes a marked file only for the same number: then that server has
//! lived all the time.
//!
//! The number is read before the watch is looked for, and a server registers anew once it has a file system's
//! watch in place: with the same number at the end, the watch was the server's.
//!
//! It is kept with the thread, in task storage: exact, and of no cost to files that are online. An entry of an
//! earlier open that failed on the way can be taken for that of a later one whose `struct file` has the same address.
//! That one passed the first program as online then, and was marked afterwards, as long as the same server
//! lives: the second lease of that release finds it (`hsm_common::filter::Cached`).

use crate::coverage;
use crate::maps::ASKED;
use crate::object::File;
use crate::task::Task;

/// An open under way.
#[repr(C)]
pub struct Asked {
    /// Address of the `struct file`.
    file: u64,
    /// Serial number of the server.
    serial: u64,
}

/// Remembers that this open passed while this server lived.
#[inline(always)]
pub fn remember(file: File, serial: u64) {
    // SAFETY: a thread that the verifier knows.
    let asked = unsafe { ASKED.get_or_create(Task::current().as_ptr()) };
    if !asked.is_null() {
        // SAFETY: not null, and lives as long as the thread, which alone writes it.
        unsafe { asked.write_volatile(Asked { file: file.as_ptr() as u64, serial }) };
    }
}

/// Whether it did, and the same one serves.
#[inline(always)]
pub fn is_remembered(file: File) -> bool {
    // SAFETY: as in `remember`.
    let asked = unsafe { ASKED.get(Task::current().as_ptr()) };
    if asked.is_null() {
        return false;
    }
    // SAFETY: as in `remember`.
    let asked = unsafe { asked.read_volatile() };
    asked.file == file.as_ptr() as u64 && asked.serial != 0 && asked.serial == coverage::server()
}
