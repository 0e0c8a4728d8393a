//! `tests/support/src/properties/heads.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::heads::check(bytes);
});
