//! What may come in: requests with more than one meaning, bytes at the wrong time, and clients that dawdle.
//!
//! The oracle is a count. Whatever a client sends, the workers see as many requests as the balancer accepted;
//! one more is a request that was smuggled. The vectors are named after the sections of RFC 9112.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mini_lb::MiniLbConfig;
use support::{Balancer, Client, Worker, config, post};

const JSON: &str = r#"{"text":"a"}"#;
const STREAM: &str = r#"{"stream":true}"#;

/// A balancer before workers that answer everything.
struct Stage {
    balancer: Balancer,
    prefill: Arc<AtomicUsize>,
    decode: Arc<AtomicUsize>,
    accepted: usize,
}

impl Stage {
    async fn set() -> Self {
        Self::with(|config| config).await
    }

    async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        let config = change(config(&[prefill.url()], &[decode.url()]));
        Self {
            balancer: Balancer::start(config).await,
            prefill: prefill.serve("200 OK", "{}"),
            decode: decode.serve("200 OK", "{}"),
            accepted: 0,
        }
    }

    /// Every request in these bytes is answered with 200; the connection stays.
    async fn accepts(&mut self, what: &str, bytes: &[u8], requests: usize) -> Client {
        let mut client = self.balancer.client().await;
        client.send(bytes).await;
        for _ in 0..requests {
            assert_eq!(client.answer().await.status(), 200, "{what}");
            self.accepted += 1;
        }
        client
    }

    /// The first request in these bytes gets this status, and nothing behind it any answer.
    async fn refuses(&self, what: &str, bytes: &[u8], status: u16) {
        let mut client = self.balancer.client().await;
        client.send(bytes).await;
        assert_eq!(client.answer().await.status(), status, "{what}");
        let rest = client.rest().await;
        assert!(
            rest.is_empty(),
            "{what}: {}",
            String::from_utf8_lossy(&rest)
        );
    }

    /// The workers have seen what was accepted and not one request more.
    async fn settle(mut self) {
        // Whatever was smuggled has been written to a worker before this.
        self.accepts("the last", post("/generate", JSON).as_bytes(), 1)
            .await;
        for legs in [&self.prefill, &self.decode] {
            assert_eq!(legs.load(Ordering::SeqCst), self.accepted);
        }
    }
}

/// A POST to `/generate` with these lines behind Host, and what stands behind its head.
fn generate(lines: &str, behind: &str) -> Vec<u8> {
    format!("POST /generate HTTP/1.1\r\nhost: balancer\r\n{lines}\r\n{behind}").into_bytes()
}

#[tokio::test]
async fn a_request_with_two_framings_is_refused_and_what_it_hides_is_not_executed() {
    let stage = Stage::set().await;
    let hidden = post("/generate", JSON);
    let chunked = format!("c\r\n{JSON}\r\n0\r\n\r\n{hidden}");
    for (what, lines, behind) in [
        (
            "6.1 CL.TE",
            "content-length: 4\r\ntransfer-encoding: chunked\r\n",
            chunked.as_str(),
        ),
        (
            "6.1 TE.CL",
            "transfer-encoding: chunked\r\ncontent-length: 4\r\n",
            &chunked,
        ),
        (
            "6.1 an unknown coding before chunked",
            "transfer-encoding: gzip, chunked\r\n",
            &chunked,
        ),
        (
            "6.1 chunked twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            &chunked,
        ),
        (
            "6.1 chunked with a parameter",
            "transfer-encoding: chunked;q=1\r\n",
            &chunked,
        ),
        (
            "6.1 something like chunked",
            "transfer-encoding: xchunked\r\n",
            &chunked,
        ),
        (
            "6.3 equal lengths",
            "content-length: 12\r\ncontent-length: 12\r\n",
            JSON,
        ),
        (
            "6.3 different lengths",
            "content-length: 12\r\ncontent-length: 0\r\n",
            JSON,
        ),
        ("6.3 a list of lengths", "content-length: 12, 12\r\n", JSON),
        ("6.3 a signed length", "content-length: +12\r\n", JSON),
        (
            "5.1 space before the colon",
            "content-length : 12\r\n",
            JSON,
        ),
        ("5.2 a folded line", "content-length:\r\n 12\r\n", JSON),
        (
            "a length with an underscore",
            "content_length: 12\r\n",
            JSON,
        ),
        (
            "a coding with an underscore beside a length",
            "content-length: 0\r\nTransfer_Encoding: chunked\r\n",
            &chunked,
        ),
        (
            "2.2 a bare line feed",
            "x-a: b\ncontent-length: 12\r\n",
            JSON,
        ),
        (
            "2.2 a bare carriage return",
            "x-a: b\rcontent-length: 12\r\n",
            JSON,
        ),
        ("3.2 two hosts", "host: other\r\ncontent-length: 0\r\n", ""),
    ] {
        stage.refuses(what, &generate(lines, behind), 400).await;
    }
    stage.settle().await;
}

#[tokio::test]
async fn a_request_line_has_one_meaning() {
    let stage = Stage::set().await;
    for (what, head) in [
        ("3.2 no host", "POST /generate HTTP/1.1\r\n\r\n"),
        (
            "3.2 an escaped line break in the target",
            "GET /health?a%0d%0ab HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "3.2 a second version",
            "GET /health HTTP/1.1 HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
        (
            "3.2.2 an absolute target of another host",
            "GET http://a/health HTTP/1.1\r\nhost: b\r\n\r\n",
        ),
        (
            "6.1 chunked in HTTP/1.0",
            "POST /generate HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("2.3 HTTP/2's preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("2.2 line feeds only", "GET /health HTTP/1.1\nhost: a\n\n"),
    ] {
        stage.refuses(what, head.as_bytes(), 400).await;
    }
    stage.settle().await;
}

#[tokio::test]
async fn a_refusal_has_a_code_and_the_shape_of_its_endpoint() {
    let stage = Stage::set().await;
    let mut client = stage.balancer.client().await;
    client
        .send(generate("content-length: 1\r\ncontent-length: 1\r\n", "a"))
        .await;
    let answer = client.answer().await;
    assert_eq!(answer.header("x-mini-lb-error"), Some("bad_request_head"));
    assert_eq!(answer.json()["object"], "error");
    stage.settle().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so() {
    let stage = Stage::set().await;
    for (what, lines) in [
        ("bytes", format!("x-a: {}\r\n", "a".repeat(33 << 10))),
        ("fields", "x-a: b\r\n".repeat(101)),
    ] {
        let mut client = stage.balancer.client().await;
        client
            .send(generate(&format!("{lines}content-length: 12\r\n"), JSON))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 431, "{what}");
        let code = answer.header("x-mini-lb-error");
        assert_eq!(code, Some("request_head_too_large"), "{what}");
        assert!(client.rest().await.is_empty(), "{what}");
    }
    stage.settle().await;
}

#[tokio::test]
async fn unusual_but_clear_requests_are_served() {
    let mut stage = Stage::set().await;
    let length = format!("content-length: {}\r\n", JSON.len());
    let absolute =
        format!("POST http://balancer/generate HTTP/1.1\r\nhost: balancer\r\n{length}\r\n{JSON}");
    let chunked = "5\r\n{\"tex\r\n7;a=b\r\nt\":\"a\"}\r\n0\r\nx-trailer: 1\r\n\r\n";
    for (what, bytes) in [
        ("3.2.2 an absolute target", absolute.into_bytes()),
        (
            "7.1 chunks with an extension and a trailer",
            generate("Transfer-Encoding: Chunked\r\n", chunked),
        ),
        (
            "2.2 an empty line first",
            [b"\r\n".as_slice(), &generate(&length, JSON)].concat(),
        ),
        (
            "a name with an underscore that frames nothing",
            generate(&format!("x_y: 1\r\n{length}"), JSON),
        ),
    ] {
        stage.accepts(what, &bytes, 1).await;
    }
    stage.settle().await;
}

#[tokio::test]
async fn a_client_that_asks_for_the_close_gets_it() {
    let mut stage = Stage::set().await;
    let length = format!("content-length: {}\r\n", JSON.len());
    let hidden = post("/generate", JSON);
    for (what, bytes) in [
        (
            "9.6 close",
            generate(
                &format!("connection: close\r\n{length}"),
                &format!("{JSON}{hidden}"),
            ),
        ),
        (
            "9.3 HTTP/1.0",
            format!("POST /generate HTTP/1.0\r\n{length}\r\n{JSON}").into_bytes(),
        ),
        (
            "9.3 HTTP/1.0 without legs",
            b"GET /health HTTP/1.0\r\n\r\n".to_vec(),
        ),
    ] {
        let mut client = stage.accepts(what, &bytes, 1).await;
        assert!(client.rest().await.is_empty(), "{what}");
    }
    // The last of them asked no worker.
    stage.accepted -= 1;
    stage.settle().await;
}

#[tokio::test]
async fn a_path_is_what_is_written() {
    let stage = Stage::set().await;
    let mut client = stage.balancer.client().await;
    for path in [
        "/a/../flush_cache",
        "/./flush_cache",
        "/%66lush_cache",
        "/flush_cache%3f",
        "//generate",
        "/generate;x",
        "/generate/",
        "/GENERATE",
        "/v1\\generate",
    ] {
        client.send(post(path, JSON)).await;
        assert_eq!(client.answer().await.status(), 404, "{path}");
    }
    stage.settle().await;
}

#[tokio::test]
async fn an_upgrade_is_not_a_tunnel() {
    let mut stage = Stage::set().await;
    let upgrade = format!(
        "connection: upgrade\r\nupgrade: foo\r\ncontent-length: {}\r\n",
        JSON.len()
    );
    let hidden = post("/flush_cache", "");
    let bytes = generate(&upgrade, &format!("{JSON}{hidden}"));
    let mut client = stage.accepts("an upgrade", &bytes, 1).await;
    // The connection ends, so the bytes behind are nobody's.
    assert!(client.rest().await.is_empty());
    stage.settle().await;
}

#[tokio::test]
async fn bytes_behind_an_early_refusal_are_not_a_request() {
    let stage = Stage::with(|config| config.max_payload_size(100)).await;
    let hidden = post("/generate", JSON);
    let too_long = generate("content-length: 101\r\n", &hidden);
    stage.refuses("413 by length", &too_long, 413).await;
    let chunk = "a".repeat(101);
    let too_long = generate(
        "transfer-encoding: chunked\r\n",
        &format!("65\r\n{chunk}\r\n0\r\n\r\n{hidden}"),
    );
    stage.refuses("413 by count", &too_long, 413).await;
    stage.settle().await;
}

#[tokio::test]
async fn broken_chunks_end_the_connection() {
    let stage = Stage::set().await;
    let hidden = post("/generate", JSON);
    for (what, chunks) in [
        ("7.1 a size that overflows", "ffffffffffffffffff\r\n"),
        ("7.1 a size that is none", "-1\r\n"),
        (
            "7.1 a size with a prefix",
            "0xc\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        ),
        ("7.1 a bare line feed", "c\n{\"text\":\"a\"}\n0\n\n"),
        (
            "7.1 a chunk that is too long",
            "b\r\n{\"text\":\"a\"}\r\n0\r\n\r\n",
        ),
    ] {
        let bytes = generate(
            "transfer-encoding: chunked\r\n",
            &format!("{chunks}{hidden}"),
        );
        stage.refuses(what, &bytes, 400).await;
    }
    stage.settle().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_one_after_the_other() {
    let mut stage = Stage::set().await;
    let three = post("/generate", JSON).repeat(3);
    stage.accepts("9.3.2", three.as_bytes(), 3).await;
    let chunked = generate(
        "transfer-encoding: chunked\r\n",
        &format!("c\r\n{JSON}\r\n0\r\n\r\n"),
    );
    let both = [chunked.as_slice(), post("/generate", JSON).as_bytes()].concat();
    stage.accepts("9.3.2 behind chunks", &both, 2).await;
    stage.settle().await;
}

#[tokio::test]
async fn a_pipelined_request_that_is_refused_is_refused_in_its_turn() {
    let mut stage = Stage::set().await;
    let mut bytes = post("/generate", JSON).into_bytes();
    bytes.extend(generate("content-length: 0\r\ncontent-length: 0\r\n", ""));
    bytes.extend(post("/generate", JSON).as_bytes());
    let mut client = stage.accepts("the first", &bytes, 1).await;
    assert_eq!(client.answer().await.status(), 400);
    assert!(client.rest().await.is_empty());
    stage.settle().await;
}

#[tokio::test]
async fn bytes_behind_a_request_do_not_cut_its_stream() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", STREAM)).await;
    let (first, mut stream) = (prefill.request().await, decode.request().await);
    first.answer("200 OK", "{}").await;
    stream.begin_stream().await;
    stream.chunk("data: 1\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.unwrap(), "data: 1\n\n");
    client.send(post("/generate", JSON)).await;
    stream.chunk("data: 2\n\n").await;
    assert_eq!(client.chunk().await.unwrap(), "data: 2\n\n");
    // The second request waits for the end of the first.
    assert!(!prefill.has_request() && !decode.has_request());
    stream.chunk("data: [DONE]\n\n").await;
    stream.chunk("").await;
    stream.keep();
    assert_eq!(client.chunk().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(client.chunk().await, None);
    let (second, answer) = (prefill.request().await, decode.request().await);
    second.answer("200 OK", "{}").await;
    answer.answer("200 OK", r#"{"text":"b"}"#).await;
    assert_eq!(client.answer().await.text(), r#"{"text":"b"}"#);
}

#[tokio::test]
async fn a_space_in_a_target_reaches_a_worker_escaped() {
    let (mut prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    client
        .send("GET /v1/models/a b HTTP/1.1\r\nhost: balancer\r\n\r\n")
        .await;
    let asked = prefill.request().await;
    let line = asked.request.head.lines().next().unwrap().to_owned();
    assert_eq!(line, "GET /v1/models/a%20b HTTP/1.1");
    asked.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

/// Short enough to wait for, long enough for a request that is sent at once on a busy machine.
const SHORT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_connection_that_does_not_ask_in_time_is_closed() {
    let stage = Stage::with(|config| config.head_timeout(SHORT)).await;
    for what in ["", "POST /generate HTTP/1.1\r\nhost: balan"] {
        let mut client = stage.balancer.client().await;
        client.send(what).await;
        assert!(client.rest().await.is_empty(), "{what}");
    }
    stage.settle().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_has_one_deadline() {
    let stage = Stage::with(|config| config.head_timeout(SHORT)).await;
    let mut client = stage.balancer.client().await;
    client.send("GET /health HTTP/1.1\r\nx: ").await;
    let mut sent = 0;
    // Never silent for as long as the deadline, and never done.
    let closed = loop {
        match client.rest_within(SHORT / 20).await {
            Some(rest) => break rest,
            None => client.send("a").await,
        }
        sent += 1;
    };
    assert!(closed.is_empty() && sent > 1, "{sent}");
    stage.settle().await;
}

#[tokio::test]
async fn half_a_head_on_a_used_connection_has_the_same_deadline() {
    let mut stage = Stage::with(|config| config.head_timeout(SHORT)).await;
    let request = post("/generate", JSON);
    let half = &request[..30];
    // Behind the answer, and along with the request before.
    let mut used = stage.accepts("the first", request.as_bytes(), 1).await;
    used.send(half).await;
    let both = format!("{request}{half}");
    let mut along = stage
        .accepts("with half a head behind it", both.as_bytes(), 1)
        .await;
    for client in [&mut used, &mut along] {
        assert!(client.rest().await.is_empty());
    }
    // A whole head in two pieces is a request.
    let mut client = stage.accepts("the first", request.as_bytes(), 1).await;
    for piece in [half, &request[30..]] {
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.status(), 200);
    stage.accepted += 1;
    stage.settle().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_between_two_requests_and_not_within_one() {
    let mut stage = Stage::with(|config| config.client_idle_timeout(SHORT)).await;
    let request = post("/generate", JSON);
    let mut idle = stage.accepts("the first", request.as_bytes(), 1).await;
    // Asks for less than the whole time, once more, and then nothing.
    idle.send(&request).await;
    assert_eq!(idle.answer().await.status(), 200);
    stage.accepted += 1;
    assert!(idle.rest().await.is_empty());
    // In pieces that take longer than that all together: the connection of a request is not idle.
    let mut slow = stage.accepts("the first", request.as_bytes(), 1).await;
    let (last, pieces) = request.as_bytes().split_last().unwrap();
    for piece in pieces.chunks(pieces.len() / 30) {
        slow.send(piece).await;
        assert_eq!(slow.rest_within(SHORT / 20).await, None);
    }
    slow.send([*last]).await;
    assert_eq!(slow.answer().await.status(), 200);
    stage.accepted += 1;
    stage.settle().await;
}

#[tokio::test]
async fn half_a_head_behind_a_chunked_body_stays_no_longer_than_an_idle_connection() {
    let mut stage = Stage::with(|config| config.client_idle_timeout(SHORT)).await;
    let half = &post("/generate", JSON)[..30];
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: balancer\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{JSON}\r\n0\r\n\r\n{half}",
        JSON.len()
    );
    let mut client = stage.accepts("chunked", request.as_bytes(), 1).await;
    assert!(client.rest().await.is_empty());
    stage.settle().await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_deadline_of_a_head() {
    let mut stage = Stage::with(|config| config.head_timeout(SHORT)).await;
    let request = post("/generate", JSON);
    let mut idle = stage.accepts("the first", request.as_bytes(), 1).await;
    // This one is closed after as long as the other one has been idle.
    let mut silent = stage.balancer.client().await;
    assert!(silent.rest().await.is_empty());
    idle.send(&request).await;
    assert_eq!(idle.answer().await.status(), 200);
    stage.accepted += 1;
    stage.settle().await;
}

/// Connections beyond the limit that get one answer.
const SPARE: usize = 16;

#[tokio::test]
async fn beyond_the_limit_of_connections_only_health_is_answered_and_then_nothing() {
    let mut stage = Stage::with(|config| config.max_connections(1)).await;
    let request = post("/generate", JSON);
    let mut inside = stage.accepts("the only one", request.as_bytes(), 1).await;
    let health = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    for (what, bytes, status) in [("health", health, 200), ("legs", &request, 503)] {
        let mut spare = stage.balancer.client().await;
        spare.send(bytes).await;
        let answer = spare.answer().await;
        assert_eq!(answer.status(), status, "{what}");
        assert_eq!(answer.header("connection"), Some("close"), "{what}");
        if status == 503 {
            assert_eq!(answer.header("x-mini-lb-error"), Some("overloaded"));
            assert!(answer.header("retry-after").is_some());
        }
        assert!(spare.rest().await.is_empty(), "{what}");
    }
    let mut spare = Vec::new();
    for _ in 0..SPARE {
        spare.push(stage.balancer.client().await);
    }
    let mut refused = stage.balancer.client().await;
    assert!(refused.rest().await.is_empty());
    drop(spare);
    inside.send(&request).await;
    assert_eq!(inside.answer().await.status(), 200);
    drop(inside);
    // Its place is free as soon as its close has been seen.
    let mut client = loop {
        let mut client = stage.balancer.client().await;
        client.send(health).await;
        let head = client.try_answer().await.map(|answer| answer.head);
        if head.is_some_and(|head| head.contains("keep-alive")) {
            break client;
        }
    };
    client.send(&request).await;
    assert_eq!(client.answer().await.status(), 200);
    drop(client);
    stage.accepted += 2;
    for legs in [&stage.prefill, &stage.decode] {
        assert_eq!(legs.load(Ordering::SeqCst), stage.accepted);
    }
}

#[tokio::test]
async fn one_address_cannot_take_more_connections_than_it_may_have() {
    let mut stage = Stage::with(|config| config.max_connections_per_ip(2)).await;
    let request = post("/generate", JSON);
    let mut inside = Vec::new();
    for _ in 0..2 {
        inside.push(stage.accepts("within", request.as_bytes(), 1).await);
    }
    let mut refused = stage.balancer.client().await;
    assert!(refused.rest().await.is_empty());
    // Another address of this machine.
    let mut other = Client::connect_from([127, 0, 0, 2], stage.balancer.address).await;
    other.send(&request).await;
    assert_eq!(other.answer().await.status(), 200);
    stage.accepted += 1;
    for legs in [&stage.prefill, &stage.decode] {
        assert_eq!(legs.load(Ordering::SeqCst), stage.accepted);
    }
}

#[tokio::test]
async fn a_running_answer_is_not_bound_by_the_deadline_of_its_head() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let config = config(&[prefill.url()], &[decode.url()]).head_timeout(SHORT);
    let balancer = Balancer::start(config).await;
    let (mut client, mut silent) = (balancer.client().await, balancer.client().await);
    client.send(post("/generate", JSON)).await;
    let (first, second) = (prefill.request().await, decode.request().await);
    // A connection that was opened before the request came is closed: the deadline has passed.
    assert!(silent.rest().await.is_empty());
    first.answer("200 OK", "{}").await;
    second.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_refused() {
    let stage = Stage::with(|config| config.body_timeout(SHORT)).await;
    for (what, lines, behind) in [
        ("a length", "content-length: 12\r\n", "{\"te"),
        ("chunks", "transfer-encoding: chunked\r\n", "4\r\n{\"te\r\n"),
    ] {
        let mut client = stage.balancer.client().await;
        client.send(generate(lines, behind)).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 408, "{what}");
        assert_eq!(answer.header("x-mini-lb-error"), Some("body_timeout"));
        assert!(client.rest().await.is_empty(), "{what}");
    }
    stage.settle().await;
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_again() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let config = config(&[prefill.url()], &[decode.url()]).max_inflight_requests(1);
    let balancer = Balancer::start(config).await;
    let (mut first, mut second) = (balancer.client().await, balancer.client().await);
    first.send(post("/generate", JSON)).await;
    let (one, two) = (prefill.request().await, decode.request().await);
    // Its body is not waited for.
    second.send(generate("content-length: 12\r\n", "")).await;
    let answer = second.answer().await;
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("x-mini-lb-error"), Some("overloaded"));
    assert!(answer.header("retry-after").is_some());
    assert!(second.rest().await.is_empty());
    let mut probe = balancer.client().await;
    probe.send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(probe.answer().await.status(), 200);
    one.answer("200 OK", "{}").await;
    two.answer("200 OK", "{}").await;
    assert_eq!(first.answer().await.status(), 200);
    first.send(post("/generate", JSON)).await;
    assert!(!prefill.request().await.request.body.is_empty());
}

#[tokio::test]
async fn bodies_share_their_memory_and_give_it_back() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let config = config(&[prefill.url()], &[decode.url()]).max_buffered_body_bytes(20);
    let balancer = Balancer::start(config).await;
    let mut first = balancer.client().await;
    first.send(post("/generate", JSON)).await;
    let (one, two) = (prefill.request().await, decode.request().await);
    let chunks = generate(
        "transfer-encoding: chunked\r\n",
        &format!("c\r\n{JSON}\r\n0\r\n\r\n"),
    );
    for bytes in [post("/generate", JSON).into_bytes(), chunks] {
        let mut second = balancer.client().await;
        second.send(bytes).await;
        let answer = second.answer().await;
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.header("x-mini-lb-error"), Some("overloaded"));
    }
    one.answer("200 OK", "{}").await;
    two.answer("200 OK", "{}").await;
    assert_eq!(first.answer().await.status(), 200);
    first.send(post("/generate", JSON)).await;
    assert!(!prefill.request().await.request.body.is_empty());
}

fn with_key(path: &str, key: &str) -> String {
    post(path, JSON).replacen(
        "\r\n",
        &format!("\r\nauthorization: Bearer {key}\r\nx-api-key: {key}\r\n"),
        1,
    )
}

#[tokio::test]
async fn without_a_key_nothing_but_health_is_answered_and_no_body_is_read() {
    let mut stage = Stage::with(|config| config.api_key("sk-c").admin_api_key("sk-a")).await;
    for (what, path) in [("legs", "/v1/chat/completions"), ("no path", "/nope")] {
        let mut client = stage.balancer.client().await;
        let request = with_key(path, "sk-x");
        let (head, _) = request.split_once("\r\n\r\n").unwrap();
        client.send(format!("{head}\r\n\r\n")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 401, "{what}");
        assert_eq!(answer.header("x-mini-lb-error"), Some("unauthorized"));
        assert!(client.rest().await.is_empty(), "{what}");
    }
    let mut client = stage.balancer.client().await;
    for path in ["/health", "/ready", "/liveness"] {
        client
            .send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n"))
            .await;
        assert_eq!(client.answer().await.status(), 200, "{path}");
    }
    for (path, key, status) in [
        ("/flush_cache", "sk-c", 401),
        ("/generate", "sk-a", 401),
        ("/flush_cache", "sk-a", 200),
        ("/generate", "sk-c", 200),
    ] {
        let mut client = stage.balancer.client().await;
        client.send(with_key(path, key)).await;
        assert_eq!(client.answer().await.status(), status, "{path} {key}");
    }
    // One flush and one generation at each worker.
    stage.accepted = 2;
    for legs in [&stage.prefill, &stage.decode] {
        assert_eq!(legs.load(Ordering::SeqCst), stage.accepted);
    }
}

#[tokio::test]
async fn workers_get_the_shared_key_and_never_one_of_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sk-1\n\nsk-2\n").unwrap();
    for (shared, expected) in [(None, None), (Some("sk-c"), Some("Bearer sk-c"))] {
        let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
        let mut config =
            config(&[prefill.url()], &[decode.url()]).api_key_file(file.path().to_str().unwrap());
        if let Some(key) = shared {
            config = config.api_key(key);
        }
        let balancer = Balancer::start(config).await;
        let mut client = balancer.client().await;
        client.send(with_key("/generate", "sk-2")).await;
        for leg in [prefill.request().await, decode.request().await] {
            assert_eq!(leg.request.header("authorization"), expected);
            assert_eq!(leg.request.header("x-api-key"), None);
        }
    }
}
