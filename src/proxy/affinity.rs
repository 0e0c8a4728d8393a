//! The session that a request belongs to, where a policy keeps the requests of a session together.
//!
//! The first of these that is there and not empty: the configured header, the headers that other routers read, and then
//! the fields of the body by which clients name a conversation or a user.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};

use crate::fleet::digest;
use crate::pd::named_session;

/// The headers that name a session.
///
/// Source: smg 1.13 (`X-SMG-Routing-Key`); vllm-router 0.1.17 (`x-session-id`); `x-correlation-id` is common in meshes.
const HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("x-smg-routing-key"),
    HeaderName::from_static("x-session-id"),
    HeaderName::from_static("x-correlation-id"),
];

/// Finds the session of a request.
pub(crate) struct Affinity {
    /// The configured header.
    pub(crate) header: Option<HeaderName>,
}

impl Affinity {
    /// A digest of the session's name; `None` where the request names none.
    pub(super) fn session(&self, headers: &HeaderMap, body: &[u8]) -> Option<u64> {
        let names = self.header.iter().cloned().chain(HEADERS);
        let mut values = names.filter_map(|name| headers.get(name));
        let in_head = values
            .find(|value| !value.is_empty())
            .map(|value| Cow::Borrowed(value.as_bytes()));
        let in_body = || named_session(body).map(|name| Cow::Owned(name.into_bytes()));
        in_head.or_else(in_body).map(|name| digest(&name))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_configured_header_is_first_and_the_body_last() {
        let affinity = Affinity {
            header: Some(HeaderName::from_static("x-conversation")),
        };
        let body = br#"{"user":"u"}"#;
        let mut headers = HeaderMap::new();
        let mut expect = |name: &'static str, value: &'static str, session: &str| {
            headers.insert(name, HeaderValue::from_static(value));
            let found = affinity.session(&headers, body);
            assert_eq!(found, Some(digest(session.as_bytes())), "{name}");
        };
        expect("x-other", "0", "u");
        expect("x-correlation-id", "c", "c");
        expect("x-session-id", "s", "s");
        expect("x-smg-routing-key", "r", "r");
        expect("x-conversation", "", "r");
        expect("x-conversation", "own", "own");
        assert_eq!(affinity.session(&HeaderMap::new(), b"{}"), None);
    }
}
