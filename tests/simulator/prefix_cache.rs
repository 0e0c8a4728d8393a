//! The prefix cache and the forward passes of a simulated worker, as a balancer sees them.

use std::time::Duration;

use mini_lb::sim::{Event, Reported, SimOptions, Worker};
use serde_json::{Value, json};
use support::sim::{Reply, SimPair, get, open_post, post_text, quick, send, wait_for};

fn caching() -> SimOptions {
    SimOptions {
        prefix_cache: true,
        chunked_prefill_tokens: 64,
        context_length: 1_000_000,
        ..quick()
    }
}

/// A prompt of so many tokens: letters of a word, each of which is one token.
fn words(letter: char, tokens: usize) -> String {
    format!(" {letter}").repeat(tokens)
}

async fn cached_of(worker: &Worker, text: &str) -> (u64, u64) {
    let body = json!({"text": text, "sampling_params": {"max_new_tokens": 1}});
    let meta = post_text(worker, "/generate", &body.to_string())
        .await
        .json()["meta_info"]
        .clone();
    let number = |key: &str| meta[key].as_u64().unwrap();
    (number("prompt_tokens"), number("cached_tokens"))
}

#[tokio::test]
async fn a_prompt_is_cached_in_whole_pages_and_flushed_with_the_cache() {
    let options = SimOptions {
        reported: Reported {
            page_size: 16,
            ..Reported::default()
        },
        ..caching()
    };
    for chunked_prefill_tokens in [0, 64] {
        let options = SimOptions {
            chunked_prefill_tokens,
            ..options.clone()
        };
        let worker = Worker::start_ordinary(options).await.unwrap();
        let (first, longer) = (words('a', 100), words('a', 100) + &words('b', 100));
        assert_eq!(cached_of(&worker, &first).await, (100, 0));
        assert_eq!(cached_of(&worker, &longer).await, (200, 96));
        assert_eq!(cached_of(&worker, &longer).await, (200, 192));
        assert_eq!(post_text(&worker, "/flush_cache", "").await.status, 200);
        assert_eq!(cached_of(&worker, &longer).await, (200, 0));
    }
}

#[tokio::test]
async fn the_simulators_own_endpoint_empties_the_cache_of_a_busy_worker() {
    let options = SimOptions {
        time_per_output_token: Duration::from_secs(60),
        ..caching()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let prompt = words('a', 100);
    assert_eq!(cached_of(&worker, &prompt).await, (100, 0));
    let body = json!({"text": prompt, "stream": true, "sampling_params": {"max_new_tokens": 9}});
    let _stream = open_post(&worker, "/generate", &body).await;
    wait_for(&worker, |event| {
        matches!(event, Event::ResponseHead { request: 2, .. })
    })
    .await;
    assert_eq!(post_text(&worker, "/flush_cache", "").await.status, 400);
    assert_eq!(cached_of(&worker, &prompt).await, (100, 99));
    let emptied = send(worker.address(), "DELETE", "/sim/cache", "", "").await;
    assert_eq!(Reply::parse(&emptied).status, 200);
    assert_eq!(cached_of(&worker, &prompt).await, (100, 0));
}

#[tokio::test]
async fn the_cache_is_bounded_and_its_size_is_told() {
    let options = SimOptions {
        cache_tokens: Some(250),
        ..caching()
    };
    let worker = Worker::start_ordinary(options).await.unwrap();
    let info = get(&worker, "/server_info").await.json();
    assert_eq!(info["max_total_num_tokens"], 250);
    let state = &info["internal_states"][0];
    assert_eq!(state["memory_usage"]["token_capacity"], 250);
    let prompts = ['a', 'b', 'c'].map(|letter| words(letter, 100));
    for prompt in &prompts {
        assert_eq!(cached_of(&worker, prompt).await, (100, 0));
    }
    assert_eq!(cached_of(&worker, &prompts[2]).await, (100, 99));
    assert_eq!(cached_of(&worker, &prompts[0]).await, (100, 0));
    // Longer than all of the memory: computed, and kept as far as it fits.
    assert_eq!(cached_of(&worker, &words('d', 400)).await, (400, 0));
    assert_eq!(cached_of(&worker, &words('d', 400)).await, (400, 250));
}

#[tokio::test]
async fn cached_tokens_are_in_the_usage_where_the_worker_reports_them() {
    for cache_report in [false, true] {
        let options = SimOptions {
            cache_report,
            ..caching()
        };
        let pair = SimPair::start(options).await;
        for (room, cached) in [(7, 0), (8, 9)] {
            let body = json!({"prompt": words('a', 10), "max_tokens": 2});
            let (prefill, decode) = pair.both("/v1/completions", &body, room).await;
            let expected = match cache_report {
                true => json!({ "cached_tokens": cached }),
                false => Value::Null,
            };
            for reply in [prefill, decode] {
                assert_eq!(reply.json()["usage"]["prompt_tokens_details"], expected);
            }
        }
    }
}

#[tokio::test]
async fn the_room_chooses_the_rank_and_each_rank_has_its_own_cache() {
    let options = SimOptions {
        attn_dp_size: 2,
        ..caching()
    };
    let pair = SimPair::start(options).await;
    let info = get(&pair.prefill, "/server_info").await.json();
    let sizes = ["dp_size", "attn_dp_size", "enable_dp_attention"].map(|name| info[name].clone());
    assert_eq!(sizes, [json!(1), json!(2), json!(true)]);
    let loads = get(&pair.prefill, "/v1/loads").await.json();
    assert_eq!(loads["loads"].as_array().map(Vec::len), Some(2));
    for (room, cached) in [(10, 0), (11, 0), (12, 49), (13, 49)] {
        let body = json!({"text": words('a', 50), "sampling_params": {"max_new_tokens": 1}});
        let (_, decode) = pair.both("/generate", &body, room).await;
        assert_eq!(
            decode.json()["meta_info"]["cached_tokens"],
            cached,
            "{room}"
        );
    }
}

#[tokio::test]
async fn a_replica_takes_a_room_of_another_rank_only_where_the_request_names_it() {
    let options = SimOptions {
        dp_size: 2,
        timers_scale: 0.005,
        ..quick()
    };
    let pair = SimPair::start(options).await;
    let info = get(&pair.prefill, "/server_info").await.json();
    let sizes = ["dp_size", "attn_dp_size", "enable_dp_attention"].map(|name| info[name].clone());
    assert_eq!(sizes, [json!(2), json!(1), json!(false)]);
    for (room, rank, status) in [
        (10, None, 200),
        (11, None, 500),
        (12, Some(0), 200),
        (13, Some(1), 200),
        (14, Some(1), 500),
    ] {
        let mut body = json!({"text": "a", "sampling_params": {"max_new_tokens": 1}});
        if let Some(rank) = rank {
            body["disagg_prefill_dp_rank"] = json!(rank);
        }
        let (prefill, _) = pair.both("/generate", &body, room).await;
        assert_eq!(prefill.status, status, "{room}");
        let is_conflict = prefill.text().contains("follow_bootstrap_room conflict");
        assert_eq!(is_conflict, room == 11, "{}", prefill.text());
    }
}
