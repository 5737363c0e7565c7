//! Source of `kfunc.bpf.o`, on which the linker of kernel functions is tested: two programs, three
//! calls of two kernel functions, one read-only global that needs a relocation of its own.
//!
//! Built as `hsm-ebpf` is (`cargo xtask build` prints the command), without debug information.
#![no_std]
#![no_main]

use core::ffi::c_void;

unsafe extern "C" {
    fn bpf_first_function(at: *const u64) -> i32;
    fn bpf_second_function() -> i32;
}

#[unsafe(no_mangle)]
static GLOBAL: u64 = 7;

#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm.s/file_open")]
fn one(_: *mut c_void) -> i32 {
    // SAFETY: never run.
    unsafe { bpf_first_function(&raw const GLOBAL) + bpf_second_function() }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "lsm.s/file_post_open")]
fn two(_: *mut c_void) -> i32 {
    // SAFETY: never run.
    unsafe { bpf_first_function(&raw const GLOBAL) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
