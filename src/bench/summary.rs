//! A tally in numbers that people read: one row of the table, one object of the JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::tally::Tally;

/// Some points of a distribution, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// The average.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// 90 of 100 are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1,000 are below.
    pub p999: f64,
    /// The largest.
    pub max: f64,
}

/// What a load came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Seconds from the first request to the end of the last.
    pub seconds: f64,
    /// Requests that got their whole answer.
    pub answered: u64,
    /// The others.
    pub failed: u64,
    /// The others, by what happened.
    pub failures: BTreeMap<String, u64>,
    /// Answered requests per second.
    pub requests_per_second: f64,
    /// Generated tokens.
    pub output_tokens: u64,
    /// Generated tokens per second.
    pub output_tokens_per_second: f64,
    /// Events of streams.
    pub events: u64,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of answers' bodies.
    pub received_bytes: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// Time to the first byte of an answer's body.
    pub ttft_ms: Quantiles,
    /// Time between two events of a stream.
    pub itl_ms: Quantiles,
    /// Time to the end of an answer.
    pub e2e_ms: Quantiles,
    /// How much later than intended requests were sent; it is part of the other latencies.
    pub late_ms: Quantiles,
}

impl Quantiles {
    /// Those of a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Quantiles {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Quantiles {
            mean: histogram.mean() / 1e6,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e6,
        }
    }
}

impl Summary {
    /// The numbers of a tally.
    #[must_use]
    pub fn of(tally: &Tally) -> Summary {
        let seconds = tally.elapsed.as_secs_f64();
        let per_second = |count: u64| match seconds > 0.0 {
            true => count as f64 / seconds,
            false => 0.0,
        };
        let failures = tally.failed.iter();
        Summary {
            seconds,
            answered: tally.answered,
            failed: tally.failures(),
            failures: failures
                .map(|(failure, count)| (failure.to_string(), *count))
                .collect(),
            requests_per_second: per_second(tally.answered),
            output_tokens: tally.tokens,
            output_tokens_per_second: per_second(tally.tokens),
            events: tally.events,
            sent_bytes: tally.sent_bytes,
            received_bytes: tally.received_bytes,
            connections: tally.connections,
            ttft_ms: Quantiles::of(&tally.ttft),
            itl_ms: Quantiles::of(&tally.gaps),
            e2e_ms: Quantiles::of(&tally.total),
            late_ms: Quantiles::of(&tally.late),
        }
    }
}
