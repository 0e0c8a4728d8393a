//! `tests/support/src/properties/merges.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::merges::check(bytes);
});
