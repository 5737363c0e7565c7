//! See `hsm_fuzz::residency_map`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::residency_map(data));
