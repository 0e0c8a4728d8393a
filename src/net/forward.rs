//! The framing of a stream that is forwarded without Pingora: the chunks that one read brings become one chunk, in place.
//!
//! What lives here: bytes in, bytes out, no I/O. A chunk that has arrived in part is forwarded as a chunk of that part, so
//! that the client's side always ends with a whole chunk. Anything but plain chunks (extensions, the last chunk, malformed
//! input) is left to Pingora, as in [`super::chunks`].
//! Source: RFC 9112 section 7.1.

use std::ops::Range;

use super::chunks::{Start, start_of_chunk};

/// The most bytes of one read: as many as Pingora reads at once.
pub(super) const READ: usize = 64 << 10;

/// Space before the bytes of a read, for the size line of its chunk.
pub(super) const HEADROOM: usize = 16;

const LINE_END: &[u8] = b"\r\n";

/// The longest begin of a chunk-size line that is held: 8 digits and a carriage return.
const LONGEST_LINE: usize = 10;

/// Space for one read, with room for the framing before and after it.
pub(super) fn read_space() -> Box<[u8]> {
    vec![0; HEADROOM + READ + LINE_END.len()].into()
}

/// What the next byte of the stream is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A chunk-size line.
    SizeLine,
    /// A chunk, of which so many bytes are missing.
    Chunk(u64),
    /// The line end after a chunk, of which so many bytes are missing.
    LineEnd(usize),
    /// Nothing: a chunk is longer than its size.
    Broken,
}

/// The position in a stream of chunks, which begins at a chunk-size line.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    /// The begin of a chunk-size line whose end has not arrived.
    held: Vec<u8>,
}

/// What one read brings. Positions are offsets in the space.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forwarded {
    /// The bytes of the body.
    pub(super) payload: Range<usize>,
    /// The same as one chunk.
    pub(super) chunk: Range<usize>,
    /// Where the bytes that are Pingora's begin; `None` while there are none. They begin at a chunk-size line.
    pub(super) rest: Option<usize>,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            state: State::SizeLine,
            held: Vec::new(),
        }
    }

    /// Makes one chunk of the bytes that were read to `space[HEADROOM..end]`.
    pub(super) fn forward(&mut self, space: &mut [u8], end: usize) -> Forwarded {
        let mut payload = HEADROOM..HEADROOM;
        let mut at = HEADROOM;
        let mut rest = None;
        while at < end && rest.is_none() {
            match self.state {
                State::Chunk(missing) => {
                    let arrived = usize::try_from(missing).unwrap_or(usize::MAX).min(end - at);
                    if payload.is_empty() {
                        payload = at..at;
                    } else {
                        space.copy_within(at..at + arrived, payload.end);
                    }
                    payload.end += arrived;
                    at += arrived;
                    self.state = match missing - arrived as u64 {
                        0 => State::LineEnd(LINE_END.len()),
                        missing => State::Chunk(missing),
                    };
                }
                State::LineEnd(missing) => {
                    let line_end = &LINE_END[LINE_END.len() - missing..];
                    let arrived = missing.min(end - at);
                    if space[at..at + arrived] != line_end[..arrived] {
                        self.state = State::Broken;
                        continue;
                    }
                    at += arrived;
                    self.state = match missing - arrived {
                        0 => State::SizeLine,
                        missing => State::LineEnd(missing),
                    };
                }
                State::SizeLine => match self.size_line(&space[at..end]) {
                    Start::Chunk { size, line } => {
                        at += line;
                        self.state = State::Chunk(size);
                    }
                    Start::Incomplete => at = end,
                    Start::Other => rest = Some(at),
                },
                State::Broken => rest = Some(end),
            }
        }
        let chunk = match payload.is_empty() {
            true => payload.clone(),
            false => frame(space, &payload),
        };
        Forwarded {
            payload,
            chunk,
            rest,
        }
    }

    /// The chunk-size line that begins with these bytes, or continues with them. The length is that of its part in `bytes`.
    fn size_line(&mut self, bytes: &[u8]) -> Start {
        if self.held.is_empty() {
            let start = start_of_chunk(bytes);
            if matches!(start, Start::Incomplete) {
                self.held.extend_from_slice(bytes);
            }
            return start;
        }
        let begun = self.held.len();
        let more = bytes.len().min(LONGEST_LINE - begun);
        self.held.extend_from_slice(&bytes[..more]);
        match start_of_chunk(&self.held) {
            Start::Chunk { size, line } => {
                self.held.clear();
                Start::Chunk {
                    size,
                    line: line - begun,
                }
            }
            // Nine bytes are a whole line or none, so that all of `bytes` is held.
            Start::Incomplete => Start::Incomplete,
            Start::Other => {
                self.held.truncate(begun);
                Start::Other
            }
        }
    }

    /// What Pingora, which expects a chunk-size line, reads before the bytes that follow: no chunk-size line where the
    /// framing is broken. `None` where it cannot go on, behind the last byte of a chunk whose line end has not arrived.
    pub(super) fn rewind(&self) -> Option<Vec<u8>> {
        match self.state {
            State::SizeLine => Some(self.held.clone()),
            State::Chunk(missing) => Some(format!("{missing:x}\r\n").into_bytes()),
            State::LineEnd(_) => None,
            State::Broken => Some(b"-".to_vec()),
        }
    }
}

/// Frames the payload where it stands.
fn frame(space: &mut [u8], payload: &Range<usize>) -> Range<usize> {
    space[payload.end..payload.end + LINE_END.len()].copy_from_slice(LINE_END);
    let mut begin = payload.start - LINE_END.len();
    space[begin..payload.start].copy_from_slice(LINE_END);
    let mut size = payload.len();
    while size > 0 {
        begin -= 1;
        space[begin] = b"0123456789abcdef"[size % 16];
        size /= 16;
    }
    begin..payload.end + LINE_END.len()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Forwards these reads: what went to the client, the payload, and what is left to Pingora.
    fn forward(frames: &mut Frames, reads: &[&[u8]]) -> (String, String, Option<String>) {
        let (mut chunks, mut payload) = (Vec::new(), Vec::new());
        for read in reads {
            let mut space = read_space();
            let end = HEADROOM + read.len();
            space[HEADROOM..end].copy_from_slice(read);
            let forwarded = frames.forward(&mut space, end);
            chunks.extend_from_slice(&space[forwarded.chunk]);
            payload.extend_from_slice(&space[forwarded.payload]);
            if let Some(rest) = forwarded.rest {
                let mut left = frames.rewind().unwrap();
                left.extend_from_slice(&space[rest..end]);
                return (text(chunks), text(payload), Some(text(left)));
            }
        }
        (text(chunks), text(payload), None)
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_chunk_that_arrives_alone_passes_as_it_is() {
        let (chunks, payload, rest) = forward(&mut Frames::new(), &[b"5\r\nhello\r\n"]);
        assert_eq!(
            (&*chunks, &*payload, rest),
            ("5\r\nhello\r\n", "hello", None)
        );
    }

    #[test]
    fn chunks_that_arrive_together_become_one_and_the_last_chunk_is_left() {
        let read = b"5\r\nhello\r\n0B\r\n, my friend\r\n1\r\n!\r\n0\r\nx: y\r\n\r\n";
        let (chunks, payload, rest) = forward(&mut Frames::new(), &[read]);
        assert_eq!(chunks, "11\r\nhello, my friend!\r\n");
        assert_eq!(payload, "hello, my friend!");
        assert_eq!(rest.as_deref(), Some("0\r\nx: y\r\n\r\n"));
    }

    #[test]
    fn wherever_a_stream_is_cut_the_client_gets_whole_chunks_of_the_same_bytes() {
        let stream = b"5\r\nhello\r\n0c\r\n, my friends\r\n1\r\n!\r\n0\r\n\r\n";
        for first in 1..stream.len() {
            for second in first..stream.len() {
                let (one, more) = stream.split_at(first);
                let (two, three) = more.split_at(second - first);
                let reads: Vec<_> = [one, two, three]
                    .into_iter()
                    .filter(|read| !read.is_empty())
                    .collect();
                let (chunks, payload, rest) = forward(&mut Frames::new(), &reads);
                assert_eq!(payload, "hello, my friends!", "{reads:?}");
                let left = rest.unwrap();
                assert!(left.starts_with('0'), "{reads:?} {left}");
                // Read again, the client's bytes are the same body.
                let (_, again, incomplete) = forward(&mut Frames::new(), &[chunks.as_bytes()]);
                assert_eq!((&*again, incomplete), ("hello, my friends!", None));
            }
        }
    }

    #[test]
    fn what_is_no_plain_chunk_is_left_to_pingora_with_the_line_that_had_begun() {
        for (reads, rest) in [
            (
                &[&b"1\r\na\r\n5;x=y\r\nhello\r\n"[..]][..],
                "5;x=y\r\nhello\r\n",
            ),
            (
                &[b"1\r\na\r\n5", b";x=y\r\nhello\r\n"],
                "5;x=y\r\nhello\r\n",
            ),
            (&[b"1\r\na\r\n0", b"\r\n\r\n"], "0\r\n\r\n"),
            (&[b"1\r\na\r\n123456789\r\n"], "123456789\r\n"),
            (&[b"1\r\na\r\n12345678", b"9\r\n"], "123456789\r\n"),
            (&[b"1\r\na\r\nx"], "x"),
            (&[b"1\r\na2\r\nbc\r\n"], "-"),
            (&[b"1\r\na\r", b"2\r\nbc\r\n"], "-"),
        ] {
            let (chunks, payload, left) = forward(&mut Frames::new(), reads);
            assert_eq!((&*chunks, &*payload), ("1\r\na\r\n", "a"));
            assert_eq!(left.as_deref(), Some(rest), "{reads:?}");
        }
    }

    #[test]
    fn pingora_goes_on_within_a_chunk_with_a_size_line_of_what_is_missing() {
        let mut frames = Frames::new();
        forward(&mut frames, &[b"1f\r\nhello"]);
        assert_eq!(frames.rewind().unwrap(), b"1a\r\n");
        forward(&mut frames, &[&[b'x'; 26]]);
        assert_eq!(frames.rewind(), None, "the line end is missing");
        forward(&mut frames, &[b"\r\n0"]);
        assert_eq!(frames.rewind().unwrap(), b"0");
    }
}
