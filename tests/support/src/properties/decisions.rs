//! Bytes read as decisions, so that a fuzzer, a corpus file and a random generator can drive the same check.

/// Decisions, read from the front of a byte string.
pub struct Decisions<'a> {
    bytes: &'a [u8],
}

impl<'a> Decisions<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The next byte; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(*first)
    }

    /// A number below `below`; 0 at the end of the bytes.
    pub fn below(&mut self, below: usize) -> usize {
        self.byte().map_or(0, |byte| usize::from(byte) % below)
    }

    pub fn yes(&mut self) -> bool {
        self.below(2) == 1
    }

    /// The bytes that no decision has used.
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}
