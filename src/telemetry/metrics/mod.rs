//! The metrics of one balancer, in Prometheus' two text formats.
//!
//! A request is counted once, when its record is complete: some twenty atomics, no lock where it ended well, and no label
//! is built. What has a state now, such as a worker, is read when somebody asks for the text.
//!
//! | file | what it holds |
//! |---|---|
//! | `family.rs` | the table: the name, kind, labels and meaning of each metric |
//! | `labels.rs`, `bounds.rs` | the values of labels, and the buckets of histograms |
//! | `requests.rs`, `attempts.rs` | counts of requests, and of their legs by worker and pair |
//! | `gaps.rs` | the gaps between the events of one stream |
//! | `policy.rs` | what the policies have chosen, expected and got |
//! | `process.rs` | what the system says about this process |
//! | `collect.rs` | from the values to the text |

mod attempts;
mod bounds;
mod collect;
pub(crate) mod family;
mod gaps;
mod labels;
mod policy;
mod process;
mod requests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

use super::{Cause, DroppedSpans, Part, Parts, Record};
use crate::fleet::{Fleet, LiveRooms, Role, Worker};
use crate::histogram::Histogram;
use crate::pd::Route;
use attempts::PairFailures;
pub(crate) use gaps::Gaps;
use labels::{ROUTES, end_code, end_number, route_number};
use requests::{ByEnd, Requests};

/// The `Content-Type` of the older text format, which every scraper reads.
pub(crate) const TEXT: &str = prometheus_text::CONTENT_TYPE;

/// The `Content-Type` of OpenMetrics.
pub(crate) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Routes with legs.
const LEGS: usize = Route::ALL.len();

/// What is read when somebody asks for the metrics.
pub(crate) struct Sources {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rooms: Arc<LiveRooms>,
    /// Live requests.
    pub(crate) inflight: Box<dyn Fn() -> usize + Send + Sync>,
    /// Open connections of clients.
    pub(crate) connections: Box<dyn Fn() -> usize + Send + Sync>,
    /// Idle connections to a worker.
    pub(crate) idle_connections: Box<dyn Fn(&Worker) -> usize + Send + Sync>,
    /// Aborts sent to workers of a role so far.
    pub(crate) aborts: Box<dyn Fn(Role) -> u64 + Send + Sync>,
    /// The role of each listed worker, and where it is in its life.
    pub(crate) listed: Box<dyn Fn() -> Vec<(Role, &'static str)> + Send + Sync>,
}

/// The metrics, with their values.
pub(crate) struct Metrics {
    values: Arc<Values>,
    registry: Registry,
}

/// The values.
struct Values {
    requests: Requests,
    ttft: [Histogram; LEGS],
    parts: [Histogram; Part::ALL.len()],
    itl: [Arc<Histogram>; LEGS],
    e2e: [Histogram; ROUTES.len()],
    queue: [Histogram; LEGS],
    pair_failures: PairFailures,
    /// By the failure of the attempt.
    retries: ByEnd,
    refused: ByEnd,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    events: AtomicU64,
    dropped_spans: Arc<DroppedSpans>,
    /// Reloads that took effect, and those that were refused.
    reloads: [AtomicU64; 2],
    /// The bits of the time of the last one that took effect, in seconds of Unix time.
    last_reload: AtomicU64,
    /// In seconds of Unix time.
    started: f64,
    sources: Sources,
}

impl Metrics {
    /// Metrics without a request.
    pub(crate) fn new(sources: Sources, dropped_spans: Arc<DroppedSpans>) -> Self {
        let request = |_| Histogram::new(bounds::REQUEST);
        let values = Arc::new(Values {
            requests: Requests::default(),
            ttft: std::array::from_fn(request),
            parts: std::array::from_fn(|_| Histogram::new(bounds::PART)),
            itl: std::array::from_fn(|_| Arc::new(Histogram::new(bounds::GAP))),
            e2e: std::array::from_fn(request),
            queue: std::array::from_fn(request),
            pair_failures: PairFailures::default(),
            retries: ByEnd::default(),
            refused: ByEnd::default(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            events: AtomicU64::new(0),
            dropped_spans,
            reloads: Default::default(),
            last_reload: AtomicU64::new(process::unix_seconds().to_bits()),
            started: process::unix_seconds(),
            sources,
        });
        let mut registry = Registry::default();
        registry.register_collector(Box::new(values.clone()));
        Self { values, registry }
    }

    /// Counts a finished request.
    pub(super) fn finished(&self, record: &Record) {
        self.values.note_request(record);
        // Those of samples are counted with each of them.
        if record.samples == 0 {
            self.values.note_attempts(record);
        }
    }

    /// Counts the attempts of one sample of a request.
    pub(super) fn sample_finished(&self, record: &Record) {
        self.values.note_attempts(record);
    }

    /// Counts a reload of the configuration, which took effect or was refused.
    pub(crate) fn note_reload(&self, applied: bool) {
        let [took_effect, refused] = &self.values.reloads;
        if applied {
            let now = process::unix_seconds().to_bits();
            self.values.last_reload.store(now, Ordering::Relaxed);
        }
        let count = if applied { took_effect } else { refused };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the gaps between the events of one stream.
    pub(crate) fn gaps(&self, route: Route) -> Gaps {
        Gaps::new(self.values.itl[route as usize].clone())
    }

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

impl Values {
    fn note_request(&self, record: &Record) {
        let (route, end) = (route_number(record.route), end_number(&record.ended));
        self.requests.note(route, record.status, end);
        self.e2e[route].observe(record.times.e2e());
        if record.times.read.is_some() && route < LEGS {
            self.queue[route].observe(record.queued);
        }
        if let (Some(parts), Some(ttft)) = (record.parts(), record.times.first_byte())
            && route < LEGS
        {
            self.ttft[route].observe(ttft);
            self.note_parts(&parts);
        }
        if record.pair.is_none()
            && record.samples == 0
            && end_code(end).is_some_and(collect::may_refuse)
        {
            self.refused.note(end);
        }
        let add = |to: &AtomicU64, count| to.fetch_add(count, Ordering::Relaxed);
        add(&self.received_bytes, record.request_bytes as u64);
        add(&self.sent_bytes, record.response_bytes as u64);
        add(&self.events, record.events);
    }

    fn note_parts(&self, parts: &Parts) {
        for (histogram, (_, time)) in self.parts.iter().zip(parts.iter()) {
            histogram.observe(time);
        }
    }

    fn note_attempts(&self, record: &Record) {
        for failed in &record.failed {
            self.retries.note(end_number(match failed.cause {
                Cause::Code(code) => code,
                Cause::Rejected(_) => match failed.worker.role() {
                    Role::Prefill => "prefill_rejected",
                    Role::Decode => "decode_rejected",
                },
            }));
        }
        attempts::note(record, &self.pair_failures, || self.sources.fleet.members());
    }
}

#[cfg(test)]
mod tests;
