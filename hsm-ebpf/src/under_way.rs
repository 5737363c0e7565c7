//! An open of a marked file on its way from `guard_open` to `guard_post_open`: it is counted, so that the second
//! program is there when it comes. `hsm_common::filter::UnderWay` has the argument.
//!
//! In guard mode it also says who served when it passed. A marked file may be open then, as long as an agent
//! watches it. That there is one when the open is through proves nothing: if holder and engine die in between,
//! the kernel lets the open pass, and a new agent that serves by then was never asked. So `guard_open` leaves the
//! server's serial number, which no other server has, and `guard_post_open` passes a marked file only for the same
//! number: then that server has lived all the time.
//!
//! The number is read before the watch is looked for, and a server registers anew once it has a file system's
//! watch in place: with the same number at the end, the watch was the server's.
//!
//! All this is kept with the thread, in task storage: of no cost to files that are online. What an open that
//! failed has left there can be taken for a later one's whose `struct file` has the same address. That one passed the first
//! program as online then, and was marked afterwards, as long as the same server lives: the second lease of that
//! release finds it.

use hsm_common::filter::{KIND_ARM, UnderWay};

use crate::atomic;
use crate::coverage;
use crate::maps::{ARMED, IN_FLIGHT, UNDER_WAY};
use crate::object::{File, Inode, SuperBlock};
use crate::task::Task;
use crate::wait::{EAGAIN, Until, ask_until};

/// Lets the open of a marked file go on: counted, and with the second program attached behind it. The hook's
/// result.
#[inline(always)]
pub fn pass(file: File, inode: Inode, sb: SuperBlock, serial: u64) -> i32 {
    // SAFETY: a thread that the verifier knows.
    let open = unsafe { UNDER_WAY.get_or_create(Task::current().as_ptr()) };
    if open.is_null() {
        return -EAGAIN;
    }
    let before = count_on(open, file, serial);
    if is_armed() {
        return 0;
    }
    let answer = ask_until(inode, sb, KIND_ARM, Until::Armed);
    // Counted all the time: if it is armed now, it stays so. This is what counts, whatever was answered.
    if is_armed() {
        return 0;
    }
    // What was counted before, is still.
    if before == 0 {
        count_off(open);
    }
    answer.error()
}

/// Counts the thread, unless it is counted. The address of the file that it was counted for, or zero. A full barrier.
#[inline(always)]
fn count_on(open: *mut UnderWay, file: File, serial: u64) -> u64 {
    // SAFETY: not null, and lives as long as the thread, which alone writes it.
    unsafe {
        if (&raw const (*open).file).read_volatile() == 0 {
            add(1);
        }
        (&raw mut (*open).serial).write_volatile(serial);
        atomic::exchange(&raw mut (*open).file, file.as_ptr() as u64)
    }
}

#[inline(always)]
fn count_off(open: *mut UnderWay) {
    // SAFETY: as in `count_on`.
    unsafe {
        if (&raw const (*open).file).read_volatile() != 0 {
            (&raw mut (*open).file).write_volatile(0);
            add(u64::MAX);
        }
    }
}

#[inline(always)]
fn add(difference: u64) {
    if let Some(in_flight) = IN_FLIGHT.get_ptr_mut(0) {
        // SAFETY: an array's values live as long as the map.
        unsafe { atomic::add(in_flight, difference) };
    }
}

/// Whether the second program is attached.
#[inline(always)]
pub fn is_armed() -> bool {
    match ARMED.get_ptr(0) {
        // SAFETY: an array's values live as long as the map; volatile, because the agent writes it.
        Some(armed) => unsafe { armed.read_volatile() != 0 },
        None => false,
    }
}

/// The open is through, or has failed: the thread is not counted any more, if it was for this file.
#[inline(always)]
pub fn end(file: File) {
    let task = Task::current();
    if let Some(open) = find(task, file) {
        count_off(open);
    }
}

/// The thread ends: whatever it has begun is over.
#[inline(always)]
pub fn end_of(task: Task) {
    if is_anybody() {
        // SAFETY: a thread that the verifier knows.
        let open = unsafe { UNDER_WAY.get(task.as_ptr()) };
        if !open.is_null() {
            count_off(open);
        }
    }
}

/// Whether this open passed while this server lived that serves now.
#[inline(always)]
pub fn is_vouched_for(file: File) -> bool {
    let Some(open) = find(Task::current(), file) else { return false };
    // SAFETY: as in `count_on`.
    let serial = unsafe { (&raw const (*open).serial).read_volatile() };
    serial != 0 && serial == coverage::server()
}

#[inline(always)]
fn find(task: Task, file: File) -> Option<*mut UnderWay> {
    // Nearly always nobody is, and then there is nothing to find.
    if !is_anybody() {
        return None;
    }
    // SAFETY: a thread that the verifier knows.
    let open = unsafe { UNDER_WAY.get(task.as_ptr()) };
    if open.is_null() {
        return None;
    }
    // SAFETY: as in `count_on`.
    let counted = unsafe { (&raw const (*open).file).read_volatile() };
    if counted == file.as_ptr() as u64 { Some(open) } else { None }
}

/// Whether any thread is counted. One that is, sees itself.
#[inline(always)]
fn is_anybody() -> bool {
    match IN_FLIGHT.get_ptr(0) {
        // SAFETY: as in `is_armed`.
        Some(in_flight) => unsafe { in_flight.read_volatile() != 0 },
        None => false,
    }
}
