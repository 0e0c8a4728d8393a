//! Metrics: every number of a load with known outcomes, the listeners that serve them, and the tools that read them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use mini_lb::MiniLbConfig;
use mini_lb::sim::Worker;
use support::sim::quick;
use support::{BODY, Balancer, CHAT, Client, Pair, Process, Signal, mini_lb, post, program, soon};

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

    let count = |name: &str, labels: &[&str]| seen.sum(&format!("{name}_count"), labels);
    let chat = &["route=\"chat_completions\""][..];
    assert_eq!(count("mini_lb_ttft_seconds", chat), 400.0);
    assert_eq!(count("mini_lb_ttft_seconds", &[]), sum(|got| got.streams));
    assert_eq!(count("mini_lb_e2e_seconds", chat), 500.0);
    assert_eq!(count("mini_lb_queue_seconds", chat), 400.0);
    assert_eq!(
        count("mini_lb_queue_seconds", &["route=\"generate\""]),
        300.0
    );
    // Of each stream, neither the first event nor the end marker has a gap before it.
    let gaps = sum(|got| got.events) - 2.0 * sum(|got| got.streams);
    assert_eq!(count("mini_lb_itl_seconds", &[]), gaps);
    assert_eq!(seen.sum("mini_lb_events_total", &[]), sum(|got| got.events));
    assert_eq!(
        count("mini_lb_ttft_part_seconds", &["part=\"decode\""]),
        500.0
    );
    let parts = seen.sum("mini_lb_ttft_part_seconds_sum", &[]);
    let whole = seen.sum("mini_lb_ttft_seconds_sum", &[]);
    assert!((parts - whole).abs() < 1e-6, "{parts} {whole}");

    let legs = |role: &str, outcome: &str| {
        let (role, outcome) = (format!("role=\"{role}\""), format!("outcome=\"{outcome}\""));
        seen.sum("mini_lb_worker_requests_total", &[&role, &outcome])
    };
    for role in ["prefill", "decode"] {
        assert_eq!(legs(role, "ok"), 800.0, "{role}");
        assert_eq!(legs(role, "failed"), 0.0, "{role}");
        // Both workers refuse a prompt that is too long, and the first refusal ends the other leg.
        assert_eq!(
            legs(role, "rejected") + legs(role, "cancelled"),
            50.0,
            "{role}"
        );
        let role = format!("role=\"{role}\"");
        assert_eq!(count("mini_lb_worker_leg_seconds", &[&role]), 800.0);
    }
    assert_eq!(seen.sum("mini_lb_pair_failures_total", &[]), 0.0);
    assert_eq!(seen.sum("mini_lb_retries_total", &[]), 0.0);
    assert_eq!(seen.sum("mini_lb_refused_total", &[]), 150.0);
    assert_eq!(seen.sum("mini_lb_refused_total", &["invalid_json"]), 100.0);
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

/// Runs a program with this text on its input; `None` where it is not installed, with a line on stderr that says so.
fn reads(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    use std::io::Write;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: there is no {program} on this machine");
        return None;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    Some((ended.status.success(), said))
}

/// Both formats of a balancer that has served a request and refused one.
async fn texts() -> [String; 2] {
    let mut pair = Pair::start().await;
    pair.client.send(post("/generate", BODY)).await;
    support::pair::serve(pair.next_legs().await).await;
    assert_eq!(pair.client.answer().await.status(), 200);
    pair.client.send(post("/generate", "[")).await;
    assert_eq!(pair.client.answer().await.status(), 400);
    let mut texts = Vec::new();
    for fields in ["", "accept: application/openmetrics-text\r\n"] {
        pair.client.send(get("/metrics", fields)).await;
        texts.push(pair.client.answer().await.text().to_owned());
    }
    texts.try_into().unwrap()
}

#[tokio::test]
async fn promtool_has_nothing_to_say() {
    let [text, _] = texts().await;
    if let Some((accepts, said)) = reads("promtool", &["check", "metrics"], &text) {
        assert!(accepts && said.is_empty(), "{said}");
    }
}

#[tokio::test]
async fn both_parsers_of_the_python_client_read_the_same_metrics() {
    const PARSE: &str = "import sys\n\
        try: from prometheus_client.parser import text_string_to_metric_families as text\n\
        except ImportError: sys.exit(3)\n\
        from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics\n\
        given = sys.stdin.read()\n\
        parse = openmetrics if given.endswith('# EOF\\n') else text\n\
        print(len(list(parse(given))))\n";
    let mut counts = Vec::new();
    for text in texts().await {
        let Some((accepts, said)) = reads("python3", &["-c", PARSE], &text) else {
            return;
        };
        if !accepts && said.is_empty() {
            eprintln!("skipped: there is no prometheus_client for python3 on this machine");
            return;
        }
        assert!(accepts, "{said}");
        counts.push(said);
    }
    assert_eq!(counts[0], counts[1]);
}

#[tokio::test]
async fn prometheus_scrapes_the_demo_and_answers_a_query() {
    let mut demo = mini_lb!(&["demo", "--port", "0", "--prefills", "1", "--decodes", "1"]);
    let balancer = demo.address_in("  mini-lb  ").await;
    assert_eq!(
        program::post_json(balancer, "/generate", BODY)
            .await
            .status(),
        200
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prometheus.yml");
    let scrapes = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: lb\n  static_configs: [{{targets: ['{balancer}']}}]\n"
    );
    std::fs::write(&file, scrapes).unwrap();
    if Command::new("prometheus")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: there is no prometheus on this machine");
        return;
    }
    let data = folder.path().join("data");
    let mut prometheus = Process::start(
        "prometheus",
        &[
            format!("--config.file={}", file.display()),
            format!("--storage.tsdb.path={}", data.display()),
            "--web.listen-address=127.0.0.1:0".to_owned(),
        ],
    );
    let line = prometheus.line("Listening on").await;
    let address = line.rsplit_once("address=").unwrap().1.trim();
    let address = address.split_whitespace().next().unwrap().parse().unwrap();
    let query = "/api/v1/query?query=sum(mini_lb_requests_total%7Broute%3D%22generate%22%7D)";
    soon("the query has a result", async {
        loop {
            let answer = program::get(address, query).await;
            // 503 until it is ready.
            if answer.status() == 200 && answer.json()["data"]["result"][0]["value"][1] == "1" {
                break;
            }
        }
    })
    .await;
    prometheus.signal(Signal::Terminate).await;
    demo.signal(Signal::Interrupt).await;
}
