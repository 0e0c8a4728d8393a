//! The advice on simulated clusters whose bottleneck is known. The load runs until the advice has settled on it, so that
//! no assertion depends on the speed of the machine.

use std::time::Duration;

use mini_lb::sim::SimOptions;
use serde_json::Value;

use crate::cluster::{Cluster, stream};

/// Polls often, so that a short test sees many loads.
async fn cluster(workers: (usize, usize), options: &SimOptions) -> Cluster {
    let polled = |config: mini_lb::MiniLbConfig| config.set("load_poll_interval_secs", "0.05");
    Cluster::start(workers, options, polled).await
}

/// The advice when so many users have sent so many requests each, one after the other. It is asked for all the while, as
/// an open page does.
async fn advice(cluster: &Cluster, users: usize, each: usize, body: &str) -> Value {
    let load = cluster.load(users, each, body);
    tokio::pin!(load);
    loop {
        let data = cluster.data();
        tokio::select! {
            biased;
            () = &mut load => return last(cluster, users * each).await,
            data = data => drop(data),
        }
        let next = tokio::time::sleep(Duration::from_millis(100));
        tokio::select! {
            () = &mut load => return last(cluster, users * each).await,
            () = next => {}
        }
    }
}

async fn last(cluster: &Cluster, requests: usize) -> Value {
    let mut data = cluster.data().await;
    while data["quarter"]["requests"] != requests {
        data = cluster.data().await;
    }
    let advice = data["advice"].clone();
    eprintln!("{advice}");
    advice
}

/// Every time is set, so that the bottleneck is where the test puts it.
fn timed(prompt_us: u64, transfer_ms: u64, token_ms: u64) -> SimOptions {
    SimOptions {
        time_per_prompt_token: Duration::from_micros(prompt_us),
        transfer_time: Duration::from_millis(transfer_ms),
        time_per_output_token: Duration::from_millis(token_ms),
        prompts_at_once: 1,
        ..SimOptions::default()
    }
}

#[tokio::test]
async fn long_prompts_make_a_cluster_prefill_bound() {
    // 60 ms of prefill for each request, one at a time, and 10 ms of decode, many at a time.
    let cluster = cluster((1, 1), &timed(100, 1, 5)).await;
    let advice = advice(&cluster, 8, 8, &stream(600, 3)).await;
    assert_eq!(advice["verdict"], "prefill", "{advice}");
    let text = advice["text"].as_str().unwrap();
    assert!(text.starts_with("Prefill-bound: "), "{text}");
    assert!(advice["prefill_busy"].as_f64() > Some(0.8), "{advice}");
    assert!(advice["decode_busy"].as_f64() < Some(0.5), "{advice}");
    let more_prefill = ["2P:1D", "3P:1D"].iter().any(|ratio| text.contains(ratio));
    assert!(more_prefill, "{text}");
}

#[tokio::test]
async fn few_slots_make_a_cluster_decode_bound() {
    // 200 ms of decode for each request, two at a time.
    let options = SimOptions {
        max_running: 2,
        ..timed(5, 1, 10)
    };
    let cluster = cluster((1, 1), &options).await;
    let advice = advice(&cluster, 10, 4, &stream(100, 20)).await;
    assert_eq!(advice["verdict"], "decode", "{advice}");
    let text = advice["text"].as_str().unwrap();
    assert!(text.starts_with("Decode-bound: "), "{text}");
}

#[tokio::test]
async fn little_memory_makes_a_cluster_decode_bound_although_prefill_waits() {
    // The KV cache of two requests fits: the others wait before prefill computes them.
    let options = SimOptions {
        kv_slots: 2,
        ..timed(5, 1, 10)
    };
    let cluster = cluster((1, 1), &options).await;
    let advice = advice(&cluster, 10, 4, &stream(100, 20)).await;
    assert_eq!(advice["verdict"], "decode", "{advice}");
}

#[tokio::test]
async fn a_slow_network_makes_a_cluster_transfer_bound() {
    let cluster = cluster((1, 1), &timed(5, 600, 2)).await;
    let advice = advice(&cluster, 8, 4, &stream(100, 3)).await;
    assert_eq!(advice["verdict"], "transfer", "{advice}");
    assert!(
        advice["text"].as_str().unwrap().contains("network"),
        "{advice}"
    );
}

#[tokio::test]
async fn a_cluster_without_queues_has_no_bottleneck() {
    // One user at a time leaves nobody waiting.
    let cluster = cluster((2, 2), &timed(50, 1, 20)).await;
    let advice = advice(&cluster, 1, 25, &stream(200, 4)).await;
    assert_eq!(advice["verdict"], "balanced", "{advice}");
    assert!(
        advice["text"]
            .as_str()
            .unwrap()
            .starts_with("No bottleneck"),
        "{advice}"
    );
}

#[tokio::test]
async fn few_requests_are_not_enough() {
    let cluster = cluster((1, 1), &timed(5, 1, 1)).await;
    let advice = advice(&cluster, 1, 5, &stream(20, 3)).await;
    assert_eq!(advice["verdict"], "not_enough", "{advice}");
}
