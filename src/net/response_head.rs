//! The head of a worker's response: parsing, and the rules by which a response is refused.
//!
//! [`reject`] holds for both legs: for heads that Pingora has parsed (decode) and for those that [`parse`] has. How
//! the body is framed is decided in [`super::framing`].

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};
use pingora::http::header_value_from_slice;
use pingora::{Error, ErrorType, Result};

use super::failure::Failure;
use super::framing::transfer;

/// The longest head, in bytes. SGLang sends 200 bytes in 5 fields.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;
/// The most fields of a head.
pub(super) const MAX_HEAD_FIELDS: usize = 128;

/// The head of a response.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// HTTP/1.0 has neither chunks nor, here, keep-alive.
    pub(super) is_http_11: bool,
}

/// Takes a head off the front of `buf`; `None`, and nothing is taken, while its end has not arrived.
///
/// # Errors
/// `InvalidHTTPHeader`: not a head, or one over the limits.
pub(super) fn parse(buf: &mut BytesMut) -> Result<Option<Head>> {
    if buf.is_empty() {
        return Ok(None);
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEAD_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    // As Pingora parses decode's head. Source: pingora-core 0.9.1 `protocols/http/v1/client.rs` (`parse_resp_buffer`).
    let mut parser = httparse::ParserConfig::default();
    parser.allow_spaces_after_header_name_in_responses(true);
    parser.allow_obsolete_multiline_headers_in_responses(true);
    let length = match parser.parse_response(&mut parsed, buf) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD_BYTES => length,
        Ok(httparse::Status::Complete(_)) => return bad_head("longer than 64 KiB"),
        // A head without an end must not fill the memory.
        Ok(httparse::Status::Partial) if buf.len() > MAX_HEAD_BYTES => {
            return bad_head("longer than 64 KiB");
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Error::e_because(ErrorType::InvalidHTTPHeader, "", error),
    };
    let code = parsed.code.unwrap_or_default();
    let Ok(status) = StatusCode::from_u16(code) else {
        return bad_head("a status out of range");
    };
    let is_http_11 = parsed.version == Some(1);
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers.iter() {
        let Ok(name) = HeaderName::from_bytes(field.name.as_bytes()) else {
            return bad_head("an invalid header field");
        };
        // A folded value becomes one line.
        headers.append(name, header_value_from_slice(field.value));
    }
    buf.advance(length);
    Ok(Some(Head {
        status,
        headers,
        is_http_11,
    }))
}

/// Whether these bytes contain the begin of a head that is not informational: the worker has decided about the request.
/// 101 is a decision too, because what follows it is not HTTP.
pub(super) fn has_final_head(mut bytes: &[u8]) -> bool {
    const STATUS: std::ops::Range<usize> = "HTTP/1.1 ".len().."HTTP/1.1 100".len();
    while let Some(status) = bytes.get(STATUS) {
        if status[0] != b'1' || status == b"101" {
            return true;
        }
        match memchr::memmem::find(bytes, b"\r\n\r\n") {
            Some(end) => bytes = &bytes[end + 4..],
            None => return false,
        }
    }
    false
}

/// The reason to refuse a response with this head; `None` when its body may be read.
pub(crate) fn reject(status: StatusCode, headers: &HeaderMap, is_http_11: bool) -> Option<Failure> {
    // A redirect is neither followed nor passed on: it would send the request, and the key in it, to an address of
    // the worker's choice. No request of this proxy offers another protocol.
    if status.is_redirection() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Some(Failure::Unusable(status));
    }
    if let Err(why) = transfer(headers, is_http_11) {
        return Some(Failure::NotHttp(why.to_owned()));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    (bytes > MAX_HEAD_BYTES || headers.len() > MAX_HEAD_FIELDS).then(|| {
        Failure::NotHttp(format!(
            "a head of more than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_FIELDS} fields"
        ))
    })
}

/// The error of a head that is refused; `why` is a fixed text, so that it never quotes the worker.
pub(super) fn bad_head<T>(why: &'static str) -> Result<T> {
    Error::e_explain(ErrorType::InvalidHTTPHeader, why)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn redirects_and_other_protocols_are_refused_and_errors_are_passed_on() {
        let refused = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            reject(status, &HeaderMap::new(), true)
        };
        for status in [101, 300, 301, 304, 307, 308, 399] {
            let code = StatusCode::from_u16(status).unwrap();
            assert_eq!(refused(status), Some(Failure::Unusable(code)));
        }
        for status in [100, 103, 200, 204, 400, 404, 429, 500, 503, 599] {
            assert_eq!(refused(status), None, "{status}");
        }
    }

    #[test]
    fn a_hint_decides_nothing_and_a_status_behind_it_does() {
        const HINTS: &str =
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n";
        for (bytes, is_final) in [
            ("", false),
            ("HTTP/1.1 20", false),
            ("HTTP/1.1 200", true),
            ("HTTP/1.0 413 Too Large\r\n", true),
            ("HTTP/1.1 101 Switching Protocols\r\n", true),
            (HINTS, false),
            (&format!("{HINTS}HTTP/1.1 413"), true),
            ("something else", true),
        ] {
            assert_eq!(has_final_head(bytes.as_bytes()), is_final, "{bytes}");
        }
    }

    #[test]
    fn a_parsed_head_over_the_limits_is_refused() {
        let name = HeaderName::from_static("x");
        let mut headers = HeaderMap::new();
        for _ in 0..MAX_HEAD_FIELDS {
            headers.append(&name, HeaderValue::from_static("1"));
        }
        assert_eq!(reject(StatusCode::OK, &headers, true), None);
        headers.append(&name, HeaderValue::from_static("1"));
        assert!(matches!(
            reject(StatusCode::OK, &headers, true),
            Some(Failure::NotHttp(_))
        ));
        let long = |bytes: usize| {
            let value = HeaderValue::try_from("a".repeat(bytes)).unwrap();
            reject(
                StatusCode::OK,
                &HeaderMap::from_iter([(name.clone(), value)]),
                true,
            )
        };
        assert_eq!(long(MAX_HEAD_BYTES - 1), None);
        assert!(matches!(long(MAX_HEAD_BYTES), Some(Failure::NotHttp(_))));
    }
}
