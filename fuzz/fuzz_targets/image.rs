//! Any bytes as the file of an image.
#![no_main]

#[path = "../../image/tests/hostile/checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::image(bytes));
