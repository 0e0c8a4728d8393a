//! `tests/support/src/properties/rewriter.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::rewriter::check(bytes);
});
