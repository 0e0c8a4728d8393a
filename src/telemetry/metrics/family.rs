//! The table of metrics: the name, kind, unit, labels and meaning of each. `docs/metrics.md` has the same rows.
//!
//! A name or a label that is here is an interface: dashboards and alerts of users read it.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// One metric, with all series of its name.
#[derive(Debug)]
pub struct Family {
    /// Without the unit and without the ending that its kind gives it.
    pub(super) stem: &'static str,
    pub(super) kind: MetricType,
    pub(super) unit: Option<Unit>,
    /// The names of its labels, in their order.
    pub labels: &'static [&'static str],
    /// What it counts or measures, in a sentence without its full stop.
    pub help: &'static str,
}

impl Family {
    /// The name as queries have it: that of its samples, for a histogram without `_bucket`, `_sum` and `_count`.
    pub fn name(&self) -> String {
        let unit = self.unit.as_ref().map_or("", Unit::as_str);
        let unit_separator = if unit.is_empty() { "" } else { "_" };
        let ending = match self.kind {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            _ => "",
        };
        format!("{}{unit_separator}{unit}{ending}", self.stem)
    }

    /// `counter`, `gauge` or `histogram`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            MetricType::Counter => "counter",
            MetricType::Histogram => "histogram",
            _ => "gauge",
        }
    }
}

const fn family(
    kind: MetricType,
    stem: &'static str,
    unit: Option<Unit>,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family {
        stem,
        kind,
        unit,
        labels,
        help,
    }
}

const NO_UNIT: Option<Unit> = None;
const SECONDS: Option<Unit> = Some(Unit::Seconds);
const BYTES: Option<Unit> = Some(Unit::Bytes);
const WORKER: &[&str] = &["role", "worker"];
const PREFILL_WORKER: &[&str] = &["worker"];

use MetricType::{Counter, Gauge, Histogram, Info};

#[rustfmt::skip]
mod rows {
    use super::*;

    pub(in super::super) static REQUESTS: Family = family(Counter, "mini_lb_requests", NO_UNIT, &["route", "status", "ended"],
        "Requests that have ended, with the status that the client got, 0 where it got none");
    pub(in super::super) static TTFT: Family = family(Histogram, "mini_lb_ttft", SECONDS, &["route"],
        "Time from the head of a request to the first byte of its streamed response");
    pub(in super::super) static PARTS: Family = family(Histogram, "mini_lb_ttft_part", SECONDS, &["part"],
        "The steps of that time, whose sums add up to its sum");
    pub(in super::super) static ITL: Family = family(Histogram, "mini_lb_itl", SECONDS, &["route"],
        "Time from one event of a stream to the next as they leave; events that leave together share it");
    pub(in super::super) static E2E: Family = family(Histogram, "mini_lb_e2e", SECONDS, &["route"],
        "Time from the head of a request to its end, failed ones included");
    pub(in super::super) static QUEUE: Family = family(Histogram, "mini_lb_queue", SECONDS, &["route"],
        "Time that a request has waited for a pair, over all its attempts");
    pub(in super::super) static INFLIGHT: Family = family(Gauge, "mini_lb_inflight_requests", NO_UNIT, &[],
        "Requests that have not ended, each sample of a request counted");
    pub(in super::super) static QUEUED: Family = family(Gauge, "mini_lb_queued_requests", NO_UNIT, &[],
        "Requests that wait because all workers have as many as they may, or because generation is paused");
    pub(in super::super) static PAUSED: Family = family(Gauge, "mini_lb_paused", NO_UNIT, &[],
        "1 while new requests wait because generation is paused, weights are updated or memory is released");
    pub(in super::super) static ROOMS: Family = family(Gauge, "mini_lb_live_rooms", NO_UNIT, &[],
        "Bootstrap rooms in use, one for each prompt of a request");
    pub(in super::super) static CONNECTIONS: Family = family(Gauge, "mini_lb_client_connections", NO_UNIT, &[],
        "Open connections of clients");
    pub(in super::super) static WORKERS: Family = family(Gauge, "mini_lb_workers", NO_UNIT, &["role", "state"],
        "Workers that are listed: pending while they are probed, serving, draining, or failed where they were refused");
    pub(in super::super) static UP: Family = family(Gauge, "mini_lb_worker_up", NO_UNIT, WORKER,
        "1 while the worker gets requests, 0 while it is set aside or paused, does not answer its probe, drains, or cannot be used");
    pub(in super::super) static OPEN: Family = family(Gauge, "mini_lb_worker_breaker_open", NO_UNIT, WORKER,
        "1 while failures set the worker aside, its trial included");
    pub(in super::super) static DRAINING: Family = family(Gauge, "mini_lb_worker_draining", NO_UNIT, WORKER,
        "1 while the worker gets no new request because it is to end those that it has");
    pub(in super::super) static WORKER_INFLIGHT: Family = family(Gauge, "mini_lb_worker_inflight_requests", NO_UNIT, WORKER,
        "Legs on the worker that have not ended");
    pub(in super::super) static LEGS: Family = family(Counter, "mini_lb_worker_requests", NO_UNIT, &["role", "worker", "outcome"],
        "Legs that have ended on the worker");
    pub(in super::super) static LEG_TIME: Family = family(Histogram, "mini_lb_worker_leg", SECONDS, WORKER,
        "Time of a leg that the worker has served, to the end of its response");
    pub(in super::super) static WORKER_CONNECTIONS: Family = family(Gauge, "mini_lb_worker_connections", NO_UNIT, &["role", "worker", "state"],
        "Connections to the worker: busy with a leg, or idle in the pool");
    pub(in super::super) static LOAD: Family = family(Gauge, "mini_lb_worker_load", NO_UNIT, &["role", "worker", "what"],
        "What the worker says about its load in /v1/loads, where it is polled: requests, and for kv_usage a part of 1");
    pub(in super::super) static POLICY_CHOICES: Family = family(Counter, "mini_lb_policy_choices", NO_UNIT, &["role", "policy"],
        "Workers that the policy has chosen; random ones are not counted");
    pub(in super::super) static POLICY_PROMPT: Family = family(Counter, "mini_lb_policy_prompt_tokens", NO_UNIT, PREFILL_WORKER,
        "Tokens of prompts whose prefill worker reports how many of them were cached, under expected_ttft");
    pub(in super::super) static POLICY_EXPECTED: Family = family(Counter, "mini_lb_policy_expected_cached_tokens", NO_UNIT, PREFILL_WORKER,
        "Those of them that were expected to be in the prefix cache of the worker");
    pub(in super::super) static POLICY_CACHED: Family = family(Counter, "mini_lb_policy_cached_tokens", NO_UNIT, PREFILL_WORKER,
        "Those of them that were there");
    pub(in super::super) static POLICY_TIME: Family = family(Histogram, "mini_lb_policy_prefill_time_ratio", NO_UNIT, &[],
        "Time until prefill has responded, as a part of the time that was expected: 1 is right");
    pub(in super::super) static POLICY_WAIT: Family = family(Gauge, "mini_lb_policy_wait", SECONDS, PREFILL_WORKER,
        "Time that a prompt would wait on the prefill worker, as it is expected; the mean of its ranks");
    pub(in super::super) static POLICY_BLOCKS: Family = family(Gauge, "mini_lb_policy_mirror_blocks", NO_UNIT, PREFILL_WORKER,
        "Blocks of prompts that are believed to be in the prefix cache of the worker");
    pub(in super::super) static POLICY_BYTES: Family = family(Gauge, "mini_lb_policy_mirror", BYTES, &[],
        "Memory of what is known of all prefix caches");
    pub(in super::super) static POLICY_FLUSHES: Family = family(Counter, "mini_lb_policy_flushes", NO_UNIT, PREFILL_WORKER,
        "How often the prefix cache of the worker was taken for lost: its responses said so, it was flushed, or it came back");
    pub(in super::super) static PAIRS: Family = family(Counter, "mini_lb_pair_failures", NO_UNIT, &["prefill", "decode"],
        "Attempts of the pair that one of its workers made fail");
    pub(in super::super) static RETRIES: Family = family(Counter, "mini_lb_retries", NO_UNIT, &["reason"],
        "Attempts that failed and were followed by another one, by the failure");
    pub(in super::super) static ABORTS: Family = family(Counter, "mini_lb_aborts", NO_UNIT, &["role"],
        "Aborts sent to workers for legs that were cancelled");
    pub(in super::super) static REFUSED: Family = family(Counter, "mini_lb_refused", NO_UNIT, &["code"],
        "Requests that got an error of mini-lb before a worker was asked");
    pub(in super::super) static BODIES: Family = family(Counter, "mini_lb_body", BYTES, &["direction"],
        "Bytes of bodies, received from clients and sent to them");
    pub(in super::super) static EVENTS: Family = family(Counter, "mini_lb_events", NO_UNIT, &["direction"],
        "Whole events of streamed responses that were sent to clients");
    pub(in super::super) static SPANS: Family = family(Counter, "mini_lb_spans_dropped", NO_UNIT, &["reason"],
        "Spans that were not exported: too many waited, or the collector did not take them");
    pub(in super::super) static BUILD: Family = family(Info, "mini_lb_build", NO_UNIT, &["version"],
        "The version of mini-lb; always 1");
    pub(in super::super) static START: Family = family(Gauge, "mini_lb_start_time", SECONDS, &[],
        "When the balancer was made, in Unix time");
    pub(in super::super) static RELOADS: Family = family(Counter, "mini_lb_config_reloads", NO_UNIT, &["result"],
        "Reloads of the configuration: applied, or refused because of a problem");
    pub(in super::super) static LAST_RELOAD: Family = family(Gauge, "mini_lb_config_last_reload", SECONDS, &[],
        "When a configuration last took effect, the one of the start included, in Unix time");
    pub(in super::super) static CPU: Family = family(Counter, "process_cpu", SECONDS, &[],
        "CPU time of the process, user and system");
    pub(in super::super) static RESIDENT: Family = family(Gauge, "process_resident_memory", BYTES, &[],
        "Memory of the process that is resident");
    pub(in super::super) static VIRTUAL: Family = family(Gauge, "process_virtual_memory", BYTES, &[],
        "Address space of the process");
    pub(in super::super) static OPEN_FILES: Family = family(Gauge, "process_open_fds", NO_UNIT, &[],
        "Descriptors that the process has open");
    pub(in super::super) static MAX_FILES: Family = family(Gauge, "process_max_fds", NO_UNIT, &[],
        "Descriptors that the process may have open");
    pub(in super::super) static THREADS: Family = family(Gauge, "process_threads", NO_UNIT, &[],
        "Threads of the process");
    pub(in super::super) static PROCESS_START: Family = family(Gauge, "process_start_time", SECONDS, &[],
        "When the process was started, in Unix time");
}
pub(super) use rows::*;

/// All metrics, in the order of the text.
pub static FAMILIES: [&Family; 47] = [
    &REQUESTS,
    &TTFT,
    &PARTS,
    &ITL,
    &E2E,
    &QUEUE,
    &INFLIGHT,
    &QUEUED,
    &PAUSED,
    &ROOMS,
    &CONNECTIONS,
    &WORKERS,
    &UP,
    &OPEN,
    &DRAINING,
    &WORKER_INFLIGHT,
    &LEGS,
    &LEG_TIME,
    &WORKER_CONNECTIONS,
    &LOAD,
    &POLICY_CHOICES,
    &POLICY_PROMPT,
    &POLICY_EXPECTED,
    &POLICY_CACHED,
    &POLICY_TIME,
    &POLICY_WAIT,
    &POLICY_BLOCKS,
    &POLICY_BYTES,
    &POLICY_FLUSHES,
    &PAIRS,
    &RETRIES,
    &ABORTS,
    &REFUSED,
    &BODIES,
    &EVENTS,
    &SPANS,
    &BUILD,
    &START,
    &RELOADS,
    &LAST_RELOAD,
    &CPU,
    &RESIDENT,
    &VIRTUAL,
    &OPEN_FILES,
    &MAX_FILES,
    &THREADS,
    &PROCESS_START,
];
