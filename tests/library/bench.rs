//! The load generator against simulated workers: its counts are those of the workers.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Uri};
use mini_lb::bench::{self, Arrivals, Failure, Load, RequestSpec, Spacing, Tally, Target, Url};
use mini_lb::sim::chaos::Script;
use mini_lb::sim::{SimOptions, Worker};
use serde_json::{Value, json};
use support::mini_lb;
use support::sim::{SimPair, post_text, quick};

const TOKENS: u64 = 5;

fn body(stream: bool) -> String {
    json!({
        "text": "hello",
        "stream": stream,
        "sampling_params": {"max_new_tokens": TOKENS, "ignore_eos": true},
    })
    .to_string()
}

async fn target(url: &str, path: &'static str, body: String) -> Target {
    let url: Url = url.parse().unwrap();
    Target {
        addresses: url.addresses().await.unwrap(),
        host: HeaderValue::from_static("server"),
        path: Uri::from_static(path),
        headers: HeaderMap::new(),
        requests: Box::new(move |_| RequestSpec {
            body: body.clone().into(),
            ..RequestSpec::default()
        }),
    }
}

fn load(concurrency: usize, requests: u64) -> Load {
    Load {
        concurrency,
        arrivals: Arrivals::WhenFree,
        requests,
        time: Duration::from_secs(60),
        request_timeout: Duration::from_secs(20),
        seed: 1,
        slo: bench::Slo::default(),
    }
}

/// The tally of some requests, one after the other, to a worker with this script.
async fn struck_by(rules: &str, requests: u64, stream: bool) -> Tally {
    let options = SimOptions {
        chaos: Script::parse(rules).unwrap(),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let target = target(&worker.url(), "/generate", body(stream)).await;
    bench::run(target, &load(1, requests), |_| {}).await
}

fn failures<const N: usize>(expected: [(Failure, u64); N]) -> BTreeMap<Failure, u64> {
    expected.into()
}

#[tokio::test]
async fn requests_events_and_tokens_of_streams_are_counted_on_as_many_connections_as_users() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let asked = body(true);
    let length = asked.len() as u64;
    let target = target(&worker.url(), "/generate", asked).await;
    let tally = bench::run(target, &load(4, 21), |_| {}).await;
    assert_eq!((tally.answered, tally.failures()), (21, 0));
    // One event for each token.
    assert_eq!((tally.events, tally.tokens), (21 * TOKENS, 21 * TOKENS));
    assert_eq!(tally.gaps.len(), 21 * (TOKENS - 1));
    assert_eq!((tally.ttft.len(), tally.total.len()), (21, 21));
    assert_eq!(tally.sent_bytes, 21 * length);
    assert_eq!(
        (tally.connections, worker.journal().connections_total()),
        (4, 4)
    );
}

#[tokio::test]
async fn bytes_of_an_answer_that_is_no_stream_are_counted() {
    let worker = support::Worker::listen().await;
    let url = worker.url();
    worker.serve("200 OK", r#"{"usage":{"completion_tokens":3}}"#);
    let target = target(&url, "/v1/completions", "{}".to_owned()).await;
    let tally = bench::run(target, &load(2, 10), |_| {}).await;
    assert_eq!((tally.answered, tally.received_bytes), (10, 10 * 33));
    assert_eq!((tally.events, tally.tokens), (0, 30));
}

#[tokio::test]
async fn refused_connections_are_failures_of_their_own() {
    let url = support::Worker::refusing().await;
    let target = target(&url, "/generate", body(false)).await;
    let tally = bench::run(target, &load(2, 6), |_| {}).await;
    assert_eq!(tally.failed, failures([(Failure::Refused, 6)]));
    assert_eq!(tally.answered, 0);
}

#[tokio::test]
async fn an_error_is_counted_by_its_status_and_the_first_one_is_kept() {
    let rules = r#"rules: [{match: {path: /generate, every: 2}, do: {status: {code: 500, body: "out of luck"}}}]"#;
    let tally = struck_by(rules, 6, false).await;
    assert_eq!(tally.failed, failures([(Failure::Status(500), 3)]));
    assert_eq!(tally.answered, 3);
    assert!(tally.first_error.unwrap().contains("out of luck"));
    // An error is a response: the connection is reused.
    assert_eq!(tally.connections, 1);
}

#[tokio::test]
async fn every_way_in_which_an_answer_ends_early_has_its_name() {
    for (action, stream, failure) in [
        ("close", false, Failure::Lost),
        ("reset", true, Failure::Lost),
        ("{cut_after_bytes: {bytes: 40}}", false, Failure::Cut),
        (
            "{cut_after_event: {events: 2, end: close}}",
            true,
            Failure::Cut,
        ),
        ("missing_done", true, Failure::NoDone),
        (
            "{error_event: {events: 1, message: out of luck}}",
            true,
            Failure::ErrorEvent,
        ),
    ] {
        let rules = format!("rules: [{{match: {{path: /generate, times: 1}}, do: {action}}}]");
        let tally = struck_by(&rules, 3, stream).await;
        assert_eq!(tally.failed, failures([(failure, 1)]), "{action}");
        assert_eq!((tally.answered, tally.total.len()), (2, 2), "{action}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_a_timeout() {
    let options = SimOptions {
        chaos: Script::parse("rules: [{do: silence}]").unwrap(),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let target = target(&worker.url(), "/generate", body(false)).await;
    let load = Load {
        request_timeout: Duration::from_millis(20),
        ..load(2, 2)
    };
    let tally = bench::run(target, &load, |_| {}).await;
    assert_eq!(tally.failed, failures([(Failure::Timeout, 2)]));
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_is_no_failure() {
    let options = SimOptions {
        keep_alive: Duration::from_millis(1),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let target = target(&worker.url(), "/generate", body(false)).await;
    let load = Load {
        arrivals: Arrivals::AtRate {
            per_second: 50.0,
            spacing: Spacing::Constant,
        },
        ..load(1, 5)
    };
    let tally = bench::run(target, &load, |_| {}).await;
    assert_eq!((tally.answered, tally.failures()), (5, 0));
}

#[tokio::test]
async fn a_slow_server_is_in_the_latency_of_every_request_that_had_to_wait_for_it() {
    let rules = "rules: [{match: {path: /generate}, do: {delay_head: {ms: 50}}}]";
    let options = SimOptions {
        chaos: Script::parse(rules).unwrap(),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let target = target(&worker.url(), "/generate", body(false)).await;
    let load = Load {
        arrivals: Arrivals::AtRate {
            per_second: 100.0,
            spacing: Spacing::Constant,
        },
        ..load(1, 10)
    };
    let tally = bench::run(target, &load, |_| {}).await;
    // Ten responses in sequence take 500 ms; the last request was due after 90 ms.
    assert!(tally.total.max() >= 405_000_000, "{}", tally.total.max());
    assert!(tally.late.max() >= 355_000_000, "{}", tally.late.max());
    assert_eq!(tally.late.len(), 10);
}

#[tokio::test]
async fn a_load_ends_with_its_time_and_finishes_what_it_has_begun() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let target = target(&worker.url(), "/generate", body(true)).await;
    let load = Load {
        time: Duration::from_millis(100),
        ..load(3, u64::MAX)
    };
    let tally = bench::run(target, &load, |_| {}).await;
    assert!(tally.answered > 0 && tally.failures() == 0, "{tally:?}");
    assert_eq!(tally.events, tally.answered * TOKENS);
}

#[tokio::test]
async fn a_load_can_send_both_legs_itself() {
    let pair = SimPair::start(quick()).await;
    let (host, port) = ("127.0.0.1", pair.prefill.bootstrap_port());
    let prefill = pair.prefill.address();
    let asks = move |number: u64| {
        RequestSpec {
        body: json!({
            "text": "hello", "bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": number + 1,
            "sampling_params": {"max_new_tokens": TOKENS},
        })
        .to_string()
        .into(),
        beside: Some(prefill),
        ..RequestSpec::default()
    }
    };
    let target = Target {
        requests: Box::new(asks),
        ..target(&pair.decode.url(), "/generate", String::new()).await
    };
    let tally = bench::run(target, &load(2, 8), |_| {}).await;
    assert_eq!((tally.answered, tally.failures()), (8, 0), "{tally:?}");
    assert_eq!(pair.prefill.journal().open_rooms(), 0);
}

#[tokio::test]
async fn the_command_shows_a_table_and_writes_numbers_and_a_page() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (json_file, html_file) = (file("out.json"), file("out.html"));
    let url = worker.url();
    let ended = mini_lb!(&[
        "bench",
        "--url",
        &url,
        "--direct",
        &url,
        "--endpoint",
        "completions",
        "--stream",
        "--concurrency",
        "1,3",
        "--requests",
        "10",
        "--input-tokens",
        "9",
        "--output-tokens",
        "4",
        "--json",
        &json_file,
        "--html",
        &html_file,
    ])
    .end()
    .await;
    assert_eq!(ended.code, Some(0), "{}", ended.text());
    for row in ["1 server", "1 direct", "1 added", "3 server", "TTFT p50"] {
        assert!(ended.text().contains(row), "{row}: {}", ended.text());
    }
    let numbers: Value =
        serde_json::from_str(&std::fs::read_to_string(json_file).unwrap()).unwrap();
    for (level, concurrency) in [(0, 1), (1, 3)] {
        let level = &numbers["levels"][level];
        assert_eq!(level["concurrency"], concurrency);
        for server in ["server", "direct"] {
            let server = &level[server];
            assert_eq!(server["answered"], 10);
            assert_eq!(server["output_tokens"], 40);
            assert!(server["ttft_ms"]["p50"].as_f64().unwrap() > 0.0);
        }
    }
    let page = std::fs::read_to_string(html_file).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    assert_eq!(
        page.matches("<svg").count(),
        5,
        "two by concurrency, three by percentile"
    );
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    is_readable_without_the_code(&page, url.strip_prefix("http://").unwrap());
}

#[tokio::test]
async fn the_table_has_no_time_between_events_where_nothing_was_streamed() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let url = worker.url();
    let ended = mini_lb!(&[
        "bench",
        "--url",
        &url,
        "--requests",
        "3",
        "--concurrency",
        "1",
    ])
    .end()
    .await;
    let text = ended.text();
    let row = text.lines().find(|line| line.starts_with("1 ")).unwrap();
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells[8..10], ["–", "–"], "{text}");
}

/// The page says what was measured when and where, and no two charts have the same title.
fn is_readable_without_the_code(page: &str, server: &str) {
    let titles: std::collections::BTreeSet<_> = page
        .split("class=\"title\"")
        .skip(1)
        .map(|rest| rest.split(['<', '>']).nth(1).unwrap())
        .collect();
    assert_eq!(titles.len(), 5, "{titles:?}");
    for fact in ["date", "machine", "command", "mini-lb"] {
        assert!(page.contains(&format!("<dt>{fact}</dt>")), "{fact}");
    }
    for label in ["milliseconds", "answered requests per second"] {
        assert!(page.contains(&format!(">{label}")), "{label}");
    }
    for line in [
        format!("server {server} p50"),
        format!("direct {server}, concurrency 3"),
    ] {
        assert!(page.contains(&format!(">{line}<")), "{line}");
    }
}

#[tokio::test]
async fn the_command_says_what_to_do_when_the_server_cannot_be_asked() {
    let keyed = SimOptions {
        api_key: Some("sk-1".to_owned()),
        ..quick()
    };
    let keyed = Worker::start_ordinary(keyed).await.unwrap();
    let refusing = support::Worker::refusing().await;
    let keyed = keyed.url();
    for (options, words) in [
        (
            ["--url", &refusing, "--endpoint", "chat"],
            "nothing listens at",
        ),
        (["--url", &keyed, "--endpoint", "chat"], "--api-key"),
        (["--url", &keyed, "--endpoint", "generate"], "--api-key"),
    ] {
        let line: Vec<_> = ["bench"].into_iter().chain(options).collect();
        let ended = mini_lb!(&line).end().await;
        assert_eq!(ended.code, Some(1), "{}", ended.text());
        assert!(ended.text().contains(words), "{}", ended.text());
    }
    let ended = mini_lb!(&[
        "bench",
        "--url",
        &keyed,
        "--api-key",
        "sk-1",
        "--requests",
        "3",
        "--json",
        "-",
    ])
    .end()
    .await;
    let numbers: Value = serde_json::from_str(&ended.text()).unwrap();
    assert_eq!(numbers["levels"][0]["server"]["answered"], 3);
}

#[tokio::test]
async fn a_long_answer_is_asked_in_the_length_that_was_given() {
    let worker = Worker::start_ordinary(quick()).await.unwrap();
    let prompt = bench::Prompt {
        endpoint: bench::Endpoint::Chat,
        input: bench::InputLength::Bytes(100),
        output_tokens: 12,
        range_ratio: 1.0,
        stream: false,
        ignore_eos: true,
        model: "sim".to_owned(),
        extra: serde_json::Map::new(),
        seed: 1,
    };
    let asked = String::from_utf8(prompt.body(0).to_vec()).unwrap();
    let reply = post_text(&worker, "/v1/chat/completions", &asked).await;
    assert_eq!(reply.json()["usage"]["completion_tokens"], 12);
}
