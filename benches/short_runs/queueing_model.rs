//! The queueing model with which policies are compared.

use std::time::Duration;

use mini_lb::bench::{Trace, TraceRequest};

use crate::trace_replay::model::{Choice, Outcome, Workers, calibrated, replay};

/// Requests by time in seconds, blocks of 100 tokens.
fn trace(requests: &[(f64, &[u64])]) -> Trace {
    let request = |(at, blocks): &(f64, &[u64])| TraceRequest {
        at: Duration::from_secs_f64(*at),
        input_tokens: 100 * blocks.len(),
        output_tokens: 1,
        blocks: blocks.to_vec(),
    };
    Trace {
        requests: requests.iter().map(request).collect(),
        block_tokens: 100.0,
    }
}

fn workers(count: usize) -> Workers {
    Workers {
        speeds: vec![1.0; count],
        cache_tokens: 1_000,
        token_seconds: 0.01,
        attention_seconds: 0.0,
    }
}

fn seconds(outcome: &Outcome) -> Vec<f64> {
    let round = |seconds: &f64| (seconds * 1e3).round() / 1e3;
    outcome.first_token_seconds.iter().map(round).collect()
}

#[test]
fn prompts_wait_for_those_before_them_and_take_their_uncached_tokens() {
    let one = replay(
        &trace(&[(0.0, &[1, 2]), (1.0, &[1, 2, 3]), (10.0, &[1, 2, 3])]),
        &workers(1),
        Choice::Greedy,
        None,
    );
    // The second waits a second; of the third the last token is computed.
    assert_eq!(seconds(&one), [2.0, 2.0, 0.01]);
    assert_eq!(one.cached_tokens, 200 + 299);
    assert!((one.busy - 0.301).abs() < 1e-9, "{}", one.busy);
    let quantiles = [0.5, 0.01].map(|part| one.quantile_ms(part).round());
    assert_eq!(quantiles, [2_000.0, 10.0]);
}

#[test]
fn the_greedy_choice_takes_the_cache_while_its_queue_is_shorter_than_what_it_saves() {
    let long: &[u64] = &[1, 2, 3, 4];
    let two = replay(
        &trace(&[
            (0.0, long),
            (0.0, &[9]),
            (0.5, &[1, 2, 7, 8]),
            (20.0, &[1, 2, 3, 4]),
        ]),
        &workers(2),
        Choice::Greedy,
        None,
    );
    // The third goes to the short queue, the fourth to the worker that had it.
    assert_eq!(seconds(&two), [4.0, 1.0, 4.5, 0.01]);
    let slow = Workers {
        speeds: vec![0.2, 1.0],
        ..workers(2)
    };
    let faster = replay(
        &trace(&[(0.0, &[1]), (0.0, &[2])]),
        &slow,
        Choice::Greedy,
        None,
    );
    assert_eq!(seconds(&faster), [1.0, 2.0]);
}

#[test]
fn a_cache_forgets_the_prompt_that_was_used_last_the_longest_ago() {
    let trace = trace(&[
        (0.0, &[1, 2]),
        (10.0, &[3, 4]),
        (20.0, &[1, 2]),
        (30.0, &[5]),
        (40.0, &[1, 2]),
        (50.0, &[3]),
    ]);
    let small = Workers {
        cache_tokens: 400,
        ..workers(1)
    };
    let outcome = replay(&trace, &small, Choice::Greedy, None);
    assert_eq!(seconds(&outcome), [2.0, 2.0, 0.01, 1.0, 0.01, 0.01]);
    let smaller = Workers {
        cache_tokens: 300,
        ..workers(1)
    };
    assert_eq!(
        seconds(&replay(&trace, &smaller, Choice::Greedy, None))[2],
        1.0
    );
    let flushed = replay(
        &trace,
        &small,
        Choice::Greedy,
        Some(Duration::from_secs(15)),
    );
    assert_eq!(seconds(&flushed)[..3], [2.0, 2.0, 2.0]);
}

#[test]
fn calibrated_workers_are_as_busy_as_asked_under_random_choices() {
    let blocks: Vec<Vec<u64>> = (0..400)
        .map(|n| vec![n % 7, 100 + n % 50, 1_000 + n])
        .collect();
    let requests: Vec<_> = (0..)
        .zip(&blocks)
        .map(|(n, blocks)| (f64::from(n) * 0.05, blocks.as_slice()))
        .collect();
    let trace = trace(&requests);
    let fitted = calibrated(&trace, &workers(4), 500.0, 0.87);
    let random = replay(&trace, &fitted, Choice::Random(3), None);
    assert!((random.busy - 0.87).abs() < 0.05, "{}", random.busy);
    let greedy = replay(&trace, &fitted, Choice::Greedy, None);
    assert!(greedy.cached_tokens > random.cached_tokens);
    assert!(greedy.quantile_ms(0.9) < random.quantile_ms(0.9));
}
