//! How a stream begins. SGLang reports an early failure as the first event of a 200, and as long as nothing was sent to
//! the client, that event can still become the status that it names.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::pd::{Engine, Route, Splitter, WorkerError};

/// The longest first event that is awaited, in bytes. An error event of SGLang has a few hundred.
pub(super) const FIRST_EVENT_LIMIT: usize = 64 << 10;

/// What the first bytes of a stream are.
pub(super) enum FirstEvent {
    /// An error.
    Error(WorkerError),
    /// An event that is no error, or more bytes than an error has.
    Content,
    /// Part of an event.
    Incomplete,
}

impl FirstEvent {
    /// Reads the first event of a stream that begins with these bytes.
    pub(super) fn read(engine: Engine, route: Route, begin: &Bytes) -> Self {
        let mut splitter = Splitter::new(FIRST_EVENT_LIMIT);
        splitter.push(begin.clone());
        match splitter.next_event() {
            Ok(Some(event)) => engine
                .stream_error(route, &event)
                .map_or(FirstEvent::Content, FirstEvent::Error),
            Ok(None) => FirstEvent::Incomplete,
            Err(_) => FirstEvent::Content,
        }
    }
}

/// A worker's error response, to be passed on unchanged.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    pub(crate) status: StatusCode,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

impl Rejection {
    /// A rejection whose body goes nowhere, because the head of a stream is out.
    pub(crate) fn bare(status: StatusCode) -> Self {
        Self {
            status,
            content_type: None,
            body: Bytes::new(),
        }
    }
}

impl From<WorkerError> for Rejection {
    fn from(error: WorkerError) -> Self {
        Self {
            status: StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_GATEWAY),
            content_type: Some(HeaderValue::from_static("application/json")),
            body: error.body,
        }
    }
}
