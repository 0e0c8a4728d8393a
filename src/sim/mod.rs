//! Simulated SGLang workers: prefill, decode and ordinary, with the real rendezvous over TCP.
//!
//! Anyone can try, test and measure prefill/decode disaggregation with them, without a GPU. They speak
//! SGLang 0.5.23's HTTP (another stack than the proxy's: hyper, so that a framing error is not shared),
//! its bootstrap registry, and a small line protocol between the ranks in the place of ZeroMQ and RDMA.
//! Nothing is global: workers of one process meet, as workers of several do, only through TCP.
//!
//! | file | what lives there |
//! |---|---|
//! | `worker` | [`Worker`]: start, stop, the connection loop with uvicorn's keep-alive |
//! | `routes` | one request: journal, authorization, path to endpoint |
//! | `wire` | response heads and bodies as uvicorn frames them |
//! | `request` | JSON to batches of items; the checks that SGLang makes, in its order |
//! | `engine` | the life of one item: the rules, admission by role, tokens, abort |
//! | `rendezvous` | rooms: the rank protocol, prefill's table, decode's connections to prefills |
//! | `registry` | prefill's bootstrap registry on its own port |
//! | `model` | a toy tokenizer and a toy model: the answer is a function of the prompt |
//! | `render` | JSON by hand: what the endpoints' answers share |
//! | `generate`, `chat`, `completions`, `responses`, `messages` | one generation endpoint each |
//! | `stream` | from a batch's items to one body, whole or as events |
//! | `errors` | every error body, shape by endpoint family |
//! | `management`, `server_info` | the endpoints without generation |
//! | `journal` | what happened, in order: for assertions |
//! | `chaos` | faults on purpose: rules, what they do to a body and to a connection's bytes |
//! | `cli` | `mini-lb sim` and the workers of `mini-lb demo` |
//!
//! A request that breaks a rule of the protocol gets an error and a [`journal::Violation`], and the worker goes on:
//! a simulator is there to reveal a violation. A worker goes down only where a rule of [`chaos`] says so.
//!
//! Where the truth comes from: raw transcripts of SGLang 0.5.23 pairs (`tests/fixtures/sglang-0.5.23`),
//! and its sources where no transcript shows a behaviour.

mod api;
pub mod chaos;
mod chat;
pub mod cli;
mod client;
mod completions;
mod engine;
mod errors;
mod generate;
pub mod journal;
mod management;
mod messages;
mod model;
mod registry;
mod render;
mod rendezvous;
mod request;
mod responses;
mod routes;
mod server_info;
mod stream;
mod wire;
mod worker;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

pub use journal::{Entry, Event, Journal};
pub use worker::Worker;

/// What a worker does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Computes the prompt and the first token, and hands both to decode.
    Prefill,
    /// Takes the prompt's KV and the first token from prefill, and generates the rest.
    Decode,
    /// Both in one worker: the answer that prefill and decode together must equal.
    Ordinary,
}

impl Role {
    /// The value of `disaggregation_mode` in `/server_info`.
    #[must_use]
    pub fn mode(self) -> &'static str {
        match self {
            Role::Prefill => "prefill",
            Role::Decode => "decode",
            Role::Ordinary => "null",
        }
    }
}

/// When a closed client connection is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DisconnectNotice {
    /// At once, so that tests need not wait.
    AtOnce,
    /// After 2 s in a stream and up to 4 s otherwise, both scaled by [`SimOptions::timers_scale`].
    /// Source: SGLang 0.5.23, `managers/tokenizer_manager.py`.
    AsSglang,
}

/// The knobs of a simulated worker. The default is a realistic and quick one.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Address to listen on, for the API, the registry and the rank port.
    pub host: IpAddr,
    /// API port; 0 picks a free one.
    pub port: u16,
    /// Prefill: the registry's port, 0 picks a free one. Decode: the port dialled when a request's
    /// `bootstrap_port` is null.
    pub bootstrap_port: u16,
    /// Seed of the toy model: workers with the same seed have the same "weights".
    pub seed: u64,
    /// Prefill time per prompt token.
    pub time_per_prompt_token: Duration,
    /// Time that one KV transfer takes.
    pub transfer_time: Duration,
    /// Decode time per output token.
    pub time_per_output_token: Duration,
    /// Prompts that prefill computes at the same time; the others queue.
    pub prompts_at_once: usize,
    /// Decode: requests whose KV fits into memory; the others queue before the rendezvous.
    pub kv_slots: usize,
    /// Requests that generate at the same time.
    pub max_running: usize,
    /// `served_model_name`.
    pub model: String,
    /// Key of the ordinary endpoints.
    pub api_key: Option<String>,
    /// Key of the admin endpoints; when set, `api_key` does not open them.
    pub admin_api_key: Option<String>,
    /// Idle connections are closed after this time. Source: `SGLANG_TIMEOUT_KEEP_ALIVE`, 5 s.
    pub keep_alive: Duration,
    /// Factor on the engine's own timeouts (bootstrap and waiting 300 s, registry retry 1 s, heartbeat
    /// 5 s, disconnect polls).
    pub timers_scale: f64,
    /// How long `/health` takes. The real one needs a second; a test should not.
    pub health_time: Duration,
    /// Deltas instead of cumulative events on `/generate` (`--incremental-streaming-output`).
    pub incremental_streaming: bool,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// When a client's disconnect is noticed.
    pub disconnect: DisconnectNotice,
    /// Journal entries kept (the oldest go first); 0 keeps counters only and hashes no body.
    pub journal_entries: usize,
    /// Faults on purpose.
    pub chaos: chaos::Script,
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            bootstrap_port: 0,
            seed: 1,
            time_per_prompt_token: Duration::from_micros(20),
            transfer_time: Duration::from_millis(1),
            time_per_output_token: Duration::from_millis(2),
            prompts_at_once: 4,
            kv_slots: 256,
            max_running: 256,
            model: "sim".to_owned(),
            api_key: None,
            admin_api_key: None,
            keep_alive: Duration::from_secs(5),
            timers_scale: 1.0,
            health_time: Duration::from_millis(10),
            incremental_streaming: false,
            context_length: 2048,
            disconnect: DisconnectNotice::AtOnce,
            journal_entries: 65_536,
            chaos: chaos::Script::default(),
        }
    }
}

impl SimOptions {
    /// One of SGLang's own timers, scaled.
    pub(crate) fn timer(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds * self.timers_scale).unwrap_or(Duration::MAX)
    }
}
