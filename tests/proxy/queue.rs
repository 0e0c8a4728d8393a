//! The queue for workers with a limit: which requests wait, in which order, for how long, and what ends a wait.
//!
//! A waiting request gives no sign of it. So the clients here use connections that were used before,
//! and the test's runtime has one thread: a request that was written whole has been read and waits before
//! the balancer responds to a later request of another client ([`Queue::joins`]).

use std::time::Duration;

use mini_lb::MiniLbConfig;
use support::pair::serve;
use support::{Answer, Balancer, CHAT, Client, Exchange, Pair, post, soon};

const READY: &str = "GET /readiness HTTP/1.1\r\nhost: balancer\r\n\r\n";
const SHORT: Duration = Duration::from_millis(50);

/// A body with a number in it.
pub(crate) fn numbered(number: usize) -> String {
    format!(r#"{{"text":"{number}"}}"#)
}

pub(crate) fn number(exchange: &Exchange) -> usize {
    let text = exchange.request.json()["text"].clone();
    text.as_str().unwrap().parse().unwrap()
}

/// A pair in which each worker takes one request at a time.
struct Queue {
    pair: Pair,
    /// A response to it shows that the balancer has read everything that other clients wrote before.
    probe: Client,
}

impl Queue {
    async fn with(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let pair = Pair::with(|config| change(config.max_concurrent_requests(1))).await;
        let probe = used_client(&pair.balancer).await;
        Self { pair, probe }
    }

    async fn start() -> Self {
        Self::with(|config| config).await
    }

    /// A client whose request has joined the queue, or has been sent to workers.
    async fn joins(&mut self, path: &str, body: &str) -> Client {
        let mut client = used_client(&self.pair.balancer).await;
        client.send(post(path, body)).await;
        self.settles().await;
        client
    }

    /// Returns when the balancer has read what was written to it before.
    async fn settles(&mut self) {
        settle(&mut self.probe).await;
    }

    /// The legs of the request with this number, which is the next one.
    async fn legs(&mut self, expected: usize) -> (Exchange, Exchange) {
        let (prefill, decode) = self.pair.next_legs().await;
        assert_eq!((number(&prefill), number(&decode)), (expected, expected));
        assert_eq!(prefill.request.body, decode.request.body);
        (prefill, decode)
    }
}

pub(crate) async fn used_client(balancer: &Balancer) -> Client {
    let mut client = balancer.client().await;
    settle(&mut client).await;
    client
}

pub(crate) async fn settle(client: &mut Client) {
    client.send(READY).await;
    client.answer().await;
}

fn refusal(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    let code = answer.header("x-mini-lb-error");
    (answer.status(), code, answer.header("retry-after"))
}

#[tokio::test]
async fn those_that_wait_are_served_in_the_order_in_which_they_came() {
    let mut queue = Queue::start().await;
    let mut clients = Vec::new();
    for number in 0..5 {
        clients.push(queue.joins("/generate", &numbered(number)).await);
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let legs = queue.legs(number).await;
        queue.settles().await;
        assert!(queue.pair.is_idle(), "one at a time");
        serve(legs).await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_request_that_waits_has_no_room_and_no_worker_knows_of_it() {
    let mut queue = Queue::start().await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let legs = queue.legs(0).await;
    let room = legs.0.request.json()["bootstrap_room"].clone();
    let mut second = queue.joins("/generate", &numbered(1)).await;
    assert_eq!(
        (
            queue.pair.prefill.connections(),
            queue.pair.decode.connections()
        ),
        (1, 1)
    );
    serve(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let legs = queue.legs(1).await;
    assert_ne!(legs.0.request.json()["bootstrap_room"], room);
    serve(legs).await;
    assert_eq!(second.answer().await.status(), 200);
}

#[tokio::test]
async fn each_leg_makes_room_on_its_own_worker_when_it_ends() {
    let mut queue = Queue::start().await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let (prefill, decode) = queue.legs(0).await;
    let _second = queue.joins("/generate", &numbered(1)).await;
    prefill.answer("200 OK", "{}").await;
    queue.settles().await;
    assert!(queue.pair.is_idle(), "decode is full still");
    decode.answer("200 OK", "{}").await;
    assert_eq!(first.answer().await.status(), 200);
    queue.legs(1).await;
}

#[tokio::test]
async fn a_batch_is_one_request() {
    let mut queue = Queue::start().await;
    queue.joins("/generate", r#"{"text":["0","1","2"]}"#).await;
    let prefill = queue.pair.prefill.request().await;
    assert_eq!(
        prefill.request.json()["bootstrap_room"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test]
async fn a_full_queue_is_a_429_before_the_body_is_read() {
    let mut queue = Queue::with(|config| config.queue_size(1)).await;
    let _first = queue.joins("/generate", &numbered(0)).await;
    let _second = queue.joins("/generate", &numbered(1)).await;
    for (path, kind) in [
        ("/generate", "/type"),
        (CHAT, "/type"),
        ("/v1/responses", "/error/type"),
        ("/v1/messages", "/error/type"),
    ] {
        let mut client = queue.pair.balancer.client().await;
        // The balancer does not wait for its body.
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 12\r\n\r\n");
        client.send(head).await;
        let answer = client.answer().await;
        assert_eq!(refusal(&answer), (429, Some("queue_full"), Some("1")));
        assert_eq!(
            answer.json().pointer(kind).unwrap(),
            "rate_limit_error",
            "{path}"
        );
    }
    let mut side_door = queue.pair.balancer.client().await;
    side_door
        .send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(side_door.answer().await.status(), 200);
}

#[tokio::test]
async fn without_a_queue_a_full_worker_is_a_429_at_once() {
    let mut queue = Queue::with(|config| config.queue_size(0)).await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let mut second = queue.joins("/generate", &numbered(1)).await;
    let answer = second.answer().await;
    assert_eq!(refusal(&answer), (429, Some("queue_full"), Some("1")));
    serve(queue.legs(0).await).await;
    assert_eq!(first.answer().await.status(), 200);
    queue.joins("/generate", &numbered(2)).await;
    queue.legs(2).await;
}

#[tokio::test]
async fn who_is_refused_after_the_body_keeps_the_connection() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut queue = Queue::with(|config| config.queue_size(1)).await;
    let _first = queue.joins("/generate", &numbered(0)).await;
    let request = post("/generate", &numbered(1));
    let (head, body) = request.split_at(request.len() - 4);
    let (mut second, mut third) = (
        used_client(&queue.pair.balancer).await,
        used_client(&queue.pair.balancer).await,
    );
    // Both heads are accepted while the queue is empty.
    second.send(head).await;
    third.send(head).await;
    queue.settles().await;
    second.send(body).await;
    queue.settles().await;
    third.send(body).await;
    let answer = third.answer().await;
    assert_eq!(refusal(&answer), (429, Some("queue_full"), Some("1")));
    assert_eq!(answer.header("connection"), Some("keep-alive"));
    third.send(READY).await;
    assert_eq!(third.answer().await.status(), 200);
}

#[tokio::test]
async fn who_has_waited_too_long_gets_503_keeps_the_connection_and_leaves_its_place() {
    let mut queue = Queue::with(|config| config.queue_size(1).queue_timeout(SHORT)).await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let legs = queue.legs(0).await;
    for _ in 0..2 {
        let mut client = queue.joins("/generate", &numbered(1)).await;
        let answer = client.answer().await;
        assert_eq!(refusal(&answer), (503, Some("queue_timeout"), Some("1")));
        assert!(
            answer.text().contains("queue_timeout_secs"),
            "{}",
            answer.text()
        );
        client.send(READY).await;
        assert_eq!(client.answer().await.status(), 200);
    }
    assert!(queue.pair.is_idle());
    serve(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let mut third = queue.joins("/generate", &numbered(3)).await;
    serve(queue.legs(3).await).await;
    assert_eq!(third.answer().await.status(), 200);
}

#[tokio::test]
async fn the_deadlines_of_an_answer_run_while_it_waits() {
    for (stream, code) in [(false, "request_timeout"), (true, "first_token_timeout")] {
        let mut queue = Queue::with(|config| match stream {
            true => config.first_token_timeout(SHORT),
            false => config.request_timeout(SHORT),
        })
        .await;
        let blocking = format!(r#"{{"text":"0","stream":{}}}"#, !stream);
        let _first = queue.joins("/generate", &blocking).await;
        let body = format!(r#"{{"text":"1","stream":{stream}}}"#);
        let mut second = queue.joins("/generate", &body).await;
        let answer = second.answer().await;
        assert_eq!(refusal(&answer), (504, Some(code), stream.then_some("1")));
        queue.legs(0).await;
        assert!(queue.pair.is_idle());
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_never_sent_and_the_next_one_is() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut queue = Queue::start().await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let legs = queue.legs(0).await;
    let second = queue.joins("/generate", &numbered(1)).await;
    let mut third = queue.joins("/generate", &numbered(2)).await;
    drop(second);
    serve(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    serve(queue.legs(2).await).await;
    assert_eq!(third.answer().await.status(), 200);
    // It is not aborted either, because it had no id.
    queue.settles().await;
    assert!(queue.pair.is_idle());
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_gives_its_place_up_at_once() {
    let mut queue = Queue::with(|config| config.queue_size(1)).await;
    let _first = queue.joins("/generate", &numbered(0)).await;
    let _legs = queue.legs(0).await;
    let second = queue.joins("/generate", &numbered(1)).await;
    // Not JSON: refused with 400 when the queue has a place, and never waiting.
    let nonsense = post("/generate", "{");
    let mut probe = queue.pair.balancer.client().await;
    probe.send(&nonsense).await;
    assert_eq!(probe.answer().await.status(), 429);
    drop(second);
    soon("the place is free", async {
        loop {
            let mut probe = queue.pair.balancer.client().await;
            probe.send(&nonsense).await;
            if probe.answer().await.status() == 400 {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_balancer_that_leaves_serves_those_that_wait() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut queue = Queue::start().await;
    let mut first = queue.joins("/generate", &numbered(0)).await;
    let legs = queue.legs(0).await;
    let mut second = queue.joins("/generate", &numbered(1)).await;
    let stopped = tokio::spawn(queue.pair.balancer.stop());
    serve(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let (prefill, decode) = (&mut queue.pair.prefill, &mut queue.pair.decode);
    serve((prefill.request().await, decode.request().await)).await;
    let answer = second.answer().await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    stopped.await.unwrap();
}

#[tokio::test]
async fn at_the_grace_limit_those_that_wait_are_told() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
    let mut queue = Queue::with(|config| config.shutdown_grace_period(SHORT)).await;
    let _first = queue.joins("/generate", &numbered(0)).await;
    let _legs = queue.legs(0).await;
    let mut second = queue.joins("/generate", &numbered(1)).await;
    let stopped = tokio::spawn(queue.pair.balancer.stop());
    let answer = second.answer().await;
    assert_eq!(refusal(&answer), (503, Some("shutting_down"), Some("1")));
    stopped.await.unwrap();
    // The end of the first request frees its workers, which no request takes any more.
    for worker in [&mut queue.pair.prefill, &mut queue.pair.decode] {
        let told = worker.request().await.request;
        assert!(told.head.contains("/abort_request"), "{}", told.head);
        let mut last = Client::connect(worker.address).await;
        last.send("GET /last HTTP/1.1\r\n\r\n").await;
        let asked = worker.request().await.request;
        assert!(asked.head.starts_with("GET /last"), "{}", asked.head);
        assert_eq!(worker.connections(), 3, "a leg, an abort and the last");
    }
}
