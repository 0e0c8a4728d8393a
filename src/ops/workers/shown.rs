//! A worker of the registry as JSON. It has no key, and nothing of one.

use std::time::Instant;

use serde_json::{Value, json};

use crate::discovery::{Life, Registry, Shown};
use crate::fleet::{Condition, Fleet, Members, Role};
use crate::pd::Bootstrap;

/// The entry of one worker, with the names of sglang-router and smg.
pub(super) fn worker(fleet: &Fleet, shown: &Shown) -> Value {
    let (worker, details) = (&shown.worker, &shown.details);
    let condition = fleet.condition(worker, Instant::now());
    let is_healthy = shown.life == Life::Serving
        && matches!(condition, Condition::Serving | Condition::Returning);
    let mut entry = json!({
        "id": shown.id,
        "url": worker.url(),
        "model_id": details.model_id.as_deref().unwrap_or("unknown"),
        "worker_type": shown.role.map_or("unknown", Role::name),
        "state": shown.life.name(),
        "condition": if shown.life == Life::Serving { condition.name() } else { shown.life.name() },
        "is_healthy": is_healthy,
        "load": worker.in_flight(),
        "weight": worker.weight(),
        "priority": details.priority.unwrap_or(50),
        "cost": details.cost.unwrap_or(1.0),
        "labels": details.labels,
        "connection_mode": "HTTP",
        "sources": shown.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "state_seconds": shown.since.elapsed().as_secs(),
    });
    if shown.role == Some(Role::Prefill) {
        let bootstrap = worker.bootstrap();
        entry["bootstrap_host"] = bootstrap.map(Bootstrap::host).into();
        entry["bootstrap_port"] = bootstrap.and_then(Bootstrap::port).into();
    }
    if let Some(problem) = &shown.problem {
        entry["problem"] = problem.as_str().into();
    }
    if let Some((job, status)) = job(shown.life) {
        entry["job_status"] = json!({"job_type": job, "status": status, "worker_url": worker.url(),
            "message": shown.problem});
    }
    entry
}

/// What is being done with the worker, in the words of sglang-router.
fn job(life: Life) -> Option<(&'static str, &'static str)> {
    match life {
        Life::Pending => Some(("AddWorker", "processing")),
        Life::Failed => Some(("AddWorker", "failed")),
        Life::Leaving => Some(("RemoveWorker", "processing")),
        Life::Serving | Life::Draining => None,
    }
}

/// The workers that are no members yet, for the dashboard.
pub(in crate::ops) fn pending(registry: &Registry, members: &Members) -> Vec<Value> {
    let workers = registry.workers().into_iter();
    let waits = workers.filter(|shown| !members.contains(shown.worker.id()));
    let row = |shown: Shown| {
        json!({"role": shown.worker.role().name(), "url": shown.worker.url(), "state": shown.life.name(),
            "problem": shown.problem})
    };
    waits.map(row).collect()
}
