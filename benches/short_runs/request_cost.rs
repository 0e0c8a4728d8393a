//! Short runs of the benchmark of requests, and the count of instructions against the baseline.

use std::io::{Write, stderr};

use clap::Parser;
use serde_json::Value;
use support::baseline::{self, Counts};

use crate::request_cost::{Arguments, run};

/// Set when valgrind is installed and the compiler is that of the baseline, because the counts depend on both.
const COUNTS: &str = "MINI_LB_COUNT_INSTRUCTIONS";

async fn short_run(options: &[&str]) -> Result<String, String> {
    let line = ["end_to_end", "--short"].iter().chain(options);
    let mut said = String::new();
    run(Arguments::try_parse_from(line).unwrap(), |text| {
        said.push_str(&text)
    })
    .await?;
    Ok(said)
}

#[tokio::test]
async fn a_short_run_has_a_row_for_each_target_and_leaves_no_room_open() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("cost.json");
    let said = short_run(&[
        "--workloads",
        "chat-1,chat-4",
        "--targets",
        "direct,direct-legs,mini-lb",
        "--target",
        "again={mini-lb} --port {port} --prefill {prefill1} {bootstrap1} --decode {decode2}",
        "--json",
        json.to_str().unwrap(),
        "--svg",
        directory.path().to_str().unwrap(),
    ])
    .await
    .unwrap();
    for row in ["direct", "direct-legs", "mini-lb", "again"] {
        assert!(
            said.lines()
                .any(|line| line.split("  ").next() == Some(row)),
            "{row}: {said}"
        );
    }
    let cost: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let readings = cost["readings"].as_array().unwrap();
    assert_eq!(readings.len(), 8);
    for reading in readings {
        assert_eq!(reading["units"], 64, "{reading}");
        for none in ["errors", "open_rooms", "violations"] {
            assert_eq!(reading[none], 0, "{none}: {reading}");
        }
        let has_cpu = reading["cpu_us_per_unit"]
            .as_f64()
            .is_some_and(|cost| cost > 0.0);
        assert_eq!(
            has_cpu,
            !reading["target"].as_str().unwrap().starts_with("direct"),
            "{reading}"
        );
    }
    let plot = std::fs::read_to_string(directory.path().join("cost-by-concurrency.svg")).unwrap();
    assert!(plot.starts_with("<svg") && plot.ends_with("</svg>"));
}

#[tokio::test]
async fn events_are_timed_from_the_write_of_their_worker_beside_direct() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("tail.json");
    let said = short_run(&[
        "--workloads",
        "tail,bodies",
        "--targets",
        "direct,mini-lb",
        "--json",
        json.to_str().unwrap(),
    ])
    .await
    .unwrap();
    for head in [
        "tail, 50 %",
        "tail, 95 %",
        "bodies, with bodies",
        "bodies, without bodies",
    ] {
        assert!(said.contains(head), "{head}: {said}");
    }
    let cost: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let readings = cost["tails"].as_array().unwrap();
    // Three rates and twice the streams beside bodies, of two targets.
    assert_eq!(readings.len(), 2 * (3 + 2), "{said}");
    for reading in readings {
        let count = |latency: &str| reading[latency]["count"].as_u64().unwrap();
        // Each event has passed, and each but the first of its stream follows another one.
        assert_eq!(reading["events"], count("transit_ms"), "{reading}");
        assert_eq!(
            count("transit_ms"),
            count("itl_ms") + count("ttft_ms"),
            "{reading}"
        );
        let bodies = reading["phase"] == "with bodies";
        assert_eq!(count("body_ms") > 0, bodies, "{reading}");
        assert_eq!(reading["failed"], serde_json::json!({}), "{reading}");
        let has_cpu = reading["cpu_us_per_event"].is_number();
        assert_eq!(has_cpu, reading["target"] == "mini-lb", "{reading}");
    }
}

#[tokio::test]
async fn a_short_run_with_workers_of_vllm_leaves_no_block_held() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("cost.json");
    let said = short_run(&[
        "--engine",
        "vllm",
        "--workloads",
        "chat-4,chat-16",
        "--targets",
        "direct,direct-legs,mini-lb",
        "--target",
        "again={mini-lb} --engine vllm --port {port} --prefill {prefill1} --decode {decode2}",
        "--json",
        json.to_str().unwrap(),
    ])
    .await
    .unwrap();
    assert!(said.contains("direct-legs is left out"), "{said}");
    let cost: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let readings = cost["readings"].as_array().unwrap();
    assert_eq!(readings.len(), 6);
    for reading in readings {
        for none in ["errors", "open_rooms", "violations"] {
            assert_eq!(reading[none], 0, "{none}: {reading}");
        }
    }
    let unknown = short_run(&["--engine", "vllm", "--workloads", "logprobs"]);
    let unknown = unknown.await.unwrap_err();
    assert!(unknown.contains("no workload logprobs"), "{unknown}");
}

#[tokio::test]
async fn several_samples_are_compared_with_one() {
    let said = short_run(&["--workloads", "samples", "--targets", "mini-lb"]);
    let said = said.await.unwrap();
    let mut lines = said.lines();
    assert!(
        lines.any(|line| line.contains("CPU time of n = 4, x n = 1")),
        "{said}"
    );
    assert!(lines.any(|line| line.starts_with("mini-lb ")), "{said}");
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_refused_with_those_that_there_are() {
    let unknown = short_run(&["--workloads", "nothing"]).await.unwrap_err();
    assert!(unknown.contains("chat-64"), "{unknown}");
    let unknown = short_run(&["--targets", "nobody"]).await.unwrap_err();
    assert!(unknown.contains("nginx-mirror"), "{unknown}");
}

#[tokio::test]
async fn a_target_that_fails_is_said_with_what_it_said_and_the_others_go_on() {
    let said = short_run(&[
        "--workloads",
        "chat-1",
        "--targets",
        "direct",
        "--target",
        "broken=echo out of luck",
    ])
    .await
    .unwrap();
    assert!(said.contains("broken did not start: out of luck"), "{said}");
    assert!(
        said.lines().any(|line| line.starts_with("direct ")),
        "{said}"
    );
}

#[tokio::test]
async fn four_samples_take_a_bounded_multiple_of_the_instructions_of_one() {
    if std::env::var_os(COUNTS).is_none() {
        let _ = writeln!(stderr(), "instructions are counted with {COUNTS}=1");
        return;
    }
    let (one, four) = (
        instructions("samples-1").await,
        instructions("samples-4").await,
    );
    // Events are scanned to be gathered, which takes most of the difference without optimization. Those of one sample are moved
    // from socket to socket.
    let bound = if cfg!(debug_assertions) { 6.0 } else { 4.2 };
    assert!(
        four <= bound * one,
        "{four} instructions, and {one} for one sample"
    );
}

/// The instructions of mini-lb for a unit of this workload.
async fn instructions(workload: &str) -> f64 {
    let said = short_run(&[
        "--instructions",
        "--workloads",
        workload,
        "--targets",
        "mini-lb",
        "--instruction-requests",
        "100",
    ])
    .await
    .unwrap();
    let row = said.lines().find_map(|line| line.strip_prefix("mini-lb "));
    let count = row.unwrap_or_else(|| panic!("not counted: {said}"));
    let count = count.split_whitespace().next().unwrap();
    count.replace(',', "").parse().unwrap()
}

#[tokio::test]
async fn a_request_takes_no_more_instructions_than_recorded() {
    if std::env::var_os(COUNTS).is_none() {
        // Written directly, because the test harness hides the output of a test that passes.
        let _ = writeln!(stderr(), "instructions are counted with {COUNTS}=1");
        return;
    }
    for (workload, of) in [
        ("chat-1", "small chat"),
        ("logprobs", "/generate with 2,000 logprobs"),
    ] {
        let counts = Counts::from([("instructions".to_owned(), instructions(workload).await)]);
        baseline::check(&format!("instructions, {of}"), &counts);
    }
}
