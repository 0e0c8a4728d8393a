//! What is added up of the requests that finished in one period.

use std::time::Duration;

use super::Blame;
use crate::pd::Route;
use crate::telemetry::{Part, Record};

/// Sums over finished requests.
#[derive(Clone, Default)]
pub(crate) struct Counts {
    /// Requests with legs, however they ended.
    pub(crate) requests: u64,
    /// Those among them that failed for a reason that is not the client's.
    pub(crate) failures: u64,
    /// Requests of each route, in the order of [`Route::ALL`].
    pub(crate) routes: [u32; Route::ALL.len()],
    /// Streams that had their first byte.
    pub(crate) streams: u64,
    /// Their times to the first byte, by part, in microseconds.
    pub(crate) parts_us: [u64; Part::ALL.len()],
    /// The times of all prefill legs, in microseconds.
    pub(crate) prefill_us: u64,
    /// Events that went to clients.
    pub(crate) events: u64,
    /// The times between the events of a stream, and how many there are.
    pub(crate) gaps_us: u64,
    pub(crate) gaps: u64,
}

impl Counts {
    pub(super) fn add(&mut self, record: &Record, blame: Option<Blame>) {
        self.requests += 1;
        self.failures += u64::from(blame.is_some());
        if let Some(route) = record.route {
            self.routes[route as usize] += 1;
        }
        self.events += record.events;
        self.prefill_us += micros(record.times.prefill().unwrap_or_default());
        let Some(parts) = record.parts() else { return };
        self.streams += 1;
        for (part, time) in parts.iter() {
            self.parts_us[part as usize] += micros(time);
        }
        let running = record.times.ended.zip(record.times.first_byte);
        if let (Some((ended, first)), 2..) = (running, record.events) {
            self.gaps_us += micros(ended.saturating_duration_since(first));
            self.gaps += record.events - 1;
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failures += other.failures;
        for (count, more) in self.routes.iter_mut().zip(other.routes) {
            *count = count.saturating_add(more);
        }
        self.streams += other.streams;
        for (sum, more) in self.parts_us.iter_mut().zip(other.parts_us) {
            *sum += more;
        }
        self.prefill_us += other.prefill_us;
        self.events += other.events;
        self.gaps_us += other.gaps_us;
        self.gaps += other.gaps;
    }

    /// The mean time between two events of a stream, in seconds; `None` where there are too few for one.
    pub(crate) fn gap(&self) -> Option<f64> {
        (self.gaps >= 100).then(|| self.gaps_us as f64 / 1e6 / self.gaps as f64)
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros().try_into().unwrap_or(u64::MAX)
}
