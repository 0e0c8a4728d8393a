//! A stand-in for the crate [flate2](https://docs.rs/flate2) that needs no cmake.
//!
//! Pingora depends on flate2 with the feature `zlib-ng`, whose C code is built with cmake, and flate2 has no
//! combination of features that keeps `zlib-ng` and leaves that build out. mini-lb compresses
//! nothing, and reads gzip through Pingora alone, so that the dependency is replaced as a whole: `[patch.crates-io]` in mini-lb's manifest puts this crate
//! in flate2's place.
//!
//! It has what Pingora 0.9.1 names, and nothing else: [`Compression::new`], and [`write::GzEncoder`] and
//! [`write::GzDecoder`] with `new`, `get_ref`, `get_mut`, `try_finish` and `std::io::Write`. The work is done by
//! [zlib-rs](https://docs.rs/zlib-rs), a zlib in Rust. A dependency that names more of flate2 does not compile.
//!
//! Differences from flate2: an encoder that is dropped before `try_finish` writes no trailer, and an encoder whose
//! writer failed cannot be used again.
//!
//! Source: pingora-core 0.9.1, `src/protocols/http/compression/gzip.rs`.

pub mod write;

/// The level of a compression.
#[derive(Clone, Copy, Debug)]
pub struct Compression(u32);

impl Compression {
    /// From 0, which stores the bytes as they are, to 9, the smallest. A higher level means 9.
    pub const fn new(level: u32) -> Self {
        Self(level)
    }

    fn level(self) -> i32 {
        self.0.min(9) as i32
    }
}
