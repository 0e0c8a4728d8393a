//! A tally as numbers for the report: a row of the table, an object of the JSON.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::tally::{Prompts, Tally};

/// Quantiles of a distribution, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
    /// Largest value.
    pub max: f64,
}

/// The results of a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Seconds from the first request to the end of the last.
    pub seconds: f64,
    /// Requests with a complete response.
    pub answered: u64,
    /// Requests without a complete response.
    pub failed: u64,
    /// The number of requests for each failure.
    pub failures: BTreeMap<String, u64>,
    /// Requests with a complete response, per second.
    pub requests_per_second: f64,
    /// Generated tokens, of the responses that have their number.
    pub output_tokens: u64,
    /// The same per second.
    pub output_tokens_per_second: f64,
    /// Events of streams, without `[DONE]`.
    pub events: u64,
    /// Bytes of request bodies.
    pub sent_bytes: u64,
    /// Bytes of response bodies.
    pub received_bytes: u64,
    /// Connections opened.
    pub connections: u64,
    /// Prompts in tokens, of the responses that have the number of cached ones.
    pub prompts: Prompts,
    /// The same by prefill worker, of the responses that name theirs.
    pub by_prefill: BTreeMap<String, Prompts>,
    /// Responses that kept the SLO of the load, all without one.
    pub good: u64,
    /// The same per second: the goodput.
    pub good_per_second: f64,
    /// Time to first token: to the first byte of a response's body.
    pub ttft_ms: Quantiles,
    /// Inter-token latency: between two events of a stream.
    pub itl_ms: Quantiles,
    /// End-to-end latency: to the end of a response.
    pub e2e_ms: Quantiles,
    /// Delay of requests behind their schedule. It is part of the other latencies.
    pub late_ms: Quantiles,
}

impl Quantiles {
    /// The quantiles of a histogram of nanoseconds.
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
    /// The counts, rates and quantiles of a tally.
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
            prompts: tally.prompts,
            by_prefill: tally.by_prefill.clone(),
            good: tally.good,
            good_per_second: per_second(tally.good),
            ttft_ms: Quantiles::of(&tally.ttft),
            itl_ms: Quantiles::of(&tally.gaps),
            e2e_ms: Quantiles::of(&tally.total),
            late_ms: Quantiles::of(&tally.late),
        }
    }
}
