//! The response to a head that Pingora refuses before any hook sees it: its form, and its fields for a page of another
//! origin. [`super::counted`] writes it in place of Pingora's own, which has no body.

use bytes::Bytes;
use http::header::ORIGIN;
use http::{HeaderValue, StatusCode};

use super::cors::Cors;
use crate::endpoint::{WholeResponse, write_fields};

/// Makes the response to a head that is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The response for this status.
    pub(crate) response: fn(StatusCode) -> WholeResponse,
    /// The origins whose pages may read it.
    pub(crate) cors: Cors,
}

impl Refusal {
    /// Whether the response depends on the head. The head is kept only then, because few are refused.
    pub(super) fn reads_head(&self) -> bool {
        self.cors.is_listed()
    }

    /// The bytes of the response, after which the connection closes. `pingoras` is the beginning of Pingora's own
    /// response, `head` what has been read of the head if [`Self::reads_head`].
    pub(super) fn bytes(&self, pingoras: &[u8], head: &[u8]) -> Bytes {
        on_the_wire(&self.whole(status(pingoras), origin(head).as_ref()))
    }

    /// The response with this status, to a head with this `Origin`.
    pub(super) fn whole(&self, status: StatusCode, origin: Option<&HeaderValue>) -> WholeResponse {
        let mut response = (self.response)(status);
        self.cors.apply_unparsed(origin, &mut response.headers);
        response
    }
}

/// The status in the first line of a response.
fn status(response: &[u8]) -> StatusCode {
    let status = response.strip_prefix(b"HTTP/1.1 ");
    status
        .and_then(|status| StatusCode::from_bytes(status.get(..3)?).ok())
        .unwrap_or(StatusCode::BAD_REQUEST)
}

/// The `Origin` of a head that may be invalid.
fn origin(head: &[u8]) -> Option<HeaderValue> {
    let mut lines = head.split(|byte| *byte == b'\n');
    lines.find_map(|line| {
        let (name, value) = line.split_at_checked(ORIGIN.as_str().len())?;
        let value = value.strip_prefix(b":")?.trim_ascii();
        let is_origin = name.eq_ignore_ascii_case(ORIGIN.as_str().as_bytes());
        HeaderValue::from_bytes(value).ok().filter(|_| is_origin)
    })
}

/// The bytes of a response after which the connection closes.
fn on_the_wire(response: &WholeResponse) -> Bytes {
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status).into_bytes();
    write_fields(&mut bytes, &response.headers);
    let length = response.body.len();
    bytes.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    bytes.extend_from_slice(b"connection: close\r\n\r\n");
    bytes.extend_from_slice(&response.body);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_a_head_is_found_whatever_else_is_wrong_with_it() {
        for (head, found) in [
            (
                "GET / HTTP/1.1\r\nOrigin: https://a.example\r\nb\r\n\r\n",
                true,
            ),
            ("GET / HTTP/9\nORIGIN:https://a.example", true),
            ("GET /?origin:https://a.example HTTP/1.1\r\n", false),
            ("GET / HTTP/1.1\r\nx-origin: https://a.example\r\n", false),
            ("", false),
        ] {
            let expected = found.then(|| HeaderValue::from_static("https://a.example"));
            assert_eq!(origin(head.as_bytes()), expected, "{head}");
        }
    }
}
