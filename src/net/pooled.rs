//! A pooled connection as the transport of one exchange that Pingora makes (the decode leg).
//!
//! Pingora accepts a transport from its caller. [`PooledConnect`] gives it a connection of the [`Pool`] for one
//! exchange; the connection returns to the pool when Pingora has checked it at the end and found it reusable. To
//! Pingora each exchange has a new connection, so its own pool stays empty. TLS connections do not come here:
//! Pingora's transport is the part below TLS.
//!
//! Two things happen to the bytes on the way:
//! * The request head is held back until the body is written, so that both leave in one write. Pingora flushes in
//!   between, which would cost a system call, a segment and a second wake-up of the worker.
//! * The chunks of a response that arrive with one read are joined: see [`super::chunks`].
//!
//! Source: pingora-core 0.9.1 `protocols/l4/virt.rs`, `connectors/l4.rs`, `connectors/mod.rs`
//! (`test_reusable_stream`), `protocols/http/v1/client.rs` (`write_request_header`).

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::connectors::L4Connect;
use pingora::protocols::Stream;
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::l4::stream::Stream as L4Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::{Chunks, Joiner};
use super::peer::peer;
use super::pool::{Pool, is_quiet};

/// Flags shared by the owner of an exchange and its connection, while Pingora holds the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct PooledHandle(Arc<HandleState>);

// Relaxed everywhere: the task of the request is the only one that reads and writes these flags. They are atomics
// because Pingora requires its transports to be `Sync`.
#[derive(Debug, Default)]
struct HandleState {
    reused: AtomicBool,
    response_ended: AtomicBool,
}

impl PooledHandle {
    /// Notes that the response has been read to its end: the connection may return to the pool.
    pub(crate) fn end_response(&self) {
        self.0.response_ended.store(true, Ordering::Relaxed);
    }

    /// Whether the connection came from the pool, so that the worker may have closed it in the meantime.
    pub(crate) fn is_reused(&self) -> bool {
        self.0.reused.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.0.response_ended.load(Ordering::Relaxed)
    }
}

/// Connects Pingora to a worker, with a pooled connection when there is one.
pub(super) struct PooledConnect {
    pub(super) pool: Arc<Pool>,
    pub(super) handle: PooledHandle,
    pub(super) chunks: Chunks,
    /// The pool's key for this worker.
    pub(super) key: u64,
    /// For a new connection.
    pub(super) connect_timeout: Duration,
}

impl PooledConnect {
    /// Makes Pingora take its connection to this peer, which speaks plain HTTP, from the pool.
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
        let pooled = self.pool.take(self.key);
        self.handle
            .0
            .reused
            .store(pooled.is_some(), Ordering::Relaxed);
        let stream = match pooled {
            Some(stream) => stream,
            None => {
                let peer = peer(*worker, self.connect_timeout, None);
                self.pool.dial(&peer).await?
            }
        };
        let pooled = PooledStream {
            stream: Some(stream),
            key: self.key,
            pool: self.pool.clone(),
            handle: self.handle.clone(),
            head: RequestHead::NotWritten,
            joiner: Joiner::new(self.chunks),
            reusable: false,
        };
        Ok(L4Stream::from(VirtualSocketStream::new(Box::new(pooled))))
    }
}

/// A connection of the pool while Pingora uses it.
struct PooledStream {
    /// `Some` until the drop.
    stream: Option<Stream>,
    key: u64,
    pool: Arc<Pool>,
    handle: PooledHandle,
    head: RequestHead,
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
}

impl AsyncRead for PooledStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.handle.has_ended() {
            // After the response Pingora reads once more, to see whether the connection can go to its pool. The empty
            // read below says "closed", so that Pingora drops this transport and `drop` puts the connection into ours.
            self.reusable = self.stream.as_mut().is_some_and(is_quiet);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        let joined = self.joiner.join(&mut buf.filled_mut()[before..]);
        buf.set_filled(before + joined);
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
        self.poll_send(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match std::mem::replace(&mut self.head, RequestHead::Sent) {
            RequestHead::Held(head) => {
                self.head = RequestHead::Flushed(head);
                return Poll::Ready(Ok(()));
            }
            RequestHead::Flushed(head) => {
                self.head = RequestHead::Flushed(head);
                ready!(self.poll_send(cx, &[]))?;
            }
            other => self.head = other,
        }
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
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
        if self.reusable
            && let Some(stream) = self.stream.take()
        {
            self.pool.put(self.key, stream);
        }
    }
}
