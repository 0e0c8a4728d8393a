//! The results as a table and as JSON.

use std::collections::BTreeMap;

use mini_lb::bench::Trace;
use mini_lb::bench::table::{columns, number};
use serde_json::{Value, json};

use super::Arguments;
use super::measure::Reading;
use super::model::{Choice, Outcome, Workers, replay};

/// The trace and the workers, a line each.
pub fn asked(arguments: &Arguments, trace: &Trace, workers: &Workers) -> String {
    let tokens = input_tokens(trace);
    let random = replay(trace, workers, Choice::Random(1), None);
    format!(
        "trace: {}, {} requests in {:.0} s, {:.0} prompt tokens on average\n\
         prefill: {} workers, {:.0} us per token, {} tokens cached each; under random choices busy for {:.1} % of the time\n",
        arguments.trace.display(),
        trace.requests.len(),
        trace.span().as_secs_f64(),
        tokens as f64 / trace.requests.len() as f64,
        workers.speeds.len(),
        workers.token_seconds * 1e6,
        workers.cache_tokens,
        random.busy * 100.0
    )
}

/// One target when it has been measured.
pub fn line(reading: &Reading) -> String {
    let Reading { name, summary, .. } = reading;
    let ttft = &summary.ttft_ms;
    let [p50, p90, p99] = [ttft.p50, ttft.p90, ttft.p99].map(number);
    format!(
        "{name}: TTFT {p50}, {p90}, {p99} ms; {} cached; {} failed",
        summary.prompts.cached_tokens, summary.failed
    )
}

/// The table: a row for the bound, one for random choices in the model, by which it can be judged, and one for each target.
pub fn table(trace: &Trace, workers: &Workers, bound: &Outcome, readings: &[Reading]) -> String {
    let head = [
        "policy",
        "TTFT p50",
        "p90",
        "p99",
        "of the bound",
        "p90",
        "p99",
        "cached %",
        "of the bound",
        "failed",
        "late p99",
    ];
    let tokens = input_tokens(trace).max(1) as f64;
    let best = [0.5, 0.9, 0.99].map(|part| bound.quantile_ms(part));
    let cached_best = bound.cached_tokens as f64;
    let part = |value: f64, of: f64| match of > 0.0 {
        true => number(value / of),
        false => String::new(),
    };
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let mut row = vec!["bound".to_owned()];
    row.extend(best.map(number));
    row.extend(["1", "1", "1"].map(str::to_owned));
    row.extend([number(100.0 * cached_best / tokens), "1".to_owned()]);
    rows.push(row);
    let random = replay(trace, workers, Choice::Random(1), None);
    let modelled = [0.5, 0.9, 0.99].map(|part| random.quantile_ms(part));
    let cached = random.cached_tokens as f64;
    let mut row = vec!["random, modelled".to_owned()];
    row.extend(modelled.map(number));
    row.extend(
        modelled
            .iter()
            .zip(best)
            .map(|(value, of)| part(*value, of)),
    );
    row.extend([number(100.0 * cached / tokens), part(cached, cached_best)]);
    rows.push(row);
    for Reading { name, summary, .. } in readings {
        let seen = [
            summary.ttft_ms.p50,
            summary.ttft_ms.p90,
            summary.ttft_ms.p99,
        ];
        let cached = summary.prompts.cached_tokens as f64;
        let mut row = vec![name.clone()];
        row.extend(seen.map(number));
        row.extend(seen.iter().zip(best).map(|(value, of)| part(*value, of)));
        row.extend([number(100.0 * cached / tokens), part(cached, cached_best)]);
        row.extend([summary.failed.to_string(), number(summary.late_ms.p99)]);
        rows.push(row);
    }
    format!("\nTimes in milliseconds.\n\n{}", columns(&rows))
}

/// The cached part of each hundred requests, a line for the bound and for each target.
pub fn hundreds(bound: &Outcome, readings: &[Reading]) -> String {
    let line = |name: &str, percent: &[f64]| {
        let percent: Vec<String> = percent
            .iter()
            .map(|percent| format!("{percent:.0}"))
            .collect();
        format!("{name}: {}\n", percent.join(" "))
    };
    let mut text =
        "Cached % of each hundred requests; the caches were emptied at half time.\n".to_owned();
    text.push_str(&line("bound", &bound.cached_by_hundred));
    for reading in readings {
        text.push_str(&line(&reading.name, &reading.cached_by_hundred));
    }
    text
}

/// All numbers.
pub fn json(
    machine: &BTreeMap<&'static str, String>,
    workers: &Workers,
    bound: &Outcome,
    readings: &[Reading],
) -> String {
    let readings: Vec<Value> = readings
        .iter()
        .map(|reading| {
            json!({
                "policy": reading.name,
                "measured": reading.summary,
                "cached_percent_by_hundred": reading.cached_by_hundred,
            })
        })
        .collect();
    let quantile = |part| bound.quantile_ms(part);
    let all = json!({
        "machine": machine,
        "token_us": workers.token_seconds * 1e6,
        "speeds": workers.speeds,
        "bound": {
            "ttft_ms": {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
            "cached_tokens": bound.cached_tokens,
            "cached_percent_by_hundred": bound.cached_by_hundred,
            "busy": bound.busy,
        },
        "readings": readings,
    });
    format!("{all:#}\n")
}

fn input_tokens(trace: &Trace) -> usize {
    trace
        .requests
        .iter()
        .map(|request| request.input_tokens)
        .sum()
}
