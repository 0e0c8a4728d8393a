//! Faults of a worker, not of one response: health, transfers, memory, and scripts that are set while it runs.

use mini_lb::sim::chaos::Script;
use mini_lb::sim::journal::Violation;
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::json;
use support::sim::{Reply, SimPair, get, open_post, post, quick, send, wait_for};

use crate::chaos::{JSON, body, raw, strikes, struck_by, with};

#[tokio::test]
async fn health_flaps() {
    let options = with("rules: [{match: {path: /health, every: 2}, do: {status: {code: 503}}}]");
    let worker = Worker::start_ordinary(options).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get(&worker, "/health").await.status);
    }
    assert_eq!(statuses, [200, 503, 200, 503]);
    assert_eq!(get(&worker, "/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_zombie_works_on_for_a_client_that_left() {
    let options = SimOptions {
        kv_slots: 1,
        ..with("rules: [{match: {role: decode, times: 1}, do: zombie}]")
    };
    let pair = SimPair::start(options).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let left = open_post(&pair.decode, "/generate", &pair.with_room(&request, 5)).await;
    wait_for(&pair.decode, |event| {
        matches!(event, Event::RoomPresented { .. })
    })
    .await;
    drop(left);
    wait_for(&pair.decode, |event| {
        matches!(event, Event::ConnectionClosed { .. })
    })
    .await;
    assert_eq!(pair.decode.journal().open_rooms(), 1, "the room lives on");
    // Prefill finds the zombie, which serves it.
    let reply = post(&pair.prefill, "/generate", &pair.with_room(&request, 5)).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn a_lost_transfer_is_decodes_500_and_prefill_hears_of_it() {
    let pair = SimPair::start(with("rules: [{match: {role: decode}, do: lose_kv}]")).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let (prefill, decode) = pair.both("/generate", &request, 6).await;
    assert_eq!((prefill.status, decode.status), (500, 500));
    assert!(
        decode.text().contains("Decode transfer failed"),
        "{}",
        decode.text()
    );
    assert_eq!(pair.decode.journal().open_rooms(), 0);
}

#[tokio::test]
async fn a_prefill_that_dies_in_the_transfer_is_missed_by_decode() {
    let options = SimOptions {
        timers_scale: 0.01,
        ..with("rules: [{match: {role: prefill}, do: crash_in_transfer}]")
    };
    let pair = SimPair::start(options).await;
    let request = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let room = pair.with_room(&request, 7);
    let text = room.to_string();
    let (prefill, decode) = tokio::join!(
        send(pair.prefill.address(), "POST", "/generate", JSON, &text),
        post(&pair.decode, "/generate", &room),
    );
    assert!(prefill.is_empty() && pair.prefill.has_crashed());
    assert_eq!(decode.status, 500);
    assert!(
        decode.text().contains("Lost connection with prefill"),
        "{}",
        decode.text()
    );
}

#[tokio::test]
async fn a_worker_out_of_memory_answers_once_and_is_dead() {
    let worker = struck_by("out_of_memory").await;
    let reply = Reply::parse(&raw(&worker, false).await.0);
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (500, "Internal Server Error")
    );
    wait_for(&worker, |event| {
        matches!(event, Event::ConnectionClosed { .. })
    })
    .await;
    assert_eq!(get(&worker, "/health").await.status, 503);
    assert!(worker.has_crashed());
    assert_eq!(
        worker.journal().violations().get(&Violation::DuplicateRoom),
        None
    );
}

#[tokio::test]
async fn a_request_asks_for_its_fault_by_header() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/sim/chaos.yaml");
    let options = SimOptions {
        chaos: Script::load(example).unwrap(),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    for (header, status) in [
        ("", 200),
        ("x-sim-fault: busy\r\n", 503),
        ("x-sim-fault: page\r\n", 502),
        ("x-sim-fault: nothing-of-the-kind\r\n", 200),
    ] {
        let headers = format!("{JSON}{header}");
        let raw = send(
            worker.address(),
            "POST",
            "/generate",
            &headers,
            &body(false),
        )
        .await;
        assert_eq!(Reply::parse(&raw).status, status, "{header}");
    }
    let wanted = [
        (2, "status".to_owned(), "status"),
        (3, "status".to_owned(), "status"),
    ];
    assert_eq!(strikes(&worker), wanted);
}

#[tokio::test]
async fn the_same_seed_strikes_the_same_requests_of_two_workers() {
    let script = "{seed: 11, rules: [{name: coin, match: {path: /v1/models, probability: 0.5}, do: {status: {code: 500}}}]}";
    let mut seen = Vec::new();
    for _ in 0..2 {
        let worker = Worker::start_decode(with(script)).await.unwrap();
        for _ in 0..16 {
            get(&worker, "/v1/models").await;
        }
        seen.push(strikes(&worker));
    }
    assert_eq!(seen[0], seen[1]);
    assert!((1..16).contains(&seen[0].len()), "{:?}", seen[0]);
}

#[tokio::test]
async fn a_running_worker_takes_a_script_and_forgets_it() {
    let options = SimOptions {
        api_key: Some("K".into()),
        ..quick()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let script = async |method: &str, text: &str| {
        Reply::parse(&send(worker.address(), method, "/sim/chaos", "", text).await)
    };
    let rules = r#"{"rules":[{"match":{"path":"/health"},"do":{"status":{"code":418}}}]}"#;
    assert_eq!(script("POST", rules).await.status, 200);
    assert_eq!(get(&worker, "/health").await.status, 418);
    let refused = script("POST", "rules: [{do: explode}]").await;
    assert_eq!(refused.status, 400);
    let message = refused.json()["error"].as_str().unwrap().to_owned();
    assert!(message.contains("unknown variant `explode`"), "{message}");
    assert_eq!(
        get(&worker, "/health").await.status,
        418,
        "a refused script changes nothing"
    );
    assert_eq!(script("DELETE", "").await.status, 200);
    assert_eq!(get(&worker, "/health").await.status, 200);
}
