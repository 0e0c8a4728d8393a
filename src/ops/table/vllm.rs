//! The paths that are there with workers of vLLM alone.
//!
//! Source: vLLM 0.32.0 `entrypoints/serve/` and `entrypoints/openai/api_server.py`. Most of the actions are there with
//! `VLLM_SERVER_DEV_MODE=1` alone: without it the workers answer 404, and so does the balancer.

use super::{
    GET_HEAD, GET_POST, Kind, POST, PROFILE, RESET, Row, SHORT, Timeout, every, not_served, one,
    row,
};

const NO_PAIR: &str = "a prefill and a decode worker generate text together, and this endpoint does not; send it to a server that \
     runs without a KV connector";
const STORE: &str = "the load balancer does not know which decode worker has the response; use the response of POST /v1/responses itself";

const fn reset(alias: &'static str) -> Row {
    let (path, timeout) = (RESET, Timeout::Query);
    row(alias, POST, Kind::Every { path, timeout })
}

pub(super) static TABLE: &[Row] = &[
    row("/inference/v1/generate", POST, Kind::Legs),
    row("/v1/chat/completions/batch", POST, Kind::Legs),
    row("/ping", GET_POST, Kind::Alive),
    one("/version", GET_HEAD),
    one("/v1/chat/completions/render", POST),
    one("/v1/completions/render", POST),
    every("/load", GET_HEAD, SHORT),
    every("/kv_event_sources", GET_HEAD, SHORT),
    every("/server_info", GET_HEAD, SHORT),
    every("/is_sleeping", GET_HEAD, SHORT),
    every("/is_paused", GET_HEAD, SHORT),
    every("/get_world_size", GET_HEAD, SHORT),
    reset("/reset_prefix_cache"),
    reset("/flush_cache"), // SGLang's name for it, which its benchmark calls
    every("/reset_mm_cache", POST, SHORT),
    every("/reset_encoder_cache", POST, SHORT),
    every("/sleep", POST, PROFILE),
    every("/wake_up", POST, PROFILE),
    every("/pause", POST, PROFILE),
    every("/resume", POST, PROFILE),
    every("/abort_requests", POST, SHORT),
    every("/inference/v1/abort_requests", POST, SHORT),
    every("/start_profile", POST, PROFILE),
    every("/stop_profile", POST, PROFILE),
    not_served("/v1/embeddings", NO_PAIR),
    not_served("/v1/score", NO_PAIR),
    not_served("/score", NO_PAIR),
    not_served("/v1/rerank", NO_PAIR),
    not_served("/rerank", NO_PAIR),
    not_served("/classify", NO_PAIR),
    not_served("/pooling", NO_PAIR),
    not_served("/v1/audio/transcriptions", NO_PAIR),
    not_served("/v1/audio/translations", NO_PAIR),
    not_served("/v1/realtime", NO_PAIR),
    not_served("/v1/responses/*", STORE),
];
