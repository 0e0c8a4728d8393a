//! One HTTP/1.1 connection to a worker: a request out in one write, a response in.
//!
//! For the exchanges that Pingora's proxy does not make itself: the prefill leg, probes, aborts and the endpoints
//! without legs. Pingora's client session could do the same, with a flush between head and body and a buffer of
//! 64 KiB for each response; most of prefill's response is discarded, so neither is worth its cost here.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use pingora::http::RequestHeader;
use pingora::protocols::Stream;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::framing::Framing;
use super::peer::Target;
use super::response_head::{self, Head, MAX_HEAD_BYTES, has_final_head};

/// The size of a read when the rest of the response may be short, in bytes.
const MIN_READ: usize = 8 << 10;
/// The largest read, for a response that is known to be long, in bytes.
const MAX_READ: usize = 64 << 10;

/// A connection and its progress with the current response.
pub(super) struct Http1Connection {
    stream: Stream,
    /// Bytes that have been read and not decoded.
    buf: BytesMut,
    framing: Framing,
    /// Whether the worker accepts another request on this connection.
    keep_alive: bool,
    /// Whether a byte of the request was sent.
    written: bool,
    /// Whether a byte of a response was received.
    received: bool,
}

impl Http1Connection {
    /// A connection on which no response is due.
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buf: BytesMut::new(),
            framing: Framing::Done,
            keep_alive: true,
            written: false,
            received: false,
        }
    }

    /// Whether a byte of the request was sent.
    pub(super) fn has_written(&self) -> bool {
        self.written
    }

    /// Whether a byte of a response was received.
    pub(super) fn has_received(&self) -> bool {
        self.received
    }

    /// Sends a whole request. Returns early, with `Ok`, when the response begins before the request has been
    /// written: the worker has decided, and does not want the rest.
    ///
    /// # Errors
    /// `WriteError`.
    pub(super) async fn send(
        &mut self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &[u8],
    ) -> Result<()> {
        let head = encode_head(to, head, body.len());
        let mut request = Buf::chain(head.as_slice(), body);
        poll_fn(|cx| {
            while request.has_remaining() {
                match self.poll_write(cx, &mut request) {
                    Poll::Ready(written) => written.inspect_err(|_| self.keep_alive = false)?,
                    // A worker that has responded reads no further: to wait for the write alone could take for ever.
                    Poll::Pending if self.poll_early_response(cx)? => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Pin::new(&mut self.stream).poll_flush(cx)
        })
        .await
        .or_err(ErrorType::WriteError, "while sending a request")
    }

    /// Reads the head of the response to a request with this method. Informational heads are skipped, except for
    /// 101: what follows that one is not HTTP.
    ///
    /// # Errors
    /// `ConnectionClosed` and `ReadError`; `InvalidHTTPHeader` when it is not a head or its framing is ambiguous.
    pub(super) async fn head(&mut self, method: &Method) -> Result<Head> {
        loop {
            if let Some(head) = response_head::parse(&mut self.buf)? {
                self.begin_body(&head, method)?;
                let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
                if switches || !head.status.is_informational() {
                    return Ok(head);
                }
                continue;
            }
            if self.read(MIN_READ).await? == 0 {
                return Error::e_explain(ErrorType::ConnectionClosed, "before the response head");
            }
        }
    }

    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// `ConnectionClosed` and `ReadError`; [`BAD_FRAMING`](super::framing::BAD_FRAMING).
    pub(super) async fn body(&mut self) -> Result<Option<Bytes>> {
        loop {
            let piece = self.framing.decode(&mut self.buf)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            let wanted = match self.framing {
                Framing::Done => return Ok(None),
                Framing::Length(left) | Framing::Chunk(left) => {
                    usize::try_from(left).map_or(MAX_READ, |left| left.clamp(MIN_READ, MAX_READ))
                }
                _ => MIN_READ,
            };
            if self.read(wanted).await? == 0 {
                if self.framing == Framing::UntilClosed {
                    self.framing = Framing::Done;
                    return Ok(None);
                }
                return Error::e_explain(
                    ErrorType::ConnectionClosed,
                    "before the end of the response",
                );
            }
        }
    }

    /// The stream, for the pool: `Some` when the response has ended, the worker keeps the connection, and no
    /// unsolicited byte has been read.
    pub(super) fn into_reusable(self) -> Option<Stream> {
        let ended = self.framing == Framing::Done && self.buf.is_empty();
        (ended && self.keep_alive).then_some(self.stream)
    }

    fn begin_body(&mut self, head: &Head, method: &Method) -> Result<()> {
        self.keep_alive &= head.is_http_11 && !has_token(&head.headers, CONNECTION, b"close");
        self.framing = Framing::of(head, method)?;
        self.keep_alive &=
            self.framing != Framing::UntilClosed && head.status != StatusCode::SWITCHING_PROTOCOLS;
        Ok(())
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
        self.written = true;
        Poll::Ready(Ok(()))
    }

    /// Whether a response has begun while the request is still being written.
    fn poll_early_response(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        while self.buf.len() <= MAX_HEAD_BYTES {
            let Poll::Ready(read) = self.poll_read_small(cx) else {
                return Ok(false);
            };
            if read? == 0 || has_final_head(&self.buf) {
                // The worker would take the unsent rest of the request for the next one.
                self.keep_alive = false;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads at most [`MIN_READ`] bytes.
    fn poll_read_small(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        // On the stack, and copied when something has come: a leg waits most of its time, and holds no buffer then.
        let mut stack = [const { MaybeUninit::uninit() }; MIN_READ];
        let mut stack = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut stack))?;
        self.buf.extend_from_slice(stack.filled());
        self.received |= !stack.filled().is_empty();
        Poll::Ready(Ok(stack.filled().len()))
    }

    /// Reads about `wanted` bytes into `buf`: how many came, 0 when the worker has closed the connection.
    async fn read(&mut self, wanted: usize) -> Result<usize> {
        let read = if wanted > MIN_READ {
            if self.buf.capacity() - self.buf.len() < wanted / 2 {
                self.buf.reserve(wanted);
            }
            self.stream.read_buf(&mut self.buf).await
        } else {
            poll_fn(|cx| self.poll_read_small(cx)).await
        };
        read.or_err(ErrorType::ReadError, "while reading a response")
    }
}

/// The request head as it is sent. `Host`, `Content-Length` and the worker's own `Authorization` are added here.
fn encode_head(to: Target<'_>, head: &RequestHeader, body_bytes: usize) -> Vec<u8> {
    // Most heads fit, so that the buffer does not grow.
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.raw_path());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // Host first, as RFC 9110 section 7.2 recommends.
    let mut field = |name: &HeaderName, value: &[u8]| {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
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
    // Without it, the worker of a POST or PUT with an empty body could not tell that there is none.
    if body_bytes > 0 || head.method == Method::POST || head.method == Method::PUT {
        field(&CONTENT_LENGTH, body_bytes.to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Whether a comma-separated header lists this token.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &[u8]) -> bool {
    let values = headers.get_all(name);
    let mut tokens = values
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    tokens.any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests;
