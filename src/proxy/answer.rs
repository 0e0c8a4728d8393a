//! What happens to decode's answer on its way to the client.
//!
//! A stream that needs no merge passes piece by piece, unparsed and unbuffered, except for its first event:
//! SGLang reports an early failure as an event in a 200, and before anything was sent it can still be the status
//! that it is. A document is held until it is whole, up to [`HELD_LIMIT`]: as long as nothing was sent, a worker
//! that dies in the middle of it is still a status, or another pair.

use bytes::{Bytes, BytesMut};

use super::prefill::Rejection;
use crate::pd::{
    self, EventTooLong, MergeError, PromptSide, Route, Splitter, StreamMerger, WorkerError,
};

/// The longest first event that is waited for, in bytes. An error event of SGLang has a few hundred.
pub(super) const FIRST_EVENT_LIMIT: usize = 64 << 10;

/// The longest document that is held until it is whole, in bytes. Most have a few KiB, and arrive in one piece.
pub(super) const HELD_LIMIT: usize = 1 << 20;

/// How the pieces of decode's body become the client's.
pub(super) enum Answer {
    /// Unchanged.
    Passed,
    /// A document that waits for its end.
    Whole(BytesMut),
    /// A stream of events whose first one has not been seen whole.
    FirstEvent(Route, BytesMut),
    /// A document that waits for its end, to be merged.
    Document(PromptSide, BytesMut),
    /// A stream of events that are merged one by one.
    Events {
        route: Route,
        splitter: Box<Splitter>,
        merger: Box<StreamMerger>,
    },
}

/// How a stream begins.
pub(super) enum Opening {
    /// Its first event is an error.
    Error(WorkerError),
    /// With an event, or with more than an error would take.
    Fine,
    /// Its first event is not whole yet.
    Incomplete,
}

impl Opening {
    /// Looks at the beginning of a stream.
    pub(super) fn of(route: Route, begin: &Bytes) -> Self {
        let mut splitter = Splitter::new(FIRST_EVENT_LIMIT);
        splitter.push(begin.clone());
        match splitter.next_event() {
            Ok(Some(event)) => {
                pd::stream_error(route, &event).map_or(Opening::Fine, Opening::Error)
            }
            Ok(None) => Opening::Incomplete,
            Err(_) => Opening::Fine,
        }
    }
}

/// Why a piece did not become an answer.
pub(super) enum Spoiled {
    /// The first event is an error.
    Rejected(Rejection),
    /// The two answers do not fit together.
    Merge(MergeError),
    /// An event that is to be merged is too long.
    TooLong(EventTooLong),
}

impl From<EventTooLong> for Spoiled {
    fn from(error: EventTooLong) -> Self {
        Spoiled::TooLong(error)
    }
}

impl From<MergeError> for Spoiled {
    fn from(error: MergeError) -> Self {
        Spoiled::Merge(error)
    }
}

impl From<WorkerError> for Spoiled {
    fn from(error: WorkerError) -> Self {
        Spoiled::Rejected(error.into())
    }
}

impl Answer {
    /// A document that passes when it is whole, or too long to be held.
    pub(super) fn whole() -> Self {
        Answer::Whole(BytesMut::new())
    }

    /// A stream that passes unless it begins with an error.
    pub(super) fn first_event(route: Route) -> Self {
        Answer::FirstEvent(route, BytesMut::new())
    }

    /// A stream that is merged; an event may have `limit` bytes.
    pub(super) fn events(route: Route, side: PromptSide, limit: usize) -> Self {
        Answer::Events {
            route,
            splitter: Box::new(Splitter::new(limit)),
            merger: Box::new(StreamMerger::new(side)),
        }
    }

    /// What the client gets for a piece of decode's body; empty while something is awaited.
    ///
    /// `begun` says whether the client has got something already.
    pub(super) fn pass(&mut self, piece: Bytes, end: bool, begun: bool) -> Result<Bytes, Spoiled> {
        match self {
            Answer::Passed => Ok(piece),
            // The usual case: all of it at once, and no copy.
            Answer::Whole(held) if end && held.is_empty() => Ok(piece),
            Answer::Whole(held) => {
                held.extend_from_slice(&piece);
                if !end && held.len() <= HELD_LIMIT {
                    return Ok(Bytes::new());
                }
                let held = held.split().freeze();
                *self = Answer::Passed;
                Ok(held)
            }
            Answer::FirstEvent(route, held) => {
                let route = *route;
                let begin = if held.is_empty() {
                    piece
                } else {
                    held.extend_from_slice(&piece);
                    held.split().freeze()
                };
                match Opening::of(route, &begin) {
                    Opening::Error(error) => return Err(error.into()),
                    Opening::Incomplete if !end => {
                        held.extend_from_slice(&begin);
                        return Ok(Bytes::new());
                    }
                    Opening::Incomplete | Opening::Fine => {}
                }
                *self = Answer::Passed;
                Ok(begin)
            }
            Answer::Document(side, held) => {
                held.extend_from_slice(&piece);
                if !end {
                    return Ok(Bytes::new());
                }
                Ok(pd::merge::body(side, held.split().freeze())?)
            }
            Answer::Events {
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
