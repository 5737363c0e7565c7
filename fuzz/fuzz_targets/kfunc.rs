//! See `hsm_fuzz::kfunc`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::kfunc(data));
