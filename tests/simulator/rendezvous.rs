//! The rendezvous of simulated workers: by room, over TCP, in any order, with the failures of SGLang 0.5.23.

use std::time::Duration;

use mini_lb::sim::cli::demo_workers;
use mini_lb::sim::journal::{RoomState, Violation};
use mini_lb::sim::{Event, SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{SimPair, get, open_post, post, quick, wait_for};
use tokio::io::AsyncReadExt;

pub(crate) fn generate(tokens: usize) -> Value {
    json!({"text":"This program is free software; you can redistribute it",
        "sampling_params":{"temperature":0,"max_new_tokens":tokens,"ignore_eos":true}})
}

pub(crate) fn is_state(event: &Event, wanted: RoomState) -> bool {
    matches!(event, Event::RoomState { state, .. } if *state == wanted)
}

#[tokio::test]
async fn both_legs_together_give_the_ordinary_workers_answer() {
    let pair = SimPair::start(quick()).await;
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let (prefill, decode) = pair.both("/generate", &generate(8), 7).await;
    let alone = post(&ordinary, "/generate", &generate(8)).await;
    let (prefill, decode, alone) = (prefill.json(), decode.json(), alone.json());
    assert_eq!(decode["text"], alone["text"]);
    assert_eq!(decode["output_ids"], alone["output_ids"]);
    assert_eq!(prefill["output_ids"][0], decode["output_ids"][0]);
    assert_eq!(
        prefill["meta_info"]["finish_reason"],
        json!({"type":"length","length":0})
    );
    assert_eq!(
        pair.prefill.journal().open_rooms() + pair.decode.journal().open_rooms(),
        0
    );
}

#[tokio::test]
async fn prefill_answers_only_after_decode_came() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(&generate(4), 11);
    let mut prefill = open_post(&pair.prefill, "/generate", &body).await;
    let journal = pair.prefill.journal();
    wait_for_state(&pair.prefill, RoomState::Bootstrapping).await;
    let early = journal
        .entries()
        .iter()
        .any(|e| matches!(e.event, Event::ResponseHead { .. }));
    assert!(!early, "prefill answered alone");
    assert_eq!(post(&pair.decode, "/generate", &body).await.status, 200);
    let mut first = [0; 12];
    prefill.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}

#[tokio::test]
async fn decode_waits_for_a_prefill_that_comes_later() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(&generate(4), 12);
    let mut decode = open_post(&pair.decode, "/generate", &body).await;
    wait_for_state(&pair.decode, RoomState::WaitingForInput).await;
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    let mut first = [0; 12];
    decode.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_scalar_room_counts_up_over_a_batch_and_lists_are_taken_as_they_are() {
    let pair = SimPair::start(quick()).await;
    let mut body = pair.with_room(&generate(3), 500);
    body["text"] = json!(["one", "two", "three"]);
    let mut lists = body.clone();
    lists["bootstrap_host"] = json!(["127.0.0.1", "127.0.0.1", "127.0.0.1"]);
    lists["bootstrap_port"] = json!([
        pair.prefill.bootstrap_port(),
        pair.prefill.bootstrap_port(),
        pair.prefill.bootstrap_port()
    ]);
    lists["bootstrap_room"] = json!([9, 9223372036854775807u64, 4]);
    for body in [body, lists] {
        let (prefill, decode) = tokio::join!(
            post(&pair.prefill, "/generate", &body),
            post(&pair.decode, "/generate", &body)
        );
        assert_eq!(
            (
                prefill.json().as_array().unwrap().len(),
                decode.json().as_array().unwrap().len()
            ),
            (3, 3)
        );
    }
    let rooms: Vec<String> = pair
        .decode
        .journal()
        .entries()
        .into_iter()
        .filter_map(|entry| match entry.event {
            Event::RoomPresented { room, .. } => Some(room),
            _ => None,
        })
        .collect();
    assert_eq!(
        rooms,
        ["500", "501", "502", "9", "9223372036854775807", "4"]
    );
}

#[tokio::test]
async fn a_room_can_be_used_again_after_its_end() {
    let pair = SimPair::start(quick()).await;
    for _ in 0..3 {
        let (prefill, decode) = pair.both("/generate", &generate(2), 8051).await;
        assert_eq!((prefill.status, decode.status), (200, 200));
    }
    assert!(pair.prefill.journal().violations().is_empty());
}

#[tokio::test]
async fn a_room_that_is_live_is_refused_and_noted_and_its_first_request_goes_on() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(&generate(2), 67);
    let mut first = open_post(&pair.prefill, "/generate", &body).await;
    wait_for_state(&pair.prefill, RoomState::Bootstrapping).await;
    let second = post(&pair.prefill, "/generate", &body).await;
    assert_eq!(second.status, 500);
    assert!(
        second.text().contains("Duplicate or cancelled"),
        "{}",
        second.text()
    );
    assert_eq!(post(&pair.decode, "/generate", &body).await.status, 200);
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(get(&pair.prefill, "/health").await.status, 200);
    let journal = get(&pair.prefill, "/sim/journal").await.json();
    assert_eq!(journal["violations"], json!({"duplicate_room":1}));
}

#[tokio::test]
async fn a_room_of_two_decodes_is_refused_to_one_of_them_and_noted_by_prefill() {
    let pair = SimPair::start(quick()).await;
    let other = Worker::start_decode(quick()).await.unwrap();
    let body = pair.with_room(&generate(2), 68);
    let mut decodes = [
        open_post(&pair.decode, "/generate", &body).await,
        open_post(&other, "/generate", &body).await,
    ];
    let noted = |event: &Event| {
        matches!(
            event,
            Event::Violation {
                rule: Violation::DuplicateRoom,
                ..
            }
        )
    };
    wait_for(&pair.prefill, noted).await;
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    let mut heads = Vec::new();
    for decode in &mut decodes {
        let mut head = [0; 12];
        decode.read_exact(&mut head).await.unwrap();
        heads.push(head);
    }
    heads.sort_unstable();
    assert_eq!(heads, [*b"HTTP/1.1 200", *b"HTTP/1.1 500"]);
}

#[tokio::test]
async fn a_request_that_breaks_a_rule_of_the_rendezvous_is_refused_and_noted() {
    let pair = SimPair::start(quick()).await;
    let mut samples = pair.with_room(&generate(4), 61);
    samples["sampling_params"]["n"] = json!(2);
    let mut no_host = pair.with_room(&generate(4), 62);
    no_host["bootstrap_host"] = Value::Null;
    let room_zero = pair.with_room(&generate(4), 0);
    for (worker, body, words, rule) in [
        (
            &pair.prefill,
            &samples,
            "n must be 1",
            Violation::SharedRoom,
        ),
        (&pair.decode, &samples, "n must be 1", Violation::SharedRoom),
        (
            &pair.prefill,
            &room_zero,
            "bootstrap_room",
            Violation::ReservedRoom,
        ),
        (
            &pair.decode,
            &room_zero,
            "bootstrap_room",
            Violation::ReservedRoom,
        ),
        (
            &pair.decode,
            &no_host,
            "bootstrap_host",
            Violation::NullBootstrapHost,
        ),
    ] {
        worker.journal().clear();
        let refused = post(worker, "/generate", body).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains(words), "{}", refused.text());
        let noted = worker.journal().violations();
        assert_eq!(noted.into_iter().collect::<Vec<_>>(), [(rule, 1)]);
        assert_eq!(get(worker, "/health").await.status, 200);
    }
    let ordinary = Worker::start_ordinary(quick()).await.unwrap();
    let both = post(&ordinary, "/generate", &samples).await.json();
    assert_eq!(both.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_leg_whose_other_leg_does_not_come_fails_in_time() {
    let pair = SimPair::start(SimOptions {
        timers_scale: 0.001,
        ..quick()
    })
    .await;
    let body = pair.with_room(&generate(2), 63);
    for (worker, state) in [
        (&pair.prefill, "KVPoll.Bootstrapping"),
        (&pair.decode, "KVPoll.WaitingForInput"),
    ] {
        let failed = post(worker, "/generate", &body).await;
        assert_eq!(failed.status, 500);
        let text = failed.text();
        assert!(
            text.contains("timed out after 0.3s") && text.contains(state),
            "{text}"
        );
    }
}

#[tokio::test]
async fn requests_without_a_kv_slot_wait_before_the_rendezvous() {
    let one = SimOptions {
        kv_slots: 1,
        time_per_output_token: Duration::from_secs(60),
        ..quick()
    };
    let pair = SimPair::start(one).await;
    let first = pair.with_room(&generate(8), 51);
    let holder = open_post(&pair.decode, "/generate", &first).await;
    assert_eq!(post(&pair.prefill, "/generate", &first).await.status, 200);
    let second = pair.with_room(&generate(1), 52);
    let mut queued = open_post(&pair.decode, "/generate", &second).await;
    let mut prefill = open_post(&pair.prefill, "/generate", &second).await;
    for worker in [&pair.decode, &pair.prefill] {
        wait_for(
            worker,
            |event| matches!(event, Event::RoomState { room, .. } if room == "52"),
        )
        .await;
    }
    let met = pair.prefill.journal().entries().iter().any(|e| {
        matches!(&e.event, Event::RoomState { room, state: RoomState::WaitingForInput } if room == "52")
    });
    assert!(!met, "decode presented a room without memory for it");
    drop(holder);
    let mut head = [0; 12];
    queued.read_exact(&mut head).await.unwrap();
    prefill.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}

#[tokio::test]
async fn legs_with_different_prompts_are_noticed() {
    let pair = SimPair::start(quick()).await;
    let body = pair.with_room(&generate(2), 71);
    let mut other = body.clone();
    other["text"] = json!("something else");
    let (prefill, decode) = tokio::join!(
        post(&pair.prefill, "/generate", &body),
        post(&pair.decode, "/generate", &other)
    );
    assert_eq!(
        prefill.json()["output_ids"][0],
        decode.json()["output_ids"][0]
    );
    assert_eq!(
        pair.decode.journal().violations()[&Violation::LegsDiffer],
        1
    );
}

#[tokio::test]
async fn a_null_port_is_decodes_own_bootstrap_port() {
    let prefill = Worker::start_prefill(quick()).await.unwrap();
    let bootstrap_port = prefill.bootstrap_port().unwrap();
    let decode = Worker::start_decode(SimOptions {
        bootstrap_port,
        ..quick()
    })
    .await
    .unwrap();
    let pair = SimPair { prefill, decode };
    let mut body = pair.with_room(&generate(2), 81);
    body["bootstrap_port"] = Value::Null;
    let (prefill, decode) = tokio::join!(
        post(&pair.prefill, "/generate", &body),
        post(&pair.decode, "/generate", &body)
    );
    assert_eq!((prefill.status, decode.status), (200, 200));
}

#[tokio::test]
async fn a_restarted_prefill_is_found_again() {
    let SimPair { prefill, decode } = SimPair::start(SimOptions {
        timers_scale: 0.001,
        ..quick()
    })
    .await;
    let port = prefill.bootstrap_port().unwrap();
    let pair = SimPair { prefill, decode };
    assert_eq!(pair.both("/generate", &generate(2), 91).await.1.status, 200);
    let SimPair { prefill, decode } = pair;
    prefill.stop().await;
    let prefill = Worker::start_prefill(SimOptions {
        bootstrap_port: port,
        timers_scale: 0.001,
        ..quick()
    })
    .await
    .unwrap();
    let pair = SimPair { prefill, decode };
    // Rooms are lost until two heartbeats to the stopped prefill worker have failed.
    for room in 92.. {
        let body = pair.with_room(&generate(2), room);
        if post(&pair.decode, "/generate", &body)
            .await
            .text()
            .contains("WaitingForInput")
        {
            break;
        }
    }
    assert_eq!(
        pair.both("/generate", &generate(2), 1000).await.1.status,
        200
    );
}

#[tokio::test]
async fn every_prefill_meets_every_decode_of_a_demo() {
    let (prefills, decodes) = demo_workers((2, 2), None, quick()).await.unwrap();
    let mut room = 100;
    for prefill in &prefills {
        for decode in &decodes {
            room += 1;
            let mut body = generate(3);
            body["bootstrap_host"] = json!("localhost");
            body["bootstrap_port"] = json!(prefill.bootstrap_port());
            body["bootstrap_room"] = json!(room);
            let (prefill, decode) = tokio::join!(
                post(prefill, "/generate", &body),
                post(decode, "/generate", &body)
            );
            assert_eq!((prefill.status, decode.status), (200, 200));
        }
    }
}

#[tokio::test]
async fn a_prefill_that_listens_everywhere_is_found_at_its_registry() {
    let everywhere = SimOptions {
        host: std::net::Ipv4Addr::UNSPECIFIED.into(),
        ..quick()
    };
    let prefill = Worker::start_prefill(everywhere).await.unwrap();
    let decode = Worker::start_decode(quick()).await.unwrap();
    let mut body = generate(3);
    body["bootstrap_host"] = json!("127.0.0.1");
    body["bootstrap_port"] = json!(prefill.bootstrap_port());
    body["bootstrap_room"] = json!(1);
    let _leg = open_post(&prefill, "/generate", &body).await;
    assert_eq!(post(&decode, "/generate", &body).await.status, 200);
}

pub(crate) async fn wait_for_state(worker: &Worker, state: RoomState) {
    wait_for(worker, |event| is_state(event, state)).await;
}

/// Where a lonely leg waits, as `/v1/loads` tells. Source: SGLang 0.5.23, the same with one leg alone.
#[tokio::test]
async fn the_loads_tell_where_a_request_waits() {
    let slow = SimOptions {
        transfer_time: Duration::from_secs(600),
        kv_slots: 1,
        ..quick()
    };
    let pair = SimPair::start(slow).await;
    let loads = async |worker: &Worker| get(worker, "/v1/loads").await.json()["loads"][0].clone();
    let body = json!({"text":"a","sampling_params":{"max_new_tokens":2}});
    let first = pair.with_room(&body, 7);
    let presented = |event: &Event| matches!(event, Event::RoomPresented { .. });
    let _prefill = open_post(&pair.prefill, "/generate", &first).await;
    wait_for(&pair.prefill, presented).await;
    let alone = loads(&pair.prefill).await;
    assert_eq!(alone["disaggregation"]["prefill_bootstrap_queue_reqs"], 1);
    assert_eq!(
        (&alone["num_waiting_reqs"], &alone["num_running_reqs"]),
        (&json!(1), &json!(0))
    );

    let _decode = open_post(&pair.decode, "/generate", &first).await;
    let transferring = |event: &Event| {
        matches!(
            event,
            Event::RoomState {
                state: RoomState::Transferring,
                ..
            }
        )
    };
    wait_for(&pair.prefill, transferring).await;
    let sending = loads(&pair.prefill).await;
    let receiving = loads(&pair.decode).await;
    assert_eq!(sending["disaggregation"]["prefill_inflight_queue_reqs"], 1);
    assert_eq!(sending["num_waiting_reqs"], 0);
    assert_eq!(receiving["disaggregation"]["decode_transfer_queue_reqs"], 1);
    assert_eq!(receiving["token_usage"], 1.0);

    let second = pair.with_room(&body, 8);
    let _waits = open_post(&pair.decode, "/generate", &second).await;
    let of_room_8 =
        |event: &Event| matches!(event, Event::RoomPresented { room, .. } if room == "8");
    wait_for(&pair.decode, of_room_8).await;
    let full = loads(&pair.decode).await;
    assert_eq!(full["disaggregation"]["decode_prealloc_queue_reqs"], 1);
    assert_eq!(full["num_waiting_reqs"], 2);
}
