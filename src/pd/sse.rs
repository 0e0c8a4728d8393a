//! Server-sent events: from chunks of any size to whole events.
//!
//! What lives here: everything about `data:` and `[DONE]`. What may not: the meaning of an event's payload. An event
//! ends where a blank line ends; lines end with `\n`, `\r\n` or `\r`. SGLang ends every event with `\n\n` and sends its
//! JSON on one `data:` line.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/http_server.py` and `srt/entrypoints/openai/serving_*.py`; the
//! HTML standard, "Server-sent events".

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// Cuts a stream of chunks into events.
///
/// An event that lies within one chunk is a slice of it, without a copy. The events are the same for any chunking; for
/// that reason a blank line that is a bare `\r` is complete only when the next byte is known.
#[derive(Debug)]
pub struct Splitter {
    chunks: VecDeque<Bytes>,
    held: BytesMut,
    line: Line,
    max_event_bytes: usize,
}

impl Splitter {
    /// A splitter that refuses an event of more than `max_event_bytes`, which bounds its memory.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            held: BytesMut::new(),
            line: Line::EventStart,
            max_event_bytes,
        }
    }

    /// Adds the next chunk of the network.
    pub fn push(&mut self, chunk: Bytes) {
        self.chunks.push_back(chunk);
    }

    /// The next whole event with its blank line, byte for byte; `None` until more is pushed.
    ///
    /// # Errors
    /// The event is longer than the limit. The rest of the stream cannot be split.
    pub fn next_event(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        while let Some(mut chunk) = self.chunks.pop_front() {
            let end = self.line.find_event_end(&chunk, |_| {});
            if self.held.len() + end.unwrap_or(chunk.len()) > self.max_event_bytes {
                return Err(EventTooLong {
                    limit: self.max_event_bytes,
                });
            }
            let Some(end) = end else {
                self.held.extend_from_slice(&chunk);
                continue;
            };
            let part = chunk.split_to(end);
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
            if self.held.is_empty() {
                return Ok(Some(part));
            }
            self.held.extend_from_slice(&part);
            return Ok(Some(self.held.split().freeze()));
        }
        Ok(None)
    }

    /// The bytes after the last whole event, at the end of the stream.
    pub fn finish(&mut self) -> Option<Bytes> {
        for chunk in self.chunks.drain(..) {
            self.held.extend_from_slice(&chunk);
        }
        (!self.held.is_empty()).then(|| self.held.split().freeze())
    }
}

/// The whole events of a complete stream. Bytes after the last of them are left out.
pub fn events(mut stream: Bytes) -> impl Iterator<Item = Bytes> {
    let mut line = Line::EventStart;
    std::iter::from_fn(move || {
        let end = line.find_event_end(&stream, |_| {})?;
        Some(stream.split_to(end))
    })
}

/// An event is longer than the limit of the splitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTooLong {
    /// The limit, in bytes.
    pub limit: usize,
}

impl fmt::Display for EventTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "an event of the stream is longer than {} bytes",
            self.limit
        )
    }
}

impl std::error::Error for EventTooLong {}

/// Follows the bytes of a stream that were sent: counts whole events, and knows whether the last one is complete.
#[derive(Debug)]
pub struct Boundary {
    line: Line,
    events: u64,
}

impl Boundary {
    /// No byte was sent.
    pub fn new() -> Self {
        Self {
            line: Line::EventStart,
            events: 0,
        }
    }

    /// Adds bytes that were sent.
    pub fn update(&mut self, sent: &[u8]) {
        self.follow(sent, |_| {});
    }

    /// [`Self::update`], which names the parts of the events on its way.
    #[inline]
    pub(super) fn follow(&mut self, mut sent: &[u8], mut named: impl FnMut(Part<'_>)) {
        while let Some(end) = self.line.find_event_end(sent, &mut named) {
            named(Part::EventEnd);
            sent = &sent[end..];
            self.events += 1;
        }
    }

    /// The number of whole events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether another event may follow: the bytes so far end with a blank line, or there are none.
    pub fn is_at_event_end(&self) -> bool {
        matches!(self.line, Line::EventStart | Line::BlankCr)
    }
}

impl Default for Boundary {
    fn default() -> Self {
        Self::new()
    }
}

/// A part of a stream, in the order of its bytes. Line ends have no part of their own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// Bytes of a line that is not blank.
    Line {
        text: &'a [u8],
        /// Whether the line begins with these bytes.
        begins: bool,
        /// Whether the end of the line is known to follow. A line whose last byte is the last one of a chunk ends with
        /// the next part.
        ends: bool,
    },
    /// The event has ended.
    EventEnd,
}

/// The payload of an event that has exactly one `data:` line, with or without a space after the colon; other fields may
/// stand beside it. `None` for an event without data, and for one with several `data:` lines, which SGLang never sends:
/// both pass unchanged.
pub fn data(event: &[u8]) -> Option<&[u8]> {
    data_span(event).map(|span| &event[span])
}

/// The span of the payload of [`data`] in the event.
pub fn data_span(event: &[u8]) -> Option<Range<usize>> {
    let mut found = None;
    let mut start = 0;
    while start < event.len() {
        let end =
            memchr2(b'\n', b'\r', &event[start..]).map_or(event.len(), |length| start + length);
        let line = &event[start..end];
        if line == b"data" || line.starts_with(b"data:") {
            if found.is_some() {
                return None;
            }
            let colon = "data:".len().min(line.len());
            let space = usize::from(line.get(colon) == Some(&b' '));
            found = Some(start + colon + space..end);
        }
        start = end + 1;
    }
    found
}

/// Whether this is `[DONE]`, the event that ends a stream of the OpenAI endpoints and of `/generate`. The same text
/// inside a JSON string does not count.
pub fn is_done(event: &[u8]) -> bool {
    data(event) == Some(b"[DONE]")
}

/// A whole event that carries `json`. Several lines of text become several `data:` lines.
pub fn error_event(json: &str) -> String {
    let mut event = String::with_capacity(json.len() + "data: \n\n".len());
    for line in json.lines() {
        event.push_str("data: ");
        event.push_str(line);
        event.push('\n');
    }
    event.push('\n');
    event
}

/// The position of the next byte in an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Before the first byte of an event.
    EventStart,
    /// At the start of a later line.
    Start,
    /// Inside a line.
    Inside,
    /// After the `\r` that ended a line: a `\n` would still belong to that line end.
    Cr,
    /// After the `\r` that ended a blank line: a `\n` would still belong to the event.
    BlankCr,
}

impl Line {
    /// Reads up to the end of the event and returns the offset after it; `None` when all bytes are read and the event goes
    /// on. `named` gets the parts of the lines on the way.
    #[inline]
    fn find_event_end(&mut self, bytes: &[u8], mut named: impl FnMut(Part<'_>)) -> Option<usize> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            *self = match (*self, byte) {
                (Self::EventStart | Self::Start, b'\n') | (Self::BlankCr, b'\n') => {
                    *self = Self::EventStart;
                    return Some(at + 1);
                }
                (Self::BlankCr, _) => {
                    *self = Self::EventStart;
                    return Some(at);
                }
                (Self::EventStart | Self::Start | Self::Cr, b'\r') => Self::BlankCr,
                (Self::Inside, b'\r') => Self::Cr,
                (Self::Inside | Self::Cr, b'\n') => Self::Start,
                _ => {
                    let rest = &bytes[at..];
                    let end = memchr2(b'\n', b'\r', rest);
                    let text = &rest[..end.unwrap_or(rest.len())];
                    named(Part::Line {
                        text,
                        begins: *self != Self::Inside,
                        ends: end.is_some(),
                    });
                    at += text.len();
                    *self = Self::Inside;
                    continue;
                }
            };
            at += 1;
        }
        None
    }
}

#[cfg(test)]
mod tests;
