//! What the policies have chosen, what they expected and what came. All of it is kept by the policies, and read when somebody
//! asks for it.

use std::collections::HashMap;
use std::fmt;
use std::time::Instant;

use prometheus_client::encoding::DescriptorEncoder;

use super::collect::begin;
use super::family::{self, Family};
use crate::fleet::{Fleet, Members, Role, WorkerReport};

/// The families of policies, in the order of the table. Those of a policy that learns have no series under another one.
pub(super) fn encode(
    to: &mut DescriptorEncoder<'_>,
    fleet: &Fleet,
    members: &Members,
) -> fmt::Result {
    let mut series = begin(to, &family::POLICY_CHOICES)?;
    for (role, policy, choices) in fleet.choices() {
        series.counter([role.name(), policy], choices)?;
    }
    let report = fleet.report(Instant::now());
    let mut workers = HashMap::new();
    if let Some(report) = &report {
        workers.extend(report.workers.iter().copied());
    }
    // Each prefill worker has its series from the first moment on.
    let listed = report.iter().flat_map(|_| members.of(Role::Prefill));
    let listed: Vec<(&str, WorkerReport)> = listed
        .map(|worker| {
            (
                worker.url(),
                workers.remove(&worker.id()).unwrap_or_default(),
            )
        })
        .collect();
    type Count = fn(&WorkerReport) -> u64;
    let counters: [(&Family, Count); 3] = [
        (&family::POLICY_PROMPT, |worker| worker.prompt_tokens),
        (&family::POLICY_EXPECTED, |worker| {
            worker.expected_cached_tokens
        }),
        (&family::POLICY_CACHED, |worker| worker.cached_tokens),
    ];
    for (family, count) in counters {
        let mut series = begin(to, family)?;
        for (url, worker) in &listed {
            series.counter([url], count(worker))?;
        }
    }
    let mut series = begin(to, &family::POLICY_TIME)?;
    if let Some(report) = &report {
        series.snapshot([], &report.time_ratio)?;
    }
    let mut series = begin(to, &family::POLICY_WAIT)?;
    for (url, worker) in &listed {
        series.gauge([url], worker.wait_seconds)?;
    }
    let mut series = begin(to, &family::POLICY_BLOCKS)?;
    for (url, worker) in &listed {
        series.gauge([url], worker.blocks as f64)?;
    }
    let mut series = begin(to, &family::POLICY_BYTES)?;
    if let Some(report) = &report {
        series.gauge([], report.mirror_bytes as f64)?;
    }
    let mut series = begin(to, &family::POLICY_FLUSHES)?;
    for (url, worker) in &listed {
        series.counter([url], worker.flushes)?;
    }
    Ok(())
}
