//! Workers with a limit: what they see at once, who waits, in which order, for how long, and what ends a wait.
//!
//! A request that has joined the queue gives no sign. So the clients here have connections that were used before,
//! and the test's runtime has one thread: a request that was written whole is read, understood and waiting before
//! the balancer answers another client's later question ([`Stage::joins`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mini_lb::MiniLbConfig;
use support::{Answer, Balancer, Client, Exchange, Worker, config, leg, post, soon};

const CHAT: &str = "/v1/chat/completions";
const READY: &str = "GET /readiness HTTP/1.1\r\nhost: balancer\r\n\r\n";
const SHORT: Duration = Duration::from_millis(50);

/// A body that can be told from others.
fn numbered(number: usize) -> String {
    format!(r#"{{"text":"{number}"}}"#)
}

fn number(exchange: &Exchange) -> usize {
    let text = exchange.request.json()["text"].clone();
    text.as_str().unwrap().parse().unwrap()
}

/// One worker of each role, each of which takes one request at once.
struct Stage {
    prefill: Worker,
    decode: Worker,
    balancer: Balancer,
    usher: Client,
}

impl Stage {
    async fn set(change: impl FnOnce(MiniLbConfig) -> MiniLbConfig) -> Self {
        let (prefill, decode) = (Worker::listen().await, Worker::listen().await);
        let config = config(&[prefill.url()], &[decode.url()]).max_concurrent_requests(1);
        let balancer = Balancer::start(change(config)).await;
        let usher = used_client(&balancer).await;
        Self {
            prefill,
            decode,
            balancer,
            usher,
        }
    }

    /// A client whose request has joined the queue, or has been sent to workers.
    async fn joins(&mut self, path: &str, body: &str) -> Client {
        let mut client = used_client(&self.balancer).await;
        client.send(post(path, body)).await;
        self.settles().await;
        client
    }

    /// What was written to the balancer before has been read by it.
    async fn settles(&mut self) {
        settle(&mut self.usher).await;
    }

    /// The legs of a request that has this number.
    async fn legs(&mut self, expected: usize) -> (Exchange, Exchange) {
        let (prefill, decode) = (self.prefill.request().await, self.decode.request().await);
        assert_eq!((number(&prefill), number(&decode)), (expected, expected));
        assert_eq!(prefill.request.body, decode.request.body);
        (prefill, decode)
    }

    fn nobody_is_asked(&mut self) -> bool {
        !self.prefill.has_request() && !self.decode.has_request()
    }
}

async fn used_client(balancer: &Balancer) -> Client {
    let mut client = balancer.client().await;
    settle(&mut client).await;
    client
}

async fn settle(client: &mut Client) {
    client.send(READY).await;
    client.answer().await;
}

async fn finish((prefill, decode): (Exchange, Exchange)) {
    prefill.answer("200 OK", "{}").await;
    decode.answer("200 OK", "{}").await;
}

fn refusal(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    let code = answer.header("x-mini-lb-error");
    (answer.status(), code, answer.header("retry-after"))
}

#[tokio::test]
async fn those_that_wait_are_served_in_the_order_in_which_they_came() {
    let mut stage = Stage::set(|config| config).await;
    let mut clients = Vec::new();
    for number in 0..5 {
        clients.push(stage.joins("/generate", &numbered(number)).await);
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let legs = stage.legs(number).await;
        stage.settles().await;
        assert!(stage.nobody_is_asked(), "one at a time");
        finish(legs).await;
        assert_eq!(client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_request_that_waits_has_no_room_and_no_worker_knows_of_it() {
    let mut stage = Stage::set(|config| config).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let legs = stage.legs(0).await;
    let room = legs.0.request.json()["bootstrap_room"].clone();
    let mut second = stage.joins("/generate", &numbered(1)).await;
    assert_eq!(
        (stage.prefill.connections(), stage.decode.connections()),
        (1, 1)
    );
    finish(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let legs = stage.legs(1).await;
    assert_ne!(legs.0.request.json()["bootstrap_room"], room);
    finish(legs).await;
    assert_eq!(second.answer().await.status(), 200);
}

#[tokio::test]
async fn each_leg_makes_room_on_its_own_worker_when_it_ends() {
    let mut stage = Stage::set(|config| config).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let (prefill, decode) = stage.legs(0).await;
    let _second = stage.joins("/generate", &numbered(1)).await;
    prefill.answer("200 OK", "{}").await;
    stage.settles().await;
    assert!(stage.nobody_is_asked(), "decode is full still");
    decode.answer("200 OK", "{}").await;
    assert_eq!(first.answer().await.status(), 200);
    stage.legs(1).await;
}

#[tokio::test]
async fn a_batch_is_one_request() {
    let mut stage = Stage::set(|config| config).await;
    stage.joins("/generate", r#"{"text":["0","1","2"]}"#).await;
    let prefill = stage.prefill.request().await;
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
    let mut stage = Stage::set(|config| config.queue_size(1)).await;
    let _first = stage.joins("/generate", &numbered(0)).await;
    let _second = stage.joins("/generate", &numbered(1)).await;
    for (path, kind) in [
        ("/generate", "/type"),
        (CHAT, "/type"),
        ("/v1/responses", "/error/type"),
        ("/v1/messages", "/error/type"),
    ] {
        let mut client = stage.balancer.client().await;
        // Its body is not waited for.
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
    let mut side_door = stage.balancer.client().await;
    side_door
        .send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await;
    assert_eq!(side_door.answer().await.status(), 200);
}

#[tokio::test]
async fn without_a_queue_a_full_worker_is_a_429_at_once() {
    let mut stage = Stage::set(|config| config.queue_size(0)).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let mut second = stage.joins("/generate", &numbered(1)).await;
    let answer = second.answer().await;
    assert_eq!(refusal(&answer), (429, Some("queue_full"), Some("1")));
    finish(stage.legs(0).await).await;
    assert_eq!(first.answer().await.status(), 200);
    stage.joins("/generate", &numbered(2)).await;
    stage.legs(2).await;
}

#[tokio::test]
async fn who_is_refused_after_the_body_keeps_the_connection() {
    let mut stage = Stage::set(|config| config.queue_size(1)).await;
    let _first = stage.joins("/generate", &numbered(0)).await;
    let request = post("/generate", &numbered(1));
    let (head, body) = request.split_at(request.len() - 4);
    let (mut second, mut third) = (
        used_client(&stage.balancer).await,
        used_client(&stage.balancer).await,
    );
    // Both are let in while the queue is empty.
    second.send(head).await;
    third.send(head).await;
    stage.settles().await;
    second.send(body).await;
    stage.settles().await;
    third.send(body).await;
    let answer = third.answer().await;
    assert_eq!(refusal(&answer), (429, Some("queue_full"), Some("1")));
    assert_eq!(answer.header("connection"), Some("keep-alive"));
    third.send(READY).await;
    assert_eq!(third.answer().await.status(), 200);
}

#[tokio::test]
async fn who_has_waited_too_long_gets_503_keeps_the_connection_and_leaves_its_place() {
    let mut stage = Stage::set(|config| config.queue_size(1).queue_timeout(SHORT)).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let legs = stage.legs(0).await;
    for _ in 0..2 {
        let mut client = stage.joins("/generate", &numbered(1)).await;
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
    assert!(stage.nobody_is_asked());
    finish(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let mut third = stage.joins("/generate", &numbered(3)).await;
    finish(stage.legs(3).await).await;
    assert_eq!(third.answer().await.status(), 200);
}

#[tokio::test]
async fn the_deadlines_of_an_answer_run_while_it_waits() {
    for (stream, code) in [(false, "request_timeout"), (true, "first_token_timeout")] {
        let mut stage = Stage::set(|config| match stream {
            true => config.first_token_timeout(SHORT),
            false => config.request_timeout(SHORT),
        })
        .await;
        let blocking = format!(r#"{{"text":"0","stream":{}}}"#, !stream);
        let _first = stage.joins("/generate", &blocking).await;
        let body = format!(r#"{{"text":"1","stream":{stream}}}"#);
        let mut second = stage.joins("/generate", &body).await;
        let answer = second.answer().await;
        assert_eq!(refusal(&answer), (504, Some(code), None));
        stage.legs(0).await;
        assert!(stage.nobody_is_asked());
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_never_sent_and_the_next_one_is() {
    let mut stage = Stage::set(|config| config).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let legs = stage.legs(0).await;
    let second = stage.joins("/generate", &numbered(1)).await;
    let mut third = stage.joins("/generate", &numbered(2)).await;
    drop(second);
    finish(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    finish(stage.legs(2).await).await;
    assert_eq!(third.answer().await.status(), 200);
    // Nor is it aborted: it had no id.
    stage.settles().await;
    assert!(stage.nobody_is_asked());
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_gives_its_place_up_at_once() {
    let mut stage = Stage::set(|config| config.queue_size(1)).await;
    let _first = stage.joins("/generate", &numbered(0)).await;
    let _legs = stage.legs(0).await;
    let second = stage.joins("/generate", &numbered(1)).await;
    // No JSON: refused as such where there is a place, and never waiting.
    let nonsense = post("/generate", "{");
    let mut probe = stage.balancer.client().await;
    probe.send(&nonsense).await;
    assert_eq!(probe.answer().await.status(), 429);
    drop(second);
    soon("the place is free", async {
        loop {
            let mut probe = stage.balancer.client().await;
            probe.send(&nonsense).await;
            if probe.answer().await.status() == 400 {
                return;
            }
        }
    })
    .await;
}

async fn two_of_each(limit: usize) -> ([Worker; 2], [Worker; 2], Balancer) {
    let prefills = [Worker::listen().await, Worker::listen().await];
    let decodes = [Worker::listen().await, Worker::listen().await];
    let urls = |workers: &[Worker; 2]| workers.iter().map(Worker::url).collect::<Vec<_>>();
    let config = config(&urls(&prefills), &urls(&decodes)).max_concurrent_requests(limit);
    let balancer = Balancer::start(config).await;
    (prefills, decodes, balancer)
}

#[tokio::test]
async fn a_request_that_is_tried_again_waits_for_another_worker_and_holds_nobody_up() {
    let (mut prefills, mut decodes, balancer) = two_of_each(1).await;
    let mut clients = [
        used_client(&balancer).await,
        used_client(&balancer).await,
        used_client(&balancer).await,
    ];
    clients[0].send(post("/generate", &numbered(0))).await;
    let (busy, first) = leg(&mut prefills).await;
    let (_, first_decode) = leg(&mut decodes).await;
    clients[1].send(post("/generate", &numbered(1))).await;
    let (full, second) = leg(&mut prefills).await;
    let (_, second_decode) = leg(&mut decodes).await;
    assert_ne!(busy, full, "one each");
    let room = second.request.json()["bootstrap_room"].clone();
    second.answer("503 Service Unavailable", "{}").await;
    second_decode.closed().await;
    // The one that is tried again waits for the busy worker, in front of this one, which takes the other.
    clients[2].send(post("/generate", &numbered(2))).await;
    let (place, third) = leg(&mut prefills).await;
    assert_eq!((place, number(&third)), (full, 2));
    let (_, third_decode) = leg(&mut decodes).await;
    finish((first, first_decode)).await;
    assert_eq!(clients[0].answer().await.status(), 200);
    let (place, again) = leg(&mut prefills).await;
    assert_eq!((place, number(&again)), (busy, 1));
    assert_ne!(again.request.json()["bootstrap_room"], room);
    finish((again, leg(&mut decodes).await.1)).await;
    assert_eq!(clients[1].answer().await.status(), 200);
    finish((third, third_decode)).await;
    assert_eq!(clients[2].answer().await.status(), 200);
}

#[tokio::test]
async fn when_a_worker_dies_those_that_wait_are_served_by_the_other() {
    let (mut prefills, mut decodes, balancer) = two_of_each(1).await;
    let mut usher = used_client(&balancer).await;
    let mut clients = Vec::new();
    let mut live = Vec::new();
    for number in 0..5 {
        let mut client = used_client(&balancer).await;
        client.send(post("/generate", &numbered(number))).await;
        settle(&mut usher).await;
        if number < 2 {
            let (_, prefill) = leg(&mut prefills).await;
            live.push((prefill, leg(&mut decodes).await));
        }
        clients.push(client);
    }
    live.sort_by_key(|(_, (place, _))| *place);
    let (survivor, (_, survivors_decode)) = live.pop().unwrap();
    let (_, (_, dead)) = live.pop().unwrap();
    decodes[0].stop_listening().await;
    dead.reset();
    // From now on there is one decode worker, and no request needs more than that.
    finish((survivor, survivors_decode)).await;
    let [_, decode] = &mut decodes;
    let mut served = 0;
    let answered = async {
        for client in &mut clients {
            assert_eq!(client.answer().await.status(), 200);
        }
    };
    tokio::pin!(answered);
    soon("all are served", async {
        loop {
            tokio::select! {
                () = &mut answered => return,
                (_, prefill) = leg(&mut prefills) => answer_unless_cancelled(prefill).await,
                exchange = decode.request() => {
                    served += usize::from(!exchange.request.head.contains("/abort_request"));
                    answer_unless_cancelled(exchange).await;
                }
            }
        }
    })
    .await;
    assert_eq!(served, 4, "all but the one that it had before");
}

async fn answer_unless_cancelled(exchange: Exchange) {
    let _ = exchange.try_answer("200 OK", "{}").await;
}

#[tokio::test]
async fn a_balancer_that_leaves_serves_those_that_wait() {
    let mut stage = Stage::set(|config| config).await;
    let mut first = stage.joins("/generate", &numbered(0)).await;
    let legs = stage.legs(0).await;
    let mut second = stage.joins("/generate", &numbered(1)).await;
    let stopped = tokio::spawn(stage.balancer.stop());
    finish(legs).await;
    assert_eq!(first.answer().await.status(), 200);
    let legs = (stage.prefill.request().await, stage.decode.request().await);
    finish(legs).await;
    let answer = second.answer().await;
    assert_eq!(
        (answer.status(), answer.header("connection")),
        (200, Some("close"))
    );
    stopped.await.unwrap();
}

#[tokio::test]
async fn at_the_grace_limit_those_that_wait_are_told() {
    let mut stage = Stage::set(|config| config.shutdown_grace_period(SHORT)).await;
    let _first = stage.joins("/generate", &numbered(0)).await;
    let _legs = stage.legs(0).await;
    let mut second = stage.joins("/generate", &numbered(1)).await;
    let stopped = tokio::spawn(stage.balancer.stop());
    let answer = second.answer().await;
    assert_eq!(refusal(&answer), (503, Some("shutting_down"), Some("1")));
    stopped.await.unwrap();
    // The end of the first one makes room, which nobody takes any more.
    for worker in [&mut stage.prefill, &mut stage.decode] {
        let told = worker.request().await.request;
        assert!(told.head.contains("/abort_request"), "{}", told.head);
        let mut last = Client::connect(worker.address).await;
        last.send("GET /last HTTP/1.1\r\n\r\n").await;
        let asked = worker.request().await.request;
        assert!(asked.head.starts_with("GET /last"), "{}", asked.head);
        assert_eq!(worker.connections(), 3, "a leg, an abort and the last");
    }
}

/// Answers each request after some others had their turn; gives the most that it had at once.
fn serve_slowly(mut worker: Worker) -> Arc<AtomicUsize> {
    let (live, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    tokio::spawn(async move {
        loop {
            let exchange = worker.request().await;
            let now = live.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(now, Ordering::SeqCst);
            let live = live.clone();
            tokio::spawn(async move {
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                live.fetch_sub(1, Ordering::SeqCst);
                exchange.answer("200 OK", "{}").await;
            });
        }
    });
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_worker_ever_has_more_than_its_limit_and_every_request_is_served() {
    const LIMIT: usize = 3;
    let (prefills, decodes, balancer) = two_of_each(LIMIT).await;
    let most: Vec<_> = prefills
        .into_iter()
        .chain(decodes)
        .map(serve_slowly)
        .collect();
    let address = balancer.address;
    let clients = (0..40).map(|_| {
        tokio::spawn(async move {
            let mut client = Client::connect(address).await;
            for number in 0..10 {
                client.send(post("/generate", &numbered(number))).await;
                assert_eq!(client.answer().await.status(), 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        soon("every request is served", client).await.unwrap();
    }
    let most: Vec<_> = most
        .iter()
        .map(|most| most.load(Ordering::SeqCst))
        .collect();
    assert!(most.iter().all(|most| *most <= LIMIT), "{most:?}");
    assert!(most.contains(&LIMIT), "{most:?}");
}
