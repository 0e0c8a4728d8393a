//! A worker's connection for the time of one exchange, in the shape that Pingora takes.
//!
//! Pingora lets a peer bring its own transport. [`PooledConnect`] is that of a worker without TLS: it lends a connection of the
//! [`Pool`] for one exchange, and gets it back when Pingora has found nothing wrong with it. To Pingora every
//! exchange has a connection of its own, so that its pool stays empty.
//!
//! The head of a request waits for the body, and both leave in one write: Pingora flushes in between, which
//! costs a system call and a segment here, and a second wake-up of the worker. The chunks of an answer that come
//! with one read are one chunk to Pingora: see [`super::chunks`].
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
use pingora_core::connectors::L4Connect;
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunks::{Chunks, Joiner};
use super::peer;
use super::pool::{Pool, is_quiet};

/// What the borrower and the connection know of each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct PooledHandle(Arc<HandleState>);

#[derive(Debug, Default)]
struct HandleState {
    reused: AtomicBool,
    ended: AtomicBool,
}

impl PooledHandle {
    /// The answer has been read to its end: the connection may go back when it is found quiet.
    pub(crate) fn end(&self) {
        self.0.ended.store(true, Ordering::Relaxed);
    }

    /// Whether the connection had served a request before, so that the worker may have closed it meanwhile.
    pub(crate) fn is_reused(&self) -> bool {
        self.0.reused.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }
}

/// How Pingora gets its connection to a worker.
pub(super) struct PooledConnect {
    pub(super) pool: Arc<Pool>,
    pub(super) handle: PooledHandle,
    pub(super) chunks: Chunks,
    /// Of the connections that will do.
    pub(super) key: u64,
    /// With a new one.
    pub(super) patience: Duration,
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
        let kept = self.pool.kept(self.key);
        self.handle
            .0
            .reused
            .store(kept.is_some(), Ordering::Relaxed);
        let stream = match kept {
            Some(stream) => stream,
            None => self.pool.dial(&peer(*worker, self.patience, None)).await?,
        };
        let lent = PooledStream {
            stream: Some(stream),
            key: self.key,
            pool: self.pool.clone(),
            handle: self.handle.clone(),
            head: Head::Awaited,
            joiner: Joiner::new(self.chunks),
            fit: false,
        };
        Ok(L4Stream::from(VirtualSocketStream::new(Box::new(lent))))
    }
}

struct PooledStream {
    /// `Some` until the drop.
    stream: Option<Stream>,
    key: u64,
    pool: Arc<Pool>,
    handle: PooledHandle,
    head: Head,
    joiner: Joiner,
    /// Found quiet after the end of the answer.
    fit: bool,
}

/// The head of the request on its way.
enum Head {
    /// Not there yet.
    Awaited,
    /// Waits for the body. Pingora has not flushed yet.
    Held(BytesMut),
    /// Pingora has flushed it; the next flush means it.
    Flushed(BytesMut),
    /// Gone.
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

    /// Sends what is held, together with `next`. How many bytes of `next` went along; none when it is empty.
    fn poll_send(&mut self, cx: &mut Context<'_>, next: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let (Head::Held(head) | Head::Flushed(head)) = &mut self.head else {
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
                self.head = Head::Sent;
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
            // Pingora looks whether the connection is fit for its pool. It is for ours.
            self.fit = self.stream.as_mut().is_some_and(is_quiet);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(self.stream()?.poll_read(cx, buf))?;
        let left = self.joiner.join(&mut buf.filled_mut()[before..]);
        buf.set_filled(before + left);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PooledStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if matches!(self.head, Head::Awaited) {
            self.head = Head::Held(BytesMut::from(buf));
            return Poll::Ready(Ok(buf.len()));
        }
        self.poll_send(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match std::mem::replace(&mut self.head, Head::Sent) {
            Head::Held(head) => {
                self.head = Head::Flushed(head);
                return Poll::Ready(Ok(()));
            }
            Head::Flushed(head) => {
                self.head = Head::Flushed(head);
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
    /// The pool has set what this proxy wants.
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PooledStream {
    fn drop(&mut self) {
        if self.fit
            && let Some(stream) = self.stream.take()
        {
            self.pool.keep(self.key, stream);
        }
    }
}
