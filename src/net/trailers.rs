//! The trailers of a response: fields that come behind its body.
//!
//! What lives here: which of them are passed on; bytes in, fields out, no I/O. Pingora reads over them, so that they are
//! taken from the connection on their way to it: see [`super::chunks`].
//! Source: RFC 9110 section 6.5, RFC 9112 section 7.1.2.

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HOST, LOCATION,
    RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::endpoint::is_hop_by_hop;

/// The longest trailers that are passed on, in bytes.
pub(super) const MAX_TRAILER_BYTES: usize = 8 << 10;

/// The most of them.
const MAX_TRAILERS: usize = 64;

/// Fields that are not passed on, because a client must have them before the body, besides those of one connection.
const NEVER_TRAILERS: [HeaderName; 10] = [
    AUTHORIZATION,
    CACHE_CONTROL,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    CONTENT_TYPE,
    HOST,
    LOCATION,
    RETRY_AFTER,
    SET_COOKIE,
    WWW_AUTHENTICATE,
];

/// The fields in these lines, up to and with the empty one, that may be passed on. `None` where there is none, or where
/// they are malformed.
pub(super) fn parse(lines: &[u8]) -> Option<HeaderMap> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILERS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(lines, &mut fields)
    else {
        return None;
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(field.value).ok()?;
        if !is_hop_by_hop(&name, &[]) && !NEVER_TRAILERS.contains(&name) {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_may_come_late_are_trailers_and_others_are_dropped() {
        for (lines, names) in [
            ("x-sum: 1\r\n\r\n", &["x-sum"][..]),
            ("A: 1\r\nb: 2\r\na: 3\r\n\r\n", &["a", "a", "b"]),
            ("content-length: 9\r\nx-sum: 1\r\n\r\n", &["x-sum"]),
            ("transfer-encoding: chunked\r\n\r\n", &[]),
            ("set-cookie: a=b\r\nproxy-x: 1\r\n\r\n", &[]),
            ("\r\n", &[]),
            ("no field\r\n\r\n", &[]),
            (" folded\r\n\r\n", &[]),
            ("x: 1\r\n", &[]),
        ] {
            let trailers = parse(lines.as_bytes()).unwrap_or_default();
            let found: Vec<_> = trailers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(found, names, "{lines:?}");
        }
        let many = "x: 1\r\n".repeat(MAX_TRAILERS + 1) + "\r\n";
        assert_eq!(parse(many.as_bytes()), None);
    }
}
