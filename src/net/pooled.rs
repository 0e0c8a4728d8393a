//! A pooled connection as the transport of one exchange that Pingora makes (the decode leg).
//!
//! Pingora accepts a transport from its caller. [`PooledConnect`] gives it a connection of the [`Pool`] for one
//! exchange; the connection returns to the pool when Pingora has checked it at the end and found it reusable. To
//! Pingora each exchange has a new connection, so its own pool stays empty. Where the worker uses TLS, the transport
//! has it already, and Pingora sees plain HTTP.
//!
//! While Pingora waits for the next chunk of a response, the connection is offered to a relay: see [`super::lent`].
//!
//! Four things happen to the bytes on the way:
//! * The request head is held back until the body is written, so that both leave in one write. Pingora flushes in
//!   between, which would cost a system call, a segment and a second wake-up of the worker.
//! * The chunks of a response that arrive with one read are joined: see [`super::chunks`].
//! * The trailers of a response are copied, because Pingora drops them: see [`super::trailers`].
//! * When the worker responds before it has read the request, the rest of the request is not sent. Pingora reads no
//!   response while it writes, and a worker that has refused a request may never read the rest of it.
//!
//! Source: pingora-core 0.9.1 `protocols/l4/virt.rs`, `connectors/l4.rs`, `connectors/mod.rs`
//! (`test_reusable_stream`), `protocols/http/v1/client.rs` (`write_request_header`).

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use http::HeaderMap;
use pingora::connectors::L4Connect;
use pingora::protocols::Stream;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::{Chunks, Joiner};
use super::dial::dial;
use super::lent::Lending;
use super::peer::{Dialling, Reuse, reuse_key};
use super::pool::{Pool, is_quiet};
use super::response_head::{MAX_HEAD_BYTES, has_final_head};
use super::trailers;
use crate::addresses::Addresses;

/// The size of a read while a request is being written, in bytes.
const EARLY_READ: usize = 8 << 10;

/// Flags shared by the owner of an exchange and its connection, while Pingora holds the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct PooledHandle(Arc<HandleState>);

// Relaxed everywhere: the task of the request is the only one that reads and writes these flags. They are atomics
// because Pingora requires its transports to be `Sync`. A relay touches none of them.
#[derive(Debug, Default)]
struct HandleState {
    reused: AtomicBool,
    written: AtomicBool,
    received: AtomicBool,
    response_ended: AtomicBool,
    /// Boxed, because hardly any response has them.
    trailers: OnceLock<Box<HeaderMap>>,
    lending: Lending,
}

/// What a lost connection says about its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LostConnection {
    /// It came from the pool and took no byte of the request: the worker had closed it before.
    Untouched,
    /// It came from the pool and brought no byte of a response. The worker may have closed it before it read the
    /// request, or have read it.
    Stale,
    /// It was new, or brought a part of a response: the worker was lost with the request.
    InUse,
}

impl PooledHandle {
    /// Notes that the response has been read to its end: the connection may return to the pool.
    pub(crate) fn end_response(&self) {
        self.0.response_ended.store(true, Ordering::Relaxed);
    }

    /// What the loss of this connection says.
    pub(crate) fn lost(&self) -> LostConnection {
        let state = &self.0;
        if !state.reused.load(Ordering::Relaxed) || state.received.load(Ordering::Relaxed) {
            LostConnection::InUse
        } else if state.written.load(Ordering::Relaxed) {
            LostConnection::Stale
        } else {
            LostConnection::Untouched
        }
    }

    /// The trailers of the response, those that may be passed on, once Pingora has read its end.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.0.trailers.get().map(Box::as_ref)
    }

    pub(super) fn lending(&self) -> &Lending {
        &self.0.lending
    }

    fn has_ended(&self) -> bool {
        self.0.response_ended.load(Ordering::Relaxed)
    }
}

/// Connects Pingora to a worker.
pub(super) struct PooledConnect {
    pub(super) pool: Arc<Pool>,
    pub(super) handle: PooledHandle,
    pub(super) chunks: Chunks,
    pub(super) reuse: Reuse,
    pub(super) addresses: Arc<Addresses>,
    /// For a new connection.
    pub(super) dialling: Arc<Dialling>,
    /// The name that the worker's certificate must have; `None` for a worker without TLS.
    pub(super) server_name: Option<Box<str>>,
}

impl PooledConnect {
    /// Makes Pingora take its connection to this peer from the pool.
    pub(super) fn attach(self, peer: &mut HttpPeer) {
        let options = &mut peer.options;
        // The pool's `dial` has the timeout. Pingora would set a timer for pooled connections as well.
        options.total_connection_timeout = None;
        options.connection_timeout = None;
        options.custom_l4 = Some(Arc::new(self));
    }
}

impl fmt::Debug for PooledConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnect")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl L4Connect for PooledConnect {
    async fn connect(&self, worker: &PeerAddress) -> Result<L4Stream> {
        let PeerAddress::Inet(worker) = worker else {
            return Error::e_explain(ErrorType::ConnectError, "a worker has an IP address");
        };
        let server_name = self.server_name.as_deref();
        let mut key = reuse_key(*worker, server_name);
        let pooled = match self.reuse {
            Reuse::Pooled => self.pool.take(key),
            Reuse::Never => None,
        };
        self.handle
            .0
            .reused
            .store(pooled.is_some(), Ordering::Relaxed);
        let stream = match pooled {
            Some(stream) => stream,
            None => {
                // Boxed because it is large and rarely needed.
                let dialled = dial(&self.pool, &self.dialling, &self.addresses, server_name);
                let (address, stream) = Box::pin(dialled).await?;
                key = reuse_key(address, server_name);
                stream
            }
        };
        let pooled = PooledStream {
            stream: Some(stream),
            key,
            pool: self.pool.clone(),
            handle: self.handle.clone(),
            head: RequestHead::NotWritten,
            early: BytesMut::new(),
            refused: false,
            joiner: Joiner::new(self.chunks),
            reusable: false,
        };
        Ok(L4Stream::from(VirtualSocketStream::new(Box::new(pooled))))
    }
}

/// A connection of the pool while Pingora uses it.
struct PooledStream {
    /// `None` while it is offered to a relay or lent to one, and after the drop.
    stream: Option<Stream>,
    key: u64,
    pool: Arc<Pool>,
    handle: PooledHandle,
    head: RequestHead,
    /// What the worker has sent while the request was being written, and Pingora has not read.
    early: BytesMut,
    /// Whether the worker has responded, or closed the connection, before it has read the whole request. The rest of
    /// the request is discarded.
    refused: bool,
    joiner: Joiner,
    /// Whether the connection was found quiet after the end of the response.
    reusable: bool,
}

/// How far the request head is on its way.
enum RequestHead {
    /// Pingora has not written it.
    NotWritten,
    /// Held back for the body; Pingora has not flushed yet.
    Held(BytesMut),
    /// Held back through Pingora's first flush, which comes before the body. The second one sends it.
    Flushed(BytesMut),
    /// On the wire.
    Sent,
}

impl fmt::Debug for PooledStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledStream")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}

impl PooledStream {
    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        let stream = self.stream.as_mut().map(Pin::new);
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Takes the connection back from where it was offered. Pending while a relay has it.
    fn poll_take_back(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stream.is_none()
            && let Some(returned) = ready!(self.handle.lending().poll_take_back(cx))
        {
            self.stream = Some(returned.stream);
            self.joiner.note_passed(returned.passed);
            self.early.extend_from_slice(&returned.unread);
            if let Some(error) = returned.error {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Offers the connection to a relay, if the next byte begins a chunk.
    fn offer(&mut self) {
        if let Some(passed) = self.joiner.payload_at_boundary()
            && let Some(stream) = self.stream.take()
        {
            self.handle.lending().offer(stream, passed);
        }
    }

    /// Sends the held head together with `next`, and returns how many bytes of `next` were sent. An empty `next`
    /// sends the head alone.
    fn poll_send(&mut self, cx: &mut Context<'_>, next: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let (RequestHead::Held(head) | RequestHead::Flushed(head)) = &mut self.head else {
                return self.stream()?.poll_write(cx, next);
            };
            let Some(stream) = self.stream.as_mut() else {
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            };
            let both = [IoSlice::new(head), IoSlice::new(next)];
            let sent = ready!(Pin::new(stream).poll_write_vectored(cx, &both))?;
            let of_head = sent.min(head.len());
            head.advance(of_head);
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.handle.0.written.store(true, Ordering::Relaxed);
            if head.is_empty() {
                self.head = RequestHead::Sent;
                // A write may end exactly with the head. To return 0 for it would be an error to the caller; the next
                // turn of the loop writes `next`.
                if sent > of_head || next.is_empty() {
                    return Poll::Ready(Ok(sent - of_head));
                }
            }
        }
    }

    /// Writes, and gives up the rest of the request when the worker responds first.
    fn poll_write_or_refused(
        &mut self,
        cx: &mut Context<'_>,
        next: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.refused {
            return Poll::Ready(Ok(next.len()));
        }
        match self.poll_send(cx, next) {
            Poll::Pending if self.poll_early_response(cx)? => {
                self.refused = true;
                Poll::Ready(Ok(next.len()))
            }
            polled => polled,
        }
    }

    /// Whether a response has begun, or the connection has ended, while the request is still being written.
    fn poll_early_response(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        while self.early.len() <= MAX_HEAD_BYTES {
            // On the stack: most requests are written at once, and never come here.
            let mut stack = [const { MaybeUninit::uninit() }; EARLY_READ];
            let mut stack = ReadBuf::uninit(&mut stack);
            match self.stream()?.poll_read(cx, &mut stack) {
                Poll::Pending => return Ok(false),
                Poll::Ready(read) => read?,
            }
            self.early.extend_from_slice(stack.filled());
            if stack.filled().is_empty() || has_final_head(&self.early) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads what has been read early, then from the connection.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return self.stream()?.poll_read(cx, buf);
        }
        let length = self.early.len().min(buf.remaining());
        buf.put_slice(&self.early.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for PooledStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_take_back(cx))?;
        if self.handle.has_ended() {
            // After the response Pingora reads once more, to see whether the connection can go to its pool. The empty
            // read below says "closed", so that Pingora drops this transport and `drop` puts the connection into ours.
            // A worker that has not read the whole request would take the next one for the rest of it.
            self.reusable = !self.refused && self.stream.as_mut().is_some_and(is_quiet);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match self.poll_receive(cx, buf) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.offer();
                return Poll::Pending;
            }
        }
        if buf.filled().len() > before {
            self.handle.0.received.store(true, Ordering::Relaxed);
        }
        let joined = self.joiner.join(&mut buf.filled_mut()[before..]);
        buf.set_filled(before + joined);
        if let Some(lines) = self.joiner.take_trailers()
            && let Some(trailers) = trailers::parse(&lines)
        {
            self.handle.0.trailers.get_or_init(|| Box::new(trailers));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PooledStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.head, RequestHead::NotWritten) {
            self.head = RequestHead::Held(BytesMut::from(buf));
            return Poll::Ready(Ok(buf.len()));
        }
        self.poll_write_or_refused(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match std::mem::replace(&mut self.head, RequestHead::Sent) {
            RequestHead::Held(head) => {
                self.head = RequestHead::Flushed(head);
                return Poll::Ready(Ok(()));
            }
            RequestHead::Flushed(head) => {
                self.head = RequestHead::Flushed(head);
                ready!(self.poll_write_or_refused(cx, &[]))?;
            }
            other => self.head = other,
        }
        if self.refused {
            return Poll::Ready(Ok(()));
        }
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream() {
            Ok(stream) => stream.poll_shutdown(cx),
            // What is offered is closed by the drop, and what is lent by the relay.
            Err(_) => Poll::Ready(Ok(())),
        }
    }
}

impl VirtualSocket for PooledStream {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        // `Pool::dial` has set the options.
        Ok(())
    }
}

impl Drop for PooledStream {
    fn drop(&mut self) {
        // What is offered is closed with the rest.
        let offered = self.handle.lending().close();
        self.stream = self.stream.take().or(offered);
        if self.reusable
            && let Some(stream) = self.stream.take()
        {
            self.pool.put(self.key, stream);
        }
    }
}
