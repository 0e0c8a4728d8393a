//! Chunks that come together leave together.
//!
//! SGLang's server sends each event as a chunk of its own. Pingora hands on chunk by chunk: each is a task, an
//! allocation, a call of the filters and a frame to the client. Where a worker is ahead of its reader, one read
//! brings hundreds; here they become one chunk, in place, before Pingora sees them. A chunk that comes alone, which
//! is the usual case, is not touched.
//!
//! What is not plain (extensions, the last chunk, trailers, anything malformed) goes through as it came, so that
//! there is one judge of framing: Pingora. Chunks mean nothing beyond their connection.
//! Source: RFC 9112 section 7.1.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};

use super::http1::chunk_size;

/// The longest size that is understood, in hexadecimal digits: chunks below 4 GiB.
const MAX_DIGITS: usize = 8;
const LINE_END: &[u8] = b"\r\n";
/// The most fields of a head that is looked at.
const MAX_FIELDS: usize = 32;

/// What becomes of the chunks of an answer that come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// One chunk.
    Joined,
    /// What they were: for who makes much more of each, and would have to hold it all at once.
    Apart,
}

/// Joins the chunks of one answer, read by read.
#[derive(Debug)]
pub(super) struct Joiner(Place);

/// Where the next byte belongs.
#[derive(Debug)]
enum Place {
    /// To the head.
    Head,
    /// To a line that says how long a chunk is, of which this much has come.
    Size(Vec<u8>),
    /// To a chunk of which this many bytes are missing, its line end among them.
    Chunk(u64),
    /// To something that is not looked at.
    AsIs,
}

/// What a read has at a place where a chunk may begin.
enum Begin {
    /// The line of a chunk with this size; the line has this many bytes.
    Chunk {
        size: u64,
        line: usize,
    },
    /// A part of such a line, or nothing.
    Incomplete,
    Other,
}

/// Chunks of one read, as they are joined.
struct Run {
    /// Where the line of the first one begins.
    head: usize,
    /// Where its data begin.
    data: usize,
    /// Where the data of all of them end.
    end: usize,
    /// The size of all of them, with what is still to come of the last one.
    size: u64,
    chunks: usize,
}

impl Joiner {
    /// At the beginning of an answer.
    pub(super) fn new(chunks: Chunks) -> Self {
        Self(match chunks {
            Chunks::Joined => Place::Head,
            Chunks::Apart => Place::AsIs,
        })
    }

    /// Joins the chunks in what one read brought; they are now the first so many bytes. Never more than there were.
    pub(super) fn join(&mut self, read: &mut [u8]) -> usize {
        let at = self.finish(read);
        if matches!(&self.0, Place::Size(line) if line.is_empty()) {
            self.join_from(read, at)
        } else {
            read.len()
        }
    }

    /// Passes over what the reads before have left unfinished. Where the next chunk begins, if one does.
    fn finish(&mut self, read: &[u8]) -> usize {
        let mut at = 0;
        match &mut self.0 {
            Place::Head => {
                self.0 = Place::AsIs;
                if let Some(end) = end_of_chunked_head(read) {
                    self.0 = Place::Size(Vec::new());
                    at = end;
                }
            }
            Place::Size(begun) if !begun.is_empty() => {
                let rest = read.iter().position(|byte| *byte == b'\n');
                at = rest.map_or(read.len(), |end| end + 1).min(MAX_DIGITS + 2);
                begun.extend_from_slice(&read[..at]);
                match begin(begun) {
                    Begin::Chunk { size, .. } => self.0 = Place::Chunk(size + 2),
                    Begin::Incomplete => return at,
                    Begin::Other => self.0 = Place::AsIs,
                }
            }
            Place::Size(_) | Place::Chunk(_) | Place::AsIs => {}
        }
        if let Place::Chunk(missing) = self.0 {
            let come = (read.len() - at) as u64;
            if come < missing {
                self.0 = Place::Chunk(missing - come);
                return read.len();
            }
            at += usize::try_from(missing).unwrap_or_default();
            // What is before the line feed may have come earlier.
            self.0 = match read[at - 1] {
                b'\n' => Place::Size(Vec::new()),
                _ => Place::AsIs,
            };
        }
        at
    }

    fn join_from(&mut self, read: &mut [u8], mut at: usize) -> usize {
        let mut run: Option<Run> = None;
        let mut whole = true;
        self.0 = loop {
            let (size, line) = match begin(&read[at..]) {
                Begin::Chunk { size, line } => (size, line),
                Begin::Incomplete => break Place::Size(read[at..].to_vec()),
                Begin::Other => break Place::AsIs,
            };
            let from = at + line;
            let come = size.min((read.len() - from) as u64);
            let to = from + usize::try_from(come).unwrap_or_default();
            match run.as_mut() {
                None => {
                    run = Some(Run {
                        head: at,
                        data: from,
                        end: to,
                        size,
                        chunks: 1,
                    });
                }
                Some(run) => {
                    read.copy_within(from..to, run.end);
                    run.end += to - from;
                    run.size += size;
                    run.chunks += 1;
                }
            }
            at = to;
            let rest = &read[at..];
            if rest.starts_with(LINE_END) {
                at += LINE_END.len();
                continue;
            }
            whole = false;
            break if come < size || LINE_END.starts_with(rest) {
                Place::Chunk(size - come + (LINE_END.len() - rest.len()) as u64)
            } else {
                Place::AsIs
            };
        };
        match run {
            Some(run) if run.chunks > 1 => write(read, &run, whole, at),
            _ => read.len(),
        }
    }
}

/// Writes the joined chunk, and what comes behind it, which begins `at`. There is room: each chunk but the first has
/// left its line and a line end, and a sum has no more digits than its parts together.
fn write(read: &mut [u8], run: &Run, whole: bool, at: usize) -> usize {
    let line = format!("{:x}\r\n", run.size);
    let data = run.head + line.len();
    read.copy_within(run.data..run.end, data);
    read[run.head..data].copy_from_slice(line.as_bytes());
    let mut end = data + (run.end - run.data);
    if whole {
        read[end..end + LINE_END.len()].copy_from_slice(LINE_END);
        end += LINE_END.len();
    }
    let behind = read.len() - at;
    read.copy_within(at.., end);
    end + behind
}

fn begin(bytes: &[u8]) -> Begin {
    let first = bytes.iter().take(MAX_DIGITS + 1);
    let digits = first.take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > MAX_DIGITS {
        return Begin::Other;
    }
    match &bytes[digits..] {
        [] => Begin::Incomplete,
        [b'\r'] if digits > 0 => Begin::Incomplete,
        [b'\r', b'\n', ..] => match chunk_size(&bytes[..=digits]) {
            // A size of nothing is the last chunk.
            Some(size @ 1..) => Begin::Chunk {
                size,
                line: digits + LINE_END.len(),
            },
            _ => Begin::Other,
        },
        _ => Begin::Other,
    }
}

/// Where the head of an answer ends whose body certainly comes in chunks, if all of the head is there.
fn end_of_chunked_head(read: &[u8]) -> Option<usize> {
    let end = memchr::memmem::find(read, b"\r\n\r\n")? + 4;
    // Most answers have a length, and need no closer look.
    memchr::memmem::find(&read[..end], b"chunked\r\n")?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Response::new(&mut fields);
    head.parse(&read[..end]).ok()?;
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
    (has_body && head.version == Some(1) && chunked == 1).then_some(end)
}

#[cfg(test)]
mod tests;
