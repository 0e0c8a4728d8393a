//! The laws: what must hold for any bytes, as functions that panic where it does not.
//!
//! Each file here has one `check`, from the bytes of a fuzzer, a corpus file or a seeded generator to an
//! outcome, which tells a test whether its inputs reach what they are there for. The fuzz targets under
//! `fuzz/`, `tests/corpus.rs` and the property tests include this folder by its path, so that a law is
//! written once. The references are slow and share no code with what they judge.

pub mod decisions;
pub mod heads;
pub mod merges;
pub mod request_state;
pub mod rewriter;
pub mod settings;
pub mod splitter;
