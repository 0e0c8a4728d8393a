//! Clients that leave, a balancer that stops, and blocks whose lease ends, with simulated workers where their state counts.
//!
//! vLLM aborts a request when its connection closes, so that nothing else tells it. Its own abort names the `x-request-id`,
//! which clients choose: it would end the requests of others that chose the same.
//! Source: vLLM 0.32.0, `entrypoints/serve/utils/api_utils.py` (`with_cancellation`), `v1/engine/output_processor.py`
//! (`abort_requests`).

use std::time::Duration;

use mini_lb::sim::journal::LeaseState;
use mini_lb::sim::{Event, SimOptions, Worker};
use support::sim::{post_text, quick_vllm, wait_for};
use support::{Balancer, CHAT, Client, Pair, config, post};

use super::*;

const PROMPT: &str = r#"{"messages":[{"role":"user","content":"the quick brown fox"}],"max_tokens":50,"ignore_eos":true}"#;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

struct Simulated {
    prefill: Worker,
    decode: Worker,
    balancer: Balancer,
}

impl Simulated {
    async fn start(prefill: SimOptions, decode: SimOptions) -> Self {
        let prefill = Worker::start_prefill(prefill).await.unwrap();
        let decode = Worker::start_decode(decode).await.unwrap();
        let balancer = Balancer::start(vllm(config(&[prefill.url()], &[decode.url()]))).await;
        Self {
            prefill,
            decode,
            balancer,
        }
    }

    async fn ask(&self) -> Client {
        let mut client = self.balancer.client().await;
        client.send(post(CHAT, PROMPT)).await;
        client
    }

    fn assert_clean(&self) {
        for worker in [&self.prefill, &self.decode] {
            let violations = worker.journal().violations();
            assert!(violations.is_empty(), "{violations:?}");
            assert_eq!(worker.journal().open_leases(), 0);
        }
    }
}

fn is_body(event: &Event) -> bool {
    matches!(event, Event::RequestBody { .. })
}

fn is_abort(event: &Event) -> bool {
    matches!(event, Event::AbortByDisconnect { .. })
}

#[tokio::test]
async fn a_client_that_leaves_while_prefill_computes_leaves_no_blocks_and_no_decode_leg() {
    let slow = SimOptions {
        time_per_prompt_token: LONG,
        ..quick_vllm()
    };
    let simulated = Simulated::start(slow, quick_vllm()).await;
    let client = simulated.ask().await;
    wait_for(&simulated.prefill, is_body).await;
    client.reset();
    wait_for(&simulated.prefill, is_abort).await;
    let entries = simulated.decode.journal().entries();
    assert!(!entries.iter().any(|entry| is_body(&entry.event)));
    simulated.assert_clean();
}

#[tokio::test]
async fn a_client_that_leaves_while_decode_generates_has_that_aborted() {
    let slow = SimOptions {
        time_per_output_token: LONG,
        ..quick_vllm()
    };
    let simulated = Simulated::start(quick_vllm(), slow).await;
    let client = simulated.ask().await;
    let is_read = |event: &Event| {
        let state = LeaseState::Read;
        matches!(event, Event::Lease { state: of, .. } if *of == state)
    };
    wait_for(&simulated.prefill, is_read).await;
    client.reset();
    wait_for(&simulated.decode, is_abort).await;
    simulated.assert_clean();
}

#[tokio::test]
async fn a_client_that_leaves_while_decode_fetches_frees_the_blocks() {
    let slow = SimOptions {
        transfer_time: LONG,
        ..quick_vllm()
    };
    let simulated = Simulated::start(slow.clone(), slow).await;
    let client = simulated.ask().await;
    wait_for(&simulated.decode, is_body).await;
    client.reset();
    let is_free = |event: &Event| {
        let free = [LeaseState::Read, LeaseState::Released];
        matches!(event, Event::Lease { state, .. } if free.contains(state))
    };
    wait_for(&simulated.prefill, is_free).await;
    simulated.assert_clean();
}

#[tokio::test]
async fn blocks_that_no_decode_worker_came_for_are_free_after_their_lease() {
    let mut short = quick_vllm();
    if let Some(options) = short.vllm.as_mut() {
        options.lease = Duration::from_millis(20);
    }
    let simulated = Simulated::start(short, quick_vllm()).await;
    // Decode does not come: its worker refuses the request before its engine sees it.
    let script = r#"{"rules":[{"match":{"times":1},"do":{"status":{"code":503}}}]}"#;
    let scripted = post_text(&simulated.decode, "/sim/chaos", script).await;
    assert_eq!(scripted.status, 200, "{}", scripted.text());
    let mut client = simulated.ask().await;
    assert_eq!(client.answer().await.status(), 503);
    let is_over = |event: &Event| {
        let state = LeaseState::Expired;
        matches!(event, Event::Lease { state: of, .. } if *of == state)
    };
    wait_for(&simulated.prefill, is_over).await;
    simulated.assert_clean();
}

#[tokio::test]
async fn a_shutdown_lets_both_legs_end_within_its_grace() {
    let Pair {
        mut prefill,
        mut decode,
        balancer,
        mut client,
    } = pair().await;
    client.send(post(CHAT, BODY)).await;
    let leg = prefill.request().await;
    let workers = async {
        leg.answer("200 OK", PREFILLED).await;
        let leg = decode.request().await;
        assert_eq!(text(&leg), with_params(BODY, params(PREFILLED)));
        leg.answer("200 OK", r#"{"served":1}"#).await;
        client.answer().await
    };
    let ((), answer) = tokio::join!(balancer.stop(), workers);
    assert_eq!((answer.status(), answer.text()), (200, r#"{"served":1}"#));
}

#[tokio::test]
async fn the_end_of_a_shutdowns_grace_ends_the_leg_of_prefill_with_an_error() {
    let pair = Pair::with(|config| vllm(config).set("shutdown_grace_period_secs", "0.2")).await;
    let Pair {
        mut prefill,
        decode,
        balancer,
        mut client,
    } = pair;
    client.send(post(CHAT, BODY)).await;
    let leg = prefill.request().await;
    let ((), answer, ()) = tokio::join!(balancer.stop(), client.answer(), leg.closed());
    assert_eq!(answer.outcome(), (503, Some("shutting_down")));
    assert!(!decode.has_request());
}
