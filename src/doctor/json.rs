//! The report as one JSON document, for programs. The names of its fields are stable: `docs/doctor.md` lists them.

use serde_json::{Value, json};

use super::report::{Check, PairReport, Report};

/// The version of the document: it changes when a field is renamed or removed.
const FORMAT: u32 = 1;

/// The document.
pub(super) fn document(report: &Report) -> Value {
    let counts = report.counts();
    let workers = report.workers.iter().map(|worker| {
        json!({
            "role": worker.role.name(),
            "url": worker.url,
            "checks": checks(&worker.checks),
        })
    });
    json!({
        "format": FORMAT,
        "mini_lb": env!("CARGO_PKG_VERSION"),
        "verdict": report.verdict().name(),
        "counts": {
            "ok": counts.ok,
            "warn": counts.warn,
            "fail": counts.fail,
            "skip": counts.skip,
        },
        "configuration": checks(&report.configuration),
        "workers": workers.collect::<Vec<_>>(),
        "fleet": checks(&report.fleet),
        "pairs": report.pairs.iter().map(pair).collect::<Vec<_>>(),
    })
}

fn checks(checks: &[Check]) -> Vec<Value> {
    checks.iter().map(check).collect()
}

fn check(check: &Check) -> Value {
    json!({
        "check": check.name,
        "status": check.status.name(),
        "message": check.message,
        "advice": check.advice,
    })
}

fn pair(pair: &PairReport) -> Value {
    let mut value = json!({"prefill": pair.prefill, "decode": pair.decode});
    if let (Value::Object(value), Value::Object(check)) = (&mut value, check(&pair.check)) {
        value.extend(check);
        value.insert(
            "ttft_ms".to_owned(),
            json!(pair.times.map(|times| times.ttft_ms)),
        );
        value.insert(
            "total_ms".to_owned(),
            json!(pair.times.map(|times| times.total_ms)),
        );
    }
    value
}
