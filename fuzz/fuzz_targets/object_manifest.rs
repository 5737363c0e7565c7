//! See `hsm_fuzz::object_manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hsm_fuzz::object_manifest(data));
