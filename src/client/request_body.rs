//! Reads a request body into memory, within three limits: its length, the time it takes, and the memory that all
//! bodies together may hold.
//!
//! Does not interpret the bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use http::header;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use tokio::time::Instant;

use crate::endpoint::content_length;

/// The longest body that is read only to be discarded, in bytes.
const DRAIN_LIMIT: usize = 16 << 20;

/// The first capacity for a chunked body, whose length is not known, in bytes.
const CHUNKED_CAPACITY: usize = 8 << 10;

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// The body is longer than this limit, in bytes.
    TooLarge(usize),
    /// The body did not arrive in time.
    Timeout,
    /// The framing of the body is invalid.
    Framing(String),
    /// All bodies together would hold more memory than they may.
    NoMemory,
}

/// The memory for all request bodies, in bytes.
pub(crate) struct BodyMemory {
    used: AtomicUsize,
    limit: AtomicUsize,
}

/// The part of [`BodyMemory`] that one request uses. Returned when dropped.
pub(crate) struct Share {
    memory: Arc<BodyMemory>,
    bytes: usize,
}

impl BodyMemory {
    /// At most `limit` bytes at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
        })
    }

    /// At most `limit` bytes from now on. What is held stays.
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// An empty share.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share {
            memory: self.clone(),
            bytes: 0,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.limit()
            .saturating_sub(self.used.load(Ordering::Relaxed))
            >= bytes
    }
}

impl Share {
    /// Takes this many bytes more; returns false, and takes nothing, when they are not free.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        // Relaxed: the number alone decides. Taken before it is compared, so that requests that grow at the same time
        // cannot all see the same space; the one that passes the limit returns what it took.
        let used = self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        if used.saturating_add(bytes) > self.memory.limit() {
            self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads the whole body, at most `limit` bytes, into a buffer with `reserve` bytes to spare. `timeout` is for an empty
/// body; each MiB adds one second.
///
/// # Errors
/// The outer error: the client's connection has failed. The inner one: the body is refused.
pub(crate) async fn read_body(
    session: &mut Session,
    limit: usize,
    timeout: Duration,
    reserve: usize,
    share: &mut Share,
) -> Result<Result<BytesMut, BodyError>> {
    let started = Instant::now();
    let headers = &session.req_header().headers;
    let length = content_length(headers);
    if length.is_some_and(|length| length > limit) {
        return Ok(Err(BodyError::TooLarge(limit)));
    }
    // Checked and not taken: a client that only announces a body must not use up the memory.
    if !share.memory.has_room(length.unwrap_or(0)) {
        return Ok(Err(BodyError::NoMemory));
    }
    // Pingora gives up keep-alive when it writes `100 Continue`. It is set again once the body has been read.
    let keepalive = session.get_keepalive();
    if expects_continue(session) {
        session.downstream_session.write_continue_response().await?;
    }
    let mut body = BytesMut::with_capacity(length.unwrap_or(CHUNKED_CAPACITY) + reserve);
    loop {
        // 1 MiB/s is slower than any link on which such bodies make sense. Without a length, only the bytes that have
        // arrived extend the time.
        let mebibytes = length.unwrap_or(body.len()) >> 20;
        let deadline = started + timeout + Duration::from_secs(mebibytes as u64);
        let read = session.downstream_session.read_request_body();
        let Ok(read) = tokio::time::timeout_at(deadline, read).await else {
            return Ok(Err(BodyError::Timeout));
        };
        match read {
            Ok(Some(piece)) if body.len() + piece.len() > limit => {
                return Ok(Err(BodyError::TooLarge(limit)));
            }
            Ok(Some(piece)) if !share.grow(piece.len()) => {
                return Ok(Err(BodyError::NoMemory));
            }
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => {
                session.set_keepalive(keepalive);
                return Ok(Ok(body));
            }
            Err(error) => return refusal(error).map(Err),
        }
    }
}

/// Tells a body that is refused from a connection that has failed, which is the error.
fn refusal(error: Box<Error>) -> Result<BodyError> {
    match error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => {
            Err(error.into_down())
        }
        ErrorType::ReadTimedout => Ok(BodyError::Timeout),
        _ => Ok(BodyError::Framing(error.root_cause().to_string())),
    }
}

/// Reads and discards a body, so that its sender gets to read the response. Returns whether the end of the body was
/// reached: one that is longer than [`DRAIN_LIMIT`] or takes longer than `timeout` ends with the connection.
///
/// # Errors
/// The client's connection has failed.
pub(crate) async fn drain_body(session: &mut Session, timeout: Duration) -> Result<bool> {
    // Such a client sends no body before `100 Continue`, and does not get that.
    if expects_continue(session) {
        return Ok(false);
    }
    let drained = async {
        let mut drained = 0;
        while let Some(piece) = session.downstream_session.read_request_body().await? {
            drained += piece.len();
            if drained > DRAIN_LIMIT {
                return Ok(false);
            }
        }
        Ok(true)
    };
    tokio::time::timeout(timeout, drained)
        .await
        .unwrap_or(Ok(false))
}

/// Resolves with the error that ends the request: the client has left, or an installed session has ended the request.
/// The body must have been read to its end. May be dropped and called again.
pub(crate) async fn interrupted(session: &mut Session) -> Box<Error> {
    let ended = session.downstream_session.read_body_or_idle(true).await;
    let closed = || Error::new(ErrorType::ConnectionClosed);
    ended.err().unwrap_or_else(closed).into_down()
}

fn expects_continue(session: &Session) -> bool {
    session
        .req_header()
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::client::counted::CountedStream;
    use crate::client::http2::Beginning;
    use crate::client::read_counter::ReadCounter;
    use crate::client::{Cors, Refusal};
    use crate::endpoint::WholeResponse;

    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn shares_add_up_to_the_limit_and_are_returned() {
        let memory = BodyMemory::new(10);
        let (mut first, mut second) = (memory.share(), memory.share());
        assert!(first.grow(6) && second.grow(4) && memory.has_room(0));
        assert!(!second.grow(1) && !memory.has_room(1));
        drop(first);
        assert!(memory.has_room(6) && second.grow(6) && !second.grow(1));
        assert!(!second.grow(usize::MAX / 2));
        drop(second);
        assert!(memory.has_room(10) && !memory.has_room(11));
    }

    /// The session of a POST with these header lines and these first bytes of its body, and the client's end.
    pub(crate) async fn post(lines: &str, body: &str) -> (Session, DuplexStream) {
        let (ours, mut client) = duplex(64 << 10);
        let request = format!("POST / HTTP/1.1\r\nhost: a\r\n{lines}\r\n\r\n{body}");
        client.write_all(request.as_bytes()).await.unwrap();
        let counter = Arc::<ReadCounter>::default();
        counter.finish_head();
        let refusal = Arc::new(Refusal {
            response: |status| WholeResponse::new(status, "text/plain", ""),
            cors: Cors::Off,
        });
        let stream = CountedStream::new(Box::new(ours), counter, refusal, Beginning::Http1);
        let mut session = Session::new_h1(Box::new(stream));
        session.downstream_session.read_request().await.unwrap();
        (session, client)
    }

    async fn read(session: &mut Session, limit: usize) -> Result<Result<BytesMut, BodyError>> {
        let mut share = BodyMemory::new(1 << 20).share();
        read_body(session, limit, TIMEOUT, 0, &mut share).await
    }

    #[tokio::test]
    async fn a_body_is_read_in_either_framing_and_uses_its_share() {
        for (lines, sent) in [
            ("content-length: 5", "hello"),
            (
                "transfer-encoding: chunked",
                "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            ),
        ] {
            let (mut session, _client) = post(lines, sent).await;
            let memory = BodyMemory::new(10);
            let mut share = memory.share();
            let body = read_body(&mut session, 5, TIMEOUT, 3, &mut share).await;
            let body = body.unwrap().unwrap();
            assert_eq!(&body[..], b"hello");
            assert!(body.capacity() >= body.len() + 3);
            assert!(memory.has_room(5) && !memory.has_room(6));
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_before_or_while_it_arrives() {
        for (lines, sent) in [
            ("content-length: 6", ""),
            ("transfer-encoding: chunked", "6\r\nhello!"),
        ] {
            let (mut session, _client) = post(lines, sent).await;
            let refused = read(&mut session, 5).await.unwrap();
            assert_eq!(refused, Err(BodyError::TooLarge(5)), "{lines}");
        }
    }

    #[tokio::test]
    async fn bodies_that_do_not_fit_into_memory_are_refused() {
        for (lines, sent) in [
            ("content-length: 6", ""),
            ("transfer-encoding: chunked", "6\r\nhello!"),
        ] {
            let (mut session, _client) = post(lines, sent).await;
            let memory = BodyMemory::new(5);
            let mut share = memory.share();
            let refused = read_body(&mut session, 100, TIMEOUT, 0, &mut share).await;
            assert_eq!(refused.unwrap(), Err(BodyError::NoMemory), "{lines}");
            assert!(memory.has_room(5), "nothing was taken");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_one_second_more_for_each_mebibyte() {
        for (lines, sent, more) in [
            ("content-length: 5", "he", 0),
            ("content-length: 3145728", "he", 3),
            // Announced by no length: only what has arrived counts.
            ("transfer-encoding: chunked", "300000\r\nhe", 0),
        ] {
            let (mut session, _client) = post(lines, sent).await;
            let begun = Instant::now();
            let mut share = BodyMemory::new(4 << 20).share();
            let late = read_body(&mut session, 4 << 20, TIMEOUT, 0, &mut share).await;
            assert_eq!(late.unwrap(), Err(BodyError::Timeout), "{lines}");
            assert_eq!(begun.elapsed().as_secs(), TIMEOUT.as_secs() + more);
        }
    }

    #[tokio::test]
    async fn invalid_framing_is_refused_and_a_lost_client_is_an_error() {
        let (mut session, client) = post("transfer-encoding: chunked", "x\r\nhello\r\n").await;
        let refused = read(&mut session, 100).await.unwrap();
        assert!(matches!(refused, Err(BodyError::Framing(_))), "{refused:?}");
        drop(client);
        let (mut session, client) = post("content-length: 5", "he").await;
        drop(client);
        assert!(read(&mut session, 100).await.is_err());
    }

    #[tokio::test]
    async fn a_client_that_waits_for_100_continue_gets_it_and_keeps_its_connection() {
        let (mut session, mut client) = post("expect: 100-continue\r\ncontent-length: 5", "").await;
        session.set_keepalive(Some(0));
        let send = async {
            let mut said = [0; 25];
            client.read_exact(&mut said).await.unwrap();
            assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
            client.write_all(b"hello").await.unwrap();
        };
        let (body, ()) = tokio::join!(read(&mut session, 5), send);
        assert_eq!(body.unwrap().unwrap(), "hello");
        assert_eq!(session.get_keepalive(), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unwanted_body_is_drained_for_a_while_and_not_asked_for() {
        for (lines, sent, drained) in [
            ("content-length: 5", "hello", true),
            ("content-length: 0", "", true),
            ("content-length: 5", "he", false),
            ("expect: 100-Continue\r\ncontent-length: 5", "hello", false),
        ] {
            let (mut session, _client) = post(lines, sent).await;
            let ended = drain_body(&mut session, TIMEOUT).await.unwrap();
            assert_eq!(ended, drained, "{lines} {sent}");
        }
    }

    #[tokio::test]
    async fn a_disconnect_is_noticed_after_the_body() {
        let (mut session, client) = post("content-length: 5", "hello").await;
        read(&mut session, 5).await.unwrap().unwrap();
        {
            let left = interrupted(&mut session);
            tokio::pin!(left);
            assert!(futures_util::poll!(&mut left).is_pending());
        }
        drop(client);
        let error = interrupted(&mut session).await;
        assert_eq!(*error.esource(), pingora::ErrorSource::Downstream);
    }
}
