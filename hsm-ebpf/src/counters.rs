//! Counting.

use hsm_common::filter::Counter;

use crate::atomic;
use crate::maps::COUNTERS;

/// Counts one.
#[inline(always)]
pub fn count(counter: Counter) {
    count_many(counter, 1);
}

/// Counts several.
#[inline(always)]
pub fn count_many(counter: Counter, many: u64) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a per-CPU array's values live as long as the map. Atomic although it is the
        // CPU's own: a program that sleeps can be preempted by another one on the same CPU.
        unsafe { atomic::add(value, many) };
    }
}
