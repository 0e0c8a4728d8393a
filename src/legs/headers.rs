//! The heads of the legs: which of the client's fields reach the workers, which are replaced, and which of decode's
//! reach the client.
//!
//! Both legs get the same list. `Host` and `Authorization` are the worker's own and the framing is the proxy's.
//! Hop-by-hop fields are dropped, and so are those that would override the request id or the bootstrap fields.
//! Source: SGLang 0.5.23 `entrypoints/http_server.py` (`x-override-*`), RFC 9110 section 7.6.1 (hop by hop).

use std::sync::Arc;

use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, EXPECT, HOST, TE,
    TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::endpoint::{
    DECODE_WORKER, PREFILL_WORKER, REQUEST_ID, TIMING, asks_for_trailers, connection_headers,
    is_hop_by_hop,
};
use crate::fleet::Worker;

/// Fields that are dropped besides the hop-by-hop ones: they concern the client's connection to the proxy, the proxy's own
/// response, or the encoding of a body that the proxy reads. Workers are asked for `identity`, because the proxy reads their responses, and
/// without the field any coding would be allowed. Source: RFC 9110 section 12.5.3.
const DROPPED: [HeaderName; 7] = [
    HOST,
    EXPECT,
    ACCEPT_ENCODING,
    CONTENT_ENCODING,
    TIMING,
    PREFILL_WORKER,
    DECODE_WORKER,
];

/// Fields with this prefix make SGLang take the request id and the bootstrap fields from the head instead of the body.
const OVERRIDE_PREFIX: &str = "x-override-";

/// The longest request id of a client that is kept, in bytes.
const MAX_REQUEST_ID: usize = 256;

/// The client's request id, or a new one when the client's is missing, too long, or not made of visible ASCII characters
/// alone: it stands in one field of a log line.
pub(crate) fn request_id(headers: &HeaderMap, random: impl FnOnce() -> u128) -> HeaderValue {
    headers
        .get(REQUEST_ID)
        .filter(|value| is_request_id(value.as_bytes()))
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::try_from(format!("{:032x}", random()))
                .unwrap_or_else(|_| unreachable!("hexadecimal digits are a header value"))
        })
}

/// Whether the body of this message is compressed.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    encodings.any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// The head that both legs share: the client's end-to-end fields and the request id. [`add_worker_fields`] adds the fields of one
/// worker.
///
/// # Errors
/// None in practice: every name and value comes from a parsed head or a constant.
pub(crate) fn for_legs(
    client: &RequestHeader,
    path: &str,
    request_id: &HeaderValue,
) -> Result<RequestHeader> {
    // Host, Content-Length, the id and the encoding are added. Without a map of the names' case the head is smaller, and HTTP does
    // not distinguish cases.
    let size = Some(client.headers.len() + 4);
    let mut leg = RequestHeader::build_no_case(client.method.clone(), path.as_bytes(), size)?;
    let listed = connection_headers(&client.headers);
    for (name, value) in &client.headers {
        if !is_dropped(name, &listed) && name != REQUEST_ID {
            leg.append_header(name, value)?;
        }
    }
    leg.insert_header(REQUEST_ID, request_id)?;
    leg.insert_header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))?;
    if asks_for_trailers(&client.headers) {
        // Said anew, because it concerns the next connection alone. Many servers send trailers to no other client.
        leg.insert_header(TE, HeaderValue::from_static("trailers"))?;
        leg.insert_header(CONNECTION, HeaderValue::from_static("te"))?;
    }
    Ok(leg)
}

/// The head of one leg of a request that is traced, whose `traceparent` names the leg's own span.
pub(crate) fn traced(head: &RequestHeader, traceparent: HeaderValue) -> Arc<RequestHeader> {
    let mut leg = head.clone();
    if let Err(error) = leg.insert_header("traceparent", traceparent) {
        log::debug!("a leg without its span error={error}");
    }
    Arc::new(leg)
}

/// Adds the fields of one worker and the length of the body, in bytes, to the head of the legs.
///
/// # Errors
/// None in practice, as in [`for_legs`].
pub(crate) fn add_worker_fields(
    leg: &mut RequestHeader,
    worker: &Worker,
    body_len: usize,
) -> Result<()> {
    leg.insert_header(HOST, worker.host())?;
    if let Some(authorization) = worker.authorization() {
        leg.insert_header(AUTHORIZATION, authorization)?;
    }
    leg.insert_header(CONTENT_LENGTH, body_len)?;
    Ok(())
}

/// Drops what concerns the connection to decode alone from the head of its response, except the framing of the body,
/// which Pingora reads. The field that announces trailers stays where these go to the client.
pub(crate) fn drop_hop_by_hop(head: &mut ResponseHeader, takes_trailers: impl Fn() -> bool) {
    let listed = connection_headers(&head.headers);
    let is_dropped = |name: &&HeaderName| {
        is_hop_by_hop(name, &listed)
            && ![CONTENT_LENGTH, TRANSFER_ENCODING].contains(name)
            && !(**name == TRAILER && takes_trailers())
    };
    // Allocates only where there is such a field, which workers without a proxy in front of them do not send.
    let dropped: Vec<_> = head.headers.keys().filter(is_dropped).cloned().collect();
    for name in &dropped {
        head.remove_header(name);
    }
}

fn is_request_id(value: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic)
}

fn is_dropped(name: &HeaderName, listed: &[HeaderName]) -> bool {
    is_hop_by_hop(name, listed)
        || DROPPED.contains(name)
        || name.as_str().starts_with(OVERRIDE_PREFIX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::fleet::{Role, WorkerParts};

    fn client(headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut head = RequestHeader::build("POST", b"/generate?x=1", None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    fn leg(headers: &[(&'static str, &'static str)]) -> RequestHeader {
        for_legs(
            &client(headers),
            "/generate",
            &HeaderValue::from_static("id"),
        )
        .unwrap()
    }

    #[test]
    fn workers_are_told_of_a_client_that_takes_trailers() {
        for (te, told) in [
            ("trailers", true),
            ("gzip;q=0.5, Trailers", true),
            ("gzip", false),
            ("x-trailers", false),
        ] {
            let leg = leg(&[("te", te)]);
            let fields = [TE, CONNECTION].map(|name| leg.headers.get(name).cloned());
            let said = ["trailers", "te"].map(|said| told.then(|| HeaderValue::from_static(said)));
            assert_eq!(fields, said, "{te}");
        }
    }

    #[test]
    fn hop_by_hop_fields_and_overrides_of_the_engine_are_dropped() {
        let leg = leg(&[
            ("host", "proxy"),
            ("connection", "keep-alive, X-Hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("accept-encoding", "gzip"),
            ("upgrade", "h2c"),
            ("te", "gzip"),
            ("proxy-connection", "keep-alive"),
            ("x-override-bootstrap-host", "10.0.0.1"),
            ("X-Override-Rid", "a"),
        ]);
        let names: Vec<_> = leg.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-request-id", "accept-encoding"]);
        assert_eq!(leg.headers[ACCEPT_ENCODING], "identity");
        assert_eq!(leg.uri.path(), "/generate");
    }

    #[test]
    fn end_to_end_fields_are_forwarded() {
        let sent = [
            ("authorization", "Bearer a"),
            ("traceparent", "00-1-2-01"),
            ("tracestate", "k=v"),
            ("x-smg-routing-key", "s"),
            ("x-correlation-id", "c"),
            ("content-type", "application/json"),
            ("x-custom", "1"),
            ("x-custom", "2"),
        ];
        let leg = leg(&sent);
        for (name, value) in sent {
            assert!(
                leg.headers.get_all(name).iter().any(|v| v == value),
                "{name}"
            );
        }
    }

    #[test]
    fn a_workers_own_key_replaces_the_clients() {
        let mut leg = leg(&[("authorization", "Bearer client")]);
        let parts = WorkerParts {
            host: HeaderValue::from_static("w:1"),
            authorization: Some(HeaderValue::from_static("Bearer worker")),
            ..WorkerParts::for_tests(Role::Prefill, 1)
        };
        let worker = Worker::of_parts(parts);
        add_worker_fields(&mut leg, &worker, 2).unwrap();
        assert_eq!(leg.headers[CONTENT_LENGTH], "2");
        assert_eq!(leg.headers[AUTHORIZATION], "Bearer worker");
        assert_eq!(leg.headers.get_all(AUTHORIZATION).iter().count(), 1);
        assert_eq!(leg.headers[HOST], "w:1");
    }

    #[test]
    fn a_request_id_of_visible_characters_is_kept_and_another_replaced() {
        let id =
            |value: &'static str| request_id(&client(&[("x-request-id", value)]).headers, || 5);
        for kept in ["abc-1.2_3", "job/42:a=b", "a\"b\\", "{1}@x#%20"] {
            assert_eq!(id(kept), kept);
        }
        let long = |length: usize| &*"x".repeat(length).leak();
        assert_eq!(id(long(MAX_REQUEST_ID)), long(MAX_REQUEST_ID));
        for unfit in ["", "a b", "ä", long(MAX_REQUEST_ID + 1)] {
            assert_eq!(id(unfit), format!("{:032x}", 5), "{unfit}");
        }
        assert_eq!(request_id(&HeaderMap::new(), || 10), format!("{:032x}", 10));
    }
}
