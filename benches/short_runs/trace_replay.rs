//! A short run of the benchmark of policies.

use clap::Parser;
use serde_json::Value;

use crate::trace_replay::generator::{REQUESTS, SEED, trace};
use crate::trace_replay::{Arguments, run};

#[tokio::test]
async fn each_policy_has_a_row_beside_the_bound_and_its_cached_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("routing.json");
    let json_name = json.to_str().unwrap();
    let line = "routing --requests 120 --seconds 3 --token-scale 0.1 --flush-at-half --policies random,least_tokens --target broken=false --json";
    let line = line.split(' ').chain([json_name]);
    let mut said = String::new();
    run(Arguments::try_parse_from(line).unwrap(), |text| {
        said.push_str(&text)
    })
    .await
    .unwrap();
    assert!(said.contains("broken did not start"), "{said}");
    assert!(said.contains("emptied at half time"), "{said}");
    for row in ["bound ", "random ", "least_tokens "] {
        assert!(said.lines().any(|line| line.starts_with(row)), "{said}");
    }
    let read: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    for reading in read["readings"].as_array().unwrap() {
        let measured = &reading["measured"];
        assert_eq!(measured["answered"], 120, "{reading}");
        assert_eq!(
            measured["by_prefill"].as_object().map(|all| all.len() > 1),
            Some(true)
        );
        // The system prompt that all requests share is computed once by each worker.
        assert!(
            measured["prompts"]["cached_tokens"].as_u64() > Some(0),
            "{reading}"
        );
    }
}

#[test]
fn the_committed_trace_is_what_the_generator_makes() {
    let committed = include_str!("../traces/chat_and_tools.jsonl");
    assert!(committed.len() <= 100_000, "{}", committed.len());
    assert!(
        committed == trace(SEED, REQUESTS),
        "cargo bench --bench routing -- --write-trace benches/traces/chat_and_tools.jsonl"
    );
}
