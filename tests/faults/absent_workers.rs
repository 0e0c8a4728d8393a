//! Workers that are absent, have names without an address, or do not respond to probes.

use std::time::Duration;

use support::pair::serve;
use support::{BODY, Balancer, Client, Exchange, Pair, Worker, config, post, soon};

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
    let probed = async {
        loop {
            let probe = prefill.request().await;
            assert!(is_probe(&probe), "{}", probe.request.head);
            probe.answer("200 OK", "").await;
        }
    };
    tokio::select! {
        () = probed => {}
        () = readiness(&mut client, 200) => {}
    }
}

#[tokio::test]
async fn the_error_of_a_worker_that_refuses_connections_has_the_reason_of_the_system() {
    let (absent, decode) = (Worker::refusing().await, Worker::listen().await);
    let balancer = Balancer::start(config(&[absent], &[decode.url()])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.outcome(), (502, Some("prefill_unreachable")));
    assert!(answer.text().contains("Connection refused"), "{answer:?}");
}

#[tokio::test]
async fn a_name_that_is_not_found_keeps_nobody_from_starting_and_nothing_is_sent_for_it() {
    let decode = Worker::listen().await;
    // Source: RFC 6761, section 6.4: no resolver knows such a name.
    let nowhere = "http://prefill.invalid:1".to_owned();
    let balancer = Balancer::start(config(&[nowhere], &[decode.url()])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let answer = client.answer().await;
    assert_eq!(answer.outcome(), (503, Some("no_prefill")));
    assert!(answer.header("retry-after").is_some());
    // No leg was sent, so the connection stays open.
    assert_ne!(answer.header("connection"), Some("close"));
    readiness(&mut client, 503).await;
    assert!(!decode.has_request());
}

#[tokio::test]
async fn a_name_is_as_good_as_an_address() {
    let (mut prefill, mut decode) = Worker::pair().await;
    let named = |worker: &Worker| format!("http://localhost:{}", worker.address.port());
    let balancer = Balancer::start(config(&[named(&prefill)], &[named(&decode)])).await;
    let mut client = balancer.client().await;
    client.send(post("/generate", BODY)).await;
    let legs = (prefill.request().await, decode.request().await);
    let host = format!("localhost:{}", decode.address.port());
    assert_eq!(legs.1.request.header("host"), Some(host.as_str()));
    serve(legs).await;
    assert_eq!(client.answer().await.status(), 200);
}

#[tokio::test]
async fn a_worker_whose_probes_hang_stays_while_it_answers_requests() {
    let mut pair = Pair::with(|config| {
        config
            .health_check_interval(Some(Duration::from_millis(1)))
            .health_check_timeout(Duration::from_millis(1))
    })
    .await;
    // Neither worker answers a probe.
    for worker in [&mut pair.prefill, &mut pair.decode] {
        for _ in 0..20 {
            let probe = worker.request().await;
            assert!(is_probe(&probe), "{}", probe.request.head);
        }
    }
    readiness(&mut pair.client, 200).await;
    pair.client.send(post("/generate", BODY)).await;
    for worker in [&mut pair.prefill, &mut pair.decode] {
        loop {
            let exchange = worker.request().await;
            if exchange.request.head.starts_with("POST /generate ") {
                exchange.answer("200 OK", "{}").await;
                break;
            }
        }
    }
    assert_eq!(pair.client.answer().await.status(), 200);
    readiness(&mut pair.client, 200).await;
}

/// A worker is asked for its health, for its role and for its ranks.
fn is_probe(exchange: &Exchange) -> bool {
    ["GET /health ", "GET /model_info ", "GET /server_info "]
        .iter()
        .any(|line| exchange.request.head.starts_with(line))
}

/// Requests `/readiness` until it has this status.
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
