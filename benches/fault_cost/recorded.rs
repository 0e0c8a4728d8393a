//! Recorded responses of real workers, to be sent again: whole, up to the first event, event by event, or half.
//!
//! Source: SGLang 0.5.23, `tests/fixtures/sglang-0.5.23`.

use memchr::memmem;

use crate::programs::recorded::file;

/// One request with the responses of both workers.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The client's body.
    pub request: String,
    pub prefill: Reply,
    pub decode: Reply,
}

/// A response as it was on the wire.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    /// Length of the head in bytes.
    head: usize,
    /// The end of each chunk; empty for a response with Content-Length.
    chunks: Vec<usize>,
}

impl Recorded {
    /// Reads the directory with this name.
    pub fn read(name: &str) -> Result<Recorded, String> {
        Ok(Recorded {
            request: String::from_utf8(file(name, "request.json")?)
                .map_err(|error| format!("{name}: {error}"))?,
            prefill: Reply::of(file(name, "prefill.http")?),
            decode: Reply::of(file(name, "decode.http")?),
        })
    }

    /// Whether the response is a stream of events.
    pub fn is_stream(&self) -> bool {
        !self.decode.chunks.is_empty()
    }
}

impl Reply {
    fn of(bytes: Vec<u8>) -> Reply {
        let head = memmem::find(&bytes, b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        let mut chunks = Vec::new();
        let (mut at, is_chunked) = (
            head,
            memmem::find(&bytes[..head], b"Transfer-Encoding: chunked").is_some(),
        );
        while is_chunked && let Some(line) = memmem::find(&bytes[at..], b"\r\n") {
            let size = std::str::from_utf8(&bytes[at..at + line]).unwrap_or_default();
            let Ok(size @ 1..) = usize::from_str_radix(size, 16) else {
                break;
            };
            at += line + 2 + size + 2;
            chunks.push(at);
        }
        Reply {
            bytes,
            head,
            chunks,
        }
    }

    /// The whole response.
    pub fn whole(&self) -> &[u8] {
        &self.bytes
    }

    /// The head and the first event.
    pub fn opening(&self) -> &[u8] {
        &self.bytes[..self.chunks.first().copied().unwrap_or(self.head)]
    }

    /// An event from the middle of the stream.
    pub fn event(&self) -> &[u8] {
        match self.chunks[..] {
            [_, before, end, ..] | [before, end] => &self.bytes[before..end],
            _ => &[],
        }
    }

    /// The head and half of the body.
    pub fn half(&self) -> &[u8] {
        &self.bytes[..usize::midpoint(self.head, self.bytes.len())]
    }
}
