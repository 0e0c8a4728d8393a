//! What a load came to: latencies as histograms, everything else as counts.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::{Answer, Failure, nanoseconds};

/// Three digits of every latency, from a nanosecond to the day that is the longest time of a request.
const DIGITS: u8 = 3;
const LONGEST_NANOSECONDS: u64 = 86_400_000_000_000;

/// The sum of many requests.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Requests that got their whole answer.
    pub answered: u64,
    /// The others, by what happened.
    pub failed: BTreeMap<Failure, u64>,
    /// What the first failing answer said.
    pub first_error: Option<String>,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of answers' bodies.
    pub received_bytes: u64,
    /// Events of streams, without those that end them.
    pub events: u64,
    /// Generated tokens, as far as the answers have a count.
    pub tokens: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Nanoseconds from the start of a request to the first byte of its answer's body.
    pub ttft: Histogram<u64>,
    /// Nanoseconds between two events of a stream.
    pub gaps: Histogram<u64>,
    /// Nanoseconds from the start of a request to the end of its answer.
    pub total: Histogram<u64>,
    /// Nanoseconds by which requests were sent later than intended. Always 0 in a closed loop.
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
    /// All requests, answered or not.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answered + self.failures()
    }

    /// Requests that failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Adds what another load came to, as if the two had run one after the other.
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

    /// One request is over. `started` is when it was meant to be.
    pub(crate) fn finish(
        &mut self,
        started: std::time::Instant,
        result: Result<(), Failure>,
        answer: Answer,
    ) {
        self.received_bytes += answer.bytes;
        self.events += answer.events;
        self.tokens += answer.tokens.unwrap_or(0);
        match result {
            Ok(()) => {
                self.answered += 1;
                if let Some(first) = answer.first {
                    self.ttft.saturating_record(nanoseconds(first - started));
                }
                self.total
                    .saturating_record(nanoseconds(answer.last - started));
            }
            Err(failure) => {
                *self.failed.entry(failure).or_default() += 1;
                if self.first_error.is_none() {
                    self.first_error = answer.error;
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
