//! A thousand requests with known outcomes, and every number that they leave.

use mini_lb::sim::Worker;
use support::sim::quick;
use support::{Balancer, CHAT, post, soon};

use super::{Scrape, config_of, get, scrape};

/// What a load has asked for and got.
#[derive(Default, Clone, Copy)]
struct Got {
    requests: u64,
    sent_bytes: u64,
    received_bytes: u64,
    events: u64,
    streams: u64,
}

/// One kind of request of a load.
struct Kind {
    path: &'static str,
    body: String,
    times: usize,
    status: u16,
    /// Whether the body was read and parsed.
    is_read: bool,
}

/// Sends the requests of this kind, one after the other, and counts what came back.
async fn send(balancer: &Balancer, kind: &Kind) -> Got {
    let mut client = balancer.client().await;
    let mut got = Got::default();
    for _ in 0..kind.times {
        match kind.body.is_empty() {
            true => client.send(get(kind.path, "")).await,
            false => client.send(post(kind.path, &kind.body)).await,
        }
        let answer = client.answer().await;
        assert_eq!(answer.status(), kind.status, "{}", kind.path);
        got.requests += 1;
        got.received_bytes += answer.body.len() as u64;
        if kind.is_read {
            got.sent_bytes += kind.body.len() as u64;
        }
        let content_type = answer.header("content-type").unwrap_or_default();
        if content_type.starts_with("text/event-stream") {
            got.streams += 1;
            got.events += answer.text().matches("\n\n").count() as u64;
        }
        if answer.header("connection") == Some("close") {
            client = balancer.client().await;
        }
    }
    got
}

fn load() -> Vec<Kind> {
    let kind = |path, body: &str, times, status| Kind {
        path,
        body: body.to_owned(),
        times,
        status,
        is_read: !body.starts_with("{bad"),
    };
    let long = format!(r#"{{"text":"{}"}}"#, "word ".repeat(40_000));
    let chat =
        r#"{"model":"m","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"stream":true}"#;
    let generate = r#"{"text":"Hi","sampling_params":{"max_new_tokens":4}}"#;
    let samples = r#"{"text":"Hi","sampling_params":{"max_new_tokens":4,"n":2}}"#;
    let completion = r#"{"model":"m","prompt":"Hi","max_tokens":6,"stream":true}"#;
    vec![
        kind(CHAT, chat, 200, 200),
        kind(CHAT, chat, 200, 200),
        kind("/generate", generate, 200, 200),
        kind("/generate", samples, 50, 200),
        kind("/v1/completions", completion, 100, 200),
        kind("/generate", &long, 50, 400),
        kind(CHAT, "{bad", 100, 400),
        kind("/health", "", 50, 200),
        kind("/nope", "", 50, 404),
    ]
}

#[tokio::test]
async fn a_thousand_requests_are_counted_one_by_one() {
    let prefill = Worker::start_prefill(quick()).await.unwrap();
    let decode = Worker::start_decode(quick()).await.unwrap();
    let balancer = Balancer::start(config_of(&prefill, &decode)).await;
    let load = load();
    let got = futures_util::future::join_all(load.iter().map(|kind| send(&balancer, kind))).await;
    let sum = |of: fn(&Got) -> u64| got.iter().map(of).sum::<u64>() as f64;
    assert_eq!(sum(|got| got.requests), 1000.0);

    let mut client = balancer.client().await;
    let mut seen = scrape(&mut client).await;
    // A request is counted a moment after its client has the response.
    soon("all are counted", async {
        while seen.sum("mini_lb_requests_total", &[]) < 1000.0
            || seen.sum("mini_lb_inflight_requests", &[]) > 0.0
        {
            seen = scrape(&mut client).await;
        }
    })
    .await;
    assert_requests(&seen);
    assert_times(&seen, sum(|got| got.events), sum(|got| got.streams));
    assert_attempts(&seen);
    let received = seen.sum("mini_lb_body_bytes_total", &["received"]);
    assert_eq!(received, sum(|got| got.sent_bytes));
    let sent = seen.sum("mini_lb_body_bytes_total", &["\"sent\""]);
    assert!(sent >= sum(|got| got.received_bytes), "{sent}");
    for gauge in [
        "mini_lb_live_rooms",
        "mini_lb_queued_requests",
        "mini_lb_worker_inflight_requests",
    ] {
        assert_eq!(seen.sum(gauge, &[]), 0.0, "{gauge}");
    }
}

fn assert_requests(seen: &Scrape) {
    let ended = |route: &str, status: &str, ended: &str| {
        seen.sum("mini_lb_requests_total", &[route, status, ended])
    };
    for (route, status, end, count) in [
        ("chat_completions", "200", "ok", 400.0),
        ("generate", "200", "ok", 250.0),
        ("completions", "200", "ok", 100.0),
        ("generate", "400", "rejected", 50.0),
        ("chat_completions", "400", "invalid_json", 100.0),
        ("other", "404", "not_found", 50.0),
    ] {
        let found = ended(
            &format!("route=\"{route}\""),
            &format!("status=\"{status}\""),
            &format!("ended=\"{end}\""),
        );
        assert_eq!(found, count, "{route} {status} {end}");
    }
    // The scrapes themselves are requests too.
    assert!(ended("route=\"other\"", "status=\"200\"", "ended=\"ok\"") >= 50.0);
    assert_eq!(seen.sum("mini_lb_refused_total", &[]), 150.0);
    assert_eq!(seen.sum("mini_lb_refused_total", &["invalid_json"]), 100.0);
}

/// The histograms of requests, after so many events in so many streams.
fn assert_times(seen: &Scrape, events: f64, streams: f64) {
    let count = |name: &str, labels: &[&str]| seen.sum(&format!("{name}_count"), labels);
    let chat = &["route=\"chat_completions\""][..];
    let generate = &["route=\"generate\""][..];
    assert_eq!(count("mini_lb_ttft_seconds", chat), 400.0);
    assert_eq!(count("mini_lb_ttft_seconds", &[]), streams);
    assert_eq!(count("mini_lb_e2e_seconds", chat), 500.0);
    assert_eq!(count("mini_lb_queue_seconds", chat), 400.0);
    assert_eq!(count("mini_lb_queue_seconds", generate), 300.0);
    // Of each stream, neither the first event nor the end marker has a gap before it.
    let gaps = events - 2.0 * streams;
    assert_eq!(count("mini_lb_itl_seconds", &[]), gaps);
    assert_eq!(seen.sum("mini_lb_events_total", &[]), events);
    let decode = &["part=\"decode\""][..];
    assert_eq!(count("mini_lb_ttft_part_seconds", decode), streams);
    let parts = seen.sum("mini_lb_ttft_part_seconds_sum", &[]);
    let whole = seen.sum("mini_lb_ttft_seconds_sum", &[]);
    assert!((parts - whole).abs() < 1e-6, "{parts} {whole}");
}

fn assert_attempts(seen: &Scrape) {
    let legs = |role: &str, outcome: &str| {
        let (role, outcome) = (format!("role=\"{role}\""), format!("outcome=\"{outcome}\""));
        seen.sum("mini_lb_worker_requests_total", &[&role, &outcome])
    };
    for role in ["prefill", "decode"] {
        assert_eq!(legs(role, "ok"), 800.0, "{role}");
        assert_eq!(legs(role, "failed"), 0.0, "{role}");
        // Both workers refuse a prompt that is too long, and the first refusal ends the other leg.
        let refused = legs(role, "rejected") + legs(role, "cancelled");
        assert_eq!(refused, 50.0, "{role}");
        let role = format!("role=\"{role}\"");
        let times = seen.sum("mini_lb_worker_leg_seconds_count", &[&role]);
        assert_eq!(times, 800.0, "{role}");
    }
    assert_eq!(seen.sum("mini_lb_pair_failures_total", &[]), 0.0);
    assert_eq!(seen.sum("mini_lb_retries_total", &[]), 0.0);
}
