//! `tests/support/src/properties/settings.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::settings::check(bytes);
});
