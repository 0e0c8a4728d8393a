//! Joins the chunks of a response that arrive with one read into one chunk, in place, before Pingora sees them.
//!
//! SGLang's server sends each event as a chunk. Pingora passes on chunk by chunk, and each one is a task, an
//! allocation, a run of the filters and a frame to the client. When a worker is ahead of its reader, one read brings
//! hundreds of them. A chunk that arrives alone, which is the usual case, is not changed.
//!
//! Anything but plain chunks (extensions, the last chunk, trailers, malformed input) passes through unchanged, so that
//! Pingora alone decides whether the framing is valid. Chunk boundaries have no meaning beyond their connection.
//!
//! Pingora drops the trailers behind the last chunk, so that they are copied on the way.
//! Source: RFC 9112 section 7.1.

use std::sync::LazyLock;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use memchr::memmem::Finder;

use super::framing::chunk_size;
use super::response_head::MAX_HEAD_BYTES;
use super::trailers::MAX_TRAILER_BYTES;

/// The longest chunk size that is understood, in hexadecimal digits: chunks below 4 GiB.
const MAX_DIGITS: usize = 8;
const LINE_END: &[u8] = b"\r\n";
/// The size line of the last chunk.
const LAST_LINE: &[u8] = b"0\r\n";
/// The most fields of a response head that is looked into.
const MAX_FIELDS: usize = 32;
/// The end of a head, and of trailers. Built once: each response is searched for it.
static HEAD_END: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\r\n\r\n"));
/// The end of the field that says that a body is chunked.
static CHUNKED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"chunked\r\n"));

/// Whether the chunks of a response that arrive together are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// They become one chunk.
    Joined,
    /// They stay as they are: for a reader that makes much more of each chunk, and would otherwise have to hold the
    /// result of all of them at once.
    Separate,
}

/// Joins the chunks of one response, read by read.
#[derive(Debug)]
pub(super) struct Joiner {
    chunks: Chunks,
    state: State,
    /// The sizes of all chunks so far, in bytes.
    payload: u64,
    /// The lines of the trailers, once they are whole.
    trailers: Option<Vec<u8>>,
}

/// What the next byte of the response is part of.
#[derive(Debug)]
enum State {
    /// The response head, of which these bytes have arrived.
    Head(Vec<u8>),
    /// A chunk-size line, of which these bytes have arrived.
    SizeLine(Vec<u8>),
    /// A chunk of which this many bytes are missing, including its line end.
    Chunk(u64),
    /// The trailers, of which these bytes have arrived.
    Trailers(Vec<u8>),
    /// Bytes that pass through unchanged to the end of the response.
    Passthrough,
}

/// What stands at a position where a chunk may begin.
pub(super) enum Start {
    /// A chunk-size line: the size of the chunk, and the length of the line in bytes.
    Chunk { size: u64, line: usize },
    /// The beginning of such a line, or nothing.
    Incomplete,
    /// Anything else.
    Other,
}

/// Adjacent chunks of one read that become one chunk. Positions are offsets in the read.
struct Run {
    /// Where the size line of the first chunk begins.
    line: usize,
    /// Where the joined data begins.
    data: usize,
    /// Where the joined data ends.
    end: usize,
    /// The size of all chunks, including the part of the last one that has not arrived.
    size: u64,
    chunks: usize,
}

impl Joiner {
    /// A joiner at the beginning of a response.
    pub(super) fn new(chunks: Chunks) -> Self {
        Self {
            chunks,
            state: State::Head(Vec::new()),
            payload: 0,
            trailers: None,
        }
    }

    /// How many bytes of the body have passed, where the next byte begins a chunk, and chunks may be joined.
    pub(super) fn payload_at_boundary(&self) -> Option<u64> {
        let joins = self.chunks == Chunks::Joined;
        (joins && self.is_at_boundary()).then_some(self.payload)
    }

    fn is_at_boundary(&self) -> bool {
        matches!(&self.state, State::SizeLine(line) if line.is_empty())
    }

    /// The lines of the trailers, with the empty one, once they have passed.
    pub(super) fn take_trailers(&mut self) -> Option<Vec<u8>> {
        self.trailers.take()
    }

    /// Notes that so many bytes of the body have passed elsewhere.
    pub(super) fn note_passed(&mut self, bytes: u64) {
        self.payload += bytes;
    }

    /// Joins the chunks in the bytes of one read. Returns the new length of `read`, at most the old one.
    pub(super) fn join(&mut self, read: &mut [u8]) -> usize {
        let at = self.skip_unfinished(read);
        if self.is_at_boundary() {
            self.join_from(read, at)
        } else {
            read.len()
        }
    }

    /// Skips the rest of what earlier reads have begun. Returns where the next chunk begins, if one does.
    fn skip_unfinished(&mut self, read: &[u8]) -> usize {
        let mut at = 0;
        match &mut self.state {
            State::Head(begun) => {
                let begun = std::mem::take(begun);
                (self.state, at) = skip_head(begun, read);
            }
            State::SizeLine(begun) if !begun.is_empty() => {
                let rest = read.iter().position(|byte| *byte == b'\n');
                at = rest.map_or(read.len(), |end| end + 1).min(MAX_DIGITS + 2);
                begun.extend_from_slice(&read[..at]);
                match start_of_chunk(begun) {
                    Start::Chunk { size, .. } => {
                        self.payload += size;
                        self.state = State::Chunk(size + 2);
                    }
                    Start::Incomplete => return at,
                    Start::Other if begun == LAST_LINE => {
                        self.state = self.behind_last(Vec::new(), &read[at..]);
                    }
                    Start::Other => self.state = State::Passthrough,
                }
            }
            State::Trailers(begun) => {
                let begun = std::mem::take(begun);
                self.state = self.behind_last(begun, read);
            }
            State::SizeLine(_) | State::Chunk(_) | State::Passthrough => {}
        }
        if let State::Chunk(missing) = self.state {
            let arrived = (read.len() - at) as u64;
            if arrived < missing {
                self.state = State::Chunk(missing - arrived);
                return read.len();
            }
            at += usize::try_from(missing).unwrap_or_default();
            // Only the line feed is checked: the carriage return before it may have come with an earlier read, and
            // Pingora checks both.
            self.state = match read[at - 1] {
                b'\n' => State::SizeLine(Vec::new()),
                _ => State::Passthrough,
            };
        }
        at
    }

    /// Keeps the trailers, of which some bytes may have begun, in those behind the size line of the last chunk.
    fn behind_last(&mut self, mut begun: Vec<u8>, bytes: &[u8]) -> State {
        // The usual end is not copied.
        if begun.is_empty() && bytes == LINE_END {
            return State::Passthrough;
        }
        begun.extend_from_slice(bytes);
        if begun.starts_with(LINE_END) || begun.len() > MAX_TRAILER_BYTES {
            return State::Passthrough;
        }
        let Some(end) = HEAD_END.find(&begun) else {
            return State::Trailers(begun);
        };
        begun.truncate(end + HEAD_END.needle().len());
        self.trailers = Some(begun);
        State::Passthrough
    }

    /// Joins the chunks from the offset `at` on, where a chunk-size line begins.
    fn join_from(&mut self, read: &mut [u8], mut at: usize) -> usize {
        let mut run: Option<Run> = None;
        let mut complete = true;
        self.state = loop {
            let (size, line) = match start_of_chunk(&read[at..]) {
                Start::Chunk { size, line } => (size, line),
                Start::Incomplete => break State::SizeLine(read[at..].to_vec()),
                Start::Other => match read[at..].strip_prefix(LAST_LINE) {
                    Some(behind) => break self.behind_last(Vec::new(), behind),
                    None => break State::Passthrough,
                },
            };
            self.payload += size;
            let data = at + line;
            let arrived = size.min((read.len() - data) as u64);
            let end = data + usize::try_from(arrived).unwrap_or_default();
            match run.as_mut() {
                None if self.chunks == Chunks::Separate => {}
                None => {
                    run = Some(Run {
                        line: at,
                        data,
                        end,
                        size,
                        chunks: 1,
                    });
                }
                Some(run) => {
                    read.copy_within(data..end, run.end);
                    run.end += end - data;
                    run.size += size;
                    run.chunks += 1;
                }
            }
            at = end;
            let rest = &read[at..];
            if rest.starts_with(LINE_END) {
                at += LINE_END.len();
                continue;
            }
            complete = false;
            break if arrived < size || LINE_END.starts_with(rest) {
                State::Chunk(size - arrived + (LINE_END.len() - rest.len()) as u64)
            } else {
                State::Passthrough
            };
        };
        match run {
            Some(run) if run.chunks > 1 => write_joined(read, &run, complete, at),
            _ => read.len(),
        }
    }
}

/// Writes the size line and the end of the joined chunk, and moves the rest of the read, which begins at `at`, up to
/// it. Returns the new length. `complete` is whether the last chunk of the run has arrived with its line end.
fn write_joined(read: &mut [u8], run: &Run, complete: bool, at: usize) -> usize {
    // There is space: each chunk but the first has left its size line and a line end, and a sum has no more digits
    // than its terms together.
    let line = format!("{:x}\r\n", run.size);
    let data = run.line + line.len();
    read.copy_within(run.data..run.end, data);
    read[run.line..data].copy_from_slice(line.as_bytes());
    let mut end = data + (run.end - run.data);
    if complete {
        read[end..end + LINE_END.len()].copy_from_slice(LINE_END);
        end += LINE_END.len();
    }
    let rest = read.len() - at;
    read.copy_within(at.., end);
    end + rest
}

pub(super) fn start_of_chunk(bytes: &[u8]) -> Start {
    let first = bytes.iter().take(MAX_DIGITS + 1);
    let digits = first.take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > MAX_DIGITS {
        return Start::Other;
    }
    match &bytes[digits..] {
        [] => Start::Incomplete,
        [b'\r'] if digits > 0 => Start::Incomplete,
        [b'\r', b'\n', ..] => match chunk_size(&bytes[..=digits]) {
            // The last chunk, of size 0, is not joined: trailers may follow it.
            Some(size @ 1..) => Start::Chunk {
                size,
                line: digits + LINE_END.len(),
            },
            _ => Start::Other,
        },
        _ => Start::Other,
    }
}

/// What follows a response head, of which some bytes may have begun, and where in the read that begins.
fn skip_head(mut begun: Vec<u8>, read: &[u8]) -> (State, usize) {
    let before = begun.len();
    // Most heads arrive with one read, and are not copied.
    let head = if before == 0 {
        read
    } else {
        begun.extend_from_slice(read);
        &begun[..]
    };
    match HEAD_END.find(head).map(|at| at + HEAD_END.needle().len()) {
        Some(end) if announces_chunks(&head[..end]) => (State::SizeLine(Vec::new()), end - before),
        None if head.len() <= MAX_HEAD_BYTES => {
            if before == 0 {
                begun.extend_from_slice(read);
            }
            (State::Head(begun), read.len())
        }
        _ => (State::Passthrough, 0),
    }
}

/// Whether the body behind this head is certainly chunked.
fn announces_chunks(head: &[u8]) -> bool {
    // Cheap first: most heads have a length, and are not parsed.
    CHUNKED.find(head).is_some() && is_chunked(head).unwrap_or_default()
}

/// `None` where the head is none, or has fields of which there is no need to know more.
fn is_chunked(bytes: &[u8]) -> Option<bool> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    head.parse(bytes).ok()?;
    let mut chunked = 0;
    for field in head.headers.iter() {
        if field.name.eq_ignore_ascii_case(TRANSFER_ENCODING.as_str()) {
            chunked += 1;
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return None;
            }
        } else if field.name.eq_ignore_ascii_case(CONTENT_LENGTH.as_str()) {
            return None;
        }
    }
    let has_body = !matches!(head.code, None | Some(..200 | 204 | 304));
    Some(has_body && head.version == Some(1) && chunked == 1)
}

#[cfg(test)]
mod tests;
