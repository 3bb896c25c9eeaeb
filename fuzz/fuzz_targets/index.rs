//! Any text as the index of an image, under whatever footer.
#![no_main]

#[path = "../../image/tests/hostile/checks.rs"]
#[allow(dead_code)]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for end in [4096, 1 << 20, u64::MAX] {
        checks::index(bytes, end);
    }
});
