//! Counts the bytes read from a client, to tell an idle connection from one with a half-sent request head.
//!
//! It also sees a connection that begins as one of HTTP/2, and gives it back to `connection.rs`.
//!
//! Pingora's timer for an idle connection covers only the first read of a request, and its end cannot be observed.
//! [`CountedStream`] wraps the client's stream, plain or TLS, and passes every byte on unchanged, with two exceptions.
//! A head that Pingora refuses by itself meets no hook, and gets a response without a body, which is replaced here by one
//! of the form that all errors have. And the last chunk of a response that has trailers is replaced by one with these.
//!
//! The stream is behind a lock, so that a relay can write to it while Pingora reads from it, see [`ClientWriter`].
//!
//! Source: pingora-core 0.9.1, `protocols/http/v1/server.rs` (`read_request`), `protocols/mod.rs` (`IO`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http2::{Beginning, Rewound};
use super::read_counter::ReadCounter;
use super::refusal::Refusal;
use super::trailers::LAST_CHUNK;

/// A client's connection whose reads are counted.
#[derive(Debug)]
pub(crate) struct CountedStream {
    /// Shared with the [`ClientWriter`] of a response.
    wire: Arc<Mutex<Wire>>,
    counter: Arc<ReadCounter>,
    refusal: Arc<Refusal>,
    /// What has been read since the last response, if [`Refusal::reads_head`].
    head: Vec<u8>,
    /// The part of the refusal that is not written yet; `None` before it begins.
    refusing: Option<Bytes>,
    beginning: Beginning,
}

/// The wrapped stream.
#[derive(Debug)]
struct Wire {
    stream: Stream,
    /// What is written in place of the last chunk of the present response, or what is left of that.
    end: Option<Bytes>,
}

impl Wire {
    fn poll_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.end.is_some() {
            return self.poll_end(cx, buf);
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    /// Writes the other end in place of Pingora's last chunk, which comes next.
    fn poll_end(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf != LAST_CHUNK {
            // The response has ended otherwise.
            self.end = None;
            return Pin::new(&mut self.stream).poll_write(cx, buf);
        }
        if let Some(end) = &mut self.end {
            ready!(poll_write_all(Pin::new(&mut self.stream), cx, end))?;
            self.end = None;
        }
        Poll::Ready(Ok(buf.len()))
    }
}

/// Writes all of `bytes`, and takes off what is written.
fn poll_write_all(
    mut stream: Pin<&mut Stream>,
    cx: &mut Context<'_>,
    bytes: &mut Bytes,
) -> Poll<io::Result<()>> {
    while !bytes.is_empty() {
        match ready!(stream.as_mut().poll_write(cx, bytes))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => bytes.advance(written),
        }
    }
    Poll::Ready(Ok(()))
}

/// The writing side of a client's connection, for a relay that writes parts of a response beside Pingora.
///
/// The reading side stays with Pingora, which learns from it that the client leaves. The runtime keeps one waker for each
/// direction of a socket, so that two tasks can wait for one each.
#[derive(Debug)]
pub(crate) struct ClientWriter(Arc<Mutex<Wire>>);

impl ClientWriter {
    /// Writes as [`AsyncWrite::poll_write`] does.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(cx, buf)
    }

    /// Sends what is still buffered.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).stream).poll_flush(cx)
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    // A poisoned lock holds a stream all the same.
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CountedStream {
    /// `beginning` says whether the connection may turn out to speak HTTP/2.
    pub(crate) fn new(
        stream: Stream,
        counter: Arc<ReadCounter>,
        refusal: Arc<Refusal>,
        beginning: Beginning,
    ) -> Self {
        Self {
            wire: Arc::new(Mutex::new(Wire { stream, end: None })),
            counter,
            refusal,
            head: Vec::new(),
            refusing: None,
            beginning,
        }
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    /// Has these bytes written in place of the last chunk of the present response. All that comes before it must have been
    /// written.
    pub(super) fn end_with(&self, last_chunk: Bytes) {
        self.wire().end = Some(last_chunk);
    }

    /// The writing side of this connection.
    pub(super) fn writer(&self) -> ClientWriter {
        ClientWriter(self.wire.clone())
    }

    /// Gives the connection back if these bytes, the last ones that were read, make it one of HTTP/2.
    fn begins_http2(&mut self, read: &[u8]) -> bool {
        let Some(read) = self.beginning.read(read) else {
            return false;
        };
        self.beginning = Beginning::Http1;
        // What is left here is dropped with HTTP/1.1's session.
        let (gone, _) = tokio::io::duplex(1);
        let stream = std::mem::replace(&mut self.wire().stream, Box::new(gone));
        self.counter.give_back(Rewound::new(read, stream));
        true
    }

    /// Whether a write is Pingora's own refusal: every other response comes after its head has been received. Until then
    /// what is read is the head.
    fn refuses(&self) -> bool {
        !self.counter.is_head_finished()
    }

    /// Writes the refusal in place of `pingoras`, the bytes of Pingora's response.
    fn poll_refuse(&mut self, cx: &mut Context<'_>, pingoras: &[u8]) -> Poll<io::Result<usize>> {
        let (refusal, head) = (&self.refusal, &self.head);
        let refusing = self
            .refusing
            .get_or_insert_with(|| refusal.bytes(pingoras, head));
        let stream = &mut lock(&self.wire).stream;
        ready!(poll_write_all(Pin::new(stream), cx, refusing))?;
        Poll::Ready(Ok(pingoras.len()))
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.wire().stream).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        self.counter.record_read(read.len() as u64);
        if matches!(self.beginning, Beginning::Equal(_)) && self.begins_http2(read) {
            buf.set_filled(before);
            // `connection.rs` drops the session when it sees that.
            return Poll::Pending;
        }
        if self.refusal.reads_head() && self.refuses() {
            self.head.extend_from_slice(read);
        }
        polled
    }
}

// Everything below delegates to the wrapped stream, but for the refusal.

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.refuses() {
            return self.poll_refuse(cx, buf);
        }
        self.head.clear();
        self.wire().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.refuses() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return self.poll_refuse(cx, first.map_or(&[], |buf| buf));
        }
        self.head.clear();
        let mut wire = self.wire();
        if wire.end.is_some() {
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return wire.poll_end(cx, first.map_or(&[], |buf| buf));
        }
        Pin::new(&mut wire.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire().stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for CountedStream {
    async fn shutdown(&mut self) {
        // Without holding the lock while it waits.
        let _ = poll_fn(|cx| Pin::new(&mut self.wire().stream).poll_shutdown(cx)).await;
    }
}

impl UniqueID for CountedStream {
    fn id(&self) -> UniqueIDType {
        self.wire().stream.id()
    }
}

impl Ssl for CountedStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.wire().stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.wire().stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for CountedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.wire().stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.wire().stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.wire().stream.get_write_pending_time()
    }
}

impl GetProxyDigest for CountedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.wire().stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.wire().stream.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for CountedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.wire().stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.wire().stream.set_socket_digest(digest);
    }
}

#[async_trait]
impl Peek for CountedStream {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        // No response has begun when a connection is peeked into, and so nothing else writes to it.
        match Arc::get_mut(&mut self.wire) {
            Some(wire) => {
                let wire = wire.get_mut().unwrap_or_else(PoisonError::into_inner);
                wire.stream.try_peek(buf).await
            }
            None => Ok(false),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::client::Cors;
    use crate::endpoint::WholeResponse;

    #[tokio::test]
    async fn reads_are_counted_and_bytes_pass_unchanged() {
        let (ours, mut client) = duplex(64);
        let counter = Arc::<ReadCounter>::default();
        let mut stream = counted(ours, &counter);
        client.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        stream.read_exact(&mut read[..2]).await.unwrap();
        assert_eq!(counter.bytes_read(), 2);
        stream.read_exact(&mut read[2..]).await.unwrap();
        assert_eq!((&read, counter.bytes_read()), (b"hello", 5));
        counter.finish_head();
        stream.write_all(b"bye").await.unwrap();
        drop(stream);
        let mut written = String::new();
        client.read_to_string(&mut written).await.unwrap();
        assert_eq!((written.as_str(), counter.bytes_read()), ("bye", 5));
    }

    fn counted(ours: tokio::io::DuplexStream, counter: &Arc<ReadCounter>) -> CountedStream {
        let beginning = Beginning::Equal(0);
        CountedStream::new(Box::new(ours), counter.clone(), refusal(), beginning)
    }

    #[tokio::test]
    async fn only_the_next_write_is_replaced_and_only_where_it_is_the_last_chunk() {
        let (ours, mut client) = duplex(4);
        let counter = Arc::<ReadCounter>::default();
        let mut stream = counted(ours, &counter);
        counter.finish_head();
        let writing = async {
            stream.write_all(b"1\r\na\r\n").await.unwrap();
            stream.end_with(Bytes::from_static(b"0\r\nx: 1\r\n\r\n"));
            stream.write_all(LAST_CHUNK).await.unwrap();
            stream.write_all(LAST_CHUNK).await.unwrap();
            stream.end_with(Bytes::from_static(b"0\r\ny: 1\r\n\r\n"));
            stream.write_all(b"HTTP/1.1 200").await.unwrap();
            stream.write_all(LAST_CHUNK).await.unwrap();
            drop(stream);
        };
        let mut read = String::new();
        let (_, count) = tokio::join!(writing, client.read_to_string(&mut read));
        count.unwrap();
        let ended = "1\r\na\r\n0\r\nx: 1\r\n\r\n0\r\n\r\n";
        assert_eq!(read, format!("{ended}HTTP/1.1 2000\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_connection_of_http_2_is_given_back_with_all_that_was_read() {
        let (ours, mut client) = duplex(64);
        let counter = Arc::<ReadCounter>::default();
        let mut stream = counted(ours, &counter);
        let mut read = [0; 40];
        client.write_all(b"PRI").await.unwrap();
        assert_eq!(stream.read(&mut read).await.unwrap(), 3);
        assert!(!counter.is_http2());
        client.write_all(b" * HTTP/2.0 and more").await.unwrap();
        assert!(futures_util::poll!(Box::pin(stream.read(&mut read))).is_pending());
        assert!(counter.is_http2());
        drop((stream, client));
        let mut all = String::new();
        let mut rewound = counter.take_http2().unwrap();
        rewound.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "PRI * HTTP/2.0 and more");
    }

    fn refusal() -> Arc<Refusal> {
        Arc::new(Refusal {
            response: |status| WholeResponse::new(status, "text/plain", "refused here"),
            cors: Cors::Listed(vec!["https://a.example".to_owned()]),
        })
    }

    #[tokio::test]
    async fn a_response_before_the_head_was_received_is_replaced_and_later_ones_pass() {
        let (ours, mut theirs) = duplex(99);
        let head = b"CONNECT a:1 HTTP/1.1\r\norigin: https://a.example\r\n\r\n";
        theirs.write_all(head).await.unwrap();
        let counter = Arc::<ReadCounter>::default();
        let mut stream = counted(ours, &counter);
        let mut read = [0; 30]; // ends within the name of the field
        stream.read_exact(&mut read).await.unwrap();
        let rest = head.len() - read.len();
        stream.read_exact(&mut vec![0; rest]).await.unwrap();
        let writing = async {
            stream.write_all(b"HTTP/1.1 405 Method").await.unwrap();
            stream.write_all(b" Not Allowed\r\n\r\n").await.unwrap();
            counter.finish_head();
            stream.write_all(b"|HTTP/1.1 200 OK").await.unwrap();
            drop(stream);
        };
        let mut read = String::new();
        let (_, count) = tokio::join!(writing, theirs.read_to_string(&mut read));
        count.unwrap();
        assert_eq!(
            read,
            "HTTP/1.1 405 Method Not Allowed\r\ncontent-type: text/plain\r\nvary: origin\r\n\
             access-control-allow-credentials: true\r\naccess-control-allow-origin: https://a.example\r\n\
             access-control-expose-headers: x-request-id, x-mini-lb-error, x-mini-lb-warning, x-should-retry, \
             retry-after, server-timing, x-mini-lb-prefill, x-mini-lb-decode\r\ncontent-length: 12\r\nconnection: close\r\n\r\nrefused here|HTTP/1.1 200 OK"
        );
    }
}
