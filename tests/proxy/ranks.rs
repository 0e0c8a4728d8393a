//! The data parallel ranks of a prefill worker: which of them get the prompts, and what the workers are told of it.

use std::collections::BTreeSet;
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::config::Policy;
use mini_lb::sim::{self, Entry, Event, SimOptions};
use serde_json::{Value, json};
use support::sim::{SOON, quick};
use support::{Balancer, post};

/// A prefill worker of four groups of attention, a decode worker, and a balancer that asks them what they are.
async fn with_groups() -> (sim::Worker, sim::Worker, Balancer) {
    let groups = SimOptions {
        attn_dp_size: 4,
        ..options()
    };
    with_ranks(groups, Policy::ExpectedTtft).await
}

/// The same with four replicas.
async fn with_replicas(policy: Policy) -> (sim::Worker, sim::Worker, Balancer) {
    let replicas = SimOptions {
        dp_size: 4,
        ..options()
    };
    with_ranks(replicas, policy).await
}

fn options() -> SimOptions {
    SimOptions {
        prefix_cache: true,
        // 1.5 s for a prompt of 5,000 tokens.
        time_per_prompt_token: Duration::from_micros(300),
        cache_tokens: Some(1 << 20),
        context_length: 1 << 20,
        ..quick()
    }
}

fn config_of(prefill: &sim::Worker, decode: &sim::Worker) -> MiniLbConfig {
    MiniLbConfig::new(
        "127.0.0.1".into(),
        0,
        vec![(prefill.url(), prefill.bootstrap_port())],
        vec![decode.url()],
        60,
    )
}

async fn with_ranks(of_ranks: SimOptions, policy: Policy) -> (sim::Worker, sim::Worker, Balancer) {
    let prefill = sim::Worker::start_prefill(of_ranks).await.unwrap();
    let decode = sim::Worker::start_decode(options()).await.unwrap();
    let balancer = Balancer::start(config_of(&prefill, &decode).policy(policy)).await;
    // The balancer asks for the ranks when it starts, and requests do not wait for that.
    for attempt in 0.. {
        let id = format!("warm-up-{attempt}");
        let mut client = send(&balancer, &id, "a".into()).await;
        let status = client.answer().await.status();
        if status == 200 && !record(&balancer, &id).await["prefill_rank"].is_null() {
            break;
        }
    }
    prefill.journal().clear();
    (prefill, decode, balancer)
}

/// A request with this id and text, sent over a connection of its own.
async fn send(balancer: &Balancer, id: &str, text: Value) -> support::Client {
    let body = json!({ "text": text, "sampling_params": one_token() });
    let request = post("/generate", &body.to_string());
    let mut client = balancer.client().await;
    let id = format!("\r\nx-request-id: {id}\r\n\r\n");
    client.send(request.replacen("\r\n\r\n", &id, 1)).await;
    client
}

/// What `/debug/requests` knows of the request with this id.
async fn record(balancer: &Balancer, id: &str) -> Value {
    let mut client = balancer.client().await;
    let path = format!("/debug/requests?id={id}");
    client
        .send(format!("GET {path} HTTP/1.1\r\nhost: balancer\r\n\r\n"))
        .await;
    client.answer().await.json()["requests"][0].clone()
}

fn one_token() -> Value {
    json!({ "max_new_tokens": 1 })
}

/// The status of the response to this body.
async fn answered(balancer: &Balancer, path: &str, body: &Value) -> u16 {
    let mut client = balancer.client().await;
    client.send(post(path, &body.to_string())).await;
    client.answer().await.status()
}

/// The ranks of the rooms that a prefill worker of four ranks has seen.
fn ranks_of_rooms(prefill: &sim::Worker) -> Vec<u64> {
    let entries = prefill.journal().entries();
    let rooms = entries.iter().filter_map(|entry| match &entry.event {
        Event::RoomPresented { room, .. } => room.parse::<u64>().ok(),
        _ => None,
    });
    rooms.map(|room| room % 4).collect()
}

#[tokio::test]
async fn prompts_wait_and_are_cached_on_the_ranks_of_a_prefill_worker() {
    let (prefill, _decode, balancer) = with_groups().await;
    let text =
        |group: u64, number: u64| format!("{group}{}{number}", " once upon a time".repeat(1200));
    let mut open = Vec::new();
    for group in 0..4 {
        let text = text(group, 0).into();
        let client = send(&balancer, &format!("first-{group}"), text).await;
        // So that the next one is chosen with this one in its line.
        let is_room = |entry: &Entry| matches!(entry.event, Event::RoomPresented { .. });
        let has_come =
            |seen: &[Entry]| seen.iter().filter(|entry| is_room(entry)).count() > open.len();
        let journal = prefill.journal();
        journal.wait_for(has_come, SOON).await.unwrap();
        open.push(client);
    }
    for client in &mut open {
        assert_eq!(client.answer().await.status(), 200);
    }
    let mut ranks = ranks_of_rooms(&prefill);
    ranks.sort_unstable();
    assert_eq!(ranks, [0, 1, 2, 3], "each prompt has a rank of its own");
    for number in 1..3 {
        for group in 0..4 {
            let id = format!("{group}-{number}");
            let mut client = send(&balancer, &id, text(group, number).into()).await;
            assert_eq!(client.answer().await.status(), 200);
            let first = record(&balancer, &format!("first-{group}")).await;
            let next = record(&balancer, &id).await;
            assert_eq!(first["prefill_rank"], next["prefill_rank"], "{id}");
            let room = ranks_of_rooms(&prefill).last().copied();
            assert_eq!(next["prefill_rank"].as_u64(), room);
            let forecast = &next["forecast"];
            let number = |name: &str| forecast[name].as_u64().unwrap();
            assert!(number("cached_tokens") > 4000, "{forecast}");
            assert!(number("expected_cached_tokens") > 3000, "{forecast}");
        }
    }
    assert!(prefill.journal().violations().is_empty());
}

#[tokio::test]
async fn the_prompts_of_a_batch_are_on_ranks_in_turn() {
    let (prefill, _decode, balancer) = with_groups().await;
    let mut client = send(&balancer, "batch", json!(["a", "b", "c", "d", "e", "f"])).await;
    assert_eq!(client.answer().await.status(), 200);
    let first = record(&balancer, "batch").await["prefill_rank"]
        .as_u64()
        .unwrap();
    let mut expected: Vec<_> = (0..6).map(|prompt| (first + prompt) % 4).collect();
    let mut ranks = ranks_of_rooms(&prefill);
    ranks.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ranks, expected);
    assert!(prefill.journal().violations().is_empty());
}

#[tokio::test]
async fn a_request_that_names_a_rank_has_its_rooms_there() {
    for ((prefill, _decode, balancer), name) in [
        (with_groups().await, "routed_dp_rank"),
        (with_groups().await, "disagg_prefill_dp_rank"),
        (with_replicas(Policy::ExpectedTtft).await, "routed_dp_rank"),
        (
            with_replicas(Policy::Random).await,
            "disagg_prefill_dp_rank",
        ),
    ] {
        for text in [json!("a"), json!("b"), json!(["c", "d", "e"])] {
            let body = json!({ "text": text, "sampling_params": one_token(), name: 2 });
            assert_eq!(answered(&balancer, "/generate", &body).await, 200, "{name}");
        }
        assert_eq!(ranks_of_rooms(&prefill), [2; 5], "{name}");
    }
}

#[tokio::test]
async fn a_rank_that_there_is_not_is_no_reason_to_wait_for_the_other_leg() {
    let prefill = sim::Worker::start_prefill(options()).await.unwrap();
    let decode = sim::Worker::start_decode(options()).await.unwrap();
    let balancer = Balancer::start(config_of(&prefill, &decode)).await;
    let body = json!({ "text": "a", "sampling_params": one_token(), "disagg_prefill_dp_rank": 3 });
    assert_eq!(answered(&balancer, "/generate", &body).await, 200);
}

#[tokio::test]
async fn every_replica_of_a_prefill_worker_serves_under_every_policy() {
    for policy in [Policy::Random, Policy::RoundRobin, Policy::ExpectedTtft] {
        let (prefill, _decode, balancer) = with_replicas(policy).await;
        for number in 0..24 {
            let body = json!({ "text": format!("{number} a"), "sampling_params": one_token() });
            assert_eq!(answered(&balancer, "/generate", &body).await, 200);
        }
        let ranks: BTreeSet<_> = ranks_of_rooms(&prefill).into_iter().collect();
        assert!(ranks.len() > 1, "{policy:?} {ranks:?}");

        let messages = json!([{ "role": "user", "content": "a" }]);
        let limit = json!(1);
        for (path, body, prompts) in [
            (
                "/generate",
                json!({ "text": ["a", "b", "c"], "sampling_params": one_token() }),
                3,
            ),
            (
                "/v1/completions",
                json!({ "model": "sim", "prompt": ["a", "b"], "max_tokens": limit }),
                2,
            ),
            (
                "/v1/chat/completions",
                json!({ "model": "sim", "messages": messages, "n": 2, "max_tokens": limit }),
                2,
            ),
            (
                "/v1/responses",
                json!({ "model": "sim", "input": "a", "max_output_tokens": 3 }),
                1,
            ),
            (
                "/v1/messages",
                json!({ "model": "sim", "messages": messages, "max_tokens": limit }),
                1,
            ),
        ] {
            prefill.journal().clear();
            assert_eq!(
                answered(&balancer, path, &body).await,
                200,
                "{policy:?} {path}"
            );
            let ranks = ranks_of_rooms(&prefill);
            assert_eq!(ranks, vec![ranks[0]; prompts], "{policy:?} {path}");
        }
        assert!(prefill.journal().violations().is_empty());
    }
}

#[tokio::test]
async fn a_client_reads_nothing_of_the_rank_that_its_request_was_given() {
    let (_prefill, _decode, balancer) = with_replicas(Policy::Random).await;
    let body = json!({ "model": "sim", "max_tokens": 1 });
    let mut client = balancer.client().await;
    let request = post("/v1/chat/completions", &body.to_string());
    client.send(request).await;
    let answer = client.answer().await;
    assert_eq!(answer.status(), 400);
    let text = answer.text();
    assert!(
        text.contains("'max_tokens': 1") && !text.contains("dp_rank"),
        "{text}"
    );
}
