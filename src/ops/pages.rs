//! The pages for observers: they show how the balancer does, and change nothing.
//!
//! Each is rendered from memory, and no worker is asked.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Ops, error};
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::telemetry::{OPENMETRICS, TEXT};

/// A page for observers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// The metrics, in a text format of Prometheus.
    Metrics,
    /// The dashboard, in HTML.
    Dashboard,
    /// What the dashboard shows, in JSON.
    DashboardData,
    /// Single requests, as JSON.
    Requests,
}

impl Ops {
    /// Renders a page. Its content is of this moment.
    pub(super) fn page(&self, page: Page, request: &WholeRequest) -> WholeResponse {
        let mut response = match page {
            Page::Metrics => self.metrics(request),
            Page::Dashboard => self.dashboard.page(),
            Page::DashboardData => self.dashboard.data(request),
            Page::Requests => self.requests(request),
        };
        let now = HeaderValue::from_static("no-store");
        response.headers.insert(header::CACHE_CONTROL, now);
        response
    }

    fn metrics(&self, request: &WholeRequest) -> WholeResponse {
        let content_type = metrics_format(&request.headers);
        match self.telemetry.metrics.render(content_type) {
            Ok(text) => WholeResponse::new(StatusCode::OK, content_type, text),
            Err(why) => error::error(&request.path, Code::Internal, &why.to_string()),
        }
    }
}

/// OpenMetrics where `Accept` names it, as that of Prometheus does, else the older text format. Whatever else the field
/// holds is no reason to refuse a scrape.
fn metrics_format(headers: &HeaderMap) -> &'static str {
    let accepts = |value: &HeaderValue| {
        let ranges = value.to_str().unwrap_or_default().split(',');
        ranges.map(str::trim_start).any(accepts_openmetrics)
    };
    match headers.get_all(header::ACCEPT).iter().any(accepts) {
        true => OPENMETRICS,
        false => TEXT,
    }
}

/// Whether a media range is OpenMetrics without a version or with 1.0, and not of weight 0.
fn accepts_openmetrics(range: &str) -> bool {
    let mut fields = range.split(';').map(str::trim);
    let is_openmetrics = fields
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
    is_openmetrics
        && fields.all(|field| match field.split_once('=') {
            Some(("version", version)) => ["0.0.1", "1.0.0"].contains(&version),
            Some(("q", weight)) => weight.parse().is_ok_and(|weight: f32| weight > 0.0),
            _ => true,
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_name_it() {
        // As Prometheus 2.53 sends it.
        const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
             version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let huge = format!("{},application/openmetrics-text", "a/b,".repeat(4000));
        for (accept, format) in [
            (PROMETHEUS, OPENMETRICS),
            ("application/openmetrics-text", OPENMETRICS),
            (
                "text/html, Application/OpenMetrics-Text; version=1.0.0",
                OPENMETRICS,
            ),
            (&huge, OPENMETRICS),
            ("application/openmetrics-text;version=2.0.0", TEXT),
            ("application/openmetrics-text;q=0", TEXT),
            ("application/openmetrics-text;q=x", TEXT),
            ("application/openmetrics-textual", TEXT),
            ("application/vnd.google.protobuf;proto=x", TEXT),
            ("text/plain", TEXT),
            ("*/*", TEXT),
            (";;,,;q=,", TEXT),
            ("", TEXT),
        ] {
            let accept = HeaderValue::from_str(accept).unwrap();
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept)]);
            assert_eq!(metrics_format(&headers), format, "{headers:?}");
        }
        assert_eq!(metrics_format(&HeaderMap::new()), TEXT);
        let bytes = HeaderValue::from_bytes(b"\xff, application/openmetrics-text").unwrap();
        let headers = HeaderMap::from_iter([(header::ACCEPT, bytes)]);
        assert_eq!(metrics_format(&headers), TEXT);
    }
}
