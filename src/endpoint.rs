//! The interface between the proxy and the endpoints without legs: a whole request in, a whole response out, and the
//! key that each path needs. Also the header rules that hold for every response.
//!
//! `proxy` calls [`Endpoints`] and `ops` implements it, so that neither knows the other.

use async_trait::async_trait;
use bytes::{BufMut, Bytes};
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

/// Identifies a request in the logs of the client, the proxy and the workers.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Carries the stable code of an error that the proxy itself made.
pub(crate) const ERROR_CODE: HeaderName = HeaderName::from_static("x-mini-lb-error");

/// Says in a sentence what a response that succeeded lacks.
pub(crate) const WARNING: HeaderName = HeaderName::from_static("x-mini-lb-warning");

/// With the value 1 asks that the response say where its time went.
pub(crate) const TIMING: HeaderName = HeaderName::from_static("x-mini-lb-timing");

/// The type of a stream of events, as SGLang names it.
pub(crate) const EVENT_STREAM: HeaderValue =
    HeaderValue::from_static("text/event-stream; charset=utf-8");

/// The path of the metrics, which a listener of its own may serve.
pub(crate) const METRICS_PATH: &str = "/metrics";

/// Names the prefill worker of a response, by its URL; in a request, the one that shall serve it.
pub(crate) const PREFILL_WORKER: HeaderName = HeaderName::from_static("x-mini-lb-prefill");

/// The same for the decode worker.
pub(crate) const DECODE_WORKER: HeaderName = HeaderName::from_static("x-mini-lb-decode");

/// Header fields that describe one connection and are never forwarded. Source: RFC 9110 section 7.6.1.
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    // End-to-end in the RFC; here each message gets its framing from the connection that sends it.
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TE,
    TRAILER,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// The length of a body as its head announces it, in bytes; `None` where the head has none, or one that is no number.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The fields that `Connection` adds to the hop-by-hop ones of this message.
pub(crate) fn connection_headers(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// Writes these fields as HTTP/1.1 has them: a line for each, without the empty one behind the last.
pub(crate) fn write_fields(out: &mut impl BufMut, fields: &HeaderMap) {
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.put_slice(part);
        }
    }
}

/// Whether the client takes trailers in the response to the request with these fields. Source: RFC 9110 section 10.1.4.
pub(crate) fn asks_for_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter();
    let mut codings = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    codings.any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// Whether a field is dropped when its message is forwarded. `listed` comes from [`connection_headers`].
pub(crate) fn is_hop_by_hop(name: &HeaderName, listed: &[HeaderName]) -> bool {
    HOP_BY_HOP.contains(name) || listed.contains(name) || name.as_str().starts_with("proxy-")
}

/// The fields of a message that are forwarded with it.
pub(crate) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let listed = connection_headers(headers);
    let fields = headers.iter();
    fields
        .filter(|(name, _)| !is_hop_by_hop(name, &listed))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A request that has been read to its end.
#[derive(Debug, Clone)]
pub(crate) struct WholeRequest {
    pub(crate) method: Method,
    /// Without the query.
    pub(crate) path: String,
    /// Without the question mark.
    pub(crate) query: Option<String>,
    /// As the client sent them.
    pub(crate) headers: HeaderMap,
    /// Empty when the request has none.
    pub(crate) body: Bytes,
    /// Whether the client has sent a key that the proxy accepts, or came by the listener for administration.
    pub(crate) is_trusted: bool,
    /// Whether clients' keys are for this proxy, so that no worker gets them.
    pub(crate) is_keyed: bool,
}

/// A response in memory.
#[derive(Debug, Clone)]
pub(crate) struct WholeResponse {
    pub(crate) status: StatusCode,
    /// Without the framing fields: the connection that sends the response adds them.
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The error in a sentence, for the log; `None` where there is none, or where the response is a worker's.
    pub(crate) error: Option<String>,
}

impl WholeResponse {
    /// A response with this body; no `Content-Type` when `content_type` is empty.
    pub(crate) fn new(
        status: StatusCode,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) -> Self {
        let mut headers = HeaderMap::new();
        if !content_type.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        Self {
            status,
            headers,
            body: body.into(),
            error: None,
        }
    }
}

/// The key that a path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// None. Such a path is served at any load, so that health checks work when everything else is refused.
    Open,
    /// A client's key, if the proxy has any.
    Clients,
    /// A client's key, if the proxy has any, or else the listener for administration, if there is one: the path makes
    /// workers generate, and no request pays for it.
    Probers,
    /// The admin key, since the path changes the state of workers.
    Admins,
    /// The admin key as well, which a browser may present as the password of HTTP Basic: a page that shows how the
    /// balancer does and changes nothing. Served at any load, since it is most needed then, and only to pages of its
    /// own origin.
    Observers,
}

/// The endpoints without legs.
#[async_trait]
pub(crate) trait Endpoints: Send + Sync {
    /// The longest body that this method takes on this path, in bytes; 0 where no body is read.
    fn body_limit(&self, method: &Method, path: &str) -> usize;

    /// The key that this path needs.
    fn access(&self, path: &str) -> Access;

    /// The response to one request. Workers that are called for it get `request_id`.
    async fn respond(&self, request: WholeRequest, request_id: &HeaderValue) -> WholeResponse;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_by_hop_fields_are_told_from_end_to_end_fields() {
        let mut headers = HeaderMap::new();
        headers.append(CONNECTION, HeaderValue::from_static("keep-alive, X-Hop"));
        let listed = connection_headers(&headers);
        for (name, hops) in [
            ("connection", true),
            ("x-hop", true),
            ("keep-alive", true),
            ("content-length", true),
            ("transfer-encoding", true),
            ("proxy-connection", true),
            ("content-type", false),
            ("vary", false),
        ] {
            let name = HeaderName::from_static(name);
            assert_eq!(is_hop_by_hop(&name, &listed), hops, "{name}");
        }
    }
}
