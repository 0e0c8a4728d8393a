//! Decode's connection, lent by Pingora to a relay.
//!
//! Pingora reads a response through its own tasks and filters. Where nothing is left to be done with the bytes of a stream,
//! they need not take that way: while Pingora waits for the next chunk, [`super::pooled`] offers its connection, and
//! [`PooledHandle::borrow`] takes it. Pingora waits until it is given back, and then reads on as if nothing had been read
//! meanwhile: the connection comes back at a chunk-size line, with the bytes that are Pingora's in front.
//!
//! Both sides belong to one request, and no more than one of them has the connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use pingora::protocols::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use super::forward::{Frames, HEADROOM, READ, read_space};
use super::pooled::PooledHandle;

/// Where the connection of an exchange is.
#[derive(Debug, Default)]
pub(super) struct Lending(Mutex<Place>);

#[derive(Debug, Default)]
enum Place {
    /// Pingora has it.
    #[default]
    Kept,
    /// Pingora waits for the next chunk. So many bytes of the body have passed.
    Offered(Stream, u64),
    /// A relay has it. Pingora's read is woken when it comes back.
    Lent(Option<Waker>),
    /// The relay has given it back.
    Returned(Returned),
    /// The exchange is over.
    Closed,
}

/// A connection that comes back to Pingora.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) stream: Stream,
    /// Bytes of the body that have passed meanwhile.
    pub(super) passed: u64,
    /// What Pingora reads before the bytes of the connection.
    pub(super) unread: Vec<u8>,
    /// The error of the last read.
    pub(super) error: Option<io::Error>,
}

impl Lending {
    fn place(&self) -> MutexGuard<'_, Place> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers the connection, at the begin of a chunk behind so many bytes of the body.
    pub(super) fn offer(&self, stream: Stream, passed: u64) {
        *self.place() = Place::Offered(stream, passed);
    }

    /// Takes the connection back. Pending while a relay has it; `None` where there is none.
    pub(super) fn poll_take_back(&self, cx: &mut Context<'_>) -> Poll<Option<Returned>> {
        let mut place = self.place();
        if let Place::Lent(waker) = &mut *place {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(match std::mem::take(&mut *place) {
            Place::Offered(stream, _) => Some(Returned {
                stream,
                passed: 0,
                unread: Vec::new(),
                error: None,
            }),
            Place::Returned(returned) => Some(returned),
            Place::Kept | Place::Lent(_) | Place::Closed => None,
        })
    }

    /// Ends the exchange: a connection that is lent does not come back. The connection, where Pingora can have it.
    pub(super) fn close(&self) -> Option<Stream> {
        match std::mem::replace(&mut *self.place(), Place::Closed) {
            Place::Offered(stream, _) => Some(stream),
            Place::Kept | Place::Lent(_) | Place::Returned(_) | Place::Closed => None,
        }
    }
}

impl PooledHandle {
    /// Takes the connection that Pingora offers, if so many bytes of the body, and no more, have passed.
    pub(crate) fn borrow(&self, passed: u64) -> Option<LentStream> {
        let mut place = self.lending().place();
        if !matches!(&*place, Place::Offered(_, offered) if *offered == passed) {
            return None;
        }
        let Place::Offered(stream, _) = std::mem::replace(&mut *place, Place::Lent(None)) else {
            return None;
        };
        Some(LentStream {
            stream,
            frames: Frames::new(),
            passed: 0,
            rest: Vec::new(),
            error: None,
            handle: self.clone(),
        })
    }
}

/// A connection that is lent. Dropping it closes it.
pub(crate) struct LentStream {
    stream: Stream,
    frames: Frames,
    /// Bytes of the body that have been forwarded.
    passed: u64,
    /// Bytes that have been read and are Pingora's.
    rest: Vec<u8>,
    error: Option<io::Error>,
    handle: PooledHandle,
}

/// Whether more of a stream may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    More,
    /// What comes next is Pingora's: the end of the stream, an error, or what is no plain chunk.
    Pingora,
}

thread_local! {
    /// One for each thread: a stream needs it only for the moment of a read.
    static SPACE: RefCell<Box<[u8]>> = RefCell::new(read_space());
}

impl LentStream {
    /// Reads what has come of the stream. `take` gets it, if there is any: the bytes of the body, and the same as one chunk.
    pub(crate) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut Context<'_>, &[u8], &[u8]),
    ) -> Poll<Next> {
        SPACE.with_borrow_mut(|space| {
            let mut read = ReadBuf::new(&mut space[HEADROOM..HEADROOM + READ]);
            if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                self.error = Some(error);
                return Poll::Ready(Next::Pingora);
            }
            let length = read.filled().len();
            if length == 0 {
                return Poll::Ready(Next::Pingora);
            }
            let end = HEADROOM + length;
            let forwarded = self.frames.forward(space, end);
            if !forwarded.payload.is_empty() {
                self.passed += forwarded.payload.len() as u64;
                take(cx, &space[forwarded.payload], &space[forwarded.chunk]);
            }
            Poll::Ready(match forwarded.rest {
                None => Next::More,
                Some(rest) => {
                    self.rest.extend_from_slice(&space[rest..end]);
                    Next::Pingora
                }
            })
        })
    }

    /// Whether Pingora can read on from here.
    pub(crate) fn can_give_back(&self) -> bool {
        self.frames.rewind().is_some()
    }

    /// Gives the connection back to Pingora.
    pub(crate) fn give_back(self) {
        let mut unread = self.frames.rewind().unwrap_or_default();
        unread.extend_from_slice(&self.rest);
        let returned = Returned {
            stream: self.stream,
            passed: self.passed,
            unread,
            error: self.error,
        };
        let mut place = self.handle.lending().place();
        if let Place::Lent(waker) = &mut *place {
            let waker = waker.take();
            *place = Place::Returned(returned);
            drop(place);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// A handle over which this connection is offered, behind so many bytes of the body.
#[cfg(test)]
pub(crate) fn offered(stream: Stream, passed: u64) -> PooledHandle {
    let handle = PooledHandle::default();
    handle.lending().offer(stream, passed);
    handle
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Reads once: the chunk, and what may come.
    async fn next(lent: &mut LentStream) -> (String, Next) {
        let mut got = Vec::new();
        let next = poll_fn(|cx| lent.poll_next(cx, |_, _, chunk| got.extend_from_slice(chunk)));
        let next = next.await;
        (String::from_utf8(got).unwrap(), next)
    }

    fn lend() -> (PooledHandle, LentStream, DuplexStream) {
        let (ours, worker) = duplex(256);
        let handle = offered(Box::new(ours), 7);
        let lent = handle.borrow(7).unwrap();
        (handle, lent, worker)
    }

    #[tokio::test]
    async fn a_connection_is_lent_only_when_all_that_was_read_has_passed() {
        let (ours, _worker) = duplex(256);
        let handle = offered(Box::new(ours), 7);
        assert!(handle.borrow(6).is_none() && handle.borrow(8).is_none());
        assert!(handle.borrow(7).is_some());
        assert!(handle.borrow(7).is_none(), "it is lent");
    }

    #[tokio::test]
    async fn a_connection_that_comes_back_has_what_is_pingoras_in_front() {
        let (handle, mut lent, mut worker) = lend();
        let mut taken = take_back(handle.clone());
        assert!(futures_util::poll!(&mut taken).is_pending());
        worker
            .write_all(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n")
            .await
            .unwrap();
        assert_eq!(
            next(&mut lent).await,
            ("5\r\nhello\r\n".to_owned(), Next::Pingora)
        );
        lent.give_back();
        worker.write_all(b"\r\n").await.unwrap();
        let mut returned = taken.await.unwrap();
        assert_eq!((returned.passed, &*returned.unread), (5, &b"0\r\n"[..]));
        let mut rest = [0; 2];
        returned.stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"\r\n");
    }

    /// Pingora's side.
    fn take_back(handle: PooledHandle) -> Pin<Box<dyn Future<Output = Option<Returned>> + Send>> {
        Box::pin(async move { poll_fn(|cx| handle.lending().poll_take_back(cx)).await })
    }

    #[tokio::test]
    async fn a_connection_that_breaks_its_framing_comes_back_as_one_that_pingora_refuses() {
        let (handle, mut lent, mut worker) = lend();
        // What follows the chunk looks like a chunk, but no line end comes before it.
        worker.write_all(b"2\r\nhe3\r\nllo\r\n").await.unwrap();
        assert_eq!(next(&mut lent).await.1, Next::Pingora);
        lent.give_back();
        let returned = take_back(handle).await.unwrap();
        assert!(httparse::parse_chunk_size(&returned.unread).is_err());
    }

    #[tokio::test]
    async fn a_connection_that_is_offered_or_lent_closes_with_its_exchange() {
        let (handle, mut lent, worker) = lend();
        assert!(handle.lending().close().is_none());
        drop(worker);
        assert_eq!(next(&mut lent).await, (String::new(), Next::Pingora));
        lent.give_back();
        assert!(take_back(handle).await.is_none());

        let (ours, mut worker) = duplex(256);
        drop(offered(Box::new(ours), 0).lending().close());
        assert_eq!(worker.read(&mut [0]).await.unwrap(), 0);
    }
}
