//! `field_sets` of `yare_fuzz::TARGETS`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yare_fuzz::run("field_sets", data));
