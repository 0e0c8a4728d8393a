//! `tests/support/src/properties/request_state.rs` under libFuzzer.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    support::properties::request_state::check(bytes);
});
