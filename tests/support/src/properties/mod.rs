//! Properties that hold for any bytes, as functions that panic when one does not.
//!
//! Each file has one `check`, from the bytes of a fuzzer, a corpus file or a seeded generator to an
//! outcome, by which a test asserts that its inputs reach the interesting cases. The fuzz targets in `fuzz/`,
//! the corpus tests and the property tests in `tests/protocol` call the same functions. The references are slow
//! and share no code with the code under test.

pub mod decisions;
pub mod heads;
pub mod merges;
pub mod request_state;
pub mod rewriter;
pub mod settings;
pub mod splitter;
