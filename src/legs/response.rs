//! The transformation of decode's response body on its way to the client.
//!
//! A stream without a merge passes chunk by chunk, unparsed and unbuffered, except for its first event: see
//! [`super::first_event`]. A document is held until it is whole, up to [`HELD_LIMIT`]: as long as nothing was sent, a
//! worker that dies in the middle of it is still a status, or a retry.

use bytes::{Bytes, BytesMut};

use super::first_event::{FirstEvent, Rejection};
use crate::pd::{
    self, Engine, EventTooLong, MergeError, PrefillData, Route, Splitter, StreamMerger, WorkerError,
};

/// The longest document that is held until it is whole, in bytes. Most have a few KiB and arrive in one chunk.
pub(super) const HELD_LIMIT: usize = 1 << 20;

/// A transformation of decode's body, and its state.
pub(super) enum Response {
    /// Every chunk passes unchanged.
    Unchanged,
    /// A document that is held until its end.
    Whole(BytesMut),
    /// A stream whose first event is not complete yet.
    FirstEvent(Engine, Route, BytesMut),
    /// A document that is held until its end, and then merged.
    MergedDocument(PrefillData, BytesMut),
    /// A stream whose events are merged one by one. Boxed, because most requests merge nothing.
    MergedStream(Box<MergedStream>),
}

/// The state of a stream that is merged.
pub(super) struct MergedStream {
    engine: Engine,
    route: Route,
    splitter: Splitter,
    merger: StreamMerger,
    /// Whether the first event has passed. Only that one can become a status.
    begun: bool,
}

/// Why a chunk of decode's body cannot be passed on.
pub(crate) enum ResponseError {
    /// The first event is an error.
    Rejected(Rejection),
    /// The two responses do not fit together.
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
    /// A document that passes once it is whole, or too long to be held.
    pub(super) fn whole() -> Self {
        Response::Whole(BytesMut::new())
    }

    /// A stream that passes unless its first event is an error.
    pub(super) fn first_event(engine: Engine, route: Route) -> Self {
        Response::FirstEvent(engine, route, BytesMut::new())
    }

    /// A document that is merged with prefill's data.
    pub(super) fn merged_document(data: PrefillData) -> Self {
        Response::MergedDocument(data, BytesMut::new())
    }

    /// A stream that is merged with prefill's data. An event may have `max_event_bytes`.
    pub(super) fn merged_stream(
        engine: Engine,
        route: Route,
        data: PrefillData,
        max_event_bytes: usize,
    ) -> Self {
        Response::MergedStream(Box::new(MergedStream {
            engine,
            route,
            splitter: Splitter::new(max_event_bytes),
            merger: StreamMerger::new(data),
            begun: false,
        }))
    }

    /// The client's bytes for a chunk of decode's body; empty while more is needed. `end` says that no chunk follows.
    ///
    /// # Errors
    /// The chunk cannot be passed on.
    pub(super) fn pass(&mut self, chunk: Bytes, end: bool) -> Result<Bytes, ResponseError> {
        let (out, settled) = match self {
            Response::Unchanged => return Ok(chunk),
            Response::Whole(held) => hold(held, chunk, end),
            Response::FirstEvent(engine, route, held) => {
                await_first_event(*engine, *route, held, chunk, end)?
            }
            Response::MergedDocument(data, held) => {
                held.extend_from_slice(&chunk);
                return match end {
                    false => Ok(Bytes::new()),
                    true => Ok(pd::merge::body(data, held.split().freeze())?),
                };
            }
            Response::MergedStream(stream) => return stream.pass(chunk, end),
        };
        if settled {
            *self = Response::Unchanged;
        }
        Ok(out)
    }
}

impl MergedStream {
    fn pass(&mut self, chunk: Bytes, end: bool) -> Result<Bytes, ResponseError> {
        self.splitter.push(chunk);
        let mut out = BytesMut::new();
        while let Some(event) = self.splitter.next_event()? {
            if !self.begun
                && let Some(error) = self.engine.stream_error(self.route, &event)
            {
                return Err(error.into());
            }
            self.begun = true;
            self.merger.event(&event, &mut out)?;
        }
        if end && let Some(rest) = self.splitter.finish() {
            out.extend_from_slice(&rest);
        }
        Ok(out.freeze())
    }
}

/// The document once it is whole or too long to be held, and whether that is so.
fn hold(held: &mut BytesMut, chunk: Bytes, end: bool) -> (Bytes, bool) {
    // The usual case, a document in one chunk, is not copied.
    if end && held.is_empty() {
        return (chunk, true);
    }
    held.extend_from_slice(&chunk);
    if end || held.len() > HELD_LIMIT {
        (held.split().freeze(), true)
    } else {
        (Bytes::new(), false)
    }
}

/// The begin of a stream once its first event is complete and no error, and whether that is so.
fn await_first_event(
    engine: Engine,
    route: Route,
    held: &mut BytesMut,
    chunk: Bytes,
    end: bool,
) -> Result<(Bytes, bool), ResponseError> {
    let begin = if held.is_empty() {
        chunk
    } else {
        held.extend_from_slice(&chunk);
        held.split().freeze()
    };
    match FirstEvent::read(engine, route, &begin) {
        FirstEvent::Error(error) => Err(error.into()),
        FirstEvent::Incomplete if !end => {
            held.extend_from_slice(&begin);
            Ok((Bytes::new(), false))
        }
        FirstEvent::Incomplete | FirstEvent::Content => Ok((begin, true)),
    }
}
