//! `tests/laws/course.rs` under libFuzzer.

#![no_main]

#[path = "../../tests/laws/mod.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    laws::course::check(bytes);
});
