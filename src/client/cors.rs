//! CORS: the pages of other origins that may read a response, in a browser.
//!
//! One rule for every response: those that the balancer makes, and those of workers, whose own fields pass. A response
//! without `access-control-allow-origin` is one that a page cannot read, not even its status.
//!
//! Source: SGLang 0.5.23 `srt/entrypoints/http_server.py` (`allow_origins=["*"]`, `allow_credentials=True`), Starlette
//! 1.10 `middleware/cors.py`; WHATWG Fetch, "CORS protocol".

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};

use crate::endpoint::WholeResponse;

/// The fields that a page may read besides those that every page may: an SDK in a browser obeys them.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "x-request-id, x-mini-lb-error, x-mini-lb-warning, x-should-retry, retry-after, server-timing, x-mini-lb-prefill, \
     x-mini-lb-decode",
);

/// The fields of the request that a preflight's response depends on.
const PREFLIGHT_VARY: HeaderValue = HeaderValue::from_static(
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
);

/// As SGLang: all methods, whatever the path takes.
const METHODS: HeaderValue =
    HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY");

/// How long a browser keeps the response to a preflight, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The origins whose pages may read responses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cors {
    /// No field is added or removed, and no preflight is answered.
    Off,
    /// Every origin. The origin itself is answered, because a browser refuses `*` for requests with credentials.
    Any,
    /// These origins. A worker's permission for another one is removed.
    Listed(Vec<String>),
}

impl Cors {
    /// Whether this is the request by which a browser asks for leave to send another one.
    pub(crate) fn is_preflight(&self, head: &RequestHeader) -> bool {
        *self != Cors::Off
            && head.method == Method::OPTIONS
            && head.headers.contains_key(ORIGIN)
            && head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// The response to a preflight; `None` where its origin is not allowed.
    pub(crate) fn preflight(&self, request: &HeaderMap) -> Option<WholeResponse> {
        let origin = self.allowed_origin(request)?;
        let mut response = WholeResponse::new(StatusCode::OK, "text/plain; charset=utf-8", "OK");
        let headers = &mut response.headers;
        headers.insert(VARY, PREFLIGHT_VARY);
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        if let Some(asked) = request.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        Some(response)
    }

    /// Completes the head of a response to this request. Fields that a worker has set stay, unless its origin is not
    /// allowed.
    ///
    /// # Errors
    /// None in practice: every value comes from a parsed head or a constant.
    pub(crate) fn apply(&self, request: &HeaderMap, response: &mut ResponseHeader) -> Result<()> {
        let Some(origin) = request.get(ORIGIN).filter(|_| *self != Cors::Off) else {
            return Ok(());
        };
        if !self.allows(origin) {
            response.remove_header(&ACCESS_CONTROL_ALLOW_ORIGIN);
            response.remove_header(&ACCESS_CONTROL_ALLOW_CREDENTIALS);
        } else if !response.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, origin)?;
            response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE)?;
            if !response.headers.contains_key(ACCESS_CONTROL_EXPOSE_HEADERS) {
                response.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
            }
        }
        if !varies_by_origin(&response.headers) {
            response.append_header(VARY, "Origin")?;
        }
        Ok(())
    }

    /// Whether only some origins are allowed.
    pub(super) fn is_listed(&self) -> bool {
        matches!(self, Cors::Listed(_))
    }

    /// Completes the fields of a response to a head that was not parsed. `origin` is needed only where
    /// [`Self::is_listed`]: else every page is answered `*`, and can read the response unless it sends cookies.
    pub(super) fn apply_unparsed(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        let allowed = match self {
            Cors::Off => return,
            Cors::Any => HeaderValue::from_static("*"),
            Cors::Listed(_) => {
                let Some(origin) = origin else {
                    return;
                };
                headers.append(VARY, HeaderValue::from_name(ORIGIN));
                if !self.allows(origin) {
                    return;
                }
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
                origin.clone()
            }
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }

    /// The origin of the page that sent this request, where it may read the response.
    pub(crate) fn allowed_origin<'a>(&self, request: &'a HeaderMap) -> Option<&'a HeaderValue> {
        request.get(ORIGIN).filter(|origin| self.allows(origin))
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        match self {
            Cors::Off => false,
            Cors::Any => true,
            Cors::Listed(listed) => listed
                .iter()
                .any(|listed| origin.as_bytes().eq_ignore_ascii_case(listed.as_bytes())),
        }
    }
}

fn varies_by_origin(headers: &HeaderMap) -> bool {
    let values = headers.get_all(VARY).iter();
    let mut names = values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    names.any(|name| matches!(name.trim(), "*") || name.trim().eq_ignore_ascii_case("origin"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGE: &str = "https://app.example";

    fn listed() -> Cors {
        Cors::Listed(vec![PAGE.to_owned(), "http://localhost:3000".to_owned()])
    }

    fn request(method: &str, fields: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut head = RequestHeader::build(method, b"/v1/models", None).unwrap();
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    /// The fields of a response with these ones once the rule has been applied.
    fn applied(cors: &Cors, origin: Option<&'static str>, own: &[(&'static str, &str)]) -> String {
        let mut head = request("GET", &[]);
        if let Some(origin) = origin {
            head.insert_header(ORIGIN, origin).unwrap();
        }
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in own {
            response.append_header(*name, *value).unwrap();
        }
        cors.apply(&head.headers, &mut response).unwrap();
        let fields = response.headers.iter();
        let fields = fields.filter(|(name, _)| *name != ACCESS_CONTROL_EXPOSE_HEADERS);
        let lines = fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        lines.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn an_allowed_origin_is_answered_once() {
        let added = format!(
            "access-control-allow-origin: {PAGE}; access-control-allow-credentials: true; vary: Origin"
        );
        for cors in [Cors::Any, listed()] {
            assert_eq!(applied(&cors, Some(PAGE), &[]), added);
            let own = [("access-control-allow-origin", "*"), ("vary", "Origin")];
            assert_eq!(
                applied(&cors, Some(PAGE), &own),
                "access-control-allow-origin: *; vary: Origin"
            );
            assert_eq!(applied(&cors, None, &[]), "");
        }
        assert_eq!(applied(&Cors::Off, Some(PAGE), &[]), "");
    }

    #[test]
    fn an_origin_that_is_not_listed_gets_no_permission_not_even_a_workers() {
        let other = Some("https://other.example");
        let own = [
            ("access-control-allow-origin", "https://other.example"),
            ("access-control-allow-credentials", "true"),
        ];
        assert_eq!(applied(&listed(), other, &own), "vary: Origin");
        assert_eq!(
            applied(&Cors::Off, other, &own[..1]),
            "access-control-allow-origin: https://other.example"
        );
    }

    #[test]
    fn a_preflight_is_answered_for_allowed_origins() {
        let asks = [
            ("origin", "http://localhost:3000"),
            ("access-control-request-method", "POST"),
            (
                "access-control-request-headers",
                "authorization,content-type",
            ),
        ];
        let head = request("OPTIONS", &asks);
        for cors in [Cors::Any, listed()] {
            assert!(cors.is_preflight(&head));
            let headers = cors.preflight(&head.headers).unwrap().headers;
            assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], asks[0].1);
            assert_eq!(headers[ACCESS_CONTROL_ALLOW_HEADERS], asks[2].1);
        }
        let other = Cors::Listed(vec![PAGE.to_owned()]);
        assert!(other.is_preflight(&head));
        assert!(other.preflight(&head.headers).is_none());
        assert!(!Cors::Off.is_preflight(&head));
        for no_preflight in [
            request("POST", &asks),
            request("OPTIONS", &asks[..1]),
            request("OPTIONS", &asks[1..]),
        ] {
            assert!(!Cors::Any.is_preflight(&no_preflight));
        }
    }
}
