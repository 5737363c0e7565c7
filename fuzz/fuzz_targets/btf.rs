//! See `hsm_fuzz::btf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::btf(data));
