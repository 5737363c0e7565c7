//! What `guard_open` tells `guard_post_open`: this very open needs no second look.
//!
//! Both hooks of one open are called by the same thread. `guard_open` leaves the `struct file` that it
//! let pass as online (or as none of ours), and the generation: how many markers had been set, on
//! whatever file, before it looked. `guard_post_open` finds the same file and the same generation,
//! and passes too; or it finds anything else, and looks for itself. `hsm_common::filter::Cached`
//! has the argument why that is right.
//!
//! A thread has one slot, which it may share with another one, and which it clears before it looks.
//! What a slot says is read in two words, `owner` and `file`, and others may write between: that
//! `owner` names this thread proves that it is the word this thread wrote last, as only it writes
//! its number; that `file` is this open's file proves that nobody wrote another since, as only the
//! thread that opens a file writes its address.
//!
//! The table belongs to one set of programs. While sets are replaced, each minds its own.

use core::cell::UnsafeCell;

use crate::atomic;
use crate::object::File;
use crate::task::Task;

/// Slots; a power of two.
const SLOTS: usize = 512;

/// Bits of [`Slot::owner`] that hold a thread's number; the kernel's futexes have as many.
const NUMBER_BITS: u32 = 30;

/// One marker more. A generation with the highest bit set never comes back to one without: it is
/// no longer counted, and no longer remembered. (Until then 2^33 markers have been set.)
const STEP: u64 = 1 << NUMBER_BITS;

/// A cache line of its own: threads that open at the same time have neighbouring numbers.
#[repr(C, align(64))]
struct Slot {
    /// Number of the thread, and the generation. Zero: nothing.
    owner: u64,
    /// Address of the `struct file`.
    file: u64,
}

/// Written by all threads of the machine, each word whole.
struct Shared<T>(UnsafeCell<T>);

// SAFETY: only reached through volatile and atomic accesses of single words.
unsafe impl<T> Sync for Shared<T> {}

static TABLE: Shared<[Slot; SLOTS]> =
    Shared(UnsafeCell::new([const { Slot { owner: 0, file: 0 } }; SLOTS]));

/// Markers set so far, times [`STEP`]. A cache line of its own: every open reads it.
static GENERATION: Shared<[u64; 8]> = Shared(UnsafeCell::new([0; 8]));

/// The look of one `guard_open`.
#[derive(Clone, Copy)]
pub struct Passage {
    slot: *mut Slot,
    owner: u64,
}

impl Passage {
    /// Clears the thread's slot. To be called before anybody looks at verdict, marker or coverage.
    #[inline(always)]
    pub fn begin() -> Self {
        let before = generation();
        let number = Task::current().number();
        let slot = slot(number);
        // A full barrier: what follows is read after the open was counted in the inode, and after
        // the generation.
        // SAFETY: the slot is a whole one of the table, which lives as long as the programs.
        unsafe { atomic::exchange(&raw mut (*slot).owner, 0) };
        Self { slot, owner: before | u64::from(number) }
    }

    /// Remembers that the file passed.
    #[inline(always)]
    pub fn remember(self, file: File) {
        if self.owner.cast_signed() < 0 {
            return;
        }
        // SAFETY: as in `begin`; each word is written whole.
        unsafe {
            (&raw mut (*self.slot).file).write_volatile(file.as_ptr() as u64);
            (&raw mut (*self.slot).owner).write_volatile(self.owner);
        }
    }
}

/// Whether `guard_open` has let this file pass in this very open, and no marker was set since.
#[inline(always)]
pub fn is_remembered(file: File) -> bool {
    let number = Task::current().number();
    let slot = slot(number);
    // SAFETY: as in `begin`; each word is read whole.
    unsafe {
        (&raw const (*slot).file).read_volatile() == file.as_ptr() as u64
            && (&raw const (*slot).owner).read_volatile() == generation() | u64::from(number)
    }
}

/// A marker has been set: opens that are under way are to look again.
#[inline(always)]
pub fn forget_all() {
    if generation().cast_signed() >= 0 {
        // SAFETY: the generation lives as long as the programs.
        unsafe { atomic::add(GENERATION.0.get().cast::<u64>(), STEP) };
    }
}

#[inline(always)]
fn generation() -> u64 {
    // SAFETY: the word lives as long as the programs, and is read whole.
    unsafe { GENERATION.0.get().cast::<u64>().read_volatile() }
}

#[inline(always)]
fn slot(number: u32) -> *mut Slot {
    // SAFETY: the remainder is below the number of slots.
    unsafe { TABLE.0.get().cast::<Slot>().add(number as usize % SLOTS) }
}
