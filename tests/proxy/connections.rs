//! Connections to the client and to the workers: reuse, closes that cross a request, listening.

use std::collections::HashSet;

use support::pair::serve;
use support::{BODY, Balancer, CHAT, Pair, STREAM, Worker, post};

#[tokio::test]
async fn a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_close() {
    let mut pair = Pair::start().await;
    for (asks, dies) in [
        ("", false),
        ("connection: keep-alive\r\n", false),
        ("", true),
    ] {
        let mut client = pair.balancer.client().await;
        let request = post(CHAT, STREAM).replacen("1.1\r\n", &format!("1.0\r\n{asks}"), 1);
        client.send(request).await;
        let (prefill, mut decode) = pair.next_legs().await;
        prefill.answer("200 OK", "{}").await;
        decode.begin_stream().await;
        decode.chunk("data: 1\n\n").await;
        let head = client.head().await.to_ascii_lowercase();
        assert!(head.contains(" 200 "), "{head}");
        for framing in [
            "transfer-encoding",
            "content-length",
            "connection: keep-alive",
        ] {
            assert!(!head.contains(framing), "{head}");
        }
        if dies {
            drop(decode);
        } else {
            decode.chunk("data: [DONE]\n\n").await;
            decode.chunk("").await;
        }
        let events = String::from_utf8(client.rest().await).unwrap();
        if dies {
            assert!(
                events.starts_with("data: 1\n\nevent: error\ndata: {\"error\""),
                "{events}"
            );
            assert!(events.ends_with("\n\n"), "{events}");
        } else {
            assert_eq!(events, "data: 1\n\ndata: [DONE]\n\n");
        }
    }
}

#[tokio::test]
async fn connections_of_the_client_and_to_both_workers_are_used_again() {
    let mut pair = Pair::start().await;
    let mut rooms = HashSet::new();
    for _ in 0..20 {
        let (prefill, decode) = pair.legs("/generate", BODY).await;
        assert!(rooms.insert(prefill.request.json()["bootstrap_room"].to_string()));
        prefill.answer("200 OK", "{\"a\":1}").await;
        decode.answer("200 OK", "{}").await;
        assert_eq!(pair.client.answer().await.status(), 200);
    }
    // Prefill's connection may not be back in the pool when the next request is sent.
    assert!(
        pair.prefill.connections() <= 5,
        "{}",
        pair.prefill.connections()
    );
    assert_eq!(pair.decode.connections(), 1);
}

#[tokio::test]
async fn a_request_that_meets_a_connection_that_the_worker_has_closed_does_not_fail() {
    let mut pair = Pair::start().await;
    for _ in 0..10 {
        let (mut prefill, mut decode) = pair.legs("/generate", BODY).await;
        // The response keeps the connection open, and then the worker closes it.
        for leg in [&mut prefill, &mut decode] {
            leg.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .await;
        }
        drop((prefill, decode));
        assert_eq!(pair.client.answer().await.status(), 200);
    }
}

#[tokio::test]
async fn a_worker_that_closes_a_used_connection_on_the_next_request_gets_it_again() {
    let mut pair = Pair::start().await;
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    serve((prefill, decode)).await;
    pair.client.answer().await;
    let (prefill, decode) = pair.legs("/generate", BODY).await;
    let first = decode.request.body.clone();
    assert_eq!(
        (pair.prefill.connections(), pair.decode.connections()),
        (1, 1)
    );
    drop((prefill, decode));
    let (prefill, decode) = pair.next_legs().await;
    assert_eq!(decode.request.body, first);
    assert_eq!(prefill.request.body, first);
    serve((prefill, decode)).await;
    assert_eq!(pair.client.answer().await.status(), 200);
}

#[tokio::test]
async fn prefills_answer_is_read_to_its_end_after_decodes() {
    let mut pair = Pair::start().await;
    let (mut prefill, decode) = pair.legs("/generate", BODY).await;
    decode.answer("200 OK", "{}").await;
    assert_eq!(pair.client.answer().await.status(), 200);
    let large = "x".repeat(1 << 20);
    prefill
        .send(format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{large}",
            large.len()
        ))
        .await;
    prefill.keep();
    let (prefill, _decode) = pair.legs("/generate", BODY).await;
    drop(prefill);
    assert!(pair.prefill.connections() <= 2);
}

#[tokio::test]
async fn a_worker_that_refuses_early_and_closes_is_heard() {
    let mut pair = Pair::start().await;
    let (prefill, mut decode) = pair.legs("/generate", BODY).await;
    decode
        .send("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        .await;
    drop(decode);
    assert_eq!(pair.client.answer().await.status(), 413);
    prefill.closed().await;
}

#[tokio::test]
async fn a_busy_port_fails_at_once() {
    let (prefill, decode) = Worker::pair().await;
    let balancer = Balancer::of(&prefill, &decode).await;
    let taken = mini_lb::MiniLbConfig::new(
        "127.0.0.1".into(),
        balancer.address.port(),
        vec![(prefill.url(), None)],
        vec![decode.url()],
        60,
    );
    let error = mini_lb::MiniLoadBalancer::new(taken)
        .unwrap()
        .start()
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("another process listens there"),
        "{error}"
    );
}

#[tokio::test]
async fn several_balancers_live_in_one_process_and_stop_on_their_own() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let (one, two) = (
        Balancer::of(&prefill, &decode).await,
        Balancer::of(&prefill, &decode).await,
    );
    assert_ne!(one.address, two.address);
    one.stop().await;
    let mut client = two.client().await;
    client.send(post("/generate", BODY)).await;
    prefill.request().await.answer("200 OK", "{}").await;
    decode.request().await.answer("200 OK", "{}").await;
    assert_eq!(client.answer().await.status(), 200);
}
