//! One HTTP/1.1 connection from the proxy's own side: a request out in one write, an answer in.
//!
//! For the exchanges that Pingora's proxy does not make itself: the prefill leg, probes, aborts and the endpoints
//! without legs. Pingora's client session does the same with a flush between head and body and 64 KiB of buffer
//! for each answer; what decides here is that prefill's answer is mostly thrown away.
//!
//! Framing follows RFC 9112 section 6.3. What is ambiguous is an error: the answer of a worker that frames badly is
//! not guessed at.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora_core::protocols::Stream;
use pingora_core::{Error, ErrorType, OrErr, Result};
use pingora_http::RequestHeader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{MAX_HEAD_BYTES, MAX_HEAD_FIELDS, Target};

/// The longest line that a chunk begins with, in bytes; the trailers are bounded by it as well.
const MAX_CHUNK_LINE_BYTES: usize = 4 << 10;
/// What is read at once at least, in bytes.
const MIN_READ: usize = 8 << 10;
/// What is read at once from an answer that is known to be long, in bytes.
const MAX_READ: usize = 64 << 10;

/// The framing of an answer is wrong.
pub(super) const BAD_FRAMING: ErrorType = ErrorType::new("InvalidFraming");

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    /// The status.
    pub(crate) status: StatusCode,
    /// The headers.
    pub(crate) headers: HeaderMap,
}

/// A connection, and how far it is with an answer.
pub(super) struct Http1Connection {
    stream: Stream,
    /// What has come and was not taken.
    buf: BytesMut,
    rest: Framing,
    /// Whether the worker takes another request on it.
    keeps: bool,
}

/// What of an answer is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Nothing,
    /// This many bytes.
    Length(u64),
    /// The line that says how long the next chunk is.
    ChunkSize,
    /// This much of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// The lines behind the last chunk.
    Trailers,
    /// Whatever comes until the connection ends.
    UntilClosed,
}

impl Http1Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buf: BytesMut::new(),
            rest: Framing::Nothing,
            keeps: true,
        }
    }

    /// Sends a whole request. Returns early, and well, when the worker answers before it has read all of it.
    ///
    /// # Errors
    /// `WriteError`.
    pub(super) async fn send(
        &mut self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &[u8],
    ) -> Result<()> {
        let head = on_the_wire(to, head, body.len());
        let mut request = Buf::chain(head.as_slice(), body);
        poll_fn(|cx| {
            while request.has_remaining() {
                match self.poll_write(cx, &mut request) {
                    Poll::Ready(written) => written.inspect_err(|_| self.keeps = false)?,
                    Poll::Pending if self.poll_answer(cx)? => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
        .or_err(ErrorType::WriteError, "while sending a request")
    }

    /// Reads the head of the answer to a request with this method. Informational ones are passed over.
    ///
    /// # Errors
    /// `ConnectionClosed` and `ReadError`; `InvalidHTTPHeader` where it is no head, or its framing is ambiguous.
    pub(super) async fn head(&mut self, method: &Method) -> Result<Head> {
        loop {
            if let Some(head) = self.parse_head(method)? {
                let another = head.status == StatusCode::SWITCHING_PROTOCOLS;
                if another || !head.status.is_informational() {
                    return Ok(head);
                }
                continue;
            }
            if self.buf.len() > MAX_HEAD_BYTES {
                return bad_head("longer than 64 KiB");
            }
            if self.read(MIN_READ).await? == 0 {
                return Error::e_explain(
                    ErrorType::ConnectionClosed,
                    "before the head of an answer",
                );
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// `ConnectionClosed` and `ReadError`; [`BAD_FRAMING`].
    pub(super) async fn body(&mut self) -> Result<Option<Bytes>> {
        loop {
            let piece = self.take()?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            let wanted = match self.rest {
                Framing::Nothing => return Ok(None),
                Framing::Length(left) | Framing::Chunk(left) => {
                    usize::try_from(left).map_or(MAX_READ, |left| left.clamp(MIN_READ, MAX_READ))
                }
                _ => MIN_READ,
            };
            if self.read(wanted).await? == 0 {
                if self.rest == Framing::UntilClosed {
                    self.rest = Framing::Nothing;
                    return Ok(None);
                }
                return Error::e_explain(
                    ErrorType::ConnectionClosed,
                    "before the end of an answer",
                );
            }
        }
    }

    /// The connection for another request: the answer has ended, the worker keeps the connection, and nothing
    /// came that nobody asked for.
    pub(super) fn into_kept(self) -> Option<Stream> {
        let over = self.rest == Framing::Nothing && self.buf.is_empty();
        (over && self.keeps).then_some(self.stream)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, request: &mut impl Buf) -> Poll<io::Result<()>> {
        let mut slices = [io::IoSlice::new(&[]); 2];
        let filled = request.chunks_vectored(&mut slices);
        let stream = Pin::new(&mut self.stream);
        let sent = ready!(stream.poll_write_vectored(cx, &slices[..filled]))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        request.advance(sent);
        Poll::Ready(Ok(()))
    }

    /// Whether an answer has begun while the request is still on its way. Then the rest of it is not wanted.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        match self.poll_little(cx) {
            Poll::Pending => Ok(false),
            Poll::Ready(read) => {
                read?;
                self.keeps = false;
                Ok(true)
            }
        }
    }

    /// Reads through the stack: a connection that waits holds no buffer.
    fn poll_little(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut little = [const { MaybeUninit::uninit() }; MIN_READ];
        let mut little = ReadBuf::uninit(&mut little);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut little))?;
        self.buf.extend_from_slice(little.filled());
        Poll::Ready(Ok(little.filled().len()))
    }

    async fn read(&mut self, at_least: usize) -> Result<usize> {
        let read = if at_least > MIN_READ {
            if self.buf.capacity() - self.buf.len() < at_least / 2 {
                self.buf.reserve(at_least);
            }
            self.stream.read_buf(&mut self.buf).await
        } else {
            poll_fn(|cx| self.poll_little(cx)).await
        };
        read.or_err(ErrorType::ReadError, "while reading an answer")
    }

    fn parse_head(&mut self, method: &Method) -> Result<Option<Head>> {
        if self.buf.is_empty() {
            return Ok(None);
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEAD_FIELDS];
        let mut parsed = httparse::Response::new(&mut fields);
        let length = match parsed.parse(&self.buf) {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
            Ok(httparse::Status::Complete(_)) => return bad_head("longer than 64 KiB"),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Error::e_because(ErrorType::InvalidHTTPHeader, "", error),
        };
        let code = parsed.code.unwrap_or_default();
        let Ok(status) = StatusCode::from_u16(code) else {
            return bad_head("no status");
        };
        let version = parsed.version;
        let mut headers = HeaderMap::with_capacity(parsed.headers.len());
        for field in parsed.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let value = HeaderValue::from_bytes(field.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return bad_head("a header that is none");
            };
            headers.append(name, value);
        }
        self.buf.advance(length);
        let head = Head { status, headers };
        self.frame(&head, version == Some(1), method)?;
        Ok(Some(head))
    }

    /// How the body of this answer is framed. Source: RFC 9112 section 6.3.
    fn frame(&mut self, head: &Head, is_http_11: bool, method: &Method) -> Result<()> {
        self.keeps &= is_http_11 && !says(&head.headers, CONNECTION, b"close");
        let is_chunked = |said: &HeaderValue| said.as_bytes().eq_ignore_ascii_case(b"chunked");
        let mut encodings = head.headers.get_all(TRANSFER_ENCODING).iter();
        let chunked = match (encodings.next(), encodings.next()) {
            (None, _) => false,
            (Some(only), None) if is_http_11 && is_chunked(only) => true,
            _ => return bad_head("a transfer encoding other than chunked"),
        };
        let length = content_length(&head.headers)?;
        if chunked && length.is_some() {
            return bad_head("both Content-Length and Transfer-Encoding");
        }
        let status = head.status;
        let without = status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
            || *method == Method::HEAD;
        self.rest = match length {
            _ if without => Framing::Nothing,
            _ if chunked => Framing::ChunkSize,
            Some(0) => Framing::Nothing,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClosed,
        };
        self.keeps &=
            self.rest != Framing::UntilClosed && status != StatusCode::SWITCHING_PROTOCOLS;
        Ok(())
    }

    /// What of the body has come; empty when that is nothing. The data of several chunks leaves as one piece.
    fn take(&mut self) -> Result<Bytes> {
        match self.rest {
            Framing::Nothing => Ok(Bytes::new()),
            Framing::UntilClosed => Ok(self.buf.split().freeze()),
            Framing::Length(left) => {
                let piece = self.split(left);
                self.rest = match left - piece.len() as u64 {
                    0 => Framing::Nothing,
                    left => Framing::Length(left),
                };
                Ok(piece)
            }
            _ => self.take_chunks(),
        }
    }

    fn take_chunks(&mut self) -> Result<Bytes> {
        let mut whole = Bytes::new();
        let mut joined = BytesMut::new();
        while self.rest != Framing::Nothing {
            let before = (self.rest, self.buf.len());
            if let Framing::Chunk(left) = self.rest {
                let piece = self.split(left);
                self.rest = match left - piece.len() as u64 {
                    0 => Framing::ChunkEnd,
                    left => Framing::Chunk(left),
                };
                if whole.is_empty() && joined.is_empty() {
                    whole = piece;
                } else {
                    joined.extend_from_slice(&std::mem::take(&mut whole));
                    joined.extend_from_slice(&piece);
                }
            } else {
                self.line_between_chunks()?;
            }
            if before == (self.rest, self.buf.len()) {
                break;
            }
        }
        Ok(if joined.is_empty() {
            whole
        } else {
            joined.freeze()
        })
    }

    fn line_between_chunks(&mut self) -> Result<()> {
        match self.rest {
            Framing::ChunkSize => {
                if let Some(end) = memchr::memchr(b'\n', &self.buf) {
                    let Some(size) = chunk_size(&self.buf[..end]) else {
                        return Error::e_explain(BAD_FRAMING, "a chunk without a size");
                    };
                    self.buf.advance(end + 1);
                    self.rest = match size {
                        0 => Framing::Trailers,
                        size => Framing::Chunk(size),
                    };
                } else if self.buf.len() > MAX_CHUNK_LINE_BYTES {
                    return Error::e_explain(BAD_FRAMING, "a chunk whose size does not end");
                }
            }
            Framing::ChunkEnd if self.buf.len() >= 2 => {
                if !self.buf.starts_with(b"\r\n") {
                    return Error::e_explain(BAD_FRAMING, "a chunk of another size than it says");
                }
                self.buf.advance(2);
                self.rest = Framing::ChunkSize;
            }
            Framing::Trailers => {
                let end = if self.buf.starts_with(b"\r\n") {
                    Some(2)
                } else {
                    memchr::memmem::find(&self.buf, b"\r\n\r\n").map(|at| at + 4)
                };
                match end {
                    Some(end) => {
                        self.buf.advance(end);
                        self.rest = Framing::Nothing;
                    }
                    None if self.buf.len() > MAX_CHUNK_LINE_BYTES => {
                        return Error::e_explain(BAD_FRAMING, "trailers without an end");
                    }
                    None => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn split(&mut self, most: u64) -> Bytes {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.buf.split_to(most.min(self.buf.len())).freeze()
    }
}

fn on_the_wire(to: Target<'_>, head: &RequestHeader, length: usize) -> Vec<u8> {
    let mut wire = Vec::with_capacity(512);
    wire.extend_from_slice(head.method.as_str().as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(head.raw_path());
    wire.extend_from_slice(b" HTTP/1.1\r\n");
    let mut field = |name: &HeaderName, value: &[u8]| {
        wire.extend_from_slice(name.as_str().as_bytes());
        wire.extend_from_slice(b": ");
        wire.extend_from_slice(value);
        wire.extend_from_slice(b"\r\n");
    };
    field(&HOST, to.host.as_bytes());
    for (name, value) in &head.headers {
        if *name != AUTHORIZATION || to.authorization.is_none() {
            field(name, value.as_bytes());
        }
    }
    if let Some(key) = to.authorization {
        field(&AUTHORIZATION, key.as_bytes());
    }
    if length > 0 || head.method == Method::POST || head.method == Method::PUT {
        field(&CONTENT_LENGTH, length.to_string().as_bytes());
    }
    wire.extend_from_slice(b"\r\n");
    wire
}

/// Whether a list of tokens has this one.
fn says(headers: &HeaderMap, name: HeaderName, token: &[u8]) -> bool {
    let values = headers.get_all(name);
    let mut tokens = values
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|said| said.trim_ascii().eq_ignore_ascii_case(token))
}

/// One length, however often it is said.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for said in value.as_bytes().split(|byte| *byte == b',') {
            let said = said.trim_ascii();
            let digits = std::str::from_utf8(said).ok();
            let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            let Some(said) = digits.and_then(|digits| digits.parse().ok()) else {
                return bad_head("a Content-Length that is no number");
            };
            if length.replace(said).is_some_and(|before| before != said) {
                return bad_head("two Content-Lengths");
            }
        }
    }
    Ok(length)
}

/// The size in the line, up to its line feed, that a chunk begins with. httparse would take a line without
/// digits for the last chunk, and a line feed for a part of an extension.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = line.strip_suffix(b"\r")?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit());
    let (size, extension) = line.split_at(digits.count());
    let begins = extension.trim_ascii_start().first();
    if extension.contains(&b'\r') || begins.is_some_and(|begins| *begins != b';') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()
}

fn bad_head<T>(why: &'static str) -> Result<T> {
    Error::e_explain(ErrorType::InvalidHTTPHeader, why)
}

#[cfg(test)]
mod tests;
