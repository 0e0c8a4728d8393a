//! The results of a load: latencies as histograms, everything else as counts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::{Failure, Received, nanoseconds};

/// Significant decimal digits of every latency. The range ends at a day, which is the longest timeout of a request.
const DIGITS: u8 = 3;
const LONGEST_NANOSECONDS: u64 = 86_400_000_000_000;

/// Bounds of a request's latencies; without both every response is good.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slo {
    /// Upper bound of the time to first token.
    pub ttft: Option<Duration>,
    /// Upper bound of the mean time between two events of a response.
    pub itl: Option<Duration>,
}

/// Prompts in tokens, of the responses that have the number of cached ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Prompts {
    /// Number of prompts.
    pub requests: u64,
    /// All tokens.
    pub tokens: u64,
    /// Tokens that the workers had cached.
    pub cached_tokens: u64,
}

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
    /// The prompts of all responses.
    pub prompts: Prompts,
    /// The same by prefill worker, of the responses that name theirs.
    pub by_prefill: BTreeMap<String, Prompts>,
    /// Responses that kept the SLO.
    pub good: u64,
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
            prompts: Prompts::default(),
            by_prefill: BTreeMap::new(),
            good: 0,
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
        self.prompts.add(other.prompts);
        for (worker, prompts) in &other.by_prefill {
            let mine = self.by_prefill.entry(worker.clone()).or_default();
            mine.add(*prompts);
        }
        self.good += other.good;
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
        started: Instant,
        result: Result<(), Failure>,
        received: Received,
        slo: Slo,
    ) {
        self.received_bytes += received.bytes;
        self.events += received.events;
        self.tokens += received.tokens.unwrap_or(0);
        match result {
            Ok(()) => {
                self.answered += 1;
                self.good += u64::from(slo.is_kept(started, &received));
                self.note_prompt(&received);
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

impl Tally {
    fn note_prompt(&mut self, received: &Received) {
        let prompts = Prompts {
            requests: 1,
            tokens: received.prompt.map_or(0, |prompt| prompt.all),
            cached_tokens: received.prompt.map_or(0, |prompt| prompt.cached),
        };
        if received.prompt.is_some() {
            self.prompts.add(prompts);
        }
        if let Some(worker) = &received.prefill {
            let of_worker = self.by_prefill.entry(worker.clone()).or_default();
            of_worker.add(prompts);
        }
    }
}

impl Prompts {
    fn add(&mut self, other: Prompts) {
        self.requests += other.requests;
        self.tokens += other.tokens;
        self.cached_tokens += other.cached_tokens;
    }
}

impl Slo {
    /// Whether there is a bound at all.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Slo::default()
    }

    fn is_kept(&self, started: Instant, received: &Received) -> bool {
        let first = received.first.unwrap_or(received.last);
        let gaps = u32::try_from(received.events.saturating_sub(1)).unwrap_or(u32::MAX);
        let itl = (received.last - first) / gaps.max(1);
        let keeps = |bound: Option<Duration>, value| bound.is_none_or(|bound| value <= bound);
        keeps(self.ttft, first - started) && keeps(self.itl.filter(|_| gaps > 0), itl)
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
    fn a_request_is_good_when_its_first_token_and_its_mean_gap_are_in_time() {
        let started = Instant::now();
        let millis = Duration::from_millis;
        let received = Received {
            first: Some(started + millis(100)),
            last: started + millis(500),
            events: 5,
            ..Received::nothing()
        };
        for (ttft, itl, is_good) in [
            (None, None, true),
            (Some(100), Some(100), true),
            (Some(99), Some(100), false),
            (Some(100), Some(99), false),
            (None, Some(99), false),
        ] {
            let slo = Slo {
                ttft: ttft.map(millis),
                itl: itl.map(millis),
            };
            assert_eq!(slo.is_kept(started, &received), is_good, "{slo:?}");
        }
    }

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
