//! See `hsm_fuzz::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::record(data));
