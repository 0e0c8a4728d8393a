//! A client's connection that is listened to: whether anything has come of the next request.
//!
//! Pingora's timer for an idle connection covers the first read only, and tells nobody that it has ended; this
//! counts what is read, whatever the transport. Every byte passes as it is.
//!
//! Source: pingora-core 0.9.1, `protocols/http/v1/server.rs` (`read_request`), `protocols/mod.rs` (`IO`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::{SslDigest, TlsRef};
use pingora_core::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    Stream, TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What has been heard on one connection. Only the connection's own task reads and writes it.
#[derive(Debug, Default)]
pub(crate) struct ReadCounter {
    /// Bytes that were read.
    received: AtomicU64,
    /// Those that belong to requests whose heads are known.
    claimed: AtomicU64,
    /// Whether the last of them has a length that nobody knows.
    open_ended: AtomicBool,
    /// Whether the head of the present request is there, or will never be.
    answered: AtomicBool,
}

impl ReadCounter {
    /// A request begins. Whether a part of it has come along with the one before, as far as that can be known:
    /// Pingora keeps it to itself, and of a chunked body how long it was. Such a part may then stay alone for
    /// as long as a connection may be idle.
    pub(crate) fn next(&self) -> bool {
        self.answered.store(false, Ordering::Relaxed);
        let received = self.received();
        if self.open_ended.swap(false, Ordering::Relaxed) {
            self.claimed.store(received, Ordering::Relaxed);
        }
        received > self.claimed.load(Ordering::Relaxed)
    }

    /// So many bytes have been read.
    pub(crate) fn hear(&self, bytes: u64) {
        if bytes > 0 {
            self.received.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// All bytes so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// A head has been read: so many bytes belong to its request, if that is known.
    pub(crate) fn claim(&self, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => {
                self.claimed.fetch_add(bytes, Ordering::Relaxed);
            }
            None => self.open_ended.store(true, Ordering::Relaxed),
        }
    }

    /// Nobody waits for a head any more.
    pub(crate) fn answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether that is so.
    pub(crate) fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

/// The connection.
#[derive(Debug)]
pub(crate) struct CountedStream {
    stream: Stream,
    heard: Arc<ReadCounter>,
}

impl CountedStream {
    pub(crate) fn new(stream: Stream, heard: Arc<ReadCounter>) -> Self {
        Self { stream, heard }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.heard.hear((buf.filled().len() - before) as u64);
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for CountedStream {
    async fn shutdown(&mut self) {
        self.stream.shutdown().await;
    }
}

impl UniqueID for CountedStream {
    fn id(&self) -> UniqueIDType {
        self.stream.id()
    }
}

impl Ssl for CountedStream {
    fn get_ssl(&self) -> Option<&TlsRef> {
        self.stream.get_ssl()
    }

    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.stream.get_ssl_digest()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.stream.selected_alpn_proto()
    }
}

impl GetTimingDigest for CountedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        self.stream.get_timing_digest()
    }

    fn get_read_pending_time(&self) -> Duration {
        self.stream.get_read_pending_time()
    }

    fn get_write_pending_time(&self) -> Duration {
        self.stream.get_write_pending_time()
    }
}

impl GetProxyDigest for CountedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.stream.get_proxy_digest()
    }

    fn set_proxy_digest(&mut self, digest: ProxyDigest) {
        self.stream.set_proxy_digest(digest);
    }
}

impl GetSocketDigest for CountedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        self.stream.get_socket_digest()
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.stream.set_socket_digest(digest);
    }
}

#[async_trait]
impl Peek for CountedStream {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        self.stream.try_peek(buf).await
    }
}
