//! The metrics of one balancer, in Prometheus' two text formats.

use std::fmt;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// The `Content-Type` of the older text format, which every scraper reads.
pub(crate) const TEXT: &str = prometheus_text::CONTENT_TYPE;

/// The `Content-Type` of OpenMetrics.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics, with their values.
pub(crate) struct Metrics {
    registry: Registry,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("mini_lb_build", "The version of mini-lb", version);
        Self { registry }
    }
}

impl Metrics {
    /// All metrics as text of this type, [`TEXT`] or [`OPENMETRICS`].
    ///
    /// # Errors
    /// None in practice: a string takes what is written to it.
    pub(crate) fn render(&self, content_type: &str) -> Result<String, fmt::Error> {
        let mut rendered = String::new();
        match content_type {
            OPENMETRICS => text::encode(&mut rendered, &self.registry)?,
            _ => prometheus_text::encode(&mut rendered, &self.registry)?,
        }
        Ok(rendered)
    }
}
