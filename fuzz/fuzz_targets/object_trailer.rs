//! See `hsm_fuzz::object_trailer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::object_trailer(data));
