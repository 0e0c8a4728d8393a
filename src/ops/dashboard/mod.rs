//! The dashboard: one page for a browser, and the data that it asks for once a second.
//!
//! The page is written by hand and is part of the binary. It loads nothing from elsewhere, and its policy lets it run
//! nothing but its own script.
//!
//! | file | what it holds |
//! |---|---|
//! | `page.html`, `page.css`, `page.js` | the page |
//! | `data.rs` | what it shows, as JSON |
//! | `filter.rs` | which requests it shows: the query |
//! | `means.rs` | what the workers say about their load |
//! | `shared.rs` | the data that several pages share |

mod data;
mod filter;
mod means;
mod shared;

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use super::error;
use super::workers::pending;
use crate::discovery::Registry;
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::Fleet;
use crate::telemetry::Telemetry;
use means::Means;
use shared::Shared;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page and its policy.
static PAGE: LazyLock<(Bytes, Option<HeaderValue>)> = LazyLock::new(|| {
    let page = include_str!("page.html");
    let page = page
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT);
    (page.into(), policy().parse().ok())
});

/// The dashboard of one balancer.
pub(super) struct Dashboard {
    fleet: Arc<Fleet>,
    registry: Arc<Registry>,
    telemetry: Arc<Telemetry>,
    shared: Shared,
    means: Means,
}

impl Dashboard {
    pub(super) fn new(
        fleet: Arc<Fleet>,
        registry: Arc<Registry>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self {
            fleet,
            registry,
            telemetry,
            shared: Shared::default(),
            means: Means::default(),
        }
    }

    /// The page itself, which is the same for every balancer.
    pub(super) fn page(&self) -> WholeResponse {
        let (page, policy) = &*PAGE;
        let mut response =
            WholeResponse::new(StatusCode::OK, "text/html; charset=utf-8", page.clone());
        let headers = &mut response.headers;
        if let Some(policy) = policy {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy.clone());
        }
        headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
        headers.insert(
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        );
        protect(response)
    }

    /// What it shows now, as JSON: all requests, or those of the workers in the query.
    pub(super) fn data(&self, request: &WholeRequest) -> WholeResponse {
        let members = self.fleet.members();
        let filter = match filter::parse(request.query.as_deref(), &members) {
            Ok(filter) => filter,
            Err(why) => return error::error(&request.path, Code::BadQuery, &why),
        };
        let now = Instant::now();
        let data = self.shared.get(filter, now, || {
            let loads = self.means.with(&members, now);
            let pending = pending(&self.registry, &members);
            data::of(
                (&self.fleet, &members),
                pending,
                &self.telemetry,
                loads,
                filter,
                now,
            )
        });
        protect(WholeResponse::new(StatusCode::OK, "application/json", data))
    }
}

/// Keeps other origins from reading the response, and a browser from taking it for something else.
fn protect(mut response: WholeResponse) -> WholeResponse {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        response
            .headers
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The content security policy: this script and this style, and requests to this origin.
fn policy() -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_page_loads_nothing_from_elsewhere_and_needs_no_inline_code() {
        let (page, policy) = &*PAGE;
        let page = std::str::from_utf8(page).unwrap();
        assert!(policy.is_some());
        assert!(!page.contains("{{"));
        for forbidden in [
            "src=",
            "@import",
            "url(",
            " style=",
            " onclick",
            "eval(",
            "innerHTML",
        ] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        let namespace = "http://www.w3.org/2000/svg";
        let links = page.replace(namespace, "").matches("://").count();
        assert_eq!(links, 0);
    }
}
