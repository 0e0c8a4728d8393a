//! Recorded responses of real workers, to be sent again: whole, up to the first event, event by event, or half.
//!
//! Source: SGLang 0.5.23, `tests/fixtures/sglang-0.5.23`; vLLM 0.32.0, `tests/fixtures/vllm-0.32.0`.

use memchr::memmem;
use mini_lb::pd::Engine;

use crate::programs::recorded::{file, fixture};

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
    /// Reads what was recorded of this engine under this name.
    pub fn read(engine: Engine, name: &str) -> Result<Recorded, String> {
        match engine {
            Engine::Sglang => Recorded::directory(name),
            Engine::Vllm => Recorded::transcript(name),
        }
    }

    fn directory(name: &str) -> Result<Recorded, String> {
        Ok(Recorded {
            request: String::from_utf8(file(name, "request.json")?)
                .map_err(|error| format!("{name}: {error}"))?,
            prefill: Reply::of(file(name, "prefill.http")?),
            decode: Reply::of(file(name, "decode.http")?),
        })
    }

    /// The file of the two legs and of an ordinary server, which got the client's body.
    fn transcript(name: &str) -> Result<Recorded, String> {
        let text = String::from_utf8(fixture(&format!("vllm-0.32.0/{name}.txt"))?)
            .map_err(|error| format!("{name}: {error}"))?;
        let exchange = |worker: &str| {
            let mut exchanges = text.split("\n>>> to ").skip(1);
            let found = exchanges.find_map(|exchange| exchange.strip_prefix(worker))?;
            found.split_once("\n<<< after ")
        };
        let reply = |worker: &str| {
            let (_, reply) = exchange(worker)?;
            let reply = reply.split_once('\n')?.1;
            let reply = reply.strip_suffix('\n').unwrap_or(reply);
            // Each was the only one on its connection.
            Some(Reply::of(
                reply.replacen("connection: close\r\n", "", 1).into(),
            ))
        };
        let recorded = || {
            let (request, _) = exchange("single")?;
            Some(Recorded {
                request: request.split_once("\r\n\r\n")?.1.to_owned(),
                prefill: reply("prefill")?,
                decode: reply("decode")?,
            })
        };
        recorded().ok_or_else(|| format!("{name} is no transcript of two legs"))
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
        let fields = bytes[..head].to_ascii_lowercase();
        let is_chunked = memmem::find(&fields, b"transfer-encoding: chunked").is_some();
        let mut at = head;
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
