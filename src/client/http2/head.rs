//! Which request heads of HTTP/2 are accepted: those that mean the same once they are a head of HTTP/1.1, as workers get
//! them.
//!
//! h2 resets the stream of a malformed head before it comes here: one with a field of HTTP/1.1's connections, with a
//! pseudo-field that is unknown or repeated, with upper case in a name, or with a Content-Length that is no number.
//! Source: h2 0.4.20 `frame/headers.rs` (`load`), `server.rs` (`convert_poll_message`); RFC 9113 section 8.

use http::header::{CONTENT_LENGTH, HOST};
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue};

use super::super::request_head::{
    BadHead, MAX_FIELDS, MAX_HEAD_BYTES, is_ambiguous, is_authority_byte, is_underscore_alias,
};

/// Makes the target the path alone, and Host what `:authority` says, where there is one. HTTP/1.1 has them in these
/// places, and all that follows reads them there.
///
/// # Errors
/// The head names no host, or two.
pub(super) fn normalise(parts: &mut Parts) -> Result<(), BadHead> {
    let target = std::mem::take(&mut parts.uri).into_parts();
    if let Some(authority) = target.authority {
        let named = HeaderValue::from_str(authority.as_str()).map_err(|_| BadHead::Host)?;
        // Section 8.3.1: Host and `:authority` must not differ.
        if parts.headers.get(HOST).is_some_and(|host| *host != named) {
            return Err(BadHead::Host);
        }
        if !parts.headers.contains_key(HOST) {
            parts.headers.insert(HOST, named);
        }
    }
    let path = target.path_and_query;
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    Ok(())
}

/// Checks a head that [`normalise`] has accepted.
///
/// # Errors
/// The first rule that it breaks.
pub(crate) fn check_parsed(target: &[u8], headers: &HeaderMap) -> Result<(), BadHead> {
    if headers.len() > MAX_FIELDS {
        return Err(BadHead::TooManyFields);
    }
    let field_bytes = |(name, value): (&http::HeaderName, &HeaderValue)| {
        // As HTTP/1.1 writes it, with a colon, a blank and a line end.
        name.as_str().len() + value.len() + 4
    };
    if target.len() + headers.iter().map(field_bytes).sum::<usize>() > MAX_HEAD_BYTES {
        return Err(BadHead::TooLong);
    }
    if is_ambiguous(target) || !(target.starts_with(b"/") || target == b"*") {
        return Err(BadHead::Target);
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = (hosts.next(), hosts.next());
    let is_valid = |host: &HeaderValue| host.as_bytes().iter().all(is_authority_byte);
    if !matches!(host, (Some(host), None) if is_valid(host)) {
        return Err(BadHead::Host);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_number =
        |value: &HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if !lengths.next().is_none_or(is_number) || lengths.next().is_some() {
        return Err(BadHead::ContentLength);
    }
    if headers
        .keys()
        .any(|name| is_underscore_alias(name.as_str().as_bytes()))
    {
        return Err(BadHead::UnderscoreAlias);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::Request;

    use super::*;

    fn checked(uri: &str, fields: &[(&str, &str)]) -> Result<String, BadHead> {
        let mut request = Request::post(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut parts = request.body(()).unwrap().into_parts().0;
        normalise(&mut parts)?;
        check_parsed(parts.uri.to_string().as_bytes(), &parts.headers)?;
        let host = parts.headers[HOST].to_str().unwrap();
        Ok(format!("{} {host}", parts.uri))
    }

    #[test]
    fn the_authority_becomes_the_host() {
        for fields in [&[][..], &[("host", "a.example:80")]] {
            let head = checked("http://a.example:80/generate?x=1", fields);
            assert_eq!(head, Ok("/generate?x=1 a.example:80".to_owned()));
        }
        let head = checked("/generate", &[("host", "a")]);
        assert_eq!(head, Ok("/generate a".to_owned()));
    }

    #[test]
    fn heads_that_http_1_refuses_are_refused() {
        let long = "x".repeat(MAX_HEAD_BYTES);
        for (uri, fields, why) in [
            ("/generate", &[][..], BadHead::Host),
            ("http://a/generate", &[("host", "b")], BadHead::Host),
            ("http://u@a/generate", &[], BadHead::Host),
            ("/", &[("host", "a"), ("host", "a")], BadHead::Host),
            ("/", &[("host", "a b")], BadHead::Host),
            ("http://a/%0d%0aX:", &[], BadHead::Target),
            (
                "http://a/",
                &[("content-length", "1"), ("content-length", "1")],
                BadHead::ContentLength,
            ),
            (
                "http://a/",
                &[("content-length", "+1")],
                BadHead::ContentLength,
            ),
            (
                "http://a/",
                &[("content_length", "1")],
                BadHead::UnderscoreAlias,
            ),
            ("http://a/", &[("x", &long)], BadHead::TooLong),
        ] {
            assert_eq!(checked(uri, fields), Err(why), "{uri} {}", fields.len());
        }
        let many: Vec<_> = (0..=MAX_FIELDS).map(|_| ("x", "1")).collect();
        assert_eq!(checked("http://a/", &many), Err(BadHead::TooManyFields));
    }
}
