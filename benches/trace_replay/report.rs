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

/// A row of the table.
pub struct Row {
    name: String,
    /// p50, p90 and p99.
    ttft_ms: [f64; 3],
    cached_tokens: f64,
    /// Failed requests, the 99th percentile of their lateness, and how busy the machine was: of a measurement.
    more: Vec<String>,
}

impl Row {
    /// What came of a model.
    pub fn modelled(name: &str, outcome: &Outcome) -> Row {
        Row {
            name: name.to_owned(),
            ttft_ms: [0.5, 0.9, 0.99].map(|part| outcome.quantile_ms(part)),
            cached_tokens: outcome.cached_tokens as f64,
            more: Vec::new(),
        }
    }

    pub fn measured(reading: &Reading) -> Row {
        let summary = &reading.summary;
        let ttft = &summary.ttft_ms;
        Row {
            name: reading.name.clone(),
            ttft_ms: [ttft.p50, ttft.p90, ttft.p99],
            cached_tokens: summary.prompts.cached_tokens as f64,
            more: vec![
                summary.failed.to_string(),
                number(summary.late_ms.p99),
                format!("{:.0}", reading.machine_busy),
            ],
        }
    }
}

/// The table. The first row is what the others are compared with.
pub fn table(trace: &Trace, rows: &[Row]) -> String {
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
        "CPU %",
    ];
    let tokens = input_tokens(trace).max(1) as f64;
    let part = |value: f64, of: f64| match of > 0.0 {
        true => format!("{:.2}", value / of),
        false => String::new(),
    };
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    let Some(bound) = rows.first() else {
        return String::new();
    };
    for row in rows {
        let mut line = vec![row.name.clone()];
        line.extend(row.ttft_ms.map(number));
        let pairs = row.ttft_ms.into_iter().zip(bound.ttft_ms);
        line.extend(pairs.map(|(value, of)| part(value, of)));
        line.push(number(100.0 * row.cached_tokens / tokens));
        line.push(part(row.cached_tokens, bound.cached_tokens));
        line.extend(row.more.iter().cloned());
        lines.push(line);
    }
    format!("\nTimes in milliseconds.\n\n{}", columns(&lines))
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
                "machine_busy_percent": reading.machine_busy,
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
