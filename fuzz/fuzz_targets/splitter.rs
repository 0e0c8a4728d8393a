//! `tests/support/src/properties/splitter.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::splitter::check(bytes);
});
