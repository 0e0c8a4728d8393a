//! What `expected_ttft` makes of a trace like that of the project, in virtual time, beside the bound.
//!
//! Prompts and caches are a quarter, so that a block of the trace is one of the mirror. The bound is the one with forward
//! passes, which a short prompt shares with long ones.

use clap::Parser;
use mini_lb::bench::Words;

use crate::trace_replay::generator::{SEED, trace as generated};
use crate::trace_replay::offline::{Asking, Chooser, policy, replay, routing_keys};
use crate::trace_replay::{Arguments, model::Outcome, setting, trace, workers};

const REQUESTS: usize = 3_000;

/// The bound, and what comes of each policy.
fn outcomes<const N: usize>(options: &str, policies: [&str; N]) -> (Outcome, [Outcome; N]) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trace.jsonl");
    std::fs::write(&file, generated(SEED, REQUESTS)).unwrap();
    let line = format!(
        "routing --seconds 300 --token-scale 0.25 --trace {} {options}",
        file.display()
    );
    let arguments = Arguments::try_parse_from(line.split_whitespace()).unwrap();
    let trace = trace(&arguments).unwrap();
    let workers = workers(&arguments, &trace);
    let setting = setting(&arguments, &trace, &workers);
    let requests = routing_keys(&trace, Words::Text);
    let of_policies = policies.map(|name| {
        let asking = Asking::new(policy(name).unwrap(), &requests, &workers);
        replay(&trace, setting, Chooser::Policy(Box::new(asking)))
    });
    (replay(&trace, setting, Chooser::Greedy), of_policies)
}

/// Median and 90th percentile are at most so many times those of the other one.
fn check(other: &str, ours: &Outcome, of_other: &Outcome, most: f64) {
    for part in [0.5, 0.9] {
        let (one, other_one) = (ours.quantile_ms(part), of_other.quantile_ms(part));
        assert!(
            one <= most * other_one,
            "{part}: {one} ms, {other} {other_one}"
        );
    }
}

/// Percent of the prompt tokens that were cached in these hundreds of requests, together.
fn cached(outcome: &Outcome, hundreds: std::ops::Range<usize>) -> f64 {
    outcome.cached_by_hundred[hundreds].iter().sum()
}

#[test]
fn the_first_token_comes_far_sooner_than_without_a_look_at_the_caches() {
    let policies = ["expected_ttft", "least_tokens", "least_requests"];
    let (bound, [ours, tokens, requests]) = outcomes("", policies);
    check("least_tokens", &ours, &tokens, 0.6);
    check("least_requests", &ours, &requests, 0.6);
    check("the bound", &ours, &bound, 1.5);
    let part = ours.cached_tokens as f64 / bound.cached_tokens as f64;
    assert!(part >= 0.9, "{part}");
}

#[test]
fn where_no_prompt_shares_anything_it_is_as_good_as_by_lengths() {
    let (_, [ours, tokens]) = outcomes("--unshared", ["expected_ttft", "least_tokens"]);
    check("least_tokens", &ours, &tokens, 1.05);
}

#[test]
fn a_worker_of_half_the_speed_is_known_as_one() {
    let policies = ["expected_ttft", "least_tokens"];
    let (bound, [ours, tokens]) = outcomes("--slow-worker 0.5", policies);
    check("least_tokens", &ours, &tokens, 0.7);
    check("the bound", &ours, &bound, 1.7);
}

#[test]
fn caches_that_were_emptied_are_known_within_a_hundred_requests() {
    let (bound, [ours]) = outcomes("--flush-at-half", ["expected_ttft"]);
    // The caches are emptied in the sixteenth hundred or near it.
    for (hundreds, least) in [(17..20, 0.7), (17..29, 0.85)] {
        let part = cached(&ours, hundreds.clone()) / cached(&bound, hundreds.clone());
        assert!(part >= least, "{hundreds:?}: {part}");
    }
}
