//! How a stream begins. SGLang reports an early failure as the first event of a 200, vLLM also behind the head of a chat, and
//! as long as nothing was sent to the client, that event can still become the status that it names.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, SERVER};
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::endpoint::{REQUEST_ID, connection_headers, is_hop_by_hop};
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
    /// Reads the first event of a stream that begins with these bytes, and those before it that say nothing.
    pub(super) fn read(engine: Engine, route: Route, begin: &Bytes) -> Self {
        let mut splitter = Splitter::new(FIRST_EVENT_LIMIT);
        splitter.push(begin.clone());
        loop {
            return match splitter.next_event() {
                Ok(Some(event)) if engine.is_preamble(route, &event) => continue,
                Ok(Some(event)) => engine
                    .stream_error(route, &event)
                    .map_or(FirstEvent::Content, FirstEvent::Error),
                Ok(None) => FirstEvent::Incomplete,
                Err(_) => FirstEvent::Content,
            };
        }
    }
}

/// A worker's error response, to be passed on unchanged.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    pub(crate) status: StatusCode,
    /// The end-to-end fields.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Rejection {
    /// A rejection whose body goes nowhere, because the head of a stream is out.
    pub(crate) fn bare(status: StatusCode) -> Box<Self> {
        Box::new(Self {
            status,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        })
    }

    /// The error response that a worker reports inside a success with these fields.
    pub(crate) fn inside(headers: &HeaderMap, error: WorkerError) -> Box<Self> {
        StreamFields::of(headers).rejection(error)
    }
}

/// The end-to-end fields of a stream, for the case that its first event is an error. Those that describe the body of
/// the stream are left out.
#[derive(Debug, Default)]
pub(super) struct StreamFields {
    /// Every response of uvicorn has it. Beside the map, it costs a stream without other fields no allocation.
    server: Option<HeaderValue>,
    others: HeaderMap,
}

impl StreamFields {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let listed = connection_headers(headers);
        let mut fields = Self::default();
        for (name, value) in headers {
            match name {
                &SERVER => fields.server = Some(value.clone()),
                // The response to the client gets its own.
                &DATE => {}
                name if *name == REQUEST_ID || name.as_str().starts_with("content-") => {}
                name if is_hop_by_hop(name, &listed) => {}
                name => {
                    fields.others.append(name, value.clone());
                }
            }
        }
        fields
    }

    /// The error response with these fields.
    pub(super) fn rejection(&mut self, error: WorkerError) -> Box<Rejection> {
        let mut headers = std::mem::take(&mut self.others);
        if let Some(server) = self.server.take() {
            headers.insert(SERVER, server);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Box::new(Rejection {
            status: StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_GATEWAY),
            headers,
            body: error.body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_inside_a_stream_has_the_streams_fields_but_those_of_its_body() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("date", "d"),
            ("server", "uvicorn"),
            ("retry-after", "7"),
            ("vary", "a"),
            ("vary", "b"),
            ("content-type", "text/event-stream"),
            ("content-encoding", "gzip"),
            ("transfer-encoding", "chunked"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-request-id", "theirs"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        let error = WorkerError {
            status: 429,
            body: Bytes::from_static(b"{}"),
        };
        let rejection = Rejection::inside(&headers, error);
        let mut fields: Vec<_> = rejection
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default()))
            .collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                ("content-type", "application/json"),
                ("retry-after", "7"),
                ("server", "uvicorn"),
                ("vary", "a"),
                ("vary", "b"),
            ]
        );
    }
}
