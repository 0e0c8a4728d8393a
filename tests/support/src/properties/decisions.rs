//! Bytes as decisions, so that a fuzzer, a corpus file and a random generator can drive the same law.

/// Decisions that are taken from the front of some bytes.
pub struct Decisions<'a> {
    bytes: &'a [u8],
}

impl<'a> Decisions<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The next byte; `None` when all are used.
    pub fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    /// One of the first `below` numbers; 0 when all bytes are used.
    pub fn below(&mut self, below: usize) -> usize {
        self.next().map_or(0, |byte| usize::from(byte) % below)
    }

    pub fn yes(&mut self) -> bool {
        self.below(2) == 1
    }

    /// What no decision was taken from.
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}
