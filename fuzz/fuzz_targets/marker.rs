//! See `hsm_fuzz::marker`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::marker(data));
