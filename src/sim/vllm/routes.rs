//! The table of paths: the endpoint of each, its methods, and when it is there. The only file of vLLM's that knows paths.
//!
//! Source: transcript 30; vLLM 0.32.0, the routers below `entrypoints`.

use super::VllmOptions;

/// The endpoint of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Generates(Generation),
    Manages(Management),
    /// The simulator's own, which need no key.
    Simulates(Own),
}

/// The endpoints that generate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    Chat,
    ChatBatch,
    Completions,
    Responses,
    Messages,
    Tokens,
}

/// The endpoints without generation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Management {
    Health,
    Ping,
    Load,
    Version,
    Metrics,
    Tokenize,
    Detokenize,
    Models,
    KvEventSources,
    CountTokens,
    ScalingElasticEp,
    /// Of these request ids.
    AbortThese,
    /// Of these request ids, or of all.
    Abort,
    ServerInfo,
    ResetPrefixCache,
    ResetMmCache,
    Sleep,
    WakeUp,
    IsSleeping,
    Pause,
    Resume,
    IsPaused,
    WorldSize,
}

/// The simulator's own endpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Own {
    Journal,
    Chaos,
    Cache,
}

/// When a path is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum There {
    Always,
    /// With `--enable-scale-out`; else it is refused.
    ScaledOut,
    /// With `VLLM_SERVER_DEV_MODE=1`.
    InDevelopment,
}

use Endpoint::{Generates, Manages, Simulates};
use Generation::{Chat, ChatBatch, Completions, Messages, Responses, Tokens};
use Management as M;
use There::{Always, InDevelopment, ScaledOut};

/// A path, its endpoint, the methods that it takes, as `allow` lists them, and when it is there.
type Route = (&'static str, Endpoint, &'static str, There);

const GET: &str = "GET";
const POST: &str = "POST";

#[rustfmt::skip] // a row for each path
const ROUTES: &[Route] = &[
    ("/v1/chat/completions", Generates(Chat), POST, Always),
    ("/v1/chat/completions/batch", Generates(ChatBatch), POST, Always),
    ("/v1/completions", Generates(Completions), POST, Always),
    ("/v1/responses", Generates(Responses), POST, Always),
    ("/v1/messages", Generates(Messages), POST, Always),
    ("/invocations", Generates(Chat), POST, Always),
    ("/inference/v1/generate", Generates(Tokens), POST, ScaledOut),
    ("/inference/v1/abort_requests", Manages(M::AbortThese), POST, ScaledOut),
    ("/v1/messages/count_tokens", Manages(M::CountTokens), POST, Always),
    ("/v1/models", Manages(M::Models), GET, Always),
    ("/health", Manages(M::Health), GET, Always),
    ("/ping", Manages(M::Ping), "GET, POST", Always),
    ("/load", Manages(M::Load), GET, Always),
    ("/version", Manages(M::Version), GET, Always),
    ("/metrics", Manages(M::Metrics), GET, Always),
    ("/tokenize", Manages(M::Tokenize), POST, Always),
    ("/detokenize", Manages(M::Detokenize), POST, Always),
    ("/kv_event_sources", Manages(M::KvEventSources), GET, Always),
    ("/is_scaling_elastic_ep", Manages(M::ScalingElasticEp), POST, Always),
    ("/abort_requests", Manages(M::Abort), POST, InDevelopment),
    ("/server_info", Manages(M::ServerInfo), GET, InDevelopment),
    ("/reset_prefix_cache", Manages(M::ResetPrefixCache), POST, InDevelopment),
    ("/reset_mm_cache", Manages(M::ResetMmCache), POST, InDevelopment),
    ("/reset_encoder_cache", Manages(M::ResetMmCache), POST, InDevelopment),
    ("/sleep", Manages(M::Sleep), POST, InDevelopment),
    ("/wake_up", Manages(M::WakeUp), POST, InDevelopment),
    ("/is_sleeping", Manages(M::IsSleeping), GET, InDevelopment),
    ("/pause", Manages(M::Pause), POST, InDevelopment),
    ("/resume", Manages(M::Resume), POST, InDevelopment),
    ("/is_paused", Manages(M::IsPaused), GET, InDevelopment),
    ("/get_world_size", Manages(M::WorldSize), GET, InDevelopment),
    ("/sim/journal", Simulates(Own::Journal), "GET, DELETE", Always),
    ("/sim/chaos", Simulates(Own::Chaos), "POST, DELETE", Always),
    ("/sim/cache", Simulates(Own::Cache), "DELETE", Always),
];

/// What a path is to a worker.
pub(super) enum Found {
    /// The endpoint, and the methods that it takes.
    Endpoint(Endpoint, &'static str),
    /// `--enable-scale-out` is missing.
    Disabled,
    Nothing,
}

pub(super) fn find(path: &str, options: &VllmOptions) -> Found {
    match ROUTES.iter().find(|(route, ..)| *route == path) {
        None => Found::Nothing,
        Some((.., ScaledOut)) if !options.scale_out => Found::Disabled,
        Some((.., InDevelopment)) if !options.dev_mode => Found::Nothing,
        Some((_, endpoint, methods, _)) => Found::Endpoint(*endpoint, methods),
    }
}

/// Whether a key is asked for. Source: vLLM 0.32.0, `entrypoints/serve/middleware/authenticate.py`.
pub(super) fn needs_key(path: &str) -> bool {
    let guarded = ["/v1", "/v2", "/inference", "/cohere"];
    guarded.iter().any(|prefix| path.starts_with(prefix))
}

impl Endpoint {
    /// Whether the endpoint still responds when a scripted fault has taken the worker down.
    pub(super) fn outlives_faults(self) -> bool {
        matches!(self, Manages(Management::Health) | Simulates(_))
    }
}
