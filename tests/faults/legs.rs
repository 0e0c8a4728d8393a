//! What happens when a leg fails, is late, or is not wanted any more: who is tried, who is told, who is closed.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mini_lb::MiniLbConfig;
use support::{Balancer, Client, Exchange, Worker, config, leg, post, soon};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"text":"a"}"#;
const STREAM: &str = r#"{"stream":true}"#;

/// Two workers of each role behind a balancer, and a client.
struct Stage {
    prefills: [Worker; 2],
    decodes: [Worker; 2],
    /// Stops with the stage.
    _balancer: Balancer,
    client: Client,
}

impl Stage {
    async fn set(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let prefills = [Worker::listen().await, Worker::listen().await];
        let decodes = [Worker::listen().await, Worker::listen().await];
        let urls = |workers: &[Worker; 2]| workers.iter().map(Worker::url).collect::<Vec<_>>();
        let config = change(config(&urls(&prefills), &urls(&decodes)));
        let balancer = Balancer::start(config).await;
        let client = balancer.client().await;
        Self {
            prefills,
            decodes,
            _balancer: balancer,
            client,
        }
    }

    /// Both legs of the next attempt, with the places of their workers.
    async fn legs(&mut self) -> ((usize, Exchange), (usize, Exchange)) {
        (leg(&mut self.prefills).await, leg(&mut self.decodes).await)
    }
}

/// The next abort at a worker: the id that it names.
async fn abort(worker: &mut Worker) -> String {
    loop {
        let exchange = worker.request().await;
        if exchange.request.head.starts_with("POST /abort_request ") {
            let rid = exchange.request.json()["rid"].as_str().unwrap().to_owned();
            exchange.answer("200 OK", "").await;
            return rid;
        }
    }
}

fn rendezvous(exchange: &Exchange) -> (String, String) {
    let body = exchange.request.json();
    (body["bootstrap_room"].to_string(), body["rid"].to_string())
}

#[tokio::test]
async fn a_worker_that_is_full_is_left_for_another_with_a_new_room_and_id() {
    for status in [
        "429 Too Many Requests",
        "502 Bad Gateway",
        "503 Service Unavailable",
    ] {
        for prefill_is_full in [true, false] {
            let mut stage = Stage::set(|config| config).await;
            stage.client.send(post("/generate", BODY)).await;
            let ((full_prefill, prefill), (full_decode, decode)) = stage.legs().await;
            assert_eq!(prefill.request.body, decode.request.body);
            let first = rendezvous(&prefill);
            let (full, other) = match prefill_is_full {
                true => (prefill, decode),
                false => (decode, prefill),
            };
            full.answer(status, "{}").await;
            other.closed().await;
            let ((place, prefill), (decode_place, decode)) = stage.legs().await;
            let second = rendezvous(&prefill);
            assert_eq!(prefill.request.body, decode.request.body);
            assert_ne!(first.0, second.0, "a room is used once");
            assert_ne!(first.1, second.1, "an id is used once");
            match prefill_is_full {
                true => assert_ne!(place, full_prefill),
                false => assert_ne!(decode_place, full_decode),
            }
            prefill.answer("200 OK", "{}").await;
            decode.answer("200 OK", "{\"served\":2}").await;
            let answer = stage.client.answer().await;
            assert_eq!((answer.status(), answer.text()), (200, "{\"served\":2}"));
        }
    }
}

#[tokio::test]
async fn a_second_refusal_is_passed_on_unchanged() {
    let mut stage = Stage::set(|config| config).await;
    stage.client.send(post("/generate", BODY)).await;
    for _ in 0..2 {
        let ((_, _prefill), (_, decode)) = stage.legs().await;
        decode
            .answer("503 Service Unavailable", "{\"full\" : true}")
            .await;
    }
    let answer = stage.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (503, "{\"full\" : true}"));
}

#[tokio::test]
async fn what_would_fail_again_or_was_computed_is_not_tried_again() {
    for status in [
        "400 Bad Request",
        "413 Too Large",
        "500 Internal Server Error",
    ] {
        let mut stage = Stage::set(|config| config).await;
        stage.client.send(post("/generate", BODY)).await;
        let ((_, prefill), (_, decode)) = stage.legs().await;
        prefill.answer(status, "{\"no\":1}").await;
        assert_eq!(
            stage.client.answer().await.status().to_string(),
            status[..3]
        );
        decode.closed().await;
        // Had there been another attempt, its legs would have been sent before the answer.
        assert!(no_more_legs(&mut stage).await);
    }
}

/// Whether the workers have nothing but aborts.
async fn no_more_legs(stage: &mut Stage) -> bool {
    for worker in stage.prefills.iter_mut().chain(&mut stage.decodes) {
        while worker.has_request() {
            if !worker
                .request()
                .await
                .request
                .head
                .contains("/abort_request")
            {
                return false;
            }
        }
    }
    true
}

#[tokio::test]
async fn a_leg_that_is_lost_before_its_answer_is_tried_again_and_after_the_first_byte_not() {
    let mut stage = Stage::set(|config| config).await;
    stage.client.send(post(CHAT, STREAM)).await;
    let ((_, prefill), (_, decode)) = stage.legs().await;
    decode.reset();
    prefill.closed().await;
    let ((_, _prefill), (_, mut decode)) = stage.legs().await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    stage.client.head().await;
    assert_eq!(
        stage.client.chunk().await.as_deref(),
        Some("data: {\"a\":1}\n\n")
    );
    decode.reset();
    assert!(
        stage
            .client
            .chunk()
            .await
            .unwrap()
            .starts_with("data: {\"error\"")
    );
    assert!(no_more_legs(&mut stage).await);
}

#[tokio::test]
async fn a_request_with_an_id_of_its_own_is_tried_again_only_where_nobody_has_seen_it() {
    let mut stage = Stage::set(|config| config).await;
    stage
        .client
        .send(post("/generate", r#"{"rid":"mine"}"#))
        .await;
    let ((_, prefill), (_, decode)) = stage.legs().await;
    assert_eq!(rendezvous(&prefill).1, "\"mine\"");
    decode.answer("503 Service Unavailable", "{}").await;
    assert_eq!(stage.client.answer().await.status(), 503);
    prefill.closed().await;
    assert!(no_more_legs(&mut stage).await);
}

#[tokio::test]
async fn one_of_two_that_refuses_connections_fails_no_request() {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let gone = Worker::refusing().await;
    let workers = config(&[gone, prefill.url()], &[decode.url()]);
    let balancer = Balancer::start(workers).await;
    let legs = prefill.serve("200 OK", "{}");
    decode.serve("200 OK", "{}");
    let mut client = balancer.client().await;
    for _ in 0..100 {
        client.send(post("/generate", BODY)).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert_eq!(legs.load(Ordering::SeqCst), 100);
}

/// An address that neither accepts nor refuses, as long as the sockets live: nobody takes what waits there, and
/// there is no room for more.
async fn blackhole() -> (String, Vec<TcpStream>, TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    (format!("http://{address}"), waiting, listener)
}

#[tokio::test]
async fn a_worker_that_takes_no_connection_is_a_504_at_its_deadline_or_left_for_another() {
    let (gone, _waiting, _listener) = blackhole().await;
    for (prefill_is_gone, code) in [
        (true, "prefill_connect_timeout"),
        (false, "decode_connect_timeout"),
    ] {
        let mut there = Worker::listen().await;
        let urls = match prefill_is_gone {
            true => [gone.clone(), there.url()],
            false => [there.url(), gone.clone()],
        };
        let [prefill, decode] = urls.map(|url| vec![url]);
        let alone = config(&prefill, &decode).connect_timeout(SHORT);
        let balancer = Balancer::start(alone).await;
        let mut client = balancer.client().await;
        client.send(post("/generate", BODY)).await;
        let answer = client.answer().await;
        assert_eq!(
            (answer.status(), answer.header("x-mini-lb-error")),
            (504, Some(code))
        );
        // Prefill's leg goes first; decode's is on its way when prefill's deadline passes.
        there.request().await.closed().await;

        let (one, two) = (Worker::listen().await, Worker::listen().await);
        let pools = match prefill_is_gone {
            true => [vec![gone.clone(), one.url()], vec![two.url()]],
            false => [vec![one.url()], vec![gone.clone(), two.url()]],
        };
        let balancer = Balancer::start(config(&pools[0], &pools[1]).connect_timeout(SHORT)).await;
        for worker in [one, two] {
            worker.serve("200 OK", "{}");
        }
        let mut client = balancer.client().await;
        for _ in 0..20 {
            client.send(post("/generate", BODY)).await;
            assert_eq!(client.answer().await.status(), 200);
        }
    }
}

#[tokio::test]
async fn a_full_outage_of_a_role_is_not_multiplied_by_retries() {
    const REQUESTS: usize = 200;
    let stage = Stage::set(|config| config).await;
    let begun = Instant::now();
    for prefill in stage.prefills {
        prefill.serve("200 OK", "{}");
    }
    let legs = stage
        .decodes
        .map(|decode| decode.serve("503 Service Unavailable", "{}"));
    let mut client = stage.client;
    for _ in 0..REQUESTS {
        client.send(post("/generate", BODY)).await;
        assert_eq!(client.answer().await.status(), 503);
    }
    let seen: usize = legs.iter().map(|legs| legs.load(Ordering::SeqCst)).sum();
    let floor = 3 * (begun.elapsed().as_secs() as usize + 2);
    assert!(
        seen <= REQUESTS * 12 / 10 + floor,
        "{seen} with a floor of {floor}"
    );
    assert!(seen > REQUESTS, "something was tried again");
}

#[tokio::test]
async fn workers_are_told_by_id_when_a_client_leaves() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    for (body, rids) in [
        (r#"{"text":"a"}"#, None),
        (r#"{"text":"a","rid":"mine"}"#, Some(vec!["mine"])),
        (
            r#"{"text":["a","b"],"rid":"mine"}"#,
            Some(vec!["mine_0", "mine_1"]),
        ),
    ] {
        let mut client = balancer.client().await;
        client.send(post("/generate", body)).await;
        let (one, two) = (prefill.request().await, decode.request().await);
        let rids = rids.map_or_else(
            || vec![one.request.json()["rid"].as_str().unwrap().to_owned()],
            |rids| rids.into_iter().map(str::to_owned).collect(),
        );
        drop(client);
        one.closed().await;
        two.closed().await;
        for rid in &rids {
            assert_eq!(abort(&mut prefill).await, *rid, "{body}");
            assert_eq!(abort(&mut decode).await, *rid, "{body}");
        }
    }
}

#[tokio::test]
async fn each_prompt_of_a_batch_has_an_id_and_each_is_aborted() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    client
        .send(post("/generate", r#"{"text":["a","b"]}"#))
        .await;
    let (one, _two) = (prefill.request().await, decode.request().await);
    let sent = one.request.json()["rid"].clone();
    let sent: HashSet<String> = serde_json::from_value(sent).unwrap();
    assert_eq!(sent.len(), 2);
    one.answer("400 Bad Request", "{}").await;
    assert_eq!(client.answer().await.status(), 400);
    let told = [abort(&mut decode).await, abort(&mut decode).await];
    assert_eq!(HashSet::from(told), sent);
}

#[tokio::test]
async fn a_request_that_ends_well_is_not_aborted() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let balancer = Balancer::of(&prefill, &decode).await;
    let mut client = balancer.client().await;
    for _ in 0..5 {
        client.send(post("/generate", BODY)).await;
        let (one, two) = (prefill.request().await, decode.request().await);
        assert!(one.request.head.starts_with("POST /generate "));
        assert!(two.request.head.starts_with("POST /generate "));
        one.answer("200 OK", "{}").await;
        two.answer("200 OK", "{}").await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert!(!prefill.has_request() && !decode.has_request());
}

async fn pair(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> (Worker, Worker, Balancer) {
    let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
    let config = change(config(&[prefill.url()], &[decode.url()]));
    let balancer = Balancer::start(config).await;
    (prefill, decode, balancer)
}

const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_stream_whose_first_token_is_late_is_a_504_that_names_the_deadline() {
    let (mut prefill, mut decode, balancer) = pair(|c| c.first_token_timeout(SHORT)).await;
    let mut client = balancer.client().await;
    client.send(post(CHAT, STREAM)).await;
    let (one, mut two) = (prefill.request().await, decode.request().await);
    two.begin_stream().await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (504, Some("first_token_timeout"))
    );
    one.closed().await;
    two.closed().await;
}

#[tokio::test]
async fn a_stream_that_stalls_ends_with_an_error_event_that_names_the_deadline() {
    let (mut prefill, mut decode, balancer) = pair(|c| c.stream_idle_timeout(SHORT)).await;
    let mut client = balancer.client().await;
    client.send(post(CHAT, STREAM)).await;
    let (one, mut two) = (prefill.request().await, decode.request().await);
    two.begin_stream().await;
    two.chunk("data: {\"a\":1}\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await.as_deref(), Some("data: {\"a\":1}\n\n"));
    let event = client.chunk().await.unwrap();
    assert!(event.contains("stream_idle_timeout_secs"), "{event}");
    assert_eq!(client.chunk().await, None);
    one.closed().await;
    two.closed().await;
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_has_a_deadline_of_its_own() {
    let (mut prefill, mut decode, balancer) = pair(|c| {
        c.request_timeout(SHORT)
            .first_token_timeout(Duration::from_millis(1))
    })
    .await;
    let mut client = balancer.client().await;
    client.send(post(CHAT, BODY)).await;
    let (one, two) = (prefill.request().await, decode.request().await);
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (504, Some("request_timeout"))
    );
    one.closed().await;
    two.closed().await;
}

#[tokio::test]
async fn a_stream_is_cut_by_the_total_only_where_that_is_set() {
    let (mut prefill, mut decode, balancer) = pair(|c| {
        c.request_timeout(Duration::from_millis(1))
            .stream_timeout(SHORT)
    })
    .await;
    let mut client = balancer.client().await;
    client.send(post(CHAT, STREAM)).await;
    let (_one, mut two) = (prefill.request().await, decode.request().await);
    two.begin_stream().await;
    client_sees_request_timeout(&mut client, &mut two).await;
    two.closed().await;
}

/// Sends events until the deadline ends the stream.
async fn client_sees_request_timeout(client: &mut Client, decode: &mut Exchange) {
    decode.chunk("data: {\"a\":1}\n\n").await;
    client.head().await;
    let mut seen = String::new();
    while let Some(chunk) = client.chunk().await {
        seen += &chunk;
    }
    assert!(seen.contains("stream_timeout_secs"), "{seen}");
    assert!(!seen.contains("[DONE]"));
}

#[tokio::test]
async fn a_balancer_without_workers_starts_says_so_and_picks_them_up() {
    let decode = Worker::listen().await;
    let absent = Worker::refusing().await;
    let config = config(std::slice::from_ref(&absent), &[decode.url()])
        .health_check_interval(Some(Duration::from_millis(20)));
    let balancer = Balancer::start(config).await;
    let mut client = balancer.client().await;
    readiness(&mut client, 503).await;
    let address = absent.strip_prefix("http://").unwrap().parse().unwrap();
    let mut prefill = Worker::listen_on(address).await;
    let probed = prefill.request().await;
    assert!(
        probed.request.head.starts_with("GET /health "),
        "{}",
        probed.request.head
    );
    probed.answer("200 OK", "").await;
    readiness(&mut client, 200).await;
}

#[tokio::test]
async fn a_name_that_is_not_found_keeps_nobody_from_starting_and_nothing_is_sent_for_it() {
    let mut decode = Worker::listen().await;
    // Source: RFC 6761, section 6.4: no resolver knows such a name.
    let nowhere = "http://prefill.invalid:1".to_owned();
    let balancer = Balancer::start(config(&[nowhere], &[decode.url()])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(
        (answer.status(), answer.header("x-mini-lb-error")),
        (503, Some("no_prefill"))
    );
    assert!(answer.header("retry-after").is_some());
    // Nothing was sent, so that the connection serves on, as the answer says.
    assert_ne!(answer.header("connection"), Some("close"));
    readiness(&mut client, 503).await;
    assert!(!decode.has_request());
}

#[tokio::test]
async fn a_name_is_as_good_as_an_address() {
    let (mut prefill, mut decode) = (Worker::listen().await, Worker::listen().await);
    let named = |worker: &Worker| format!("http://localhost:{}", worker.address.port());
    let balancer = Balancer::start(config(&[named(&prefill)], &[named(&decode)])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let (one, two) = (prefill.request().await, decode.request().await);
    let host = format!("localhost:{}", decode.address.port());
    assert_eq!(two.request.header("host"), Some(host.as_str()));
    one.answer("200 OK", "{}").await;
    two.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_whose_probes_hang_stays_while_it_answers_requests() {
    let (mut prefill, mut decode, balancer) = pair(|config| {
        config
            .health_check_interval(Some(Duration::from_millis(1)))
            .health_check_timeout(Duration::from_millis(1))
    })
    .await;
    // Neither worker answers a probe.
    for worker in [&mut prefill, &mut decode] {
        for _ in 0..20 {
            let probe = worker.request().await;
            assert!(probe.request.head.starts_with("GET /health "));
        }
    }
    let mut client = balancer.client().await;
    readiness(&mut client, 200).await;
    client.send(post("/generate", BODY)).await;
    for worker in [&mut prefill, &mut decode] {
        loop {
            let exchange = worker.request().await;
            if exchange.request.head.starts_with("POST /generate ") {
                exchange.answer("200 OK", "{}").await;
                break;
            }
        }
    }
    assert_eq!(client.answer().await.status(), 200);
    readiness(&mut client, 200).await;
}

/// Asks until the state is this.
async fn readiness(client: &mut Client, status: u16) {
    soon("the readiness", async {
        loop {
            client
                .send("GET /readiness HTTP/1.1\r\nhost: b\r\n\r\n")
                .await;
            let answer = client.answer().await;
            if answer.status() == status {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_start_before_the_prompt_never_reaches_a_worker() {
    let (mut prefill, mut decode, balancer) = pair(|config| config).await;
    for start in ["-2", "[0,-7]"] {
        let mut client = balancer.client().await;
        let body =
            format!(r#"{{"text":["a","b"],"return_logprob":true,"logprob_start_len":{start}}}"#);
        client.send(post("/generate", &body)).await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 400);
        assert_eq!(
            answer.header("x-mini-lb-error"),
            Some("invalid_logprob_start_len")
        );
    }
    assert!(!prefill.has_request() && !decode.has_request());
    let mut client = balancer.client().await;
    client
        .send(post("/generate", r#"{"text":"a","logprob_start_len":-2}"#))
        .await;
    // Without logprobs it means nothing to the engine.
    let _ = (prefill.request().await, decode.request().await);
}
