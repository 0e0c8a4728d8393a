//! vLLM's workers behind the balancer: prefill's leg first, then decode's with the parameters of its response.
//!
//! The test plays the workers byte by byte, with responses that were captured from vLLM 0.32.0.

#![allow(clippy::unwrap_used)]

mod alone;
mod auto;
mod faults;
mod leaving;
mod management;
mod mooncake;
mod simulated;
mod steps;

use mini_lb::MiniLbConfig;
use support::{Exchange, Pair, TwoPairs};

/// A response of prefill, as vLLM 0.32.0 sends it.
const PREFILLED: &str = include_str!("../fixtures/vllm-0.32.0/prefill/chat.json");

/// The body of a request for one prompt, and of one for a stream.
const BODY: &str = r#"{"model": "tiny", "messages": [], "max_tokens": 8 }"#;
const STREAM: &str = r#"{"messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;

fn vllm(config: MiniLbConfig) -> MiniLbConfig {
    config.set("engine", "vllm")
}

async fn pair() -> Pair {
    Pair::with(vllm).await
}

async fn two_pairs() -> TwoPairs {
    TwoPairs::with(vllm).await
}

/// The parameters of a response of prefill, as they stand there.
fn params(response: &str) -> &str {
    let begin = response.find("{\"do_remote_prefill\"").unwrap();
    let length = response[begin..].find('}').unwrap() + 1;
    &response[begin..begin + length]
}

/// The client's body with these parameters, as decode must get it.
fn with_params(body: &str, params: &str) -> String {
    let begin = body.strip_suffix('}').unwrap();
    format!("{begin},\"kv_transfer_params\":{params}}}")
}

fn text(exchange: &Exchange) -> &str {
    std::str::from_utf8(&exchange.request.body).unwrap()
}

/// Whether this is the leg that asks a prefill worker for parameters.
fn asks_for_params(exchange: &Exchange) -> bool {
    let params = &exchange.request.json()["kv_transfer_params"];
    params["do_remote_decode"] == true && params["remote_engine_id"].is_null()
}
