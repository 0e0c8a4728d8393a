//! Conformance: mini-lb in front of a pair responds as one ordinary server of the same model does.
//! A crate by itself, because it can also run against real workers, which one request at a time may use.
//!
//! | file | what lives there |
//! |---|---|
//! | `workers` | the workers from the environment; the balancer under test |
//! | `client` | raw requests over one connection, whole responses |
//! | `cases` | the list of requests, one file per family of endpoints |
//! | `digest` | a response as a tree that does not depend on how a stream was cut |
//! | `invariants` | checks of a single response |
//! | `comparison` | two trees, field by field, with the table of fields that may differ |
//! | `expected` | the table of responses that differ by design |
//! | `run` | every case through both, and the report |
//!
//! With real workers (the ordinary server and the model may be left out):
//!
//! ```sh
//! MINI_LB_TEST_PREFILL="http://127.0.0.1:31000 31900" MINI_LB_TEST_DECODE="http://127.0.0.1:32000" \
//! MINI_LB_TEST_ORDINARY="http://127.0.0.1:33000" MINI_LB_TEST_MODEL=tiny cargo test --test conformance
//! ```
//!
//! With workers of vLLM, in development mode, so that their prefix caches can be emptied before each case:
//!
//! ```sh
//! MINI_LB_TEST_ENGINE=vllm MINI_LB_TEST_PREFILL=http://127.0.0.1:35100 MINI_LB_TEST_DECODE=http://127.0.0.1:35200 \
//! MINI_LB_TEST_ORDINARY=http://127.0.0.1:35300 cargo test --test conformance real_pair
//! ```
//!
//! `MINI_LB_TEST_ONLY=echo` runs the cases with `echo` in their name only.

#![allow(clippy::unwrap_used)]

mod cases;
mod client;
mod comparison;
mod digest;
mod expected;
mod invariants;
mod run;
mod workers;

use std::time::Duration;

use mini_lb::sim::{SimOptions, Worker};
use support::sim::quick_vllm;
use workers::{Engine, Workers};

#[tokio::test(flavor = "multi_thread")]
async fn a_real_pair_behind_mini_lb_answers_as_an_ordinary_server() {
    let Some(workers) = Workers::from_environment() else {
        return run::say(
            "skipped: set MINI_LB_TEST_PREFILL=\"URL [BOOTSTRAP_PORT]\", MINI_LB_TEST_DECODE=URL and, to \
             compare, MINI_LB_TEST_ORDINARY=URL to run the conformance suite against SGLang, or vLLM with \
             MINI_LB_TEST_ENGINE=vllm",
        );
    };
    run::all_cases(&workers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_pair_behind_mini_lb_answers_as_an_ordinary_worker() {
    let options = SimOptions {
        time_per_prompt_token: Duration::ZERO,
        transfer_time: Duration::ZERO,
        time_per_output_token: Duration::ZERO,
        ..SimOptions::default()
    };
    let prefill = Worker::start_prefill(options.clone()).await.unwrap();
    let decode = Worker::start_decode(options.clone()).await.unwrap();
    let ordinary = Worker::start_ordinary(options).await.unwrap();
    run::all_cases(&Workers {
        engine: Engine::Sglang,
        prefill: vec![(prefill.url(), prefill.bootstrap_port())],
        decode: vec![decode.url()],
        ordinary: Some(ordinary.url()),
        model: None,
        each_n: false,
        simulated: true,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_pair_of_vllm_behind_mini_lb_answers_as_an_ordinary_server() {
    let mut options = quick_vllm();
    if let Some(vllm) = options.vllm.as_mut() {
        vllm.dev_mode = true;
    }
    let prefill = Worker::start_prefill(options.clone()).await.unwrap();
    let decode = Worker::start_decode(options.clone()).await.unwrap();
    let ordinary = Worker::start_ordinary(options).await.unwrap();
    run::all_cases(&Workers {
        engine: Engine::Vllm,
        prefill: vec![(prefill.url(), None)],
        decode: vec![decode.url()],
        ordinary: Some(ordinary.url()),
        model: None,
        each_n: false,
        simulated: true,
    })
    .await;
}
