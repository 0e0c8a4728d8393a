//! What happens to decode's answer on its way to the client.
//!
//! A stream that needs no merge passes piece by piece, unparsed and unbuffered, except for its first event:
//! SGLang reports an early failure as an event in a 200, and before anything was sent it can still be the status
//! that it is. A document is held until it is whole, up to [`HELD_LIMIT`]: as long as nothing was sent, a worker
//! that dies in the middle of it is still a status, or another pair.

use bytes::{Bytes, BytesMut};

use super::first_event::{FirstEvent, Rejection};
use crate::pd::{
    self, EventTooLong, MergeError, PrefillData, Route, Splitter, StreamMerger, WorkerError,
};

/// The longest document that is held until it is whole, in bytes. Most have a few KiB, and arrive in one piece.
pub(crate) const HELD_LIMIT: usize = 1 << 20;

/// How the pieces of decode's body become the client's.
pub(crate) enum Response {
    /// Unchanged.
    Passed,
    /// A document that waits for its end.
    Whole(BytesMut),
    /// A stream of events whose first one has not been seen whole.
    FirstEvent(Route, BytesMut),
    /// A document that waits for its end, to be merged.
    Document(PrefillData, BytesMut),
    /// A stream of events that are merged one by one.
    Events {
        route: Route,
        splitter: Box<Splitter>,
        merger: Box<StreamMerger>,
    },
}

/// Why a piece did not become an answer.
pub(crate) enum ResponseError {
    /// The first event is an error.
    Rejected(Rejection),
    /// The two answers do not fit together.
    Merge(MergeError),
    /// An event that is to be merged is too long.
    TooLong(EventTooLong),
}

impl From<EventTooLong> for ResponseError {
    fn from(error: EventTooLong) -> Self {
        ResponseError::TooLong(error)
    }
}

impl From<MergeError> for ResponseError {
    fn from(error: MergeError) -> Self {
        ResponseError::Merge(error)
    }
}

impl From<WorkerError> for ResponseError {
    fn from(error: WorkerError) -> Self {
        ResponseError::Rejected(error.into())
    }
}

impl Response {
    /// A document that passes when it is whole, or too long to be held.
    pub(crate) fn whole() -> Self {
        Response::Whole(BytesMut::new())
    }

    /// A stream that passes unless it begins with an error.
    pub(crate) fn first_event(route: Route) -> Self {
        Response::FirstEvent(route, BytesMut::new())
    }

    /// A stream that is merged; an event may have `limit` bytes.
    pub(crate) fn events(route: Route, side: PrefillData, limit: usize) -> Self {
        Response::Events {
            route,
            splitter: Box::new(Splitter::new(limit)),
            merger: Box::new(StreamMerger::new(side)),
        }
    }

    /// What the client gets for a piece of decode's body; empty while something is awaited.
    ///
    /// `begun` says whether the client has got something already.
    pub(crate) fn pass(
        &mut self,
        piece: Bytes,
        end: bool,
        begun: bool,
    ) -> Result<Bytes, ResponseError> {
        match self {
            Response::Passed => Ok(piece),
            // The usual case: all of it at once, and no copy.
            Response::Whole(held) if end && held.is_empty() => Ok(piece),
            Response::Whole(held) => {
                held.extend_from_slice(&piece);
                if !end && held.len() <= HELD_LIMIT {
                    return Ok(Bytes::new());
                }
                let held = held.split().freeze();
                *self = Response::Passed;
                Ok(held)
            }
            Response::FirstEvent(route, held) => {
                let route = *route;
                let begin = if held.is_empty() {
                    piece
                } else {
                    held.extend_from_slice(&piece);
                    held.split().freeze()
                };
                match FirstEvent::read(route, &begin) {
                    FirstEvent::Error(error) => return Err(error.into()),
                    FirstEvent::Incomplete if !end => {
                        held.extend_from_slice(&begin);
                        return Ok(Bytes::new());
                    }
                    FirstEvent::Incomplete | FirstEvent::Content => {}
                }
                *self = Response::Passed;
                Ok(begin)
            }
            Response::Document(side, held) => {
                held.extend_from_slice(&piece);
                if !end {
                    return Ok(Bytes::new());
                }
                Ok(pd::merge::body(side, held.split().freeze())?)
            }
            Response::Events {
                route,
                splitter,
                merger,
            } => {
                splitter.push(piece);
                let mut out = BytesMut::new();
                while let Some(event) = splitter.next_event()? {
                    if !begun
                        && out.is_empty()
                        && let Some(error) = pd::stream_error(*route, &event)
                    {
                        return Err(error.into());
                    }
                    merger.event(&event, &mut out)?;
                }
                let rest =
                    end.then(|| std::mem::replace(&mut **splitter, Splitter::new(0)).finish());
                if let Some(rest) = rest.flatten() {
                    out.extend_from_slice(&rest);
                }
                Ok(out.freeze())
            }
        }
    }
}
