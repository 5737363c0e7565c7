//! Atomic accesses: the programs sleep and are preempted in the middle.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};

/// Adds to a map's value.
///
/// # Safety
/// `at` points into the value of a map that is alive for the rest of the program.
#[inline(always)]
pub unsafe fn add(at: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise; the instruction is atomic.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(at, value) }
}

/// Replaces a map's value, and is a full barrier.
///
/// # Safety
/// `at` points into the value of a map that is alive for the rest of the program.
#[inline(always)]
pub unsafe fn exchange(at: *mut u64, value: u64) -> u64 {
    // SAFETY: the caller's promise; the instruction is atomic.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(at, value) }
}

/// Replaces a map's value if it is `old`. Whether it was.
///
/// # Safety
/// `at` points into the value of a map that is alive for the rest of the program.
#[inline(always)]
pub unsafe fn replace(at: *mut u64, old: u64, new: u64) -> bool {
    const FULL: AtomicOrdering = AtomicOrdering::SeqCst;
    // SAFETY: the caller's promise; the instruction is atomic.
    unsafe { atomic_cxchg::<u64, FULL, FULL>(at, old, new) }.1
}
