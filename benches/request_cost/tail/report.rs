//! The readings of the tail as tables.

use mini_lb::bench::table::{columns, number};

use super::super::report::Spread;
use super::{Latency, Reading};

/// One table for each phase of the workload, with a row for each target.
pub fn table(workload: &str, targets: &[String], all: &[Reading]) -> String {
    let mut text = String::new();
    let mut phases: Vec<&str> = Vec::new();
    for reading in all.iter().filter(|reading| reading.workload == workload) {
        if !phases.contains(&reading.phase.as_str()) {
            phases.push(&reading.phase);
        }
    }
    for phase in phases {
        let mut rows = vec![head(workload, phase)];
        for target in targets {
            let ours = all.iter().filter(|reading| {
                reading.workload == workload && reading.phase == phase && reading.target == *target
            });
            let ours: Vec<&Reading> = ours.collect();
            if !ours.is_empty() {
                rows.push(row(target, &ours));
            }
        }
        text.push_str(&columns(&rows));
        text.push('\n');
    }
    text
}

fn head(workload: &str, phase: &str) -> Vec<String> {
    let mut head = vec![format!("{workload}, {phase}")];
    let columns = [
        "events/s",
        "busy %",
        "own %",
        "CPU us per event",
        "TTFT p50 ms",
        "p99",
        "p99.9",
        "transit p50 ms",
        "p99",
        "p99.9",
        "ITL p50 ms",
        "p99",
        "p99.9",
        "body p50 ms",
        "late p99 ms",
        "resident MB",
        "failed",
    ];
    head.extend(columns.map(str::to_owned));
    head
}

/// Medians over the rounds; of what the targets are compared by with the lowest and the highest.
fn row(target: &str, readings: &[&Reading]) -> Vec<String> {
    let spread = |read: &dyn Fn(&Reading) -> Option<f64>| {
        Spread::of(readings.iter().filter_map(|reading| read(reading)))
    };
    let middle = |read: &dyn Fn(&Reading) -> Option<f64>| {
        spread(read).map_or("-".to_owned(), |spread| number(spread.median))
    };
    let range =
        |read: &dyn Fn(&Reading) -> Option<f64>| spread(read).map_or("-".to_owned(), Spread::text);
    let of = |latency: fn(&Reading) -> Latency, quantile: fn(Latency) -> f64| {
        move |reading: &Reading| {
            Some(latency(reading))
                .filter(|latency| latency.count > 0)
                .map(quantile)
        }
    };
    let mut row = vec![
        target.to_owned(),
        middle(&|reading| Some(reading.events_per_second)),
        middle(&|reading| Some(reading.busy_percent)),
        middle(&|reading| Some(reading.own_percent)),
        range(&|reading| reading.cpu_us_per_event),
    ];
    for latency in [
        (|reading| reading.ttft_ms) as fn(&Reading) -> Latency,
        |reading| reading.transit_ms,
        |reading| reading.itl_ms,
    ] {
        row.push(middle(&of(latency, |latency| latency.p50)));
        row.push(range(&of(latency, |latency| latency.p99)));
        row.push(middle(&of(latency, |latency| latency.p999)));
    }
    row.push(middle(&of(
        |reading| reading.body_ms,
        |latency| latency.p50,
    )));
    row.push(middle(&of(
        |reading| reading.late_ms,
        |latency| latency.p99,
    )));
    row.push(middle(&|reading| reading.resident_mb));
    let failed = readings.iter().flat_map(|reading| reading.failed.values());
    row.push(failed.sum::<u64>().to_string());
    row
}
