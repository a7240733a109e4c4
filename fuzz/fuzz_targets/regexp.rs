//! `regexp` of `yare_fuzz::TARGETS`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| yare_fuzz::run("regexp", data));
