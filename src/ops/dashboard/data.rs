//! What the dashboard shows at one moment, as JSON.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Value, json};

use super::means;
use crate::fleet::{Closed, Condition, Fleet, Members, Role, Worker, WorkerId};
use crate::pd::Route;
use crate::telemetry::{Counts, Evidence, Filter, Loads, Part, Summary, Telemetry, View, advise};

/// The most workers of each role that the page gets. Those that are not well come first.
const MAX_ROWS: usize = 200;

/// The data of the requests that the filter leaves.
pub(super) fn of(
    (fleet, members): (&Fleet, &Members),
    pending: Vec<Value>,
    telemetry: &Telemetry,
    loads: Option<Loads>,
    filter: Filter,
    now: Instant,
) -> Bytes {
    let view = telemetry.window.view(filter, now);
    let all = match filter.is_all() {
        true => None,
        false => Some(telemetry.window.view(Filter::default(), now)),
    };
    let rows = rows(fleet, members, now);
    let (counts, seconds) = (&view.now.0, view.now.1.max(1.0));
    let rate = |count: u64| rounded(count as f64 / seconds);
    let data = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": view.elapsed as u64,
        "advice": advice(fleet, members, loads, all.as_ref().unwrap_or(&view)),
        "live": live(members, filter),
        "waiting": fleet.waiting(),
        "held": fleet.closed().map(Closed::name),
        "per_second": {
            "requests": rate(counts.requests),
            "failures": rate(counts.failures),
            "events": rate(counts.events),
        },
        "minute": summary(&view.minute),
        "quarter": summary(&view.quarter),
        "parts": parts(&view),
        "errors": view.errors.iter().map(|(code, n)| json!([code, n])).collect::<Vec<_>>(),
        "total": {"prefill": members.of(Role::Prefill).len(), "decode": members.of(Role::Decode).len()},
        "workers": workers(&rows, &view),
        "pending": pending,
        "pairs": pairs(&rows, &view),
    });
    data.to_string().into()
}

/// The workers that are shown, each with its health. They do not depend on the filter: the page marks what it leaves.
fn rows<'a>(fleet: &Fleet, members: &'a Members, now: Instant) -> Vec<(&'a Worker, Condition)> {
    let mut rows = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        let workers = members.of(role).iter();
        let mut of_role: Vec<_> = workers
            .map(|worker| (&**worker, fleet.condition(worker, now)))
            .collect();
        if of_role.len() > MAX_ROWS {
            // Stable: among those that are equally well the order is that of the configuration.
            of_role.sort_by_key(|(_, condition)| *condition == Condition::Serving);
            of_role.truncate(MAX_ROWS);
        }
        rows.extend(of_role);
    }
    rows
}

/// Requests that have a decode worker and have not ended.
fn live(members: &Members, filter: Filter) -> usize {
    let (role, wanted) = match filter.decode {
        None if filter.prefill.is_some() => (Role::Prefill, filter.prefill),
        wanted => (Role::Decode, wanted),
    };
    let workers = members.of(role).iter();
    let left = workers.filter(|worker| wanted.is_none_or(|wanted| wanted == worker.id()));
    left.map(|worker| worker.in_flight()).sum()
}

fn advice(fleet: &Fleet, members: &Members, loads: Option<Loads>, view: &View) -> Value {
    let serving = |role| {
        let workers = members.of(role).iter();
        workers.filter(|worker| worker.is_usable()).count()
    };
    let (prefills, decodes) = (serving(Role::Prefill), serving(Role::Decode));
    let used = |role: Role, workers: usize| {
        let in_flight = members.of(role).iter().map(|worker| worker.in_flight());
        let most = workers.max(1) * fleet.per_worker()?;
        Some(in_flight.sum::<usize>() as f64 / most as f64)
    };
    let seen = Evidence {
        prefills,
        decodes,
        loads,
        limits: used(Role::Prefill, prefills).zip(used(Role::Decode, decodes)),
        ..Evidence::of(view)
    };
    let advice = advise(&seen);
    json!({
        "verdict": advice.verdict.name(),
        "text": advice.to_string(),
        "prefill_busy": rounded(advice.prefill_busy),
        "decode_busy": advice.decode_busy.map(rounded),
    })
}

fn summary(sum: &Summary) -> Value {
    let Counts {
        requests,
        failures,
        streams,
        events,
        routes,
        ..
    } = &sum.counts;
    let quantile = |part| sum.ttft.quantile(part).map(rounded);
    let routes = Route::ALL.iter().zip(routes).filter(|(_, n)| **n > 0);
    let routes: serde_json::Map<_, _> = routes
        .map(|(route, n)| (route.name().to_owned(), json!(n)))
        .collect();
    json!({
        "requests": requests,
        "failures": failures,
        "streams": streams,
        "events": events,
        "ttft_ms": {"p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99)},
        "gap_ms": sum.counts.gap().map(|gap| rounded(gap * 1e3)),
        "routes": routes,
    })
}

/// The parts of TTFT by period, each point as its age in periods, its streams, and the sum of each part in milliseconds.
fn parts(view: &View) -> Value {
    let point = |(age, counts): &(usize, Counts)| {
        let mut point = vec![json!(age), json!(counts.streams)];
        let sums = counts.parts_us.iter();
        point.extend(sums.map(|us| json!(rounded(*us as f64 / 1e3))));
        Value::Array(point)
    };
    json!({
        "step_seconds": view.step,
        "names": Part::ALL.map(Part::name),
        "points": view.periods.iter().map(point).collect::<Vec<_>>(),
    })
}

fn workers(rows: &[(&Worker, Condition)], view: &View) -> Vec<Value> {
    let sums: HashMap<WorkerId, &Summary> =
        view.workers.iter().map(|(id, sum)| (*id, sum)).collect();
    let row = |(worker, condition): &(&Worker, Condition)| {
        let sum = sums.get(&worker.id());
        json!({
            "role": worker.role().name(),
            "url": worker.url(),
            "state": condition.name(),
            "breaker_open": matches!(condition, Condition::SetAside | Condition::OnTrial),
            "in_flight": worker.in_flight(),
            "load": means::of(worker),
            "requests": sum.map_or(0, |sum| sum.counts.requests),
            "failures": sum.map_or(0, |sum| sum.counts.failures),
            "ttft_p90_ms": sum.and_then(|sum| sum.ttft.quantile(0.9)).map(rounded),
        })
    };
    rows.iter().map(row).collect()
}

/// The pairs whose workers are both shown, by the places of these in the list of workers.
fn pairs(rows: &[(&Worker, Condition)], view: &View) -> Vec<Value> {
    let ids = rows.iter().enumerate();
    let places: HashMap<WorkerId, usize> = ids
        .map(|(place, (worker, _))| (worker.id(), place))
        .collect();
    let one = |sum: &Summary| {
        let ttft = sum.ttft.quantile(0.9).map(rounded);
        json!([sum.counts.requests, sum.counts.failures, ttft])
    };
    let pair = |((prefill, decode), minute, quarter): &((WorkerId, WorkerId), Summary, Summary)| {
        let (prefill, decode) = (places.get(prefill)?, places.get(decode)?);
        Some(
            json!({"prefill": prefill, "decode": decode, "minute": one(minute), "quarter": one(quarter)}),
        )
    };
    view.pairs.iter().filter_map(pair).collect()
}

/// Three decimals are more than a reader needs.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
