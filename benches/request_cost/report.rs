//! Readings as tables, JSON and charts.

use std::collections::BTreeMap;

use mini_lb::bench::Summary;
use mini_lb::bench::plot::{Chart, Scale, Series};
use mini_lb::bench::table::{columns, number};
use serde::Serialize;
use serde_json::{Value, json};

use super::measure::Reading;
use super::tail;
use super::workloads::{SAMPLES, Unit, Workload};
use crate::programs::machine;

/// The target that the others are compared with.
const REFERENCE: &str = "nginx";
/// Targets whose time to first token is the reference: one leg, and two.
const DIRECT: [&str; 2] = ["direct-legs", "direct"];

/// Start time, idle memory and binary size of a target.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    pub target: String,
    pub first_200_ms: f64,
    pub idle_mb: f64,
    pub binary_mb: Option<f64>,
}

/// Median, minimum and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// None of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len().is_multiple_of(2) {
            true => f64::midpoint(values[middle - 1], values[middle]),
            false => values[middle],
        };
        Some(Spread { median, min, max })
    }

    /// The median with the lowest and the highest.
    pub fn text(self) -> String {
        format!(
            "{} ({}..{})",
            number(self.median),
            number(self.min),
            number(self.max)
        )
    }
}

/// All readings of one target under one workload, round by round.
pub struct Readings<'a>(Vec<&'a Reading>);

impl<'a> Readings<'a> {
    pub fn of(all: &'a [Reading], workload: &str, target: &str) -> Readings<'a> {
        let ours = all
            .iter()
            .filter(|reading| reading.workload == workload && reading.target == target);
        Readings(ours.collect())
    }

    fn spread(&self, read: impl Fn(&Reading) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.0.iter().filter_map(|reading| read(reading)))
    }

    /// CPU time relative to another target in the same round, so that other load on the machine affects both.
    pub fn ratio(&self, other: &Readings<'_>) -> Option<Spread> {
        let ratio = |mine: &&Reading| {
            let theirs = other.0.iter().find(|theirs| theirs.round == mine.round)?;
            Some(mine.cpu_us_per_unit? / theirs.cpu_us_per_unit?)
        };
        Spread::of(self.0.iter().filter_map(ratio))
    }

    fn sum(&self, read: impl Fn(&Reading) -> u64) -> String {
        self.0
            .iter()
            .map(|reading| read(reading))
            .sum::<u64>()
            .to_string()
    }
}

/// One workload: a row for each target.
pub fn table(workload: &Workload, targets: &[String], all: &[Reading]) -> String {
    let unit = match workload.unit {
        Unit::Request => "request",
        Unit::Event => "event",
    };
    let head = [
        &workload.name,
        &format!("CPU us per {unit}"),
        "x nginx",
        &format!("{unit}s/s"),
        "TTFT p50 ms",
        "added",
        "TTFT p99",
        "p99.9",
        "between events p50",
        "p99",
        "p99.9",
        "whole request p99",
        "peak MB",
        "failed",
        "connections",
        "rooms left",
        "violations",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let of = |target: &str| Readings::of(all, &workload.name, target);
    let cell = |spread: Option<Spread>| spread.map_or("-".to_owned(), Spread::text);
    let ttft =
        |target: &str| of(target).spread(|reading| answered(reading).map(|seen| seen.ttft_ms.p50));
    for target in targets {
        let readings = of(target);
        if readings.0.is_empty() {
            continue;
        }
        // With two legs the rendezvous of the workers is part of it, whichever program sends the legs. Where no other program
        // can send them, it counts as added.
        let base = match one_leg(target) {
            true => ttft(DIRECT[1]),
            false => ttft(DIRECT[0]).or_else(|| ttft(DIRECT[1])),
        };
        let added = ttft(target)
            .zip(base)
            .map(|(mine, base)| mine.median - base.median);
        rows.push(vec![
            target.clone(),
            cell(readings.spread(|reading| reading.cpu_us_per_unit)),
            cell(readings.ratio(&of(REFERENCE))),
            middle(readings.spread(|reading| Some(reading.units_per_second))),
            middle(ttft(target)),
            added.map_or("-".to_owned(), number),
            p99(&readings, |seen| seen.ttft_ms.p99),
            p99(&readings, |seen| seen.ttft_ms.p999),
            between(&readings, |seen| seen.itl_ms.p50),
            between(&readings, |seen| seen.itl_ms.p99),
            between(&readings, |seen| seen.itl_ms.p999),
            p99(&readings, |seen| seen.e2e_ms.p99),
            middle(readings.spread(|reading| reading.peak_mb)),
            readings.sum(|reading| reading.errors),
            readings.sum(|reading| reading.worker_connections),
            rooms_left(&readings),
            readings.sum(|reading| reading.violations),
        ]);
    }
    format!("{}\n{}", workload.about, columns(&rows))
}

/// All workloads in one table: CPU time of each target as a multiple of nginx's.
pub fn ratios(workloads: &[Workload], targets: &[String], all: &[Reading]) -> String {
    let mut rows = vec![vec!["CPU time, x nginx".to_owned()]];
    rows[0].extend(targets.iter().filter(|target| !is_direct(target)).cloned());
    for workload in workloads {
        let reference = Readings::of(all, &workload.name, REFERENCE);
        let mut row = vec![workload.name.clone()];
        for target in targets.iter().filter(|target| !is_direct(target)) {
            let ratio = Readings::of(all, &workload.name, target).ratio(&reference);
            row.push(ratio.map_or("-".to_owned(), |ratio| number(ratio.median)));
        }
        rows.push(row);
    }
    columns(&rows)
}

/// The cost of a request for several samples, relative to one for one sample; empty where they were not measured.
pub fn samples(targets: &[String], all: &[Reading]) -> String {
    let [(one, _), (several, n)] = SAMPLES;
    let mut rows = vec![vec!["".to_owned(), format!("CPU time of n = {n}, x n = 1")]];
    for target in targets {
        let of = |workload| Readings::of(all, workload, target);
        if let Some(ratio) = of(several).ratio(&of(one)) {
            rows.push(vec![target.clone(), ratio.text()]);
        }
    }
    match rows.len() {
        1 => String::new(),
        _ => columns(&rows),
    }
}

/// Start time and idle memory of each target.
pub fn starts(targets: &[String], all: &[Start]) -> String {
    let head = ["idle", "first 200, ms", "resident MB", "binary MB"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for target in targets {
        let ours = || all.iter().filter(|start| start.target == *target);
        let Some(first_200) = Spread::of(ours().map(|start| start.first_200_ms)) else {
            continue;
        };
        let idle = Spread::of(ours().map(|start| start.idle_mb));
        let binary = ours().find_map(|start| start.binary_mb);
        rows.push(vec![
            target.clone(),
            first_200.text(),
            idle.map_or("-".to_owned(), Spread::text),
            binary.map_or("-".to_owned(), number),
        ]);
    }
    columns(&rows)
}

/// The whole run as JSON.
pub fn as_json(
    workloads: &[Workload],
    targets: &[String],
    readings: &[Reading],
    starts: &[Start],
    tails: &[tail::Reading],
) -> Value {
    let mut medians = serde_json::Map::new();
    for workload in workloads {
        let reference = Readings::of(readings, &workload.name, REFERENCE);
        let mut of_targets = serde_json::Map::new();
        for target in targets {
            let ours = Readings::of(readings, &workload.name, target);
            let numbers = json!({
                "cpu_us_per_unit": ours.spread(|reading| reading.cpu_us_per_unit),
                "x_nginx": ours.ratio(&reference),
                "ttft_p50_ms": ours.spread(|reading| answered(reading).map(|seen| seen.ttft_ms.p50)),
                "ttft_p99_ms": ours.spread(|reading| answered(reading).map(|seen| seen.ttft_ms.p99)),
                "ttft_p999_ms": ours.spread(|reading| answered(reading).map(|seen| seen.ttft_ms.p999)),
                "between_events_p50_ms": ours.spread(|reading| Some(reading.latencies.itl_ms.p50)),
                "between_events_p99_ms": ours.spread(|reading| Some(reading.latencies.itl_ms.p99)),
                "between_events_p999_ms": ours.spread(|reading| Some(reading.latencies.itl_ms.p999)),
                "whole_request_p99_ms": ours.spread(|reading| answered(reading).map(|seen| seen.e2e_ms.p99)),
                "units_per_second": ours.spread(|reading| Some(reading.units_per_second)),
                "peak_mb": ours.spread(|reading| reading.peak_mb),
            });
            of_targets.insert(target.clone(), numbers);
        }
        medians.insert(workload.name.clone(), of_targets.into());
    }
    json!({"machine": machine(), "medians": medians, "starts": starts, "readings": readings, "tails": tails})
}

/// The machine and the versions of the programs.
pub fn machine() -> BTreeMap<&'static str, String> {
    machine::machine(&["nginx", "haproxy"])
}

/// Cost by concurrency, body size, streams and workers, as far as these were measured.
pub fn charts(targets: &[String], all: &[Reading]) -> Vec<(&'static str, Chart)> {
    let chart = |title: &str, x_label: &str, prefix: &str, unit: f64| Chart {
        title: title.to_owned(),
        y_label: String::new(),
        x_label: x_label.to_owned(),
        x: Scale::Log,
        y: Scale::Linear,
        series: series(targets, all, prefix, unit),
    };
    let charts = [
        (
            "cost-by-concurrency.svg",
            chart(
                "CPU time per small chat request, microseconds",
                "requests at the same time",
                "chat-",
                1.0,
            ),
        ),
        (
            "cost-by-body.svg",
            chart(
                "CPU time per request, milliseconds",
                "size of the body, MiB",
                "body-",
                1e-3,
            ),
        ),
        (
            "cost-by-streams.svg",
            chart(
                "CPU time per event, microseconds",
                "live streams",
                "live-",
                1.0,
            ),
        ),
        (
            "cost-by-workers.svg",
            chart(
                "CPU time per small chat request, microseconds",
                "workers in the fleet",
                "workers-",
                1.0,
            ),
        ),
    ];
    let has_a_line = |chart: &Chart| chart.series.iter().any(|series| series.points.len() > 1);
    charts
        .into_iter()
        .filter(|(_, chart)| has_a_line(chart))
        .collect()
}

/// A line for each target: the workloads `PREFIX-NUMBER` in the order of their numbers.
fn series(targets: &[String], all: &[Reading], prefix: &str, unit: f64) -> Vec<Series> {
    let numbers: BTreeMap<u32, &str> = all
        .iter()
        .filter_map(|reading| {
            let number = reading.workload.strip_prefix(prefix)?.parse().ok()?;
            Some((number, reading.workload.as_str()))
        })
        .collect();
    let of = |target: &String| Series {
        name: target.clone(),
        points: numbers
            .iter()
            .filter_map(|(number, workload)| {
                let cost = Readings::of(all, workload, target)
                    .spread(|reading| reading.cpu_us_per_unit)?;
                Some((f64::from(*number), cost.median * unit))
            })
            .collect(),
    };
    targets
        .iter()
        .map(of)
        .filter(|series| !series.points.is_empty())
        .collect()
}

/// Latencies, if a request has ended.
fn rooms_left(readings: &Readings<'_>) -> String {
    let rooms = readings.0.iter().map(|reading| reading.open_rooms);
    rooms.max().unwrap_or(0).to_string()
}

fn middle(spread: Option<Spread>) -> String {
    spread.map_or("-".to_owned(), |spread| number(spread.median))
}

/// The median of a latency's p99; nothing where the workload has no such latency.
fn p99(readings: &Readings<'_>, of: fn(&Summary) -> f64) -> String {
    let p99 = |reading: &Reading| answered(reading).map(of).filter(|p99| *p99 > 0.0);
    middle(readings.spread(p99))
}

/// The median of a quantile of the time between events, which streams have before their end.
fn between(readings: &Readings<'_>, of: fn(&Summary) -> f64) -> String {
    let value = |reading: &Reading| Some(of(&reading.latencies)).filter(|value| *value > 0.0);
    middle(readings.spread(value))
}

fn answered(reading: &Reading) -> Option<&Summary> {
    Some(&reading.latencies).filter(|latencies| latencies.answered > 0)
}

fn is_direct(target: &str) -> bool {
    DIRECT.contains(&target)
}

fn one_leg(target: &str) -> bool {
    ["direct", "nginx", "haproxy", "pingora"].contains(&target)
}
