//! Traces for OpenTelemetry: a server span for each request, and a client span for each leg of each of its attempts.
//!
//! The ids of spans are drawn while the request runs, because each leg takes that of its own span along. The spans themselves
//! are made of the [`Record`] when the request has ended, so that a request that is not sampled costs its ids alone, and one
//! without tracing nothing.
//!
//! | file | what it holds |
//! |---|---|
//! | `context.rs` | the trace of a request: what it takes from the client's `traceparent` and gives to the legs |
//! | `sampler.rs` | which requests are sampled |
//! | `variables.rs` | the `OTEL_*` variables |
//! | `spans.rs`, `attributes.rs` | from a record to spans |
//! | `export.rs` | the queue, and the thread that empties it |
//! | `transport.rs` | one request to the collector: OTLP over HTTP or gRPC |
//!
//! Source: W3C Trace Context; OpenTelemetry specification, `trace/sdk.md`, `configuration/sdk-environment-variables.md`.

mod attributes;
mod context;
mod export;
mod sampler;
mod spans;
mod transport;
mod variables;

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use opentelemetry::InstrumentationScope;

use super::{DroppedSpans, Record};
use context::{Details, Parent};
pub(crate) use context::{LegSpans, Trace};
use export::Exporter;
use sampler::Sampler;
use variables::Variables;

/// Samples requests and exports their spans.
pub(crate) struct Tracing {
    sampler: Sampler,
    exporter: Exporter,
    scope: InstrumentationScope,
}

/// The head of a request, as far as a span has it.
pub(crate) struct Head<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) tls: bool,
}

impl Tracing {
    /// Tracing to this endpoint of the settings, with the variables of the environment under it. `None` where these turn it
    /// off, or cannot be used; the log says which.
    pub(super) fn new(endpoint: Option<&str>, dropped: Arc<DroppedSpans>) -> Option<Self> {
        let variables = Variables::of(endpoint, &|name| std::env::var(name).ok());
        for warning in &variables.warnings {
            log::warn!("{warning}");
        }
        if variables.is_disabled {
            log::info!("OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER turns traces off");
            return None;
        }
        let exporter = Exporter::new(&variables, dropped);
        let exporter = exporter.inspect_err(|why| log::error!("no traces are exported: {why}"));
        let exporter = exporter.ok()?;
        log::info!("traces are exported endpoint={}", variables.endpoint.uri);
        Some(Self {
            sampler: variables.sampler,
            exporter,
            scope: InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        })
    }

    /// The trace of a request that began at this moment: the client's, or a new one.
    pub(super) fn begin(&self, head: &Head<'_>, started: Instant) -> Box<Trace> {
        let parent = Parent::of(head.headers);
        let trace_id = parent.as_ref().map_or_else(context::id, |p| p.trace_id);
        let sampled = self
            .sampler
            .samples(parent.as_ref().map(Parent::is_sampled), trace_id);
        let details = sampled.then(|| Details::new(head, started));
        Box::new(Trace::new(parent, trace_id, details))
    }

    /// Exports the spans of a finished request.
    pub(super) fn finished(&self, record: &Record) {
        // Health checks and scrapers ask every few seconds, and say nothing about a client's request.
        if !record.is_probe {
            spans::each_of_request(record, &self.scope, |span| self.exporter.add(span));
        }
    }

    /// Exports the spans of one sample of a request: its legs, which are below the span of the request.
    pub(super) fn sample_finished(&self, sample: usize, record: &Record) {
        spans::each_leg(record, Some(sample), &self.scope, |span| {
            self.exporter.add(span)
        });
    }

    /// Exports what waits, for [`export::FLUSH`] at most. No span is exported after it.
    pub(super) fn flush(&self) {
        self.exporter.flush();
    }
}
