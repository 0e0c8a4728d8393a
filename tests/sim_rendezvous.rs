//! The simulated workers meet by room over TCP, in any order, and fail as SGLang 0.5.23 does.

#![allow(clippy::unwrap_used)]

mod sim_support;

use std::time::Duration;

use mini_lb::sim::journal::{ClosedBy, RoomState, Violation};
use mini_lb::sim::{DisconnectNotice, DuplicateRoom, Event, SimOptions, Worker};
use serde_json::{Value, json};
use sim_support::{Pair, Reply, SOON, get, open_post, post, quick};
use tokio::io::AsyncReadExt;

fn generate(tokens: usize) -> Value {
    json!({"text":"This program is free software; you can redistribute it",
        "sampling_params":{"temperature":0,"max_new_tokens":tokens,"ignore_eos":true}})
}

fn is_state(event: &Event, wanted: RoomState) -> bool {
    matches!(event, Event::RoomState { state, .. } if *state == wanted)
}

#[tokio::test]
async fn both_legs_together_give_the_ordinary_workers_answer() {
    let pair = Pair::start(quick()).await;
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
    let pair = Pair::start(quick()).await;
    let body = pair.with_room(&generate(4), 11);
    let mut prefill = open_post(&pair.prefill, "/generate", &body).await;
    let journal = pair.prefill.journal();
    journal
        .wait_for(
            |seen| {
                seen.iter()
                    .any(|e| is_state(&e.event, RoomState::Bootstrapping))
            },
            SOON,
        )
        .await
        .unwrap();
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
    let pair = Pair::start(quick()).await;
    let body = pair.with_room(&generate(4), 12);
    let mut decode = open_post(&pair.decode, "/generate", &body).await;
    pair.decode
        .journal()
        .wait_for(
            |seen| {
                seen.iter()
                    .any(|e| is_state(&e.event, RoomState::WaitingForInput))
            },
            SOON,
        )
        .await
        .unwrap();
    assert_eq!(post(&pair.prefill, "/generate", &body).await.status, 200);
    let mut first = [0; 12];
    decode.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}
