//! A stand-in for the crate [brotli](https://docs.rs/brotli) that neither compresses nor decompresses.
//!
//! Pingora depends on brotli without a feature that leaves it out, and keeps both directions of it reachable from a table of
//! functions, so that they and their dictionaries are in each program: 1 MB of mini-lb. Neither direction is ever asked for: mini-lb
//! turns Pingora's compression on nowhere, and accepts gzip and zstd from workers only. `[patch.crates-io]` in mini-lb's
//! manifest puts this crate in brotli's place.
//!
//! It has what Pingora 0.9.1 names, and nothing else: [`CompressorWriter`] and [`DecompressorWriter`] with `new`, `get_ref`,
//! `get_mut` and `std::io::Write`. Each write is an error, and nothing is written. A dependency that names more of brotli
//! does not compile.
//!
//! Source: pingora-core 0.9.1, `src/protocols/http/compression/brotli.rs`.

use std::io::{self, Write};

/// In the place of brotli's compressor.
pub struct CompressorWriter<W: Write>(W);

impl<W: Write> CompressorWriter<W> {
    /// One in front of `writer`. The size of the buffer, the level and the window have no effect.
    pub fn new(writer: W, _buffer_size: usize, _level: u32, _window_bits: u32) -> Self {
        Self(writer)
    }

    /// The writer.
    pub fn get_ref(&self) -> &W {
        &self.0
    }

    /// The writer.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.0
    }
}

impl<W: Write> Write for CompressorWriter<W> {
    fn write(&mut self, _input: &[u8]) -> io::Result<usize> {
        Err(left_out())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(left_out())
    }
}

/// In the place of brotli's decompressor.
pub struct DecompressorWriter<W: Write>(W);

impl<W: Write> DecompressorWriter<W> {
    /// One in front of `writer`. The size of the buffer has no effect.
    pub fn new(writer: W, _buffer_size: usize) -> Self {
        Self(writer)
    }

    /// The writer.
    pub fn get_ref(&self) -> &W {
        &self.0
    }

    /// The writer.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.0
    }
}

impl<W: Write> Write for DecompressorWriter<W> {
    fn write(&mut self, _input: &[u8]) -> io::Result<usize> {
        Err(left_out())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(left_out())
    }
}

/// The error of each write.
fn left_out() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "brotli is not part of this program",
    )
}
