use std::time::{Duration, Instant};

use super::super::{FailedAttempt, Legs, Pair};
use super::family::Family;
use super::*;
use crate::fleet::{
    BreakerLimits, Loads, Members, Policies, RolePolicy, Selection, Targets, WorkerParts,
};
use crate::pd::{BLOCK_BYTES, Leg, Prefix, RoutingKey, Usage};

struct Balancer {
    fleet: Arc<Fleet>,
    workers: Vec<Arc<Worker>>,
    metrics: Metrics,
}

impl Balancer {
    /// Two workers of each role, which are members: 1 and 2 are prefill workers, 3 and 4 decode workers.
    fn new() -> Self {
        Self::with(Policies::random())
    }

    fn with(policies: Policies) -> Self {
        let fleet = Arc::new(Fleet::new(policies, BreakerLimits::default()));
        let roles = [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode];
        let workers: Vec<_> = (1..)
            .zip(roles)
            .map(|(port, role)| fleet.new_worker(WorkerParts::for_tests(role, port)))
            .collect();
        fleet.replace(Members::new(workers.clone()));
        let metrics = Metrics::new(
            Sources {
                fleet: fleet.clone(),
                rooms: Arc::default(),
                inflight: Box::new(|| 0),
                connections: Box::new(|| 0),
                idle_connections: Box::new(|_| 0),
                aborts: Box::new(|_| 0),
                listed: Box::new(|| vec![(Role::Prefill, "serving"), (Role::Decode, "draining")]),
            },
            Arc::default(),
        );
        Self {
            fleet,
            workers,
            metrics,
        }
    }

    fn pair(&self, prefill: usize, decode: usize) -> Pair {
        Pair {
            prefill: self.workers[prefill - 1].clone(),
            decode: self.workers[decode - 1].clone(),
        }
    }

    fn text(&self) -> String {
        self.metrics.render(TEXT).expect("text")
    }

    /// The value of a series that is named as in the text.
    fn value(&self, series: &str) -> Option<String> {
        let text = self.text();
        let value = text.lines().find_map(|line| line.strip_prefix(series));
        value.map(|value| value.trim().to_owned())
    }
}

/// A stream of chat that this pair has served within 30 ms.
fn served(pair: Pair) -> Record {
    let mut record = Record::new(Instant::now());
    let started = record.times.started;
    let at = |millis| Some(started + Duration::from_millis(millis));
    record.route = Some(Route::ChatCompletions);
    record.pair = Some(pair);
    record.status = 200;
    record.streamed = true;
    record.events = 9;
    (record.request_bytes, record.response_bytes) = (100, 900);
    record.legs = Legs {
        prefill: Leg::Served,
        decode: Leg::Served,
    };
    record.times.read = at(1);
    record.times.selected = at(2);
    record.times.sent = at(4);
    record.times.prefill_end = at(10);
    record.times.decode_first = at(18);
    record.times.first_byte = at(20);
    record.times.ended = at(30);
    record
}

#[test]
fn a_request_is_counted_in_every_metric_that_it_concerns() {
    let balancer = Balancer::new();
    let mut record = served(balancer.pair(1, 3));
    let failed = balancer.pair(2, 4);
    record.failed.push(FailedAttempt {
        worker: failed.prefill.clone(),
        cause: Cause::Code("prefill_lost"),
        pair: failed,
        legs: Legs {
            prefill: Leg::Lost,
            decode: Leg::Running,
        },
        times: record.times,
        spans: Default::default(),
    });
    record.attempts = 2;
    balancer.metrics.finished(&record);
    let worker = |port, role| format!("role=\"{role}\",worker=\"http://127.0.0.1:{port}\"");
    let leg = |port, role, outcome| {
        format!(
            "mini_lb_worker_requests_total{{{},outcome=\"{outcome}\"}}",
            worker(port, role)
        )
    };
    for (series, value) in [
        (
            "mini_lb_requests_total{route=\"chat_completions\",status=\"200\",ended=\"ok\"}",
            "1",
        ),
        (
            "mini_lb_ttft_seconds_sum{route=\"chat_completions\"}",
            "0.02",
        ),
        (
            "mini_lb_ttft_seconds_bucket{route=\"chat_completions\",le=\"0.01\"}",
            "0",
        ),
        (
            "mini_lb_ttft_seconds_bucket{route=\"chat_completions\",le=\"0.02\"}",
            "1",
        ),
        ("mini_lb_ttft_part_seconds_sum{part=\"prefill\"}", "0.006"),
        ("mini_lb_ttft_part_seconds_sum{part=\"decode\"}", "0.008"),
        ("mini_lb_ttft_part_seconds_count{part=\"retry\"}", "1"),
        (
            "mini_lb_e2e_seconds_sum{route=\"chat_completions\"}",
            "0.03",
        ),
        (
            "mini_lb_queue_seconds_count{route=\"chat_completions\"}",
            "1",
        ),
        ("mini_lb_retries_total{reason=\"prefill_lost\"}", "1"),
        (
            "mini_lb_pair_failures_total{prefill=\"http://127.0.0.1:2\",decode=\"http://127.0.0.1:4\"}",
            "1",
        ),
        ("mini_lb_body_bytes_total{direction=\"received\"}", "100"),
        ("mini_lb_body_bytes_total{direction=\"sent\"}", "900"),
        ("mini_lb_events_total{direction=\"sent\"}", "9"),
        (&leg(1, "prefill", "ok"), "1"),
        (&leg(2, "prefill", "failed"), "1"),
        (&leg(3, "decode", "ok"), "1"),
        (&leg(4, "decode", "cancelled"), "1"),
        (
            &format!("mini_lb_worker_leg_seconds_sum{{{}}}", worker(1, "prefill")),
            "0.006",
        ),
        (
            &format!("mini_lb_worker_leg_seconds_sum{{{}}}", worker(3, "decode")),
            "0.026",
        ),
        (
            &format!(
                "mini_lb_worker_leg_seconds_count{{{}}}",
                worker(4, "decode")
            ),
            "0",
        ),
    ] {
        assert_eq!(balancer.value(series).as_deref(), Some(value), "{series}");
    }
}

#[test]
fn the_legs_of_samples_are_counted_with_each_and_the_request_once() {
    let balancer = Balancer::new();
    for decode in [3, 4] {
        balancer
            .metrics
            .sample_finished(&served(balancer.pair(1, decode)));
    }
    let mut request = served(balancer.pair(1, 3));
    request.pair = None;
    request.samples = 2;
    balancer.metrics.finished(&request);
    for (series, value) in [
        (
            "mini_lb_requests_total{route=\"chat_completions\",status=\"200\",ended=\"ok\"}",
            "1",
        ),
        (
            "mini_lb_worker_requests_total{role=\"prefill\",worker=\"http://127.0.0.1:1\",outcome=\"ok\"}",
            "2",
        ),
        (
            "mini_lb_worker_requests_total{role=\"decode\",worker=\"http://127.0.0.1:4\",outcome=\"ok\"}",
            "1",
        ),
        (
            "mini_lb_ttft_seconds_count{route=\"chat_completions\"}",
            "1",
        ),
    ] {
        assert_eq!(balancer.value(series).as_deref(), Some(value), "{series}");
    }
}

#[test]
fn a_removed_worker_takes_its_series_along_and_brings_its_own_counts_back() {
    let balancer = Balancer::new();
    let mut lost = served(balancer.pair(1, 3));
    lost.legs.decode = Leg::Lost;
    lost.ended = "decode_lost".into();
    balancer.metrics.finished(&lost);
    balancer.workers[0].note_loads(Some(Loads {
        running: Some(3),
        kv_usage: Some(0.5),
        ..Loads::default()
    }));
    let removed = "worker=\"http://127.0.0.1:1\"";
    let before = balancer.text();
    assert!(before.contains("what=\"kv_usage\"} 0.5"), "{before}");
    let pair = |decode| {
        format!(
            "mini_lb_pair_failures_total{{prefill=\"http://127.0.0.1:1\",decode=\"http://127.0.0.1:{decode}\"}}"
        )
    };
    assert_eq!(balancer.value(&pair(3)).as_deref(), Some("1"));
    assert_eq!(balancer.value(&pair(4)).as_deref(), Some("0"));
    balancer
        .fleet
        .replace(Members::new(balancer.workers[1..].to_vec()));
    let without = balancer.text();
    assert!(!without.contains(removed), "{without}");
    assert!(!without.contains("http://127.0.0.1:1\""), "{without}");
    balancer
        .fleet
        .replace(Members::new(balancer.workers.clone()));
    let series =
        format!("mini_lb_worker_requests_total{{role=\"prefill\",{removed},outcome=\"ok\"}}");
    assert_eq!(balancer.value(&series).as_deref(), Some("1"));
    // The failures of its pairs are forgotten with the next failure of another one.
    balancer
        .fleet
        .replace(Members::new(balancer.workers[1..].to_vec()));
    let mut other = served(balancer.pair(2, 4));
    other.legs.decode = Leg::Lost;
    balancer.metrics.finished(&other);
    assert_eq!(balancer.metrics.values.pair_failures.counts().len(), 1);
}

#[test]
fn a_request_without_a_worker_is_refused_with_its_code_alone() {
    let balancer = Balancer::new();
    for (ended, status) in [
        ("queue_full", 429),
        ("no_decode", 503),
        ("unauthorized", 401),
    ] {
        let mut record = Record::new(Instant::now());
        record.status = status;
        record.ended = ended.into();
        balancer.metrics.finished(&record);
        let series = format!("mini_lb_refused_total{{code=\"{ended}\"}}");
        assert_eq!(balancer.value(&series).as_deref(), Some("1"));
        let series = format!(
            "mini_lb_requests_total{{route=\"other\",status=\"{status}\",ended=\"{ended}\"}}"
        );
        assert_eq!(balancer.value(&series).as_deref(), Some("1"));
    }
    let mut record = Record::new(Instant::now());
    record.ended = "a word of a worker".into();
    balancer.metrics.finished(&record);
    let series = "mini_lb_requests_total{route=\"other\",status=\"0\",ended=\"other\"}";
    assert_eq!(balancer.value(series).as_deref(), Some("1"));
}

#[test]
fn the_text_has_the_metrics_of_the_table_with_their_kinds_and_labels() {
    let balancer = Balancer::new();
    balancer.workers[0].note_loads(Some(Loads::default()));
    balancer.metrics.finished(&served(balancer.pair(1, 3)));
    let text = balancer.text();
    let types: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let table: Vec<_> = family::FAMILIES
        .iter()
        .map(|family| format!("{} {}", family.name(), family.kind()))
        .collect();
    assert_eq!(types, table);
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once(['{', ' ']).unwrap_or_default();
        let is_its_own = |family: &&&Family| name.starts_with(&family.name());
        // The longest name that fits: `mini_lb_ttft_part_seconds` begins like no other.
        let family = family::FAMILIES.iter().filter(is_its_own);
        let family = family.max_by_key(|family| family.name().len());
        let quoted = labels.split('"').step_by(2);
        let names = quoted.map(|before| before.trim_matches([',', '=']));
        let names = names.filter(|name| !["le", ""].contains(name) && !line.ends_with(name));
        let expected = family.map(|family| family.labels.to_vec());
        assert_eq!(Some(names.collect::<Vec<_>>()), expected, "{line}");
        samples += 1;
    }
    assert!(samples > 400, "{samples}");
}

#[test]
fn what_a_policy_expected_and_what_came_is_told_and_random_choices_are_not() {
    let random = Balancer::new().text();
    assert!(
        !random
            .lines()
            .any(|line| line.starts_with("mini_lb_policy_"))
    );
    let balancer = Balancer::with(Policies {
        prefill: RolePolicy::expected_ttft(),
        decode: RolePolicy::least_to_come(),
    });
    let prefix = Arc::new(Prefix::for_tests(0..100, 100 * BLOCK_BYTES));
    let request = RoutingKey {
        route: Route::Generate,
        body_bytes: 60_000,
        prompts: 1,
        session: None,
        prefix: Some(prefix),
        to_come: 300,
        rank: None,
    };
    let now = Instant::now();
    let wanted = Selection {
        request: &request,
        avoid: &[],
        siblings: None,
        targets: Targets {
            prefill: Some(balancer.workers[0].id()),
            decode: None,
        },
        now,
    };
    for cached_tokens in [0, 12_700] {
        let lease = balancer.fleet.select(wanted, || 7).expect("a pair");
        lease.prefill.served(Some(Usage {
            prompt_tokens: 12_800,
            cached_tokens: Some(cached_tokens),
        }));
    }
    balancer.fleet.note_flushed(&balancer.workers[0]);
    let lease = balancer.fleet.select(wanted, || 7).expect("a pair");
    let worker = |stem: &str| format!("mini_lb_policy_{stem}{{worker=\"http://127.0.0.1:1\"}}");
    for (series, value) in [
        (
            "mini_lb_policy_choices_total{role=\"prefill\",policy=\"expected_ttft\"}".to_owned(),
            "3",
        ),
        (
            "mini_lb_policy_choices_total{role=\"decode\",policy=\"expected_ttft\"}".to_owned(),
            "3",
        ),
        (worker("prompt_tokens_total"), "25600"),
        (worker("cached_tokens_total"), "12700"),
        (worker("expected_cached_tokens_total"), "12799"),
        (worker("mirror_blocks"), "100"),
        (worker("flushes_total"), "1"),
        ("mini_lb_policy_prefill_time_ratio_count".to_owned(), "2"),
        (
            "mini_lb_policy_flushes_total{worker=\"http://127.0.0.1:2\"}".to_owned(),
            "0",
        ),
    ] {
        assert_eq!(balancer.value(&series).as_deref(), Some(value), "{series}");
    }
    let number = |series: &str| {
        balancer
            .value(series)
            .and_then(|value| value.parse::<f64>().ok())
    };
    assert!(number(&worker("wait_seconds")) > Some(0.0));
    assert!(number("mini_lb_policy_mirror_bytes") > Some(100.0 * 40.0));
    drop(lease);
}
