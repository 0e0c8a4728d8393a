//! The table of paths: the endpoint of each, and what it requires. The only file that knows paths.
//!
//! Source of the table: SGLang 0.5.23, `entrypoints/http_server.py`; of the keys: `utils/auth.py`.

use serde_json::Value;

use super::administration::Told;
use super::errors::{Failure, Family};
use super::request::{self, Batch, Limits, Site};

/// The endpoint of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Generates(Generation),
    Manages(Management),
}

/// The endpoints that generate, by the shape of their bodies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    Native,
    Chat,
    Completions,
    Responses,
    Messages,
}

/// The endpoints without generation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Management {
    Root,
    Flag,
    Ready,
    Told(Told),
    Health,
    ServerInfo,
    ModelInfo,
    Models,
    FlushCache,
    AbortRequest,
    RoleSwitch,
    Loads,
    Metrics,
    StartProfile,
    StopProfile,
    Tokenize,
    Detokenize,
    CountTokens,
    Journal,
    Cache,
    Chaos,
}

use Endpoint::{Generates, Manages};
use Generation::{Chat, Completions, Messages, Native, Responses};
use Management::{
    AbortRequest, Cache, Chaos, CountTokens, Detokenize, Flag, FlushCache, Health, Journal, Loads,
    Metrics, ModelInfo, Models, Ready, RoleSwitch, Root, ServerInfo, StartProfile, StopProfile,
    Tokenize,
};

/// A path, its endpoint, and the methods that it takes, as `allow` lists them.
pub(crate) type Route = (&'static str, Endpoint, &'static str);

const ROUTES: &[Route] = &[
    ("/generate", Generates(Native), "POST, PUT"),
    ("/v1/chat/completions", Generates(Chat), "POST"),
    ("/invocations", Generates(Chat), "POST"),
    ("/v1/completions", Generates(Completions), "POST"),
    ("/v1/responses", Generates(Responses), "POST"),
    ("/v1/messages", Generates(Messages), "POST"),
    ("/v1/messages/count_tokens", Manages(CountTokens), "POST"),
    ("/", Manages(Root), "GET, HEAD"),
    ("/ping", Manages(Flag), "GET"),
    ("/ready", Manages(Ready), "GET"),
    ("/health", Manages(Health), "GET"),
    ("/health_generate", Manages(Health), "GET"),
    ("/server_info", Manages(ServerInfo), "GET"),
    ("/get_server_info", Manages(ServerInfo), "GET"),
    ("/model_info", Manages(ModelInfo), "GET"),
    ("/get_model_info", Manages(ModelInfo), "GET"),
    ("/v1/models", Manages(Models), "GET"),
    ("/flush_cache", Manages(FlushCache), "GET, POST"),
    ("/abort_request", Manages(AbortRequest), "POST"),
    ("/pause_generation", told(Told::Pause), "POST"),
    ("/continue_generation", told(Told::Continue), "POST"),
    (
        "/update_weights_from_disk",
        told(Told::UpdateWeights),
        "POST",
    ),
    ("/update_weight_version", told(Told::WeightVersion), "POST"),
    ("/begin_weight_update", told(Told::WeightSession), "POST"),
    ("/end_weight_update", told(Told::WeightSession), "POST"),
    ("/load_lora_adapter", told(Told::Adapter), "POST"),
    ("/unload_lora_adapter", told(Told::Adapter), "POST"),
    (
        "/set_internal_state",
        told(Told::InternalState),
        "POST, PUT",
    ),
    (
        "/destroy_weights_update_group",
        told(Told::DestroyGroup),
        "POST",
    ),
    ("/slow_down", told(Told::Nothing), "GET, POST"),
    ("/pd_role_switch", Manages(RoleSwitch), "POST"),
    ("/v1/loads", Manages(Loads), "GET"),
    ("/metrics", Manages(Metrics), "GET"),
    ("/start_profile", Manages(StartProfile), "GET, POST"),
    ("/stop_profile", Manages(StopProfile), "GET, POST"),
    ("/tokenize", Manages(Tokenize), "POST"),
    ("/v1/tokenize", Manages(Tokenize), "POST"),
    ("/detokenize", Manages(Detokenize), "POST"),
    ("/v1/detokenize", Manages(Detokenize), "POST"),
    ("/sim/journal", Manages(Journal), "GET, DELETE"),
    ("/sim/chaos", Manages(Chaos), "POST, DELETE"),
    ("/sim/cache", Manages(Cache), "DELETE"),
];

const fn told(told: Told) -> Endpoint {
    Manages(Management::Told(told))
}

/// The row of a path.
pub(crate) fn find(path: &str) -> Option<&'static Route> {
    ROUTES.iter().find(|(route, ..)| *route == path)
}

impl Endpoint {
    /// Whether the endpoint still responds when a scripted fault has taken the worker down.
    pub(crate) fn outlives_faults(self) -> bool {
        self == Manages(Health) || self.is_the_simulators()
    }

    /// Whether the endpoint is the simulator's and not SGLang's. These need no key.
    pub(crate) fn is_the_simulators(self) -> bool {
        matches!(self, Manages(Journal | Chaos | Cache))
    }

    /// Whether the endpoint takes the admin key. Source: `auth_level` of the handlers.
    pub(crate) fn is_admin(self) -> bool {
        matches!(
            self,
            Manages(
                FlushCache
                    | AbortRequest
                    | RoleSwitch
                    | StartProfile
                    | StopProfile
                    | Management::Told(_)
            )
        )
    }
}

impl Generation {
    /// The shape of its errors.
    pub(crate) fn family(self) -> Family {
        match self {
            Native => Family::Native,
            Chat | Completions => Family::OpenAi,
            Responses => Family::Responses,
            Messages => Family::Messages,
        }
    }

    /// The handler that its validation errors name.
    pub(crate) fn site(self) -> Site {
        match self {
            Native => Site::GENERATE,
            Chat | Messages => Site::CHAT,
            Completions => Site::COMPLETIONS,
            Responses => Site::RESPONSES,
        }
    }

    /// Parses a body of this endpoint.
    pub(crate) fn batch(self, body: &Value, limits: Limits) -> Result<Batch, Failure> {
        match self {
            Native => request::generate(body, limits),
            Chat => request::chat(body, limits),
            Completions => request::completions(body, limits),
            Responses => request::responses(body, limits),
            Messages => request::messages(body, limits),
        }
    }
}
