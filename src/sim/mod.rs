//! Simulated SGLang and vLLM workers: prefill, decode and ordinary, with a real rendezvous over TCP.
//!
//! They make it possible to try, test and measure prefill/decode disaggregation without a GPU. They speak
//! SGLang 0.5.23's HTTP and its bootstrap registry, or vLLM 0.32.0's HTTP, and between the ranks a small line protocol in
//! place of ZeroMQ and RDMA. Their HTTP stack is hyper, not the proxy's, so that the two do not share a framing error. There is no global
//! state: workers in one process meet only over TCP, as workers in several processes do.
//!
//! | file | what lives there |
//! |---|---|
//! | `worker` | [`Worker`]: start, stop, listeners, and connections with uvicorn's keep-alive |
//! | `api` | a request's way from its head to its response |
//! | `routes` | the table of paths, and what each endpoint requires |
//! | `client` | what happens when the client leaves early |
//! | `wire` | response heads and bodies as uvicorn frames them |
//! | `request` | a body to a batch of items, with SGLang's checks in SGLang's order |
//! | `engine` | the life of one item: the rules, admission by role, tokens, abort |
//! | `rendezvous` | rooms: the rank protocol, prefill's table, decode's connections to prefills |
//! | `registry` | prefill's bootstrap registry on its own port |
//! | `model` | a toy tokenizer and a toy model: the response is a function of the prompt |
//! | `generate`, `chat`, `completions`, `responses`, `messages` | one generation endpoint each |
//! | `openai`, `render` | what these share: OpenAI's fields and objects, JSON by hand |
//! | `stream` | a batch's items to one body, in one piece or as events |
//! | `errors` | every error body, by family of endpoints |
//! | `management`, `server_info` | the endpoints without generation |
//! | `administration` | pauses, weights, adapters and stored responses |
//! | `journal` | the events of a worker in order, for assertions |
//! | `vllm` | the same for vLLM: its endpoints, and its transfer of KV blocks |
//! | `chaos` | fault injection: scripts, and what they do to requests, bodies and connections |
//! | `cli` | `mini-lb sim` and the workers of `mini-lb demo` |
//!
//! A request that breaks a rule of the protocol gets an error, and the journal a [`journal::Violation`]; the worker goes
//! on. Only a rule of [`chaos`] takes a worker down.
//!
//! Source: raw transcripts of SGLang 0.5.23 and vLLM 0.32.0 pairs (`tests/fixtures`), and their sources where no transcript
//! shows a behaviour.

mod administration;
mod api;
#[doc(hidden)]
pub mod chaos;
mod chat;
#[doc(hidden)]
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
mod openai;
mod registry;
mod render;
mod rendezvous;
mod request;
mod responses;
mod routes;
mod server_info;
mod stream;
mod vllm;
mod wire;
mod worker;

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

pub use journal::{Entry, Event, Journal};
pub use vllm::{Connector, FailedLoad, VllmOptions};
pub use worker::Worker;

/// A worker's part in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Computes the prompt and the first token, and hands both to decode.
    Prefill,
    /// Takes the prompt's KV cache and the first token from prefill, and generates the rest.
    Decode,
    /// Both in one worker, without disaggregation. A pair's merged response must equal its response.
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

/// When a worker notices that a client closed its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DisconnectNotice {
    /// Immediately, so that tests need not wait.
    AtOnce,
    /// After 2 s in a stream and up to 4 s otherwise, both scaled by [`SimOptions::timers_scale`].
    /// Source: SGLang 0.5.23, `managers/tokenizer_manager.py`.
    AsSglang,
}

/// The options of a simulated worker. The defaults are realistic proportions at a high speed.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Address of the listeners: API, registry and rank port.
    pub host: IpAddr,
    /// Port of the API; with 0 the system chooses one.
    pub port: u16,
    /// Prefill: port of the registry; with 0 the system chooses one. Decode: the port for a request whose
    /// `bootstrap_port` is null, with 0 8998. vLLM: port of the side channel of both; with 0 the system chooses one.
    pub bootstrap_port: u16,
    /// Seed of the toy model. It stands for the weights: workers with the same seed give the same tokens.
    pub seed: u64,
    /// Prefill time per prompt token that is not cached.
    pub time_per_prompt_token: Duration,
    /// Prefill time per prompt token that is not cached and token before it, in nanoseconds: the part of attention, which
    /// grows with the square of the prompt.
    pub attention_ns: f64,
    /// Time of one KV transfer.
    pub transfer_time: Duration,
    /// Decode time per output token.
    pub time_per_output_token: Duration,
    /// Prompts that are computed concurrently, each in its own time; further ones queue.
    pub prompts_at_once: usize,
    /// Upper bound of a forward pass, in prompt tokens. Above 0 there is one pass at a time, first come, first served, and
    /// [`SimOptions::prompts_at_once`] has no effect.
    pub chunked_prefill_tokens: usize,
    /// Decode: requests whose KV cache fits into memory; further ones queue before the rendezvous.
    pub kv_slots: usize,
    /// Whether a prompt that begins as an earlier one is computed from there on. The cache has whole pages of
    /// [`Reported::page_size`] tokens.
    pub prefix_cache: bool,
    /// Tokens that fit into the memory of a rank, and so into its prefix cache; 512 per KV slot unless given.
    pub cache_tokens: Option<usize>,
    /// Replicas, each with its own queue and prefix cache. On prefill an item's replica is its room modulo their number, and
    /// its request must name it (`disagg_prefill_dp_rank`), as SGLang 0.5.23 has it.
    pub dp_size: u32,
    /// Groups of attention, each with its own queue and prefix cache. On prefill an item's group is its room modulo their
    /// number. SGLang has either these or replicas.
    pub attn_dp_size: u32,
    /// Whether `usage` has the cached tokens (`--enable-cache-report`).
    pub cache_report: bool,
    /// Requests that generate concurrently; further ones queue.
    pub max_running: usize,
    /// Name of the served model (`served_model_name`).
    pub model: String,
    /// API key of the ordinary endpoints.
    pub api_key: Option<String>,
    /// API key of the admin endpoints, which do not take `api_key` then.
    pub admin_api_key: Option<String>,
    /// Time after which an idle connection is closed. Source: `SGLANG_TIMEOUT_KEEP_ALIVE`, 5 s.
    pub keep_alive: Duration,
    /// Factor on the engine's own timeouts: bootstrap and waiting 300 s, registry retry 1 s, heartbeat 5 s,
    /// disconnect polls.
    pub timers_scale: f64,
    /// Time of `/health`. SGLang's takes about a second.
    pub health_time: Duration,
    /// Whether events of `/generate` are deltas and not cumulative (`--incremental-streaming-output`).
    pub incremental_streaming: bool,
    /// Upper bound of prompt and response together, in tokens.
    pub context_length: usize,
    /// When the worker notices that a client left.
    pub disconnect: DisconnectNotice,
    /// Number of journal entries kept; the oldest are dropped. With 0 only counters are kept, and no body is hashed.
    pub journal_entries: usize,
    /// What `/server_info` and `/model_info` say beyond the options above.
    pub reported: Reported,
    /// What makes it a vLLM worker, such as [`SimOptions::vllm`] gives; without it the worker is SGLang's.
    pub vllm: Option<VllmOptions>,
    /// Whether the role can be switched while the worker runs (`--enable-pd-role-switch`).
    pub role_switch: bool,
    /// Scripted faults; none by default.
    pub chaos: chaos::Script,
}

/// What a worker says about its engine, for tools that compare workers. Only the page size changes what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// Version of the engine.
    pub version: String,
    /// `--model-path`.
    pub model_path: String,
    /// `--page-size`, in tokens: also the unit of the prefix cache.
    pub page_size: u32,
    /// `--kv-cache-dtype`.
    pub kv_cache_dtype: String,
    /// `--disaggregation-transfer-backend`.
    pub transfer_backend: String,
    /// `--tp-size`.
    pub tp_size: u32,
    /// `--pp-size`.
    pub pp_size: u32,
}

impl Default for Reported {
    fn default() -> Self {
        Reported {
            version: "0.5.23".to_owned(),
            model_path: "sim".to_owned(),
            page_size: 1,
            kv_cache_dtype: "auto".to_owned(),
            transfer_backend: "mooncake".to_owned(),
            tp_size: 1,
            pp_size: 1,
        }
    }
}

impl SimOptions {
    /// Data parallel ranks of either kind; at least 1.
    pub(crate) fn ranks(&self) -> u32 {
        self.dp_size.max(1).saturating_mul(self.attn_dp_size.max(1))
    }
}

impl Default for SimOptions {
    fn default() -> Self {
        SimOptions {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            bootstrap_port: 0,
            seed: 1,
            time_per_prompt_token: Duration::from_micros(20),
            attention_ns: 0.0,
            transfer_time: Duration::from_millis(1),
            time_per_output_token: Duration::from_millis(2),
            prompts_at_once: 4,
            chunked_prefill_tokens: 0,
            kv_slots: 256,
            prefix_cache: false,
            cache_tokens: None,
            dp_size: 1,
            attn_dp_size: 1,
            cache_report: false,
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
            reported: Reported::default(),
            vllm: None,
            role_switch: false,
            chaos: chaos::Script::default(),
        }
    }
}

impl SimOptions {
    /// One of SGLang's timers, times [`SimOptions::timers_scale`].
    pub(crate) fn timer(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds * self.timers_scale).unwrap_or(Duration::MAX)
    }

    /// Time of a forward pass over `tokens` prompt tokens that come after `context` others. Two passes in a row take as
    /// long as one over all of their tokens.
    pub(crate) fn forward_time(&self, context: usize, tokens: usize) -> Duration {
        let (context, tokens) = (context as f64, tokens as f64);
        let before_each = tokens * context + tokens * tokens / 2.0;
        let seconds = tokens * self.time_per_prompt_token.as_secs_f64()
            + before_each * self.attention_ns / 1e9;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}
