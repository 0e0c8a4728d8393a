//! Connections to the client and to the workers: reuse, closes that cross a request, listening.

use std::collections::HashSet;

use mini_lb::pd::Role;
use support::pair::{ROLES, leg_of, serve};
use support::{BODY, Balancer, CHAT, Exchange, Pair, STREAM, Worker, config, post};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_stream_to_a_client_of_http_1_0_has_no_chunks_and_ends_with_the_close() {
    if support::bridge::is_asked_for() {
        return; // needs a client of HTTP/1.1
    }
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

/// What a worker must not get twice.
fn rendezvous(exchange: &Exchange) -> [String; 2] {
    let body = exchange.request.json();
    ["bootstrap_room", "rid"].map(|key| body[key].to_string())
}

/// The next legs, and not the aborts of those before.
async fn legs_after_aborts(pair: &mut Pair) -> (Exchange, Exchange) {
    let prefill = leg_after_aborts(&mut pair.prefill).await;
    (prefill, leg_after_aborts(&mut pair.decode).await)
}

async fn leg_after_aborts(worker: &mut Worker) -> Exchange {
    loop {
        let exchange = worker.request().await;
        if !exchange.request.head.contains("/abort_request") {
            return exchange;
        }
        exchange.answer("200 OK", "").await;
    }
}

#[tokio::test]
async fn a_worker_that_closes_a_used_connection_gets_the_request_again_with_another_room() {
    for role in ROLES {
        let mut pair = Pair::start().await;
        let legs = pair.legs("/generate", BODY).await;
        serve(legs).await;
        pair.client.answer().await;
        let (prefill, decode) = pair.legs("/generate", BODY).await;
        assert_eq!(
            (pair.prefill.connections(), pair.decode.connections()),
            (1, 1)
        );
        let first = rendezvous(&decode);
        assert_eq!(rendezvous(&prefill), first);
        let (closes, other) = leg_of(role, (prefill, decode));
        drop(closes);
        other.closed().await;
        let (prefill, decode) = legs_after_aborts(&mut pair).await;
        let second = rendezvous(&decode);
        assert_eq!(rendezvous(&prefill), second, "{role}");
        assert!(first[0] != second[0] && first[1] != second[1], "{role}");
        serve((prefill, decode)).await;
        assert_eq!(pair.client.answer().await.status(), 200, "{role}");
    }
}

#[tokio::test]
async fn a_worker_that_also_closes_a_new_connection_is_lost_with_the_request() {
    for role in ROLES {
        let mut pair = Pair::start().await;
        let legs = pair.legs("/generate", BODY).await;
        serve(legs).await;
        pair.client.answer().await;
        let legs = pair.legs("/generate", BODY).await;
        drop(leg_of(role, legs).0);
        let legs = legs_after_aborts(&mut pair).await;
        drop(leg_of(role, legs).0);
        pair.bad_gateway("closed twice", &format!("{role}_lost"))
            .await;
    }
}

#[tokio::test]
async fn a_request_with_an_id_of_the_clients_does_not_reach_a_worker_twice() {
    const OWN: &str = r#"{"text":"a","rid":"mine"}"#;
    for role in ROLES {
        let mut pair = Pair::start().await;
        let legs = pair.legs("/generate", BODY).await;
        serve(legs).await;
        pair.client.answer().await;
        let legs = pair.legs("/generate", OWN).await;
        drop(leg_of(role, legs).0);
        pair.bad_gateway("closed", &format!("{role}_lost")).await;
    }
}

#[tokio::test]
async fn a_worker_that_closes_all_used_connections_gets_each_request_once_more() {
    const CLIENTS: usize = 8;
    let mut pair = Pair::start().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(pair.balancer.client().await);
    }
    let mut rooms = HashSet::new();
    for round in ["opens", "uses", "again"] {
        if round != "again" {
            for client in &mut clients {
                client.send(post("/generate", BODY)).await;
            }
        }
        let mut legs = Vec::new();
        for _ in 0..CLIENTS {
            let (prefill, decode) = legs_after_aborts(&mut pair).await;
            assert!(
                rooms.insert((0, rendezvous(&prefill)[0].clone())),
                "{round}"
            );
            assert!(rooms.insert((1, rendezvous(&decode)[0].clone())), "{round}");
            legs.push((prefill, decode));
        }
        // In the second round all connections have been used, and are closed.
        if round != "uses" {
            for legs in legs {
                serve(legs).await;
            }
            for client in &mut clients {
                assert_eq!(client.answer().await.status(), 200, "{round}");
            }
        }
    }
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

/// A worker that answers after the head of its first request, and reads nothing of the body.
async fn refusing_unread(listener: TcpListener, answer: &str) -> TcpStream {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_worker_that_refuses_a_body_which_it_does_not_read_is_heard_at_once() {
    // More than all buffers between the balancer and the worker hold.
    let body = format!(r#"{{"text":"{}"}}"#, "x".repeat(16 << 20));
    let refusal = "HTTP/1.1 413 Too Large\r\ncontent-length: 12\r\n\r\n{\"long\":\"b\"}";
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    for role in ROLES {
        for answer in [refusal.to_owned(), format!("{hints}{refusal}")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let refusing = format!("http://{}", listener.local_addr().unwrap());
            let other = Worker::listen().await;
            let (prefill, decode) = match role {
                Role::Prefill => (refusing, other.url()),
                Role::Decode => (other.url(), refusing),
            };
            let balancer = Balancer::start(config(&[prefill], &[decode])).await;
            let mut client = balancer.client().await;
            let request = post("/generate", &body);
            let (_open, ()) =
                tokio::join!(refusing_unread(listener, &answer), client.send(request));
            let answer = client.answer().await;
            assert_eq!(
                (answer.status(), answer.text()),
                (413, "{\"long\":\"b\"}"),
                "{role}"
            );
        }
    }
}
