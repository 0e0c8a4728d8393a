//! Clients that leave, requests that are aborted, connections that are closed.

use std::time::Duration;

use mini_lb::sim::journal::{ClosedBy, RoomState, Violation};
use mini_lb::sim::{DisconnectNotice, Event, SimOptions, Worker};
use serde_json::json;
use support::sim::{Reply, SOON, SimPair, get, open, open_post, post, quick, wait_for};
use tokio::io::AsyncReadExt;

use crate::rendezvous::{generate, is_state, wait_for_state};

#[tokio::test]
async fn decodes_disconnect_reaches_prefill_and_prefills_reaches_nobody() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(&generate(2), 21);
    let decode = open_post(&pair.decode, "/generate", &body).await;
    wait_for_state(&pair.decode, RoomState::WaitingForInput).await;
    drop(decode);
    wait_for(
        &pair.prefill,
        |event| matches!(event, Event::AbortByPeer { room } if room == "21"),
    )
    .await;

    let body = pair.with_room(&generate(2), 22);
    let prefill = open_post(&pair.prefill, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::Bootstrapping).await;
    drop(prefill);
    wait_for_state(&pair.prefill, RoomState::Failed).await;
    let _decode = open_post(&pair.decode, "/generate", &body).await;
    let waiting = |seen: &[mini_lb::sim::Entry]| {
        seen.iter()
            .filter(|e| is_state(&e.event, RoomState::WaitingForInput))
            .count()
            == 2
    };
    pair.decode.journal().wait_for(waiting, SOON).await.unwrap();
    assert_eq!(pair.decode.journal().open_rooms(), 1, "decode waits on");
}

#[tokio::test]
async fn prefill_fails_when_decode_leaves_during_the_prompt() {
    let slow = SimOptions {
        time_per_prompt_token: Duration::from_secs(60),
        ..quick()
    };
    let pair = SimPair::start(slow).await;
    let body = pair.with_room(&generate(2), 23);
    let mut prefill = open_post(&pair.prefill, "/generate", &body).await;
    let decode = open_post(&pair.decode, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::WaitingForInput).await;
    drop(decode);
    let mut head = [0; 12];
    prefill.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 500");
}

#[tokio::test]
async fn a_disconnect_is_noticed_late_when_asked_for() {
    // The connection of the prefill leg is closed, but the request runs on: decode still finds it.
    let pair = SimPair::start(SimOptions {
        disconnect: DisconnectNotice::AsSglang,
        ..quick()
    })
    .await;
    let body = pair.with_room(&generate(2), 24);
    let prefill = open_post(&pair.prefill, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::Bootstrapping).await;
    drop(prefill);
    let left = |event: &Event| matches!(event, Event::AbortByDisconnect { .. });
    wait_for(&pair.prefill, left).await;
    assert_eq!(post(&pair.decode, "/generate", &body).await.status, 200);
}

#[tokio::test]
async fn a_stream_that_the_client_leaves_ends_the_request() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_secs(60),
        ..quick()
    };
    let ordinary = Worker::start_ordinary(slow).await.unwrap();
    let mut body = generate(8);
    body["stream"] = json!(true);
    let mut stream = open_post(&ordinary, "/generate", &body).await;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(
        get(&ordinary, "/v1/loads").await.json()["loads"][0]["num_running_reqs"],
        1
    );
    drop(stream);
    let left = |event: &Event| matches!(event, Event::AbortByDisconnect { .. });
    wait_for(&ordinary, left).await;
    // A flush succeeds only when no request runs.
    assert_eq!(
        post(&ordinary, "/flush_cache?timeout=20", &json!({}))
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_keep_alive_time() {
    let options = SimOptions {
        keep_alive: Duration::from_millis(20),
        ..quick()
    };
    let ordinary = Worker::start_ordinary(options).await.unwrap();
    let mut stream = open(ordinary.address(), "GET", "/v1/models", "", "").await;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.unwrap();
    assert_eq!(Reply::parse(&raw).status, 200);
    let closed = |event: &Event| {
        matches!(
            event,
            Event::ConnectionClosed {
                by: ClosedBy::KeepAlive,
                ..
            }
        )
    };
    wait_for(&ordinary, closed).await;
    assert_eq!(
        (
            ordinary.journal().open_connections(),
            ordinary.journal().connections_total()
        ),
        (0, 1)
    );
}

#[tokio::test]
async fn an_abort_by_rid_ends_a_running_request_in_order_and_a_waiting_one_with_500() {
    let slow = SimOptions {
        time_per_output_token: Duration::from_secs(60),
        ..quick()
    };
    let pair = SimPair::start(slow).await;
    let mut body = pair.with_room(&generate(8), 31);
    body["rid"] = json!("running");
    let decode = post(&pair.decode, "/generate", &body);
    let rest = async {
        assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
        wait_for_state(&pair.decode, RoomState::Success).await;
        assert_eq!(
            post(&pair.decode, "/abort_request", &json!({"rid":"runnin"}))
                .await
                .status,
            200
        );
        assert_eq!(
            post(&pair.decode, "/abort_request", &json!({"rid":"running"}))
                .await
                .status,
            200
        );
    };
    let (decode, ()) = tokio::join!(decode, rest);
    let reason = &decode.json()["meta_info"]["finish_reason"];
    assert_eq!(
        *reason,
        json!({"type":"abort","message":"Aborted","status_code":null,"err_type":null})
    );

    let mut body = pair.with_room(&generate(8), 32);
    body["rid"] = json!("waiting");
    let waits = post(&pair.prefill, "/generate", &body);
    let abort = async {
        wait_for(
            &pair.prefill,
            |event| matches!(event, Event::RoomState { room, .. } if room == "32"),
        )
        .await;
        post(&pair.prefill, "/abort_request", &json!({"abort_all":true})).await
    };
    let (failed, aborted) = tokio::join!(waits, abort);
    assert_eq!((failed.status, aborted.status), (500, 200));
    assert!(
        failed.text().contains("Aborted by AbortReq."),
        "{}",
        failed.text()
    );
}

#[tokio::test]
async fn a_live_rid_cannot_be_used_twice() {
    let pair = SimPair::start(quick()).await;
    let mut body = pair.with_room(&generate(8), 41);
    body["rid"] = json!("same");
    let _first = open_post(&pair.prefill, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::Bootstrapping).await;
    body["bootstrap_room"] = json!(42);
    let second = post(&pair.prefill, "/generate", &body).await;
    assert_eq!(second.status, 400);
    assert_eq!(
        second.text(),
        r#"{"error":{"message":"Duplicate request ID detected: same"}}"#
    );
}

#[tokio::test]
async fn a_stopped_worker_leaves_nothing_open() {
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let (address, journal) = (ordinary.address(), ordinary.journal().clone());
    let mut idle = open(address, "GET", "/v1/models", "", "").await;
    let mut head = [0; 12];
    idle.read_exact(&mut head).await.unwrap();
    ordinary.stop().await;
    assert_eq!(journal.open_connections(), 0);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let by_worker = |event: &Event| {
        matches!(
            event,
            Event::ConnectionClosed {
                by: ClosedBy::Worker,
                ..
            }
        )
    };
    assert!(
        journal
            .entries()
            .iter()
            .any(|entry| by_worker(&entry.event))
    );
}

#[tokio::test]
async fn a_chunked_request_is_served_and_noted() {
    use tokio::io::AsyncWriteExt;
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(ordinary.address())
        .await
        .unwrap();
    let body = r#"{"text":"a","sampling_params":{"max_new_tokens":1}}"#;
    let request = format!(
        "POST /generate HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(
        ordinary.journal().violations()[&Violation::ChunkedRequestBody],
        1
    );
}
