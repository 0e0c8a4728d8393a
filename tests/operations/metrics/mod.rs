//! Metrics: every number of a load with known outcomes, the listeners that serve them, and the tools that read them.

mod load;
mod readers;

use std::collections::BTreeMap;

use mini_lb::MiniLbConfig;
use mini_lb::sim::Worker;
use support::sim::quick;
use support::{BODY, Balancer, Client, Pair, post, soon};

/// The samples of a text by their series.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn read(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect())
    }

    /// The sum of the series that have this name and all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let found = self.0.iter().filter(|(series, _)| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.iter().all(|label| rest.contains(label))
        });
        found.map(|(_, value)| value).sum()
    }
}

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n{fields}\r\n")
}

async fn scrape(client: &mut Client) -> Scrape {
    client.send(get("/metrics", "")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 200);
    Scrape::read(answer.text())
}

/// A balancer of these simulated workers.
fn config_of(prefill: &Worker, decode: &Worker) -> MiniLbConfig {
    let prefill = vec![(prefill.url(), prefill.bootstrap_port())];
    MiniLbConfig::new("127.0.0.1".into(), 0, prefill, vec![decode.url()], 60)
        .health_check_interval(None)
}

#[tokio::test]
async fn lost_workers_and_retries_are_counted_for_the_pair_and_the_worker() {
    let mut pair = Pair::with(|config| config.set("disable_abort_requests", true)).await;
    pair.client.send(post("/generate", BODY)).await;
    let (prefill, decode) = pair.next_legs().await;
    prefill.answer("200 OK", "{}").await;
    drop(decode);
    pair.bad_gateway("one decode worker", "decode_lost").await;
    let mut client = pair.balancer.client().await;
    let mut seen = scrape(&mut client).await;
    soon("the failure is counted", async {
        while seen.sum("mini_lb_pair_failures_total", &[]) == 0.0 {
            seen = scrape(&mut client).await;
        }
    })
    .await;
    let (decode, prefill) = (pair.decode.url(), pair.prefill.url());
    let failures = seen.sum("mini_lb_pair_failures_total", &[&prefill, &decode]);
    assert_eq!(failures, 1.0);
    let failed = seen.sum("mini_lb_worker_requests_total", &[&decode, "\"failed\""]);
    assert_eq!(failed, 1.0);
}

#[tokio::test]
async fn gauges_show_what_is_live() {
    let mut pair = Pair::start().await;
    pair.client.send(post("/generate", BODY)).await;
    let legs = pair.next_legs().await;
    let mut client = pair.balancer.client().await;
    let seen = scrape(&mut client).await;
    for (gauge, value) in [
        ("mini_lb_inflight_requests", 1.0),
        ("mini_lb_live_rooms", 1.0),
        ("mini_lb_worker_inflight_requests", 2.0),
        ("mini_lb_worker_up", 2.0),
        ("mini_lb_worker_breaker_open", 0.0),
        ("mini_lb_client_connections", 2.0),
    ] {
        assert_eq!(seen.sum(gauge, &[]), value, "{gauge}");
    }
    support::pair::serve(legs).await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_listener_of_its_own_serves_the_metrics_without_a_key_and_nothing_else() {
    let pair = Pair::with(|config| {
        let config = config
            .prometheus("127.0.0.1", 0)
            .admin_listen("127.0.0.1:0");
        config.api_key("sk-c").admin_api_key("sk-a")
    })
    .await;
    let mut scraper = pair.balancer.scraper().await;
    for (request, status) in [
        (get("/metrics", ""), 200),
        (get("/metrics?x=1", ""), 200),
        (get("/health", ""), 404),
        (get("/dashboard", ""), 404),
        (get("/flush_cache", "authorization: Bearer sk-a\r\n"), 404),
        (get("/metrics/", ""), 404),
    ] {
        scraper.send(&request).await;
        assert_eq!(scraper.answer().await.status(), status, "{request}");
    }
    for path in ["/generate", "/flush_cache", "/metrics"] {
        let mut scraper = pair.balancer.scraper().await;
        scraper.send(post(path, BODY)).await;
        let status = if path == "/metrics" { 405 } else { 404 };
        assert_eq!(scraper.answer().await.status(), status, "{path}");
    }
    assert!(pair.is_idle());
}

#[tokio::test]
async fn the_format_follows_accept_and_no_accept_breaks_a_scrape() {
    let mut pair = Pair::start().await;
    let huge = format!("accept: {}\r\n", "a/b;q=0.1,".repeat(2000));
    for (fields, content_type, ends) in [
        ("", "text/plain; version=0.0.4; charset=utf-8", false),
        (
            "accept: application/openmetrics-text;version=1.0.0\r\n",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            true,
        ),
        (
            huge.as_str(),
            "text/plain; version=0.0.4; charset=utf-8",
            false,
        ),
        (
            "accept: \u{fe}\u{ff}\r\n",
            "text/plain; version=0.0.4; charset=utf-8",
            false,
        ),
    ] {
        pair.client.send(get("/metrics", fields)).await;
        let answer = pair.client.answer().await;
        assert_eq!(answer.status(), 200, "{fields:.60}");
        assert_eq!(answer.header("content-type"), Some(content_type));
        assert_eq!(answer.text().ends_with("# EOF\n"), ends);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let head = get("/metrics", "").replacen("GET", "HEAD", 1);
    pair.client.send(&head).await;
    let head = pair.client.head().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    // A body would be read as the next response.
    pair.client.send(get("/health", "")).await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn workers_are_asked_for_their_load_where_that_is_switched_on() {
    let prefill = Worker::start_prefill(quick()).await.unwrap();
    let decode = Worker::start_decode(quick()).await.unwrap();
    let config = config_of(&prefill, &decode).set("load_poll_interval_secs", 0.05);
    let balancer = Balancer::start(config).await;
    let mut client = balancer.client().await;
    soon("both workers have told", async {
        loop {
            let seen = scrape(&mut client).await;
            let told = seen
                .0
                .keys()
                .filter(|series| series.starts_with("mini_lb_worker_load{"));
            if told.count() == 14 {
                break;
            }
        }
    })
    .await;
    decode.stop().await;
    soon("a load that is not known any more is none", async {
        loop {
            let seen = scrape(&mut client).await;
            let told = seen
                .0
                .keys()
                .filter(|series| series.starts_with("mini_lb_worker_load{"));
            if told.count() == 7 {
                break;
            }
        }
    })
    .await;
}
