//! Retries: which failures are tried again with another pair, and which are not.

use std::sync::atomic::Ordering;
use std::time::Instant;

use mini_lb::pd::Role;
use support::pair::{ROLES, leg_of};
use support::{BODY, Balancer, CHAT, Exchange, STREAM, TwoPairs, Worker, config, post};

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
        for role in ROLES {
            let mut pairs = TwoPairs::with(|config| config).await;
            pairs.client.send(post("/generate", BODY)).await;
            let ((full_prefill, prefill), (full_decode, decode)) = pairs.next_legs().await;
            assert_eq!(prefill.request.body, decode.request.body);
            let first = rendezvous(&prefill);
            let (full, other) = leg_of(role, (prefill, decode));
            full.answer(status, "{}").await;
            other.closed().await;
            let ((place, prefill), (decode_place, decode)) = pairs.next_legs().await;
            let second = rendezvous(&prefill);
            assert_eq!(prefill.request.body, decode.request.body);
            assert_ne!(first.0, second.0, "a room is used once");
            assert_ne!(first.1, second.1, "an id is used once");
            match role {
                Role::Prefill => assert_ne!(place, full_prefill),
                Role::Decode => assert_ne!(decode_place, full_decode),
            }
            prefill.answer("200 OK", "{}").await;
            decode.answer("200 OK", "{\"served\":2}").await;
            let answer = pairs.client.answer().await;
            assert_eq!((answer.status(), answer.text()), (200, "{\"served\":2}"));
        }
    }
}

#[tokio::test]
async fn a_second_refusal_is_passed_on_unchanged() {
    let mut pairs = TwoPairs::with(|config| config).await;
    pairs.client.send(post("/generate", BODY)).await;
    for _ in 0..2 {
        let ((_, _prefill), (_, decode)) = pairs.next_legs().await;
        decode
            .answer("503 Service Unavailable", "{\"full\" : true}")
            .await;
    }
    let answer = pairs.client.answer().await;
    assert_eq!((answer.status(), answer.text()), (503, "{\"full\" : true}"));
}

#[tokio::test]
async fn what_would_fail_again_or_was_computed_is_not_tried_again() {
    for status in [
        "400 Bad Request",
        "413 Too Large",
        "500 Internal Server Error",
    ] {
        let mut pairs = TwoPairs::with(|config| config).await;
        pairs.client.send(post("/generate", BODY)).await;
        let ((_, prefill), (_, decode)) = pairs.next_legs().await;
        prefill.answer(status, "{\"no\":1}").await;
        assert_eq!(
            pairs.client.answer().await.status().to_string(),
            status[..3]
        );
        decode.closed().await;
        // The legs of another attempt would have been sent before the response.
        assert!(no_more_legs(&mut pairs).await);
    }
}

/// Whether the workers have no requests other than aborts.
async fn no_more_legs(pairs: &mut TwoPairs) -> bool {
    for worker in pairs.prefills.iter_mut().chain(&mut pairs.decodes) {
        while worker.has_request() {
            let exchange = worker.request().await;
            if !exchange.request.head.contains("/abort_request") {
                return false;
            }
        }
    }
    true
}

#[tokio::test]
async fn a_leg_that_is_lost_before_its_answer_is_tried_again_and_after_the_first_byte_not() {
    let mut pairs = TwoPairs::with(|config| config).await;
    pairs.client.send(post(CHAT, STREAM)).await;
    let ((_, prefill), (_, decode)) = pairs.next_legs().await;
    decode.reset();
    prefill.closed().await;
    let ((_, _prefill), (_, mut decode)) = pairs.next_legs().await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pairs.client.head().await;
    assert_eq!(
        pairs.client.chunk().await.as_deref(),
        Some("data: {\"a\":1}\n\n")
    );
    decode.reset();
    assert!(
        pairs
            .client
            .chunk()
            .await
            .unwrap()
            .starts_with("event: error\ndata: {\"error\"")
    );
    assert!(no_more_legs(&mut pairs).await);
}

#[tokio::test]
async fn a_request_with_an_id_of_its_own_is_tried_again_only_where_nobody_has_seen_it() {
    let mut pairs = TwoPairs::with(|config| config).await;
    pairs
        .client
        .send(post("/generate", r#"{"rid":"mine"}"#))
        .await;
    let ((_, prefill), (_, decode)) = pairs.next_legs().await;
    assert_eq!(rendezvous(&prefill).1, "\"mine\"");
    decode.answer("503 Service Unavailable", "{}").await;
    assert_eq!(pairs.client.answer().await.status(), 503);
    prefill.closed().await;
    assert!(no_more_legs(&mut pairs).await);
}

#[tokio::test]
async fn one_of_two_that_refuses_connections_fails_no_request() {
    let (prefill, decode) = Worker::pair().await;
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

#[tokio::test]
async fn a_full_outage_of_a_role_is_not_multiplied_by_retries() {
    const REQUESTS: usize = 200;
    let pairs = TwoPairs::with(|config| config).await;
    let begun = Instant::now();
    for prefill in pairs.prefills {
        prefill.serve("200 OK", "{}");
    }
    let legs = pairs
        .decodes
        .map(|decode| decode.serve("503 Service Unavailable", "{}"));
    let mut client = pairs.client;
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
