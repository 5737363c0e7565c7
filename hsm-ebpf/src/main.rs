//! hsm's kernel programs.
//!
//! Whatever opens, truncates or maps a marked file of a covered file system passes here, whoever
//! it is. An online file costs one look into its inode's storage; a marked one is let through to
//! fanotify only when fanotify will ask somebody about it, and is otherwise refused with `EAGAIN`.
//!
//! The two of [`mark_filter`] decide which accesses fanotify asks about; whatever fails there, asks.
//!
//! One file per program; what they share is in [`object`] (kernel structures), [`task`] (who asks),
//! [`marker`], [`verdict`], [`coverage`], [`examine`] (all of these), [`under_way`] (between the two programs
//! of an open), [`wait`] (asking the agent) and [`told`] (its log).
//!
//! The invariant of every program: a pass needs a reason (verdict, absent marker, exemption, a
//! watch that will be asked, the agent's word). Whatever fails on the way, refuses.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "bpfel has no AtomicU64::fetch_add; the intrinsic has")]

mod atomic;
mod counters;
mod coverage;
mod examine;
mod exit;
mod guard_ioctl;
mod guard_open;
mod guard_post_open;
mod guard_truncate;
mod guard_xattr;
mod invalidate;
mod maps;
mod mark_filter;
mod marker;
mod object;
mod settings;
mod task;
mod task_storage;
mod told;
mod under_way;
mod verdict;
mod wait;

/// Functions of the running kernel are for GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Not reachable: the verifier refuses a program that contains an endless loop, so a panic that
/// the compiler could not remove keeps the programs from being loaded.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
