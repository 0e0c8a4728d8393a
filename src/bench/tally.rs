//! The results of a load: latencies as histograms, everything else as counts.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::{Failure, Received, nanoseconds};

/// Significant decimal digits of every latency. The range ends at a day, which is the longest timeout of a request.
const DIGITS: u8 = 3;
const LONGEST_NANOSECONDS: u64 = 86_400_000_000_000;

/// Sums over the requests of a load.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Requests with a complete response.
    pub answered: u64,
    /// The other requests, by their failure.
    pub failed: BTreeMap<Failure, u64>,
    /// The beginning of the first error's body.
    pub first_error: Option<String>,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of response bodies.
    pub received_bytes: u64,
    /// Events of streams, without `[DONE]`.
    pub events: u64,
    /// Generated tokens, of the responses that have their number.
    pub tokens: u64,
    /// Connections opened.
    pub connections: u64,
    /// Nanoseconds from the start of a request to the first byte of the response's body.
    pub ttft: Histogram<u64>,
    /// Nanoseconds between two events of a stream.
    pub gaps: Histogram<u64>,
    /// Nanoseconds from the start of a request to the end of its response.
    pub total: Histogram<u64>,
    /// Nanoseconds by which requests were sent later than scheduled. Empty in a closed loop.
    pub late: Histogram<u64>,
    /// From the first request to the end of the last one.
    pub elapsed: Duration,
}

impl Default for Tally {
    fn default() -> Self {
        Tally {
            answered: 0,
            failed: BTreeMap::new(),
            first_error: None,
            sent_bytes: 0,
            received_bytes: 0,
            events: 0,
            tokens: 0,
            connections: 0,
            ttft: histogram(),
            gaps: histogram(),
            total: histogram(),
            late: histogram(),
            elapsed: Duration::ZERO,
        }
    }
}

impl Tally {
    /// Number of all requests, failed or not.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answered + self.failures()
    }

    /// Number of failed requests.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds the results of another load, as if the two had run one after the other.
    pub fn add(&mut self, other: &Tally) {
        self.answered += other.answered;
        for (failure, count) in &other.failed {
            *self.failed.entry(failure.clone()).or_default() += count;
        }
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.events += other.events;
        self.tokens += other.tokens;
        self.connections += other.connections;
        for (mine, theirs) in [
            (&mut self.ttft, &other.ttft),
            (&mut self.gaps, &other.gaps),
            (&mut self.total, &other.total),
            (&mut self.late, &other.late),
        ] {
            // All of them have the same bounds.
            let _ = mine.add(theirs);
        }
        self.elapsed += other.elapsed;
    }

    pub(crate) fn gap(&mut self, nanoseconds: u64) {
        self.gaps.saturating_record(nanoseconds);
    }

    /// Adds one finished request. `started` is its scheduled start.
    pub(crate) fn finish(
        &mut self,
        started: std::time::Instant,
        result: Result<(), Failure>,
        received: Received,
    ) {
        self.received_bytes += received.bytes;
        self.events += received.events;
        self.tokens += received.tokens.unwrap_or(0);
        match result {
            Ok(()) => {
                self.answered += 1;
                if let Some(first) = received.first {
                    self.ttft.saturating_record(nanoseconds(first - started));
                }
                self.total
                    .saturating_record(nanoseconds(received.last - started));
            }
            Err(failure) => {
                *self.failed.entry(failure).or_default() += 1;
                if self.first_error.is_none() {
                    self.first_error = received.error;
                }
            }
        }
    }
}

fn histogram() -> Histogram<u64> {
    match Histogram::new_with_max(LONGEST_NANOSECONDS, DIGITS) {
        Ok(histogram) => histogram,
        Err(_) => unreachable!("{DIGITS} digits are within hdrhistogram's 0 to 5"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_has_the_counts_and_the_latencies_of_both() {
        let mut sum = Tally::default();
        for (nanoseconds, count) in [(1_000, 3), (60_000_000_000, 2)] {
            let mut one = Tally {
                answered: count,
                ..Tally::default()
            };
            for _ in 0..count {
                one.total.saturating_record(nanoseconds);
            }
            one.failed.insert(Failure::Refused, 1);
            sum.add(&one);
        }
        assert_eq!((sum.answered, sum.failures(), sum.requests()), (5, 2, 7));
        assert_eq!(sum.total.len(), 5);
        let slowest = sum.total.max() as f64 / 60e9;
        assert!((0.999..1.001).contains(&slowest), "{slowest}");
        assert_eq!(sum.total.value_at_quantile(0.5), 1_000);
    }
}
