//! The transformation of decode's response body on its way to the client.
//!
//! A stream without a merge passes chunk by chunk, unparsed and unbuffered, except for its first event: see
//! [`super::first_event`]. A document is held until it is whole, up to [`HELD_LIMIT`]: as long as nothing was sent, a
//! worker that dies in the middle of it is still a status, or a retry.

use bytes::{Bytes, BytesMut};

use super::first_event::{FIRST_EVENT_LIMIT, FirstEvent, Rejection, StreamFields};
use crate::net::{Coding, CodingError, Failure};
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
    FirstEvent(Begin, BytesMut),
    /// A document that is held until its end, and then merged.
    MergedDocument(PrefillData, BytesMut),
    /// A stream whose events are merged one by one. Boxed, because most requests merge nothing.
    MergedStream(Box<MergedStream>),
}

/// What the first event of a stream is judged by.
pub(super) struct Begin {
    pub(super) engine: Engine,
    pub(super) route: Route,
    /// `None` where the stream is not compressed.
    pub(super) coding: Option<Coding>,
    /// The client gets these with an error.
    pub(super) fields: StreamFields,
}

/// The state of a stream that is merged.
pub(super) struct MergedStream {
    begin: Begin,
    splitter: Splitter,
    merger: StreamMerger,
    /// Whether the first event has passed. Only that one can become a status.
    begun: bool,
}

/// Why a chunk of decode's body cannot be passed on.
pub(crate) enum ResponseError {
    /// The first event is an error.
    Rejected(Box<Rejection>),
    /// The two responses do not fit together.
    Merge(MergeError),
    /// An event that is to be merged is too long.
    TooLong(EventTooLong),
    /// The body cannot be decoded.
    Encoded(Failure),
}

impl From<CodingError> for ResponseError {
    fn from(error: CodingError) -> Self {
        ResponseError::Encoded(error.into())
    }
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

impl Begin {
    /// The error of a stream that begins with this error event.
    fn reject(&mut self, error: WorkerError) -> ResponseError {
        ResponseError::Rejected(self.fields.rejection(error))
    }
}

impl Response {
    /// A document that passes once it is whole, or too long to be held.
    pub(super) fn whole() -> Self {
        Response::Whole(BytesMut::new())
    }

    /// A stream that passes unless its first event is an error.
    pub(super) fn first_event(begin: Begin) -> Self {
        Response::FirstEvent(begin, BytesMut::new())
    }

    /// A document that is merged with prefill's data.
    pub(super) fn merged_document(data: PrefillData) -> Self {
        Response::MergedDocument(data, BytesMut::new())
    }

    /// A stream that is merged with prefill's data. An event may have `max_event_bytes`.
    pub(super) fn merged_stream(begin: Begin, data: PrefillData, max_event_bytes: usize) -> Self {
        Response::MergedStream(Box::new(MergedStream {
            begin,
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
            Response::FirstEvent(begin, held) => await_first_event(begin, held, chunk, end)?,
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
                && let Some(error) = self.begin.engine.stream_error(self.begin.route, &event)
            {
                return Err(self.begin.reject(error));
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
    begin: &mut Begin,
    held: &mut BytesMut,
    chunk: Bytes,
    end: bool,
) -> Result<(Bytes, bool), ResponseError> {
    let bytes = if held.is_empty() {
        chunk
    } else {
        held.extend_from_slice(&chunk);
        held.split().freeze()
    };
    let event = match begin.coding {
        None => FirstEvent::read(begin.engine, begin.route, &bytes),
        Some(coding) => match coding.decode_begin(&bytes, FIRST_EVENT_LIMIT) {
            Ok(readable) => FirstEvent::read(begin.engine, begin.route, &readable),
            // Not what it says: it passes as it is.
            Err(_) => FirstEvent::Content,
        },
    };
    match event {
        FirstEvent::Error(error) => Err(begin.reject(error)),
        // The limit matters where the bytes decode to nothing.
        FirstEvent::Incomplete if !end && bytes.len() <= FIRST_EVENT_LIMIT => {
            held.extend_from_slice(&bytes);
            Ok((Bytes::new(), false))
        }
        FirstEvent::Incomplete | FirstEvent::Content => Ok((bytes, true)),
    }
}
