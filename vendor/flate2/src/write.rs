//! Gzip in front of a writer: what is written to an encoder or a decoder arrives at its writer in the other form.
//!
//! Source: RFC 1952; zlib-rs reads and writes the gzip header and trailer where the window bits have 16 added.

use std::fmt;
use std::io::{self, Write};

use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

use crate::Compression;

/// A window of 32 KiB, in gzip's framing.
const GZIP_WINDOW_BITS: u8 = 16 + 15;

/// Bytes that one call of zlib-rs may give before they go to the writer.
const STEP: usize = 8 * 1024;

/// Compresses what is written to it into one gzip member.
pub struct GzEncoder<W: Write> {
    writer: W,
    deflate: Deflate,
    finished: bool,
}

impl<W: Write> GzEncoder<W> {
    /// An encoder in front of `writer`.
    pub fn new(writer: W, level: Compression) -> Self {
        Self {
            writer,
            deflate: Deflate::new(level.level(), true, GZIP_WINDOW_BITS),
            finished: false,
        }
    }

    /// The writer.
    pub fn get_ref(&self) -> &W {
        &self.writer
    }

    /// The writer. It may be emptied between two writes.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Writes the rest of the member and its trailer. A second call has no effect.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn try_finish(&mut self) -> io::Result<()> {
        self.run(&[], DeflateFlush::Finish)
    }

    /// Compresses `input` until zlib-rs has taken all of it and holds back no byte that `flush` asks for.
    fn run(&mut self, mut input: &[u8], flush: DeflateFlush) -> io::Result<()> {
        let mut output = [0; STEP];
        while !self.finished {
            let (read, written) = (self.deflate.total_in(), self.deflate.total_out());
            let status = self
                .deflate
                .compress(input, &mut output, flush)
                .map_err(|error| invalid(error.as_str()))?;
            input = &input[(self.deflate.total_in() - read) as usize..];
            let given = (self.deflate.total_out() - written) as usize;
            self.writer.write_all(&output[..given])?;
            self.finished = status == Status::StreamEnd;
            if input.is_empty() && given < STEP {
                break;
            }
        }
        Ok(())
    }
}

impl<W: Write> Write for GzEncoder<W> {
    /// Takes all of `input`, or none once the member is finished.
    fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        if self.finished {
            return Ok(0);
        }
        self.run(input, DeflateFlush::NoFlush)?;
        Ok(input.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.run(&[], DeflateFlush::SyncFlush)?;
        self.writer.flush()
    }
}

impl<W: Write> fmt::Debug for GzEncoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzEncoder")
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

/// Decompresses the one gzip member that is written to it.
pub struct GzDecoder<W: Write> {
    writer: W,
    inflate: Inflate,
    finished: bool,
}

impl<W: Write> GzDecoder<W> {
    /// A decoder in front of `writer`.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            inflate: Inflate::new(true, GZIP_WINDOW_BITS),
            finished: false,
        }
    }

    /// The writer.
    pub fn get_ref(&self) -> &W {
        &self.writer
    }

    /// The writer. It may be emptied between two writes.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.writer
    }

    /// Checks that the member has come to its end. Length and checksum were compared when its trailer was read.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` where bytes of the member are missing.
    pub fn try_finish(&mut self) -> io::Result<()> {
        if self.finished {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl<W: Write> Write for GzDecoder<W> {
    /// Takes the bytes up to the end of the member, and none behind it.
    fn write(&mut self, input: &[u8]) -> io::Result<usize> {
        let mut output = [0; STEP];
        let mut taken = 0;
        while !self.finished {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(&input[taken..], &mut output, InflateFlush::NoFlush)
                .map_err(|error| invalid(error.as_str()))?;
            taken += (self.inflate.total_in() - read) as usize;
            let given = (self.inflate.total_out() - written) as usize;
            self.writer.write_all(&output[..given])?;
            self.finished = status == Status::StreamEnd;
            if taken == input.len() && given < STEP {
                break;
            }
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl<W: Write> fmt::Debug for GzDecoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzDecoder")
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
