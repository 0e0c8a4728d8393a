//! Generation that is paused while requests come: they wait, and go on when it continues.

use std::time::Duration;

use mini_lb::MiniLbConfig;
use support::pair::serve;
use support::{Answer, Balancer, CHAT, Client, Pair, STREAM, Worker, config, post, soon};

use crate::queue::{number, numbered, settle, used_client};

const DONE: &str = r#"{"message":"done","status":"ok"}"#;
const PAUSE: &str = "/pause_generation";
const CONTINUE: &str = "/continue_generation";

/// A pair, and a client that administers it.
struct Paused {
    pair: Pair,
    admin: Client,
}

impl Paused {
    async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let pair = Pair::with(change).await;
        let admin = pair.balancer.client().await;
        let mut paused = Self { pair, admin };
        paused.all(PAUSE).await;
        paused
    }

    /// Sends a request of administration, which both workers do.
    async fn all(&mut self, path: &str) {
        self.admin.send(post(path, "{}")).await;
        for worker in [&mut self.pair.prefill, &mut self.pair.decode] {
            let exchange = worker.request().await;
            assert!(
                exchange.request.head.contains(path),
                "{}",
                exchange.request.head
            );
            exchange.answer("200 OK", DONE).await;
        }
        assert_eq!(self.admin.answer().await.status(), 200);
    }

    /// A client whose request waits.
    async fn waits(&self, body: &str) -> Client {
        let mut client = used_client(&self.pair.balancer).await;
        client.send(post("/generate", body)).await;
        settle(&mut used_client(&self.pair.balancer).await).await;
        client
    }

    async fn queued(&self) -> String {
        metric(&self.pair.balancer, "mini_lb_queued_requests ").await
    }
}

/// The value of a metric.
async fn metric(balancer: &Balancer, name: &str) -> String {
    let mut client = balancer.client().await;
    client
        .send("GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    let answer = client.answer().await;
    let line = answer
        .text()
        .lines()
        .find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().to_owned()
}

fn refusal(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    let code = answer.header("x-mini-lb-error");
    (answer.status(), code, answer.header("retry-after"))
}

#[tokio::test]
async fn new_requests_wait_while_generation_is_paused_with_and_without_a_limit() {
    let unlimited = Paused::with(|config| config).await;
    let limited = Paused::with(|config| config.max_concurrent_requests(8)).await;
    for mut paused in [unlimited, limited] {
        let mut clients = Vec::new();
        for at in 0..3 {
            clients.push(paused.waits(&numbered(at)).await);
        }
        assert!(paused.pair.is_idle());
        assert_eq!(paused.queued().await, "3");
        paused.all(CONTINUE).await;
        let mut numbers = Vec::new();
        for _ in 0..3 {
            let legs = paused.pair.next_legs().await;
            numbers.push(number(&legs.0));
            serve(legs).await;
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
        for mut client in clients {
            assert_eq!(client.answer().await.status(), 200);
        }
        assert_eq!(paused.queued().await, "0");
    }
}

#[tokio::test]
async fn a_fleet_that_is_paused_says_so_and_stays_ready() {
    let mut paused = Paused::with(|config| config).await;
    let mut client = paused.pair.balancer.client().await;
    for (path, words) in [
        ("/readiness", ""),
        ("/metrics", "mini_lb_paused 1"),
        ("/dashboard/data", r#""held":"generation is paused""#),
        ("/dashboard/data", r#""state":"paused""#),
    ] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200, "{path}");
        assert!(
            answer.text().contains(words),
            "{words} in {}",
            answer.text()
        );
    }
    assert_eq!(metric(&paused.pair.balancer, "mini_lb_paused ").await, "1");
    paused.all(CONTINUE).await;
    assert_eq!(metric(&paused.pair.balancer, "mini_lb_paused ").await, "0");
}

#[tokio::test]
async fn the_requests_that_wait_are_bounded_and_more_are_refused_before_their_body() {
    let paused = Paused::with(|config| config.queue_size(1)).await;
    let first = paused.waits(&numbered(0)).await;
    for path in ["/generate", CHAT, "/v1/messages"] {
        let mut client = paused.pair.balancer.client().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n");
        client.send(head).await;
        let answer = client.answer().await;
        assert_eq!(refusal(&answer), (503, Some("paused"), Some("1")), "{path}");
        assert!(
            answer.text().contains("generation is paused"),
            "{}",
            answer.text()
        );
    }
    // A client that leaves makes room.
    drop(first);
    soon("the place is free", async {
        while paused.queued().await != "0" {}
    })
    .await;
    let _second = paused.waits(&numbered(1)).await;
    assert_eq!(paused.queued().await, "1");
}

#[tokio::test]
async fn a_request_waits_for_no_longer_than_in_the_queue() {
    let short = Duration::from_millis(50);
    let paused = Paused::with(|config| config.queue_timeout(short)).await;
    let mut client = paused.waits(&numbered(0)).await;
    let answer = client.answer().await;
    assert_eq!(refusal(&answer), (503, Some("paused"), Some("1")));
    assert!(answer.text().contains("queue_timeout_secs"));
    assert!(paused.pair.is_idle());
}

#[tokio::test]
async fn a_live_stream_goes_on_through_a_pause_and_a_silence_in_it_is_no_fault() {
    let pair = Pair::with(|config| config.set("stream_idle_timeout_secs", 0.05)).await;
    let admin = pair.balancer.client().await;
    let mut paused = Paused { pair, admin };
    let (prefill, mut decode) = paused.pair.legs("/generate", STREAM).await;
    prefill.answer("200 OK", "{}").await;
    // Paused before the first event, so that the time until then is not the test's.
    paused.all(PAUSE).await;
    decode.begin_stream().await;
    decode.chunk("data: {}\n\n").await;
    assert_eq!(
        paused.pair.client.head().await.split(' ').nth(1),
        Some("200")
    );
    assert_eq!(
        paused.pair.client.chunk().await.as_deref(),
        Some("data: {}\n\n")
    );
    // Four times the limit.
    let silence = Duration::from_millis(200);
    assert_eq!(paused.pair.client.rest_within(silence).await, None);
    paused.all(CONTINUE).await;
    decode.chunk("data: [DONE]\n\n").await;
    decode.chunk("").await;
    assert_eq!(
        paused.pair.client.chunk().await.as_deref(),
        Some("data: [DONE]\n\n")
    );
    assert_eq!(paused.pair.client.chunk().await, None);
}

#[tokio::test]
async fn errors_that_a_pause_causes_set_no_worker_aside() {
    let pair = Pair::with(|config| {
        config
            .set("cb_failure_threshold", 1)
            .set("disable_abort_requests", true)
    })
    .await;
    let admin = pair.balancer.client().await;
    let mut paused = Paused { pair, admin };
    let (prefill, decode) = paused.pair.legs("/generate", r#"{"text":"a"}"#).await;
    paused.all(PAUSE).await;
    let error = r#"{"error":{"message":"Aborted by AbortReq."}}"#;
    prefill.answer("500 Internal Server Error", error).await;
    assert_eq!(paused.pair.client.answer().await.status(), 500);
    drop(decode);
    paused.all(CONTINUE).await;
    let open = "mini_lb_worker_breaker_open{role=\"prefill\",worker=\"";
    let line = metric(&paused.pair.balancer, open).await;
    assert!(line.ends_with(" 0"), "{line}");
}

#[tokio::test]
async fn a_worker_that_did_not_continue_is_told_again_and_requests_wait_for_it() {
    let mut paused = Paused::with(|config| config).await;
    let mut client = paused.waits(&numbered(0)).await;
    paused.admin.send(post(CONTINUE, "{}")).await;
    paused
        .pair
        .prefill
        .request()
        .await
        .answer("200 OK", DONE)
        .await;
    let refused = paused.pair.decode.request().await;
    refused.answer("500 Internal Server Error", "{}").await;
    let answer = paused.admin.answer().await;
    assert_eq!(answer.status(), 500);
    assert!(answer.text().contains("told again"), "{}", answer.text());
    assert_eq!(metric(&paused.pair.balancer, "mini_lb_paused ").await, "1");
    let again = paused.pair.decode.request().await;
    assert!(
        again.request.head.contains(CONTINUE),
        "{}",
        again.request.head
    );
    again.answer("200 OK", DONE).await;
    serve(paused.pair.next_legs().await).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_that_did_not_continue_gets_no_request_while_there_is_another() {
    let mut prefill = Worker::listen().await;
    let mut decodes = [Worker::listen().await, Worker::listen().await];
    let urls = decodes.each_ref().map(Worker::url);
    let balancer = Balancer::start(config(&[prefill.url()], &urls)).await;
    let mut admin = balancer.client().await;
    for (path, second) in [(PAUSE, "200 OK"), (CONTINUE, "500 Internal Server Error")] {
        admin.send(post(path, "{}")).await;
        prefill.request().await.answer("200 OK", DONE).await;
        let [one, two] = &mut decodes;
        one.request().await.answer("200 OK", DONE).await;
        two.request().await.answer(second, DONE).await;
        admin.answer().await;
    }
    assert_eq!(metric(&balancer, "mini_lb_paused ").await, "0");
    for _ in 0..8 {
        let mut client = balancer.client().await;
        client.send(post("/generate", &numbered(0))).await;
        prefill.request().await.answer("200 OK", "{}").await;
        decodes[0].request().await.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn new_requests_wait_while_weights_change() {
    let mut pair = Pair::start().await;
    let mut admin = pair.balancer.client().await;
    admin
        .send(post("/update_weights_from_disk", r#"{"model_path":"/m"}"#))
        .await;
    let (prefill, decode) = pair.next_legs().await;
    let mut client = used_client(&pair.balancer).await;
    client.send(post("/generate", &numbered(0))).await;
    settle(&mut used_client(&pair.balancer).await).await;
    prefill.answer("200 OK", DONE).await;
    settle(&mut used_client(&pair.balancer).await).await;
    assert!(pair.is_idle());
    decode.answer("200 OK", DONE).await;
    assert_eq!(admin.answer().await.status(), 200);
    serve(pair.next_legs().await).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn new_requests_wait_until_memory_that_was_released_is_there_again() {
    let mut pair = Pair::start().await;
    let mut admin = pair.balancer.client().await;
    let mut all = async |pair: &mut Pair, path: &str, body: &str| {
        admin.send(post(path, body)).await;
        for worker in [&mut pair.prefill, &mut pair.decode] {
            worker.request().await.answer("200 OK", "null").await;
        }
        assert_eq!(admin.answer().await.status(), 200, "{path}");
    };
    all(
        &mut pair,
        "/release_memory_occupation",
        r#"{"tags":["weights","kv_cache"]}"#,
    )
    .await;
    let mut client = used_client(&pair.balancer).await;
    client.send(post("/generate", &numbered(0))).await;
    all(
        &mut pair,
        "/resume_memory_occupation",
        r#"{"tags":["weights"]}"#,
    )
    .await;
    assert!(pair.is_idle());
    all(&mut pair, "/resume_memory_occupation", "{}").await;
    serve(pair.next_legs().await).await;
    assert_eq!(client.answer().await.status(), 200);
}
