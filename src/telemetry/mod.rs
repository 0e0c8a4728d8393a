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
mod window;

use std::time::Instant;

pub(crate) use advice::{Evidence, Loads, advise};
pub(crate) use metrics::{Gaps, Metrics, OPENMETRICS, Sources, TEXT};
pub(crate) use record::{Cause, FailedAttempt, Legs, Pair, Part, Parts, Record, Suspect};
pub(crate) use requests::{LiveRequest, Progress, Requests, Row, Shown, Snapshot};
pub(crate) use window::{Counts, Filter, Summary, View, Window};

/// The sinks of one balancer.
pub(crate) struct Telemetry {
    pub(crate) metrics: Metrics,
    /// What the dashboard shows.
    pub(crate) window: Window,
    pub(crate) requests: Requests,
}

impl Telemetry {
    /// The sinks of a balancer whose state is read from these sources, and which remembers so many finished requests.
    pub(crate) fn new(sources: Sources, requests: usize) -> Self {
        Self {
            metrics: Metrics::new(sources),
            window: Window::default(),
            requests: Requests::new(requests),
        }
    }

    /// Hands the record of a finished request to every sink.
    pub(crate) fn finished(&self, record: &Record) {
        access_log::write(record);
        self.window
            .add(record, record.times.ended.unwrap_or_else(Instant::now));
        self.metrics.finished(record);
        self.requests.finish(record);
    }

    /// Hands the record of one sample of a request, counted from 0, to the sinks that show it. The request itself is
    /// finished when all its samples are.
    pub(crate) fn sample_finished(&self, sample: usize, record: &Record) {
        access_log::write_sample(sample, record);
        self.window
            .add_sample(record, record.times.ended.unwrap_or_else(Instant::now));
        self.metrics.sample_finished(record);
    }
}
