//! What is known of a finished request, and the sinks that report it.
//!
//! The proxy fills one [`Record`] while a request runs and hands it over once, in [`Telemetry::finished`]. Every sink reads that
//! value and nothing else, so that the log line, and whatever is added beside it, cannot disagree.

mod access_log;
mod advice;
mod fields;
pub(crate) mod metrics;
mod record;
mod requests;
#[cfg(feature = "otel")]
mod trace;
#[cfg(not(feature = "otel"))]
#[path = "untraced.rs"]
mod trace;
mod window;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

pub(crate) use advice::{Evidence, Loads, advise};
pub(crate) use metrics::{Gaps, Metrics, OPENMETRICS, Sources, TEXT};
pub(crate) use record::{Cause, FailedAttempt, Legs, Pair, Part, Parts, Record, Suspect};
pub(crate) use requests::{LiveRequest, Progress, Requests, Row, Shown, Snapshot};
pub(crate) use trace::{Head, Trace};
pub(crate) use window::{Counts, Filter, Summary, View, Window};

use trace::Tracing;

/// The sinks of one balancer.
pub(crate) struct Telemetry {
    pub(crate) metrics: Metrics,
    /// What the dashboard shows.
    pub(crate) window: Window,
    pub(crate) requests: Requests,
    /// `None` without `enable_trace`.
    tracing: Option<Tracing>,
}

/// Where spans go.
pub(crate) struct Traces<'a> {
    /// A URL, or host and port; `None` where the variables of OpenTelemetry name it.
    pub(crate) endpoint: Option<&'a str>,
}

/// Spans that were not exported.
#[derive(Debug, Default)]
pub(crate) struct DroppedSpans {
    /// Too many waited.
    pub(crate) queue_full: AtomicU64,
    /// The collector did not take them.
    pub(crate) export_failed: AtomicU64,
}

impl Telemetry {
    /// The sinks of a balancer whose state is read from these sources, and which remembers so many finished requests.
    pub(crate) fn new(sources: Sources, requests: usize, traces: Option<Traces<'_>>) -> Self {
        let dropped = Arc::<DroppedSpans>::default();
        Self {
            metrics: Metrics::new(sources, dropped.clone()),
            window: Window::default(),
            requests: Requests::new(requests),
            tracing: traces.and_then(|traces| Tracing::new(traces.endpoint, dropped)),
        }
    }

    /// The trace of a request that began at this moment; `None` without tracing, where its head is not looked at.
    pub(crate) fn begin_trace<'a>(
        &self,
        head: impl FnOnce() -> Head<'a>,
        started: Instant,
    ) -> Option<Box<Trace>> {
        Some(self.tracing.as_ref()?.begin(&head(), started))
    }

    /// Exports the spans that wait, within some seconds. Blocks.
    pub(crate) fn flush(&self) {
        if let Some(tracing) = &self.tracing {
            tracing.flush();
        }
    }

    /// Hands the record of a finished request to every sink.
    pub(crate) fn finished(&self, record: &Record) {
        access_log::write(record);
        self.window
            .add(record, record.times.ended.unwrap_or_else(Instant::now));
        self.metrics.finished(record);
        self.requests.finish(record);
        if let Some(tracing) = &self.tracing {
            tracing.finished(record);
        }
    }

    /// Hands the record of one sample of a request, counted from 0, to the sinks that show it. The request itself is
    /// finished when all its samples are.
    pub(crate) fn sample_finished(&self, sample: usize, record: &Record) {
        access_log::write_sample(sample, record);
        self.window
            .add_sample(record, record.times.ended.unwrap_or_else(Instant::now));
        self.metrics.sample_finished(record);
        if let Some(tracing) = &self.tracing {
            tracing.sample_finished(sample, record);
        }
    }
}
