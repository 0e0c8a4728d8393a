//! Counts the bytes read from a client, to tell an idle connection from one with a half-sent request head.
//!
//! Pingora's timer for an idle connection covers only the first read of a request, and its end cannot be observed.
//! [`CountedStream`] wraps the client's stream, plain or TLS, and passes every byte on unchanged, except for one response:
//! a head that Pingora refuses by itself meets no hook, and gets a response without a body, which is replaced here by one
//! of the form that all errors have.
//!
//! The stream is behind a lock, so that a relay can write to it while Pingora reads from it, see [`ClientWriter`].
//!
//! Source: pingora-core 0.9.1, `protocols/http/v1/server.rs` (`read_request`), `protocols/mod.rs` (`IO`).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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

use super::refusal::Refusal;

/// The bytes read on one connection, and the part of them that is known to belong to a request.
// Relaxed everywhere: only the task of the connection reads and writes these. They are atomics because Pingora holds
// the stream while `connection.rs` watches the counter.
#[derive(Debug, Default)]
pub(crate) struct ReadCounter {
    read: AtomicU64,
    /// Bytes of requests whose heads have been received.
    attributed: AtomicU64,
    /// Whether the last of these requests has a body of unknown length.
    open_ended: AtomicBool,
    /// Whether the head of the current request has been received, or never will be.
    head_finished: AtomicBool,
}

impl ReadCounter {
    /// Begins the next request. Returns whether a part of it has already been read, together with the request before,
    /// as far as that can be known.
    ///
    /// After a chunked body it cannot: Pingora reads ahead and does not say how long the body was. Such a part is
    /// then taken for an idle connection, and may stay as long as one.
    pub(crate) fn next_request(&self) -> bool {
        self.head_finished.store(false, Ordering::Relaxed);
        let read = self.bytes_read();
        if self.open_ended.swap(false, Ordering::Relaxed) {
            self.attributed.store(read, Ordering::Relaxed);
        }
        read > self.attributed.load(Ordering::Relaxed)
    }

    /// Records a read.
    pub(crate) fn record_read(&self, bytes: u64) {
        // Most polls read nothing, and an atomic addition costs more than this branch.
        if bytes > 0 {
            self.read.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// All bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Attributes the bytes of a request, head and body, once its head has been received; `None` when the length of
    /// its body is unknown.
    pub(crate) fn attribute(&self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => {
                self.attributed.fetch_add(bytes, Ordering::Relaxed);
            }
            None => self.open_ended.store(true, Ordering::Relaxed),
        }
    }

    /// Notes that the head of the current request has been received, or has been given up.
    pub(crate) fn finish_head(&self) {
        self.head_finished.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_head_finished(&self) -> bool {
        self.head_finished.load(Ordering::Relaxed)
    }
}

/// A client's connection whose reads are counted.
#[derive(Debug)]
pub(crate) struct CountedStream {
    /// Shared with the [`ClientWriter`] of a response.
    stream: Arc<Mutex<Stream>>,
    counter: Arc<ReadCounter>,
    refusal: Arc<Refusal>,
    /// What has been read since the last response, if [`Refusal::reads_head`].
    head: Vec<u8>,
    /// The part of the refusal that is not written yet; `None` before it begins.
    refusing: Option<Bytes>,
}

/// The writing side of a client's connection, for a relay that writes parts of a response beside Pingora.
///
/// The reading side stays with Pingora, which learns from it that the client leaves. The runtime keeps one waker for each
/// direction of a socket, so that two tasks can wait for one each.
#[derive(Debug)]
pub(crate) struct ClientWriter(Arc<Mutex<Stream>>);

impl ClientWriter {
    /// Writes as [`AsyncWrite::poll_write`] does.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *lock(&self.0)).poll_write(cx, buf)
    }

    /// Sends what is still buffered.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *lock(&self.0)).poll_flush(cx)
    }
}

fn lock(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    // A poisoned lock holds a stream all the same.
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CountedStream {
    pub(crate) fn new(stream: Stream, counter: Arc<ReadCounter>, refusal: Arc<Refusal>) -> Self {
        Self {
            stream: Arc::new(Mutex::new(stream)),
            counter,
            refusal,
            head: Vec::new(),
            refusing: None,
        }
    }

    fn stream(&self) -> MutexGuard<'_, Stream> {
        lock(&self.stream)
    }

    /// The writing side of this connection.
    pub(super) fn writer(&self) -> ClientWriter {
        ClientWriter(self.stream.clone())
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
        while !refusing.is_empty() {
            match ready!(Pin::new(&mut *lock(&self.stream)).poll_write(cx, refusing))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => refusing.advance(written),
            }
        }
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
        let polled = Pin::new(&mut *self.stream()).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        self.counter.record_read(read.len() as u64);
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
        Pin::new(&mut *self.stream()).poll_write(cx, buf)
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
        Pin::new(&mut *self.stream()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for CountedStream {
    async fn shutdown(&mut self) {
        // Without holding the lock while it waits.
        let _ = poll_fn(|cx| Pin::new(&mut *self.stream()).poll_shutdown(cx)).await;
    }
}

impl UniqueID for CountedStream {
    fn id(&self) -> UniqueIDType {
        self.stream().id()
    }
}

impl Ssl for CountedStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream().get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream().selected_alpn_proto()
    }
}

impl GetTimingDigest for CountedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream().get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream().get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream().get_write_pending_time()
    }
}

impl GetProxyDigest for CountedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream().get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream().set_proxy_digest(digest);
    }
}

impl GetSocketDigest for CountedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream().get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream().set_socket_digest(digest);
    }
}

#[async_trait]
impl Peek for CountedStream {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        // No response has begun when a connection is peeked into, and so nothing else writes to it.
        match Arc::get_mut(&mut self.stream) {
            Some(stream) => {
                let stream = stream.get_mut().unwrap_or_else(PoisonError::into_inner);
                stream.try_peek(buf).await
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

    #[test]
    fn bytes_read_with_the_request_before_are_the_beginning_of_the_next() {
        let counter = ReadCounter::default();
        assert!(!counter.next_request());
        counter.record_read(120);
        counter.attribute(Some(100));
        assert!(counter.next_request(), "20 bytes belong to no request yet");
        counter.record_read(80);
        counter.attribute(Some(100));
        assert!(!counter.next_request());
    }

    #[test]
    fn bytes_after_a_body_of_unknown_length_are_not_taken_for_a_request() {
        let counter = ReadCounter::default();
        counter.record_read(300);
        counter.attribute(None);
        assert!(!counter.next_request());
        counter.record_read(1);
        assert!(
            counter.next_request(),
            "only the request before was unknown"
        );
    }

    #[test]
    fn the_next_request_waits_for_its_own_head() {
        let counter = ReadCounter::default();
        counter.finish_head();
        assert!(counter.is_head_finished());
        counter.next_request();
        assert!(!counter.is_head_finished());
    }

    #[tokio::test]
    async fn reads_are_counted_and_bytes_pass_unchanged() {
        let (ours, mut client) = duplex(64);
        let counter = Arc::<ReadCounter>::default();
        let mut stream = CountedStream::new(Box::new(ours), counter.clone(), refusal());
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
        let mut stream = CountedStream::new(Box::new(ours), counter.clone(), refusal());
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
