//! A few rounds of the benchmark of faults.

use clap::Parser;
use serde_json::Value;

use crate::fault_cost::{Arguments, run};

async fn few_rounds(options: &[&str]) -> Result<(String, Value), String> {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("faults.json");
    let line = ["faults", "--rounds", "2", "--json", json.to_str().unwrap()];
    let arguments = Arguments::try_parse_from(line.iter().chain(options)).unwrap();
    let mut said = String::new();
    run(arguments, |text| said.push_str(&text)).await?;
    let read = std::fs::read_to_string(json).unwrap();
    Ok((said, serde_json::from_str(&read).unwrap()))
}

#[tokio::test]
async fn each_kind_of_fault_is_reached_and_its_ends_are_seen() {
    let kinds = "prefill answers 500,prefill dies,decode cuts a stream,client leaves a merge,one prefill of two refuses";
    let (said, read) = few_rounds(&["--scenarios", kinds]).await.unwrap();
    let readings = read["readings"].as_array().unwrap();
    assert_eq!(readings.len(), 6, "{said}");
    for reading in readings {
        let rounds = reading["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{reading}");
        for round in rounds {
            assert_eq!(round["is_reached"], true, "{reading}");
            for ends in ["prefill_ends_ms", "decode_ends_ms"] {
                let is_seen = round[ends].is_f64();
                // The only worker of this role may be the one that refuses.
                assert!(is_seen || round["is_served"] == true, "{ends}: {reading}");
            }
        }
    }
    for row in [
        "prefill answers 500: client knows",
        "client leaves a merge: decode's socket closed",
    ] {
        assert!(said.lines().any(|line| line.starts_with(row)), "{said}");
    }
    // Also where it was lost on a connection of the pool, and sent again to a worker that now refuses connections.
    assert!(said.contains("502 prefill_lost"), "{said}");
    assert!(said.contains("2 of 2"), "{said}");
}

#[tokio::test]
async fn each_fault_of_one_leg_is_reached_with_workers_of_vllm() {
    let scenarios = "prefill dies,decode answers,decode cuts a stream,client leaves at decode,one prefill of two refuses,\
                     all prefills refuse,a list of prompts";
    let (said, read) = few_rounds(&["--engine", "vllm", "--scenarios", scenarios])
        .await
        .unwrap();
    let readings = read["readings"].as_array().unwrap();
    assert_eq!(readings.len(), 7, "{said}");
    for reading in readings {
        for round in reading["rounds"].as_array().unwrap() {
            assert_eq!(round["is_reached"], true, "{reading}");
        }
    }
    // Decode computes the prompt, or prefill's first one does not matter.
    for row in [
        "prefill dies: client knows",
        "one prefill of two refuses: served",
        "all prefills refuse: served",
        "a list of prompts: decode got one prompt's blocks for all",
    ] {
        let row = said.lines().find(|line| line.starts_with(row)).unwrap();
        let expected = ["served", "2 of 2", "0 of 2"];
        assert!(expected.iter().any(|end| row.contains(end)), "{row}");
    }
}

#[tokio::test]
async fn logprobs_of_the_prompt_are_found_only_where_they_are() {
    let (_, read) = few_rounds(&["--scenarios", "logprobs,a batch"])
        .await
        .unwrap();
    for reading in read["readings"].as_array().unwrap() {
        let is_there = reading["scenario"] != "a batch";
        let found = &reading["rounds"][0]["has_prompt_logprobs"];
        assert_eq!(found, is_there, "{reading}");
    }
}

#[tokio::test]
async fn a_balancer_that_does_not_start_is_said_and_the_others_go_on() {
    let broken = "broken=echo out of luck";
    let (said, read) = few_rounds(&["--scenarios", "a batch", "--target", broken])
        .await
        .unwrap();
    assert!(said.contains("broken did not start: out of luck"), "{said}");
    assert_eq!(
        read["readings"][1]["error"],
        "broken did not start: out of luck"
    );
    let unknown = few_rounds(&["--scenarios", "nothing"]).await.unwrap_err();
    assert!(unknown.contains("prefill dies"), "{unknown}");
}
