//! What the loader tells the programs.

use core::mem::MaybeUninit;

use hsm_common::filter::{FINGERPRINT, Settings};

/// Overridden by the loader before the programs are verified; the map behind it is frozen, so
/// that every value is a constant to the verifier. All ones: a program whose settings were not
/// overridden has no valid structure offset and does not load.
///
/// `MaybeUninit` keeps the compiler from looking at this initial value.
#[unsafe(no_mangle)]
pub static SETTINGS: MaybeUninit<Settings> = {
    // SAFETY: `Settings` is plain old data: any bytes are a value.
    MaybeUninit::new(unsafe {
        core::mem::transmute::<[u8; size_of::<Settings>()], Settings>([0xff; size_of::<Settings>()])
    })
};

/// Compared by the loader before anything else.
#[unsafe(no_mangle)]
#[used]
pub static LAYOUT: u64 = FINGERPRINT;

/// Reads one field of [`SETTINGS`].
macro_rules! setting {
    ($($field:tt)+) => {{
        // SAFETY: `SETTINGS` is initialised, and lives for ever.
        unsafe {
            ::core::ptr::read_volatile(
                &raw const (*$crate::settings::SETTINGS.as_ptr()).$($field)+
            )
        }
    }};
}
pub(crate) use setting;

/// Address of the marker's name.
#[inline(always)]
pub fn marker_name() -> *const u8 {
    // SAFETY: `SETTINGS` is initialised, and lives for ever.
    unsafe { (&raw const (*SETTINGS.as_ptr()).marker).cast() }
}

/// Address of the record's name.
#[inline(always)]
pub fn record_name() -> *const u8 {
    // SAFETY: as in `marker_name`.
    unsafe { (&raw const (*SETTINGS.as_ptr()).record).cast() }
}

/// Address of the residency map's name.
#[inline(always)]
pub fn map_name() -> *const u8 {
    // SAFETY: as in `marker_name`.
    unsafe { (&raw const (*SETTINGS.as_ptr()).map).cast() }
}
