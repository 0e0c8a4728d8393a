//! The body of a request on its way into memory: how long it may be, how long it may take, and how much all
//! bodies together may hold.
//!
//! What the bytes mean is not this file's business.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::header;
use pingora_core::{Error, ErrorType, Result};
use pingora_proxy::Session;

/// The longest body that is read only to be thrown away, in bytes.
const DRAIN_LIMIT: usize = 16 << 20;

/// The share of a chunked body that is reserved before its length is known, in bytes.
const CHUNKED_RESERVE: usize = 8 << 10;

/// Why a body could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// It is longer than the limit, in bytes.
    TooLarge(usize),
    /// It did not arrive in time.
    Late,
    /// Its framing is broken.
    Framing(String),
    /// All bodies together would hold more memory than they may.
    NoMemory,
}

/// The bytes of all bodies that are in memory.
pub(crate) struct BodyMemory {
    held: AtomicUsize,
    limit: usize,
}

/// The part of one request. Given back when dropped.
pub(crate) struct Share {
    of: Arc<BodyMemory>,
    bytes: usize,
}

impl BodyMemory {
    /// Nothing yet, and at most `limit` bytes at once.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            held: AtomicUsize::new(0),
            limit,
        })
    }

    /// A share without bytes.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share {
            of: self.clone(),
            bytes: 0,
        }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.limit.saturating_sub(self.held.load(Ordering::Relaxed)) >= bytes
    }
}

impl Share {
    /// Takes more; false, and nothing is taken, when it is not there.
    fn grow(&mut self, bytes: usize) -> bool {
        let held = self.of.held.fetch_add(bytes, Ordering::Relaxed);
        // One by one on top of each other: whoever passes the limit gives its own piece back.
        if held.saturating_add(bytes) > self.of.limit {
            self.of.held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The whole body of a request, with spare room for what is injected. Empty it may take `patience`, and a
/// second more for each MiB.
///
/// The outer error is the client's connection, the inner one is the body.
pub(crate) async fn read(
    session: &mut Session,
    limit: usize,
    patience: Duration,
    reserve: usize,
    share: &mut Share,
) -> Result<Result<BytesMut, BodyError>> {
    let started = Instant::now();
    let headers = &session.req_header().headers;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Ok(Err(BodyError::TooLarge(limit)));
    }
    // What is only announced is not counted, so that nobody can claim the room without sending.
    if !share.of.has_room(length.unwrap_or(0)) {
        return Ok(Err(BodyError::NoMemory));
    }
    // With `100 Continue` before the body Pingora gives the connection up.
    let keepalive = session.get_keepalive();
    if expects_continue(session) {
        session.downstream_session.write_continue_response().await?;
    }
    let expected = length.unwrap_or(CHUNKED_RESERVE);
    let mut body = BytesMut::with_capacity(expected + reserve);
    loop {
        // 1 MiB/s is slower than any link on which such bodies make sense. Without a length only what has
        // come can speak for more time.
        let mebibytes = length.unwrap_or(body.len()) >> 20;
        let deadline = started + patience + Duration::from_secs(mebibytes as u64);
        let read = session.downstream_session.read_request_body();
        let Ok(read) = tokio::time::timeout_at(deadline.into(), read).await else {
            return Ok(Err(BodyError::Late));
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
            Err(error) => match error.etype() {
                ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => {
                    return Err(error.into_down());
                }
                ErrorType::ReadTimedout => return Ok(Err(BodyError::Late)),
                _ => return Ok(Err(BodyError::Framing(error.root_cause().to_string()))),
            },
        }
    }
}

/// Reads a body that nobody wants, so that its sender gets to read the answer. Whether its end was reached:
/// a longer one is cut off with the connection, and one that the client holds back is not asked for.
pub(crate) async fn drain(session: &mut Session, patience: Duration) -> Result<bool> {
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
    tokio::time::timeout(patience, drained)
        .await
        .unwrap_or(Ok(false))
}

/// Resolves when the client leaves, whose body has been read to its end. May be dropped and called again.
pub(crate) async fn left(session: &mut Session) -> Box<Error> {
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
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_limit_and_are_given_back() {
        let buffered = BodyMemory::new(10);
        let (mut first, mut second) = (buffered.share(), buffered.share());
        assert!(first.grow(6) && second.grow(4) && buffered.has_room(0));
        assert!(!second.grow(1) && !buffered.has_room(1));
        drop(first);
        assert!(buffered.has_room(6) && second.grow(6) && !second.grow(1));
        assert!(!second.grow(usize::MAX / 2));
        drop(second);
        assert!(buffered.has_room(10) && !buffered.has_room(11));
    }
}
