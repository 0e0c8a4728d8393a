//! Limits for clients: connections, heads, bodies and requests, in number, size and time.

use std::time::Duration;

use support::pair::serve;
use support::{BODY, Client, Pair, post};

use crate::counted::{Counted, generate};

#[tokio::test]
async fn a_head_that_is_too_large_is_told_so() {
    let counted = Counted::start().await;
    for (what, lines) in [
        ("bytes", format!("x-a: {}\r\n", "a".repeat(33 << 10))),
        ("fields", "x-a: b\r\n".repeat(101)),
    ] {
        let mut client = counted.balancer.client().await;
        client
            .send(generate(&format!("{lines}content-length: 12\r\n"), BODY))
            .await;
        let answer = client.answer().await;
        assert_eq!(answer.status(), 431, "{what}");
        let code = answer.header("x-mini-lb-error");
        assert_eq!(code, Some("request_head_too_large"), "{what}");
        assert!(client.rest().await.is_empty(), "{what}");
    }
    counted.settle().await;
}

/// Short enough to wait for, and long enough to send a request on a busy machine.
const SHORT: Duration = Duration::from_millis(500);

#[tokio::test]
async fn a_connection_that_does_not_ask_in_time_is_closed() {
    let counted = Counted::with(|config| config.head_timeout(SHORT)).await;
    for what in ["", "POST /generate HTTP/1.1\r\nhost: balan"] {
        let mut client = counted.balancer.client().await;
        client.send(what).await;
        assert!(client.rest().await.is_empty(), "{what}");
    }
    counted.settle().await;
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_has_one_deadline() {
    let counted = Counted::with(|config| config.head_timeout(SHORT)).await;
    let mut client = counted.balancer.client().await;
    client.send("GET /health HTTP/1.1\r\nx: ").await;
    let mut sent = 0;
    // Never silent for as long as the deadline, and never complete.
    let closed = loop {
        match client.rest_within(SHORT / 20).await {
            Some(rest) => break rest,
            None => client.send("a").await,
        }
        sent += 1;
    };
    assert!(closed.is_empty() && sent > 1, "{sent}");
    counted.settle().await;
}

#[tokio::test]
async fn half_a_head_on_a_used_connection_has_the_same_deadline() {
    let mut counted = Counted::with(|config| config.head_timeout(SHORT)).await;
    let request = post("/generate", BODY);
    let half = &request[..30];
    // After a response, and together with the previous request.
    let mut used = counted.accepts("the first", request.as_bytes(), 1).await;
    used.send(half).await;
    let both = format!("{request}{half}");
    let mut along = counted
        .accepts("with half a head behind it", both.as_bytes(), 1)
        .await;
    for client in [&mut used, &mut along] {
        assert!(client.rest().await.is_empty());
    }
    // A whole head in two pieces is accepted.
    let mut client = counted.accepts("the first", request.as_bytes(), 1).await;
    for piece in [half, &request[30..]] {
        client.send(piece).await;
    }
    assert_eq!(client.answer().await.status(), 200);
    counted.accepted += 1;
    counted.settle().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_between_two_requests_and_not_within_one() {
    let mut counted = Counted::with(|config| config.client_idle_timeout(SHORT)).await;
    let request = post("/generate", BODY);
    let mut idle = counted.accepts("the first", request.as_bytes(), 1).await;
    // One more request within the time, and then none.
    idle.send(&request).await;
    assert_eq!(idle.answer().await.status(), 200);
    counted.accepted += 1;
    assert!(idle.rest().await.is_empty());
    // In pieces that take longer than the limit altogether: a connection is not idle during a request.
    let mut slow = counted.accepts("the first", request.as_bytes(), 1).await;
    let (last, pieces) = request.as_bytes().split_last().unwrap();
    for piece in pieces.chunks(pieces.len() / 30) {
        slow.send(piece).await;
        assert_eq!(slow.rest_within(SHORT / 20).await, None);
    }
    slow.send([*last]).await;
    assert_eq!(slow.answer().await.status(), 200);
    counted.accepted += 1;
    counted.settle().await;
}

#[tokio::test]
async fn half_a_head_behind_a_chunked_body_stays_no_longer_than_an_idle_connection() {
    let mut counted = Counted::with(|config| config.client_idle_timeout(SHORT)).await;
    let half = &post("/generate", BODY)[..30];
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: balancer\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{BODY}\r\n0\r\n\r\n{half}",
        BODY.len()
    );
    let mut client = counted.accepts("chunked", request.as_bytes(), 1).await;
    assert!(client.rest().await.is_empty());
    counted.settle().await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_deadline_of_a_head() {
    let mut counted = Counted::with(|config| config.head_timeout(SHORT)).await;
    let request = post("/generate", BODY);
    let mut idle = counted.accepts("the first", request.as_bytes(), 1).await;
    // This connection is closed after the time for which the other one has been idle.
    let mut silent = counted.balancer.client().await;
    assert!(silent.rest().await.is_empty());
    idle.send(&request).await;
    assert_eq!(idle.answer().await.status(), 200);
    counted.accepted += 1;
    counted.settle().await;
}

/// Connections beyond the limit that get one response.
const SPARE: usize = 16;

#[tokio::test]
async fn beyond_the_limit_of_connections_only_health_is_answered_and_then_nothing() {
    let mut counted = Counted::with(|config| config.max_connections(1)).await;
    let request = post("/generate", BODY);
    let mut inside = counted.accepts("the only one", request.as_bytes(), 1).await;
    let health = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    for (what, bytes, status) in [("health", health, 200), ("legs", &request, 503)] {
        let mut spare = counted.balancer.client().await;
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
        spare.push(counted.balancer.client().await);
    }
    let mut refused = counted.balancer.client().await;
    assert!(refused.rest().await.is_empty());
    drop(spare);
    inside.send(&request).await;
    assert_eq!(inside.answer().await.status(), 200);
    drop(inside);
    // Its place is free once the balancer has seen the close.
    let mut client = loop {
        let mut client = counted.balancer.client().await;
        client.send(health).await;
        let head = client.try_answer().await.map(|answer| answer.head);
        if head.is_some_and(|head| head.contains("keep-alive")) {
            break client;
        }
    };
    client.send(&request).await;
    assert_eq!(client.answer().await.status(), 200);
    drop(client);
    counted.accepted += 2;
    counted.has_sent_no_more();
}

#[tokio::test]
async fn one_address_cannot_take_more_connections_than_it_may_have() {
    let mut counted = Counted::with(|config| config.max_connections_per_ip(2)).await;
    let request = post("/generate", BODY);
    let mut inside = Vec::new();
    for _ in 0..2 {
        inside.push(counted.accepts("within", request.as_bytes(), 1).await);
    }
    let mut refused = counted.balancer.client().await;
    assert!(refused.rest().await.is_empty());
    // Another address of this machine.
    let mut other = Client::connect_from([127, 0, 0, 2], counted.balancer.address).await;
    other.send(&request).await;
    assert_eq!(other.answer().await.status(), 200);
    counted.accepted += 1;
    counted.has_sent_no_more();
}

#[tokio::test]
async fn a_running_answer_is_not_bound_by_the_deadline_of_its_head() {
    let mut pair = Pair::with(|config| config.head_timeout(SHORT)).await;
    let (mut client, mut silent) = (pair.balancer.client().await, pair.balancer.client().await);
    client.send(post("/generate", BODY)).await;
    let (first, second) = pair.next_legs().await;
    // An older connection is closed, so the deadline has passed.
    assert!(silent.rest().await.is_empty());
    serve((first, second)).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_refused() {
    let counted = Counted::with(|config| config.body_timeout(SHORT)).await;
    for (what, lines, behind) in [
        ("a length", "content-length: 12\r\n", "{\"te"),
        ("chunks", "transfer-encoding: chunked\r\n", "4\r\n{\"te\r\n"),
    ] {
        let mut client = counted.balancer.client().await;
        client.send(generate(lines, behind)).await;
        let answer = client.answer().await;
        assert_eq!(answer.outcome(), (408, Some("body_timeout")), "{what}");
        assert!(client.rest().await.is_empty(), "{what}");
    }
    counted.settle().await;
}

#[tokio::test]
async fn more_requests_than_allowed_are_told_to_come_again() {
    let mut pair = Pair::with(|config| config.max_inflight_requests(1)).await;
    let (mut first, mut second) = (pair.balancer.client().await, pair.balancer.client().await);
    first.send(post("/generate", BODY)).await;
    let (one, two) = pair.next_legs().await;
    // The balancer does not wait for its body.
    second.send(generate("content-length: 12\r\n", "")).await;
    let answer = second.answer().await;
    assert_eq!(answer.outcome(), (503, Some("overloaded")));
    assert!(answer.header("retry-after").is_some());
    assert!(second.rest().await.is_empty());
    let mut probe = pair.balancer.client().await;
    probe.send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(probe.answer().await.status(), 200);
    serve((one, two)).await;
    assert_eq!(first.answer().await.status(), 200);
    first.send(post("/generate", BODY)).await;
    assert!(!pair.prefill.request().await.request.body.is_empty());
}

#[tokio::test]
async fn bodies_share_their_memory_and_give_it_back() {
    let mut pair = Pair::with(|config| config.max_buffered_body_bytes(20)).await;
    let mut first = pair.balancer.client().await;
    first.send(post("/generate", BODY)).await;
    let (one, two) = pair.next_legs().await;
    let chunks = generate(
        "transfer-encoding: chunked\r\n",
        &format!("c\r\n{BODY}\r\n0\r\n\r\n"),
    );
    for bytes in [post("/generate", BODY).into_bytes(), chunks] {
        let mut second = pair.balancer.client().await;
        second.send(bytes).await;
        let answer = second.answer().await;
        assert_eq!(answer.outcome(), (503, Some("overloaded")));
    }
    serve((one, two)).await;
    assert_eq!(first.answer().await.status(), 200);
    first.send(post("/generate", BODY)).await;
    assert!(!pair.prefill.request().await.request.body.is_empty());
}
