//! Deadlines: connections that are not accepted, first events that are late, streams that stall.

use std::time::Duration;

use mini_lb::pd::Role;
use support::pair::ROLES;
use support::{BODY, Balancer, CHAT, Client, Exchange, Pair, STREAM, Worker, config, post};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// An address that neither accepts nor refuses connections while the sockets live: the accept queue is
/// full.
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
    for role in ROLES {
        let mut there = Worker::listen().await;
        let urls = match role {
            Role::Prefill => [gone.clone(), there.url()],
            Role::Decode => [there.url(), gone.clone()],
        };
        let [prefill, decode] = urls.map(|url| vec![url]);
        let alone = config(&prefill, &decode).connect_timeout(SHORT);
        let balancer = Balancer::start(alone).await;
        let mut client = balancer.client().await;
        client.send(post("/generate", BODY)).await;
        let answer = client.answer().await;
        let code = format!("{role}_connect_timeout");
        assert_eq!(answer.outcome(), (504, Some(code.as_str())));
        // Prefill's leg is sent first; decode's has arrived when prefill's deadline passes.
        there.request().await.closed().await;

        let (one, two) = Worker::pair().await;
        let pools = match role {
            Role::Prefill => [vec![gone.clone(), one.url()], vec![two.url()]],
            Role::Decode => [vec![one.url()], vec![gone.clone(), two.url()]],
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

const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_stream_whose_first_token_is_late_is_a_504_that_names_the_deadline() {
    let mut pair = Pair::with(|c| c.first_token_timeout(SHORT)).await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (504, Some("first_token_timeout")));
    let why = "(first_token_timeout_secs): prefill had not responded either";
    assert!(answer.text().contains(why), "{answer:?}");
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_that_stalls_ends_with_an_error_event_that_names_the_deadline() {
    let mut pair = Pair::with(|c| c.stream_idle_timeout(SHORT)).await;
    let (prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    decode.chunk("data: {\"a\":1}\n\n").await;
    pair.client.head().await;
    assert_eq!(
        pair.client.chunk().await.as_deref(),
        Some("data: {\"a\":1}\n\n")
    );
    let event = pair.client.chunk().await.unwrap();
    assert!(event.contains("stream_idle_timeout_secs"), "{event}");
    assert_eq!(pair.client.chunk().await, None);
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_has_a_deadline_of_its_own() {
    let mut pair = Pair::with(|c| {
        c.request_timeout(SHORT)
            .first_token_timeout(Duration::from_millis(1))
    })
    .await;
    let (prefill, decode) = pair.legs(CHAT, BODY).await;
    let answer = pair.client.answer().await;
    assert_eq!(answer.outcome(), (504, Some("request_timeout")));
    let why = "not complete within 0.05 s (request_timeout_secs): prefill had not responded either";
    assert!(answer.text().contains(why), "{answer:?}");
    prefill.closed().await;
    decode.closed().await;
}

#[tokio::test]
async fn a_stream_is_cut_by_the_total_only_where_that_is_set() {
    let mut pair = Pair::with(|c| {
        c.request_timeout(Duration::from_millis(1))
            .stream_timeout(SHORT)
    })
    .await;
    let (_prefill, mut decode) = pair.legs(CHAT, STREAM).await;
    decode.begin_stream().await;
    client_sees_request_timeout(&mut pair.client, &mut decode).await;
    decode.closed().await;
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
