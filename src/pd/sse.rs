//! Server-sent events: bytes to whole events and back, whatever the network did to the chunks.
//!
//! What lives here: all that the program knows about `data:` and `[DONE]`. What may not: what an event
//! says. An event ends where a blank line ends; lines end with `\n`, `\r\n` or `\r`. SGLang sends `\n\n`
//! after every event and one JSON text on one `data:` line.
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
/// An event that lies whole in a chunk is a slice of it, without a copy. The events are the same for any
/// chunking; for that, a blank line of a bare `\r` is complete only when the next byte is known.
#[derive(Debug)]
pub struct Splitter {
    chunks: VecDeque<Bytes>,
    held: BytesMut,
    line: Line,
    max_event_bytes: usize,
}

impl Splitter {
    /// A splitter that refuses an event of more than `max_event_bytes`, which bounds what it holds back.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            held: BytesMut::new(),
            line: Line::EventStart,
            max_event_bytes,
        }
    }

    /// Adds a chunk as it came from the network.
    pub fn push(&mut self, chunk: Bytes) {
        self.chunks.push_back(chunk);
    }

    /// The next whole event with its blank line, byte for byte; `None` until more is pushed.
    ///
    /// # Errors
    /// When the event is longer than the limit. The stream cannot be split any further then.
    pub fn next_event(&mut self) -> Result<Option<Bytes>, EventTooLong> {
        while let Some(mut chunk) = self.chunks.pop_front() {
            let end = self.line.find_event_end(&chunk);
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

/// The whole events of a stream that is all there; what follows the last of them is left out.
pub fn events(mut stream: Bytes) -> impl Iterator<Item = Bytes> {
    let mut line = Line::EventStart;
    std::iter::from_fn(move || line.find_event_end(&stream).map(|end| stream.split_to(end)))
}

/// An event is longer than the splitter may hold back.
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

/// Follows the bytes that were sent: counts their events, and tells whether another event may follow.
#[derive(Debug)]
pub struct Boundary {
    line: Line,
    events: u64,
}

impl Boundary {
    /// Nothing was sent yet, so an event may follow.
    pub fn new() -> Self {
        Self {
            line: Line::EventStart,
            events: 0,
        }
    }

    /// These bytes were sent.
    pub fn update(&mut self, mut sent: &[u8]) {
        while let Some(end) = self.line.find_event_end(sent) {
            sent = &sent[end..];
            self.events += 1;
        }
    }

    /// Whole events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether the bytes so far end with a blank line, or are none.
    pub fn is_at_event_end(&self) -> bool {
        matches!(self.line, Line::EventStart | Line::BlankCr)
    }
}

impl Default for Boundary {
    fn default() -> Self {
        Self::new()
    }
}

/// The payload of an event that has exactly one `data:` line, with or without the space behind the colon.
/// Other fields may stand beside it. `None` for an event without data and for one whose data is spread
/// over several lines, which SGLang never sends; both have to pass unchanged.
pub fn data(event: &[u8]) -> Option<&[u8]> {
    data_span(event).map(|span| &event[span])
}

/// Where the payload that [`data`] gives lies in the event.
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

/// Whether this is the event that ends a stream of the OpenAI endpoints and of `/generate`. The same text
/// inside of a JSON string does not count.
pub fn is_done(event: &[u8]) -> bool {
    data(event) == Some(b"[DONE]")
}

/// A whole event that carries `json`; a text of several lines becomes several `data:` lines.
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

/// Where in an event the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing of the event came yet.
    EventStart,
    /// At the start of a line of a begun event.
    Start,
    /// Inside of a line.
    Inside,
    /// Behind the `\r` that ended a line; a `\n` would still belong to it.
    Cr,
    /// Behind the `\r` that ended a blank line; a `\n` would still belong to the event.
    BlankCr,
}

impl Line {
    /// Goes through the bytes up to the end of the event, and gives the offset behind it. Without an end
    /// in these bytes it goes through all of them.
    fn find_event_end(&mut self, bytes: &[u8]) -> Option<usize> {
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
                    at += memchr2(b'\n', b'\r', &bytes[at..]).unwrap_or(bytes.len() - at);
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn split(stream: &str, chunk_bytes: usize) -> Vec<String> {
        let mut splitter = Splitter::new(stream.len());
        let mut events = Vec::new();
        for chunk in stream.as_bytes().chunks(chunk_bytes) {
            splitter.push(Bytes::copy_from_slice(chunk));
            while let Some(event) = splitter.next_event().unwrap() {
                events.push(event);
            }
        }
        events.extend(splitter.finish());
        events
            .iter()
            .map(|event| String::from_utf8(event.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn events_end_with_a_blank_line_in_any_spelling_and_chunking() {
        for (stream, events) in [
            ("", vec![]),
            ("data: 1\n\ndata: 2\n\n", vec!["data: 1\n\n", "data: 2\n\n"]),
            (
                "data: 1\r\n\r\ndata: 2\r\n\r\n",
                vec!["data: 1\r\n\r\n", "data: 2\r\n\r\n"],
            ),
            ("data: 1\r\rdata: 2\r\r", vec!["data: 1\r\r", "data: 2\r\r"]),
            (
                "a\n\r\nb\r\n\nc\r\r\nd\n\r\re",
                vec!["a\n\r\n", "b\r\n\n", "c\r\r\n", "d\n\r", "\r", "e"],
            ),
            ("\n\n: hi\n\nrest\n", vec!["\n", "\n", ": hi\n\n", "rest\n"]),
            ("data: a\ndata: b\n\n", vec!["data: a\ndata: b\n\n"]),
        ] {
            for chunk_bytes in 1..=stream.len().max(1) {
                assert_eq!(
                    split(stream, chunk_bytes),
                    events,
                    "{stream:?} in chunks of {chunk_bytes}"
                );
            }
        }
    }

    #[test]
    fn an_event_whole_in_a_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\nda");
        let mut splitter = Splitter::new(64);
        splitter.push(chunk.clone());
        assert_eq!(
            splitter.next_event().unwrap().unwrap().as_ptr(),
            chunk.as_ptr()
        );
        assert_eq!(
            splitter.next_event().unwrap().unwrap().as_ptr(),
            chunk[9..].as_ptr()
        );
        assert_eq!(splitter.next_event().unwrap(), None);
        assert_eq!(splitter.finish().unwrap(), "da");
    }

    #[test]
    fn a_stream_that_is_all_there_gives_its_whole_events() {
        let stream = Bytes::from_static(b"data: 1\n\n\r\rdata: 2\r\n\r\ndata: 3\n");
        let whole: Vec<Bytes> = events(stream).collect();
        assert_eq!(whole, ["data: 1\n\n", "\r", "\r", "data: 2\r\n\r\n"]);
    }

    #[test]
    fn an_event_over_the_limit_is_refused_in_any_chunking() {
        let stream = b"data: 12\n\n";
        for chunk_bytes in 1..=stream.len() {
            for (limit, taken) in [(stream.len(), true), (stream.len() - 1, false)] {
                let mut splitter = Splitter::new(limit);
                let mut result = Ok(None);
                for chunk in stream.chunks(chunk_bytes) {
                    splitter.push(Bytes::copy_from_slice(chunk));
                    result = splitter.next_event();
                    if result.is_err() {
                        break;
                    }
                }
                let wanted = if taken {
                    Ok(Some(Bytes::from_static(stream)))
                } else {
                    Err(EventTooLong { limit })
                };
                assert_eq!(result, wanted);
            }
        }
    }

    #[test]
    fn the_data_of_an_event_is_its_one_data_line() {
        for (event, payload) in [
            ("data: {}\n\n", Some("{}")),
            ("data:{}\n\n", Some("{}")),
            ("data:  {}\r\n\r\n", Some(" {}")),
            ("data: {}\r\r", Some("{}")),
            ("data:\n\n", Some("")),
            ("data\n\n", Some("")),
            ("event: x\ndata: {\"a\":1}\n\n", Some("{\"a\":1}")),
            ("data: {}\nid: 7\n\n", Some("{}")),
            ("data: {\ndata: }\n\n", None),
            (": comment\n\n", None),
            ("database: {}\n\n", None),
            (" data: {}\n\n", None),
            ("\n", None),
            ("", None),
        ] {
            assert_eq!(
                data(event.as_bytes()),
                payload.map(str::as_bytes),
                "{event:?}"
            );
        }
    }

    #[test]
    fn done_counts_only_as_a_whole_line() {
        for (event, done) in [
            ("data: [DONE]\n\n", true),
            ("data:[DONE]\r\n\r\n", true),
            ("data: [DONE] \n\n", false),
            ("data: {\"text\":\"data: [DONE]\"}\n\n", false),
            ("[DONE]\n\n", false),
        ] {
            assert_eq!(is_done(event.as_bytes()), done, "{event:?}");
        }
    }

    #[test]
    fn an_error_event_is_one_whole_event() {
        assert_eq!(error_event("{\"error\":1}"), "data: {\"error\":1}\n\n");
        let event = error_event("{\n\"error\":1}\n");
        assert_eq!(event, "data: {\ndata: \"error\":1}\n\n");
        assert_eq!(split(&event, 1), [event.as_str()]);
    }

    #[test]
    fn the_boundary_is_known_after_every_byte_and_every_chunk() {
        let ends_with_blank_line = |sent: &[u8]| {
            let mut line = Line::EventStart;
            let mut rest = sent;
            while let Some(end) = line.find_event_end(rest) {
                rest = &rest[end..];
            }
            matches!(line, Line::EventStart | Line::BlankCr)
        };
        // All streams of up to eight bytes of these three, in all cuts into two chunks.
        for length in 0..=8u32 {
            for number in 0..3usize.pow(length) {
                let stream: Vec<u8> = (0..length)
                    .map(|place| b"x\n\r"[number / 3usize.pow(place) % 3])
                    .collect();
                for cut in 0..=stream.len() {
                    let mut boundary = Boundary::new();
                    boundary.update(&stream[..cut]);
                    boundary.update(&stream[cut..]);
                    assert_eq!(
                        boundary.is_at_event_end(),
                        ends_with_blank_line(&stream),
                        "{stream:?} {cut}"
                    );
                }
            }
        }
    }
}
