//! The simulated vLLM pair: its transfer of blocks, its leases, and what its journal says about a balancer's mistakes.

use std::time::Duration;

use mini_lb::sim::journal::{LeaseState, Violation};
use mini_lb::sim::{Entry, Event, FailedLoad, SimOptions, VllmOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, SOON, VllmPair, get, open_post, post, post_text, quick_vllm, wait_for};

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";
pub(crate) const PROMPT: &str =
    "the quick brown fox jumps over the lazy dog and runs into the deep dark wood";

pub(crate) fn completion(prompt: &str) -> Value {
    json!({"prompt":prompt,"max_tokens":6,"temperature":0})
}

pub(crate) fn with_vllm(change: impl FnOnce(&mut VllmOptions)) -> SimOptions {
    let mut options = quick_vllm();
    change(options.vllm.as_mut().unwrap());
    options
}

/// What a response says: its texts, tokens and reasons, without ids and times.
fn said(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let values = match reply.chunks {
        Some(_) => reply.event_values(),
        None => vec![reply.json()],
    };
    let mut out = Vec::new();
    let said = [
        "text",
        "content",
        "delta",
        "token_ids",
        "finish_reason",
        "stop_reason",
        "status",
        "completion_tokens",
        "logprobs",
    ];
    for value in values {
        collect(&value, &said, &mut out);
    }
    out
}

fn collect(value: &Value, names: &[&str], out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match names.contains(&key.as_str()) && !value.is_object() && key != "content"
                    || value.is_string() && key == "content"
                {
                    true => out.push(format!("{key}: {value}")),
                    false => collect(value, names, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| collect(value, names, out)),
        _ => {}
    }
}

fn violations(worker: &Worker) -> Vec<(Violation, u64)> {
    worker.journal().violations().into_iter().collect()
}

async fn expect_lease(worker: &Worker, wanted: LeaseState) {
    wait_for(
        worker,
        |event| matches!(event, Event::Lease { state, .. } if *state == wanted),
    )
    .await;
}

/// The first leg's response, and the body of the second.
pub(crate) async fn legs(pair: &VllmPair, path: &str, body: &Value) -> (Reply, Value) {
    let first = post(&pair.prefill, path, &VllmPair::prefill_body(path, body)).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let second = VllmPair::decode_body(body, &first);
    (first, second)
}

#[tokio::test]
async fn a_pair_says_what_an_ordinary_worker_says_on_every_endpoint() {
    let pair = VllmPair::start(quick_vllm()).await;
    let single = Worker::start_ordinary(quick_vllm()).await.unwrap();
    let messages = json!([{"role":"user","content":PROMPT}]);
    for (path, body) in [
        (
            CHAT,
            json!({"messages":messages,"max_tokens":9,"logprobs":true,"top_logprobs":2}),
        ),
        (
            CHAT,
            json!({"messages":messages,"max_tokens":9,"n":3,"seed":7}),
        ),
        (
            COMPLETIONS,
            json!({"prompt":PROMPT,"max_tokens":9,"logprobs":2}),
        ),
        (
            COMPLETIONS,
            json!({"prompt":PROMPT,"max_tokens":9,"echo":true,"logprobs":1}),
        ),
        (
            COMPLETIONS,
            json!({"prompt":PROMPT,"max_tokens":9,"n":2,"seed":3,"stop":["e"]}),
        ),
        (
            "/v1/responses",
            json!({"input":PROMPT,"max_output_tokens":9}),
        ),
        (
            "/v1/messages",
            json!({"model":"sim","messages":messages,"max_tokens":9}),
        ),
        (
            "/inference/v1/generate",
            json!({"token_ids":[5,12,19,26,33],"sampling_params":{"max_tokens":9,"temperature":0}}),
        ),
    ] {
        for stream in [false, true] {
            let mut body = body.clone();
            body["stream"] = json!(stream);
            let through_pair = said(&pair.both(path, &body).await);
            let ordinary = said(&post(&single, path, &body).await);
            assert!(!ordinary.is_empty(), "{path} {body}");
            let sorted = |mut all: Vec<String>| {
                all.sort();
                all
            };
            // Samples of a stream come in any order.
            assert_eq!(sorted(through_pair), sorted(ordinary), "{path} {body}");
        }
    }
    assert_eq!(violations(&pair.prefill), []);
    assert_eq!(violations(&pair.decode), []);
    assert_eq!(pair.prefill.journal().open_leases(), 0);
}

#[tokio::test]
async fn a_decode_worker_without_params_computes_the_prompt_itself() {
    let pair = VllmPair::start(quick_vllm()).await;
    let body = completion(PROMPT);
    let alone = said(&post(&pair.decode, COMPLETIONS, &body).await);
    assert_eq!(alone, said(&pair.both(COMPLETIONS, &body).await));
    assert_eq!(alone, said(&post(&pair.prefill, COMPLETIONS, &body).await));
}

#[tokio::test]
async fn params_of_a_list_of_prompts_give_wrong_text_and_a_violation() {
    let pair = VllmPair::start(quick_vllm()).await;
    let body =
        json!({"prompt":["one sea is blue","two hills are green"],"max_tokens":6,"temperature":0});
    let wrong = pair.both(COMPLETIONS, &body).await.json();
    let right = post(&pair.decode, COMPLETIONS, &body).await.json();
    let text = |of: &Value, index: usize| of["choices"][index]["text"].clone();
    assert_eq!(text(&wrong, 0), text(&right, 0));
    assert_ne!(text(&wrong, 1), text(&right, 1));
    assert_eq!(
        violations(&pair.decode),
        [(Violation::ParamsOfAnotherBody, 1)]
    );
}

#[tokio::test]
async fn params_are_for_one_request_and_for_their_own_body() {
    let pair = VllmPair::start(quick_vllm()).await;
    let (_, second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 200);
    assert_eq!(violations(&pair.decode), []);
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 200);
    assert_eq!(violations(&pair.decode), [(Violation::ParamsUsedTwice, 1)]);

    pair.decode.journal().clear();
    let (_, mut second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    second["prompt"] = json!("another prompt");
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 200);
    assert_eq!(
        violations(&pair.decode),
        [(Violation::ParamsOfAnotherBody, 1)]
    );
}

#[tokio::test]
async fn params_that_no_prefill_gave_are_a_violation() {
    let pair = VllmPair::start(quick_vllm()).await;
    let (_, mut second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    second["kv_transfer_params"]["remote_request_id"] = json!("cmpl-of-a-client");
    // The blocks are right, and so is the text.
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 200);
    assert_eq!(violations(&pair.decode), [(Violation::ForeignParams, 1)]);
    let twice = r#"{"prompt":"a","kv_transfer_params":null,"kv\u005ftransfer_params":null}"#;
    assert_eq!(
        post_text(&pair.decode, COMPLETIONS, twice).await.status,
        200
    );
    assert_eq!(violations(&pair.decode), [(Violation::ForeignParams, 2)]);
}

#[tokio::test]
async fn legs_that_are_not_as_they_must_be_are_violations() {
    let pair = VllmPair::start(quick_vllm()).await;
    let mut long = VllmPair::prefill_body(
        CHAT,
        &json!({"messages":[{"role":"user","content":PROMPT}]}),
    );
    // It wins over max_tokens.
    long["max_completion_tokens"] = json!(8);
    let given = post(&pair.prefill, CHAT, &long).await.json();
    assert!(
        given["kv_transfer_params"]
            .get("remote_prefill_cached_tokens")
            .is_none()
    );
    let mut streamed = VllmPair::prefill_body(COMPLETIONS, &completion(PROMPT));
    streamed["stream"] = json!(true);
    let events = post(&pair.prefill, COMPLETIONS, &streamed).await;
    assert!(!events.text().contains("kv_transfer_params"));
    let short = VllmPair::prefill_body(COMPLETIONS, &completion(PROMPT));
    let given = post(&pair.decode, COMPLETIONS, &short).await.json();
    assert_eq!(
        given["kv_transfer_params"]["do_remote_prefill"],
        json!(true)
    );
    let (_, second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    assert_eq!(post(&pair.prefill, COMPLETIONS, &second).await.status, 500);
    let wanted = [
        (Violation::LongPrefillLeg, 1),
        (Violation::StreamedPrefillLeg, 1),
        (Violation::DecodeLegOnPrefill, 1),
    ];
    assert_eq!(violations(&pair.prefill), wanted);
    assert_eq!(
        violations(&pair.decode),
        [(Violation::PrefillLegOnDecode, 1)]
    );
}

#[tokio::test]
async fn blocks_that_are_not_read_are_freed_after_the_lease() {
    let pair = VllmPair::start(with_vllm(|vllm| vllm.lease = Duration::from_millis(30))).await;
    let (_, second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    expect_lease(&pair.prefill, LeaseState::Expired).await;
    assert_eq!(pair.prefill.journal().open_leases(), 0);
    let metrics = get(&pair.prefill, "/metrics").await.text();
    assert!(
        metrics
            .contains("vllm:nixl_num_kv_expired_reqs_total{engine=\"0\",model_name=\"sim\"} 1.0"),
        "{metrics}"
    );
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 200);
    assert_eq!(violations(&pair.decode), [(Violation::ParamsAfterLease, 1)]);
}

#[tokio::test]
async fn a_lease_is_renewed_while_decode_waits_for_memory() {
    let lease = Duration::from_secs(1);
    let options = SimOptions {
        kv_slots: 1,
        // The first request has the memory for longer than a lease.
        time_per_output_token: Duration::from_millis(40),
        ..with_vllm(|vllm| vllm.lease = lease)
    };
    let pair = VllmPair::start(options).await;
    let mut long = completion("a long one");
    long["max_tokens"] = json!(60);
    long["ignore_eos"] = json!(true);
    let (_, second) = legs(&pair, COMPLETIONS, &long).await;
    let running = open_post(&pair.decode, COMPLETIONS, &second).await;
    expect_lease(&pair.prefill, LeaseState::Read).await;
    let (_, second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    let reply = post(&pair.decode, COMPLETIONS, &second).await;
    assert_eq!(reply.status, 200);
    expect_lease(&pair.prefill, LeaseState::Renewed).await;
    assert_eq!(violations(&pair.decode), []);
    drop(running);
}

#[tokio::test]
async fn a_request_that_decode_refuses_or_loses_frees_its_blocks() {
    let options = SimOptions {
        transfer_time: Duration::from_secs(3600),
        ..quick_vllm()
    };
    let pair = VllmPair::start(options).await;
    let (_, mut second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    second["max_tokens"] = json!(5000);
    assert_eq!(post(&pair.decode, COMPLETIONS, &second).await.status, 400);
    expect_lease(&pair.prefill, LeaseState::Released).await;

    let (_, second) = legs(&pair, COMPLETIONS, &completion(PROMPT)).await;
    let leaving = open_post(&pair.decode, COMPLETIONS, &second).await;
    let both = |event: &Event| matches!(event, Event::RequestBody { request: 2, .. });
    wait_for(&pair.decode, both).await;
    drop(leaving);
    // It may have left before decode began to read.
    let ended = |entry: &Entry| {
        let Event::Lease { state, .. } = &entry.event else {
            return false;
        };
        [LeaseState::Read, LeaseState::Released].contains(state)
    };
    let all_ended = |seen: &[Entry]| seen.iter().filter(|entry| ended(entry)).count() == 2;
    let journal = pair.prefill.journal();
    journal.wait_for(all_ended, SOON).await.unwrap();
    assert_eq!(journal.open_leases(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_the_first_leg_leaves_no_blocks() {
    let options = SimOptions {
        time_per_output_token: Duration::from_millis(10),
        ..quick_vllm()
    };
    let pair = VllmPair::start(options).await;
    let mut long = VllmPair::prefill_body(COMPLETIONS, &completion(PROMPT));
    long["max_tokens"] = json!(2000);
    long["ignore_eos"] = json!(true);
    let leaving = open_post(&pair.prefill, COMPLETIONS, &long).await;
    let arrived = |event: &Event| matches!(event, Event::RequestBody { .. });
    wait_for(&pair.prefill, arrived).await;
    drop(leaving);
    wait_for(&pair.prefill, |event| {
        matches!(event, Event::AbortByDisconnect { .. })
    })
    .await;
    let free = async {
        while !get(&pair.prefill, "/metrics")
            .await
            .text()
            .contains("kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0.0\n")
        {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, free)
        .await
        .expect("blocks stay held");
    assert_eq!(pair.prefill.journal().open_leases(), 0);
}

#[tokio::test]
async fn a_restarted_prefill_is_another_engine_and_fails_at_once() {
    let first = VllmPair::start(quick_vllm()).await;
    let (_, second) = legs(&first, COMPLETIONS, &completion(PROMPT)).await;
    let port = first.prefill.bootstrap_port().unwrap();
    let VllmPair { prefill, decode } = first;
    prefill.stop().await;
    let again = SimOptions {
        bootstrap_port: port,
        ..quick_vllm()
    };
    let _prefill = Worker::start_prefill(again).await.unwrap();
    let reply = post(&decode, COMPLETIONS, &second).await;
    assert_eq!(
        (reply.status, reply.json()["error"]["type"].clone()),
        (500, json!("InternalServerError"))
    );
    // It does not take a decode worker down.
    assert_eq!(
        post(&decode, COMPLETIONS, &completion(PROMPT)).await.status,
        200
    );
    let metrics = get(&decode, "/metrics").await.text();
    assert!(
        metrics
            .contains("vllm:nixl_num_failed_transfers_total{engine=\"0\",model_name=\"sim\"} 1.0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn a_decode_worker_may_recompute_what_it_cannot_read() {
    let options = with_vllm(|vllm| vllm.failed_load = FailedLoad::Recompute);
    let pair = VllmPair::start(options).await;
    let body = completion(PROMPT);
    let (_, mut second) = legs(&pair, COMPLETIONS, &body).await;
    second["kv_transfer_params"]["remote_engine_id"] = json!("another");
    let recomputed = said(&post(&pair.decode, COMPLETIONS, &second).await);
    assert_eq!(
        recomputed,
        said(&post(&pair.decode, COMPLETIONS, &body).await)
    );
}

#[tokio::test]
async fn faults_of_the_transfer_meet_the_second_leg() {
    let pair = VllmPair::start(quick_vllm()).await;
    let script = r#"{"rules":[{"match":{"times":1},"do":"lose_kv"},{"match":{"times":1},"do":"crash_in_transfer"}]}"#;
    assert_eq!(
        post_text(&pair.prefill, "/sim/chaos", script).await.status,
        200
    );
    for crashes in [false, true] {
        let reply = pair.both(COMPLETIONS, &completion(PROMPT)).await;
        assert_eq!(reply.status, 500, "{}", reply.text());
        assert_eq!(pair.prefill.has_crashed(), crashes);
    }
    assert_eq!(
        post(&pair.decode, COMPLETIONS, &completion(PROMPT))
            .await
            .status,
        200
    );
}
