//! The only tables of paths, one for all engines and one for each: the methods that each accepts, and how it is answered.
//!
//! Routing, 405, 501, the required key and the limit of a body are all read from it. A path that is not in it is 404.
//! Source: SGLang 0.5.23 `entrypoints/http_server.py` (its routes and their methods), `entrypoints/v1_loads.py`.

mod vllm;

use std::time::Duration;

use http::Method;

use super::broadcast::Plan;
use super::pages::Page;
use crate::endpoint::Access;
use crate::pd::Engine;

/// One path.
#[derive(Debug)]
pub(super) struct Row {
    /// The raw path. `/*` at its end stands for any path below, as `{model:path}` does in SGLang.
    pub(super) path: &'static str,
    /// The methods of SGLang's route, and HEAD where GET only reads.
    pub(super) methods: &'static [Method],
    pub(super) kind: Kind,
}

/// How a path is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With two legs, by `proxy`. Requests with one of the methods do not come to this module.
    Legs,
    /// 200: the process is alive.
    Alive,
    /// By this process: 200 while a pair is available.
    Ready,
    /// By this process, for observers.
    Page(Page),
    /// By every worker, which generates a token.
    HealthGenerate,
    /// By every worker, in the shape that benchmarks read.
    ServerInfo,
    /// By every worker, with all loads in one list.
    Loads,
    /// By every worker, with an action on `path`.
    Every {
        path: &'static str,
        timeout: Timeout,
    },
    /// By several workers, each of which the response names.
    Broadcast(Plan),
    /// By one worker, whose response is passed on unchanged.
    One { timeout: Timeout },
    /// By the decode worker that has the response of the path, whose answer is passed on unchanged. Which method fits which
    /// path is decided there.
    Stored { timeout: Timeout },
    /// By this process: its workers, which are listed, added, changed and removed.
    Workers,
    /// By this process, which switches the role of workers.
    RoleSwitch,
    /// With 501. The sentence says why, and what to do instead.
    NotServed(&'static str),
}

impl Kind {
    /// Whether a worker is part of the response.
    pub(super) const fn needs_worker(self) -> bool {
        match self {
            Self::Alive | Self::Ready | Self::Page(_) | Self::Workers | Self::NotServed(_) => false,
            Self::Legs
            | Self::HealthGenerate
            | Self::ServerInfo
            | Self::Loads
            | Self::Every { .. }
            | Self::Broadcast(_)
            | Self::One { .. }
            | Self::Stored { .. }
            | Self::RoleSwitch => true,
        }
    }
}

/// The time for the whole response of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timeout {
    Fixed(Duration),
    /// The query's `timeout`, in seconds, plus [`MARGIN`].
    Query,
}

/// Added to the time that a client's query allows the worker: the worker's scheduler sees the request only between two
/// forward passes.
const MARGIN: Duration = Duration::from_secs(30);

/// The longest `timeout` of a query, so that no client holds a connection for ever.
const MAX_QUERY_TIMEOUT: Duration = Duration::from_secs(3600);

/// Empties the prefix caches.
const FLUSH: &str = "/flush_cache";
/// The same with vLLM.
const RESET: &str = "/reset_prefix_cache";

/// For responses that need no scheduler, or one turn of its loop, which a long prefill delays by seconds.
pub(super) const SHORT: Duration = Duration::from_secs(30);

/// For profiles: stopping one writes the traces of all ranks before the response.
const PROFILE: Duration = Duration::from_secs(600);

/// For `/health_generate`: above the 20 s after which a worker responds with 503 by itself, polled once a second.
/// Source: SGLang 0.5.23 `entrypoints/http_server.py`, `HEALTH_CHECK_TIMEOUT`.
pub(super) const HEALTH: Duration = Duration::from_secs(25);

/// The row of a raw path.
pub(super) fn find(engine: Engine, path: &str) -> Option<&'static Row> {
    rows(engine).find(|row| row.matches(path))
}

fn rows(engine: Engine) -> impl Iterator<Item = &'static Row> {
    let own = match engine {
        Engine::Sglang => TABLE,
        Engine::Vllm => vllm::TABLE,
    };
    ALL.iter().chain(own)
}

/// The rows of the paths that are served, without those that stand for many paths.
pub(super) fn served(engine: Engine) -> impl Iterator<Item = &'static Row> {
    let is_served = |row: &&Row| !matches!(row.kind, Kind::NotServed(_));
    rows(engine)
        .filter(is_served)
        .filter(|row| !row.path.ends_with('*'))
}

impl Row {
    /// Whether the body of a request with this method goes to a worker.
    pub(super) fn reads_body(&self, method: &Method) -> bool {
        let takes_body = match self.kind {
            // SGLang reads a body with GET as well on these paths.
            Kind::Broadcast(_) => method != Method::HEAD,
            Kind::Every { .. } | Kind::One { .. } | Kind::Workers | Kind::RoleSwitch => {
                !method.is_safe()
            }
            _ => false,
        };
        takes_body && self.methods.contains(method)
    }

    /// The key that the path needs. Health endpoints need none, as in SGLang, except for the one that makes every worker
    /// generate.
    ///
    /// Source: SGLang 0.5.23 `srt/utils/auth.py`, `decide_request_auth`.
    pub(super) fn access(&self) -> Access {
        match self.kind {
            Kind::Alive | Kind::Ready => Access::Open,
            Kind::HealthGenerate => Access::Probers,
            Kind::Every { .. } | Kind::Broadcast(_) | Kind::Workers | Kind::RoleSwitch => {
                Access::Admins
            }
            Kind::Page(_) => Access::Observers,
            _ => Access::Clients,
        }
    }

    /// The value of the `Allow` header.
    pub(super) fn allow(&self) -> String {
        let names: Vec<_> = self.methods.iter().map(Method::as_str).collect();
        names.join(", ")
    }

    /// Whether a worker that succeeds has no prefix cache any more.
    pub(super) fn empties_caches(&self) -> bool {
        matches!(
            self.kind,
            Kind::Every {
                path: FLUSH | RESET,
                ..
            }
        )
    }

    fn matches(&self, path: &str) -> bool {
        match self.path.strip_suffix('*') {
            Some(above) => path
                .strip_prefix(above)
                .is_some_and(|rest| !rest.is_empty()),
            None => self.path == path,
        }
    }
}

impl Timeout {
    /// The time for a request with this query.
    pub(super) fn of(self, query: Option<&str>) -> Duration {
        match self {
            Timeout::Fixed(timeout) => timeout,
            Timeout::Query => {
                let seconds = query
                    .into_iter()
                    .flat_map(|query| query.split('&'))
                    .filter_map(|pair| pair.strip_prefix("timeout=")?.parse().ok())
                    .next_back();
                let asked = seconds
                    .and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok())
                    .unwrap_or_default();
                asked.min(MAX_QUERY_TIMEOUT) + MARGIN
            }
        }
    }
}

/// HEAD has the head of GET: load generators and monitors ask with it whether a path is there.
const GET_HEAD: &[Method] = &[Method::GET, Method::HEAD];
/// For actions. No HEAD, which must change nothing.
const GET_POST: &[Method] = &[Method::GET, Method::POST];
const GET_HEAD_POST: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const POST: &[Method] = &[Method::POST];
const PUT_POST: &[Method] = &[Method::PUT, Method::POST];
const GET_PUT_DELETE: &[Method] = &[Method::GET, Method::HEAD, Method::PUT, Method::DELETE];
/// For a path that is not served.
const NONE: &[Method] = &[];

const NO_FIELDS: &str = "requests to this endpoint carry no bootstrap fields, so a prefill and a decode worker cannot serve \
     one together; send it to a server that runs without disaggregation";
const OLLAMA: &str = "Ollama's requests carry no bootstrap fields, so a prefill and a decode worker cannot serve one \
     together; use /v1/chat/completions, /v1/models and /model_info";
const CHAT: &str =
    "the load balancer pairs workers for /v1/chat/completions, which takes the same body; use that";
const GENERATE: &str = "the load balancer pairs workers for /generate; send each instance there";
const SESSION: &str = "a session lives on one pair of workers, and the load balancer chooses a pair for each request; send \
     the whole context with each request, whose beginning is in the workers' prefix caches";

/// For the list of workers, and for one of them: sglang-router's methods, and smg's PATCH.
const LIST: &[Method] = &[Method::GET, Method::HEAD, Method::POST];
const ENTRY: &[Method] = &[
    Method::GET,
    Method::HEAD,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
];

const fn row(path: &'static str, methods: &'static [Method], kind: Kind) -> Row {
    Row {
        path,
        methods,
        kind,
    }
}

const fn one(path: &'static str, methods: &'static [Method]) -> Row {
    let timeout = Timeout::Fixed(SHORT);
    row(path, methods, Kind::One { timeout })
}

const fn every(path: &'static str, methods: &'static [Method], timeout: Duration) -> Row {
    let timeout = Timeout::Fixed(timeout);
    row(path, methods, Kind::Every { path, timeout })
}

const fn broadcast(path: &'static str, methods: &'static [Method], plan: Plan) -> Row {
    row(path, methods, Kind::Broadcast(plan))
}

const fn page(path: &'static str, page: Page) -> Row {
    row(path, GET_HEAD, Kind::Page(page))
}

const fn flush(alias: &'static str) -> Row {
    let (path, timeout) = (FLUSH, Timeout::Query);
    row(alias, GET_POST, Kind::Every { path, timeout })
}

const fn not_served(path: &'static str, why: &'static str) -> Row {
    row(path, NONE, Kind::NotServed(why))
}

/// The paths that are there with every engine.
static ALL: &[Row] = &[
    row("/v1/chat/completions", POST, Kind::Legs),
    row("/v1/completions", POST, Kind::Legs),
    row("/v1/responses", POST, Kind::Legs),
    row("/v1/messages", POST, Kind::Legs),
    row("/", GET_HEAD, Kind::Alive),
    row("/health", GET_HEAD, Kind::Alive),
    row("/liveness", GET_HEAD, Kind::Alive),
    row("/ready", GET_HEAD, Kind::Ready),
    row("/readiness", GET_HEAD, Kind::Ready),
    page("/metrics", Page::Metrics),
    page("/dashboard", Page::Dashboard),
    page("/dashboard/data", Page::DashboardData),
    page("/debug/requests", Page::Requests),
    row("/workers", LIST, Kind::Workers),
    row("/workers/*", ENTRY, Kind::Workers),
    one("/v1/models", GET_HEAD),
    one("/v1/models/*", GET_HEAD),
    one("/tokenize", POST),
    one("/detokenize", POST),
    one("/v1/messages/count_tokens", POST),
    not_served("/invocations", CHAT),
];

/// The other paths, with workers of SGLang.
static TABLE: &[Row] = &[
    row("/generate", PUT_POST, Kind::Legs),
    row("/ping", GET_HEAD, Kind::Alive),
    row("/health_generate", GET_HEAD, Kind::HealthGenerate),
    row("/server_info", GET_HEAD, Kind::ServerInfo),
    row("/get_server_info", GET_HEAD, Kind::ServerInfo),
    row("/v1/loads", GET_HEAD, Kind::Loads),
    flush("/flush_cache"),
    flush("/reset_prefix_cache"), // vLLM's name for it, which AIPerf and SGLang's own benchmark call
    row("/pd_role_switch", POST, Kind::RoleSwitch),
    every("/hicache/storage-backend/clear", POST, PROFILE),
    every("/abort_request", POST, SHORT),
    every("/start_profile", GET_POST, PROFILE),
    every("/stop_profile", GET_POST, PROFILE),
    broadcast("/pause_generation", POST, Plan::PAUSE),
    broadcast("/continue_generation", POST, Plan::CONTINUE),
    broadcast("/update_weights_from_disk", POST, Plan::UPDATE),
    broadcast("/update_weights_from_distributed", POST, Plan::UPDATE),
    broadcast("/update_weights_from_ipc", POST, Plan::UPDATE),
    broadcast("/update_weights_from_tensor", POST, Plan::UPDATE),
    broadcast("/begin_weight_update", POST, Plan::BEGIN_UPDATE),
    broadcast("/end_weight_update", POST, Plan::UPDATE),
    broadcast("/update_weight_version", POST, Plan::ALL),
    broadcast("/init_weights_update_group", POST, Plan::JOIN_GROUP),
    broadcast("/destroy_weights_update_group", POST, Plan::ALL),
    broadcast("/get_weights_by_name", GET_POST, Plan::ALL),
    broadcast("/weights_checker", GET_POST, Plan::ALL),
    broadcast("/release_memory_occupation", GET_POST, Plan::RELEASE),
    broadcast("/resume_memory_occupation", GET_POST, Plan::RESUME),
    broadcast("/load_lora_adapter", POST, Plan::LOAD_ADAPTER),
    broadcast("/load_lora_adapter_from_tensors", POST, Plan::LOAD_ADAPTER),
    broadcast("/unload_lora_adapter", POST, Plan::UNLOAD_ADAPTER),
    broadcast("/set_internal_state", PUT_POST, Plan::ALL),
    broadcast("/slow_down", GET_POST, Plan::ALL),
    broadcast("/freeze_gc", GET_POST, Plan::ALL),
    broadcast("/configure_logging", GET_POST, Plan::ALL),
    broadcast("/set_trace_level", GET_POST, Plan::ALL),
    broadcast(
        "/start_expert_distribution_record",
        GET_POST,
        Plan::START_RECORD,
    ),
    broadcast("/stop_expert_distribution_record", GET_POST, Plan::ALL),
    broadcast("/dump_expert_distribution_record", GET_POST, Plan::ALL),
    broadcast("/hicache/storage-backend", GET_PUT_DELETE, Plan::STORAGE),
    broadcast("/get_hicache_l3_cache_layout", GET_HEAD, Plan::ALL),
    broadcast("/add_external_corpus", POST, Plan::ADD_CORPUS),
    broadcast("/remove_external_corpus", POST, Plan::ALL),
    broadcast("/list_external_corpora", GET_HEAD, Plan::ALL),
    broadcast(
        "/init_weights_send_group_for_remote_instance",
        POST,
        Plan::NAMED,
    ),
    broadcast("/send_weights_to_remote_instance", POST, Plan::NAMED),
    broadcast(
        "/remote_instance_transfer_engine_info",
        GET_HEAD,
        Plan::NAMED,
    ),
    broadcast(
        "/get_remote_instance_transfer_engine_info",
        GET_HEAD,
        Plan::NAMED,
    ),
    broadcast("/scale_elastic_ep", POST, Plan::NAMED),
    broadcast("/is_scaling_elastic_ep", GET_HEAD, Plan::ALL),
    one("/model_info", GET_HEAD),
    one("/get_model_info", GET_HEAD),
    row(
        "/v1/responses/*",
        GET_HEAD_POST,
        Kind::Stored {
            timeout: Timeout::Fixed(SHORT),
        },
    ),
    one("/v1/tokenize", POST),
    one("/v1/detokenize", POST),
    one("/parse_function_call", POST),
    one("/separate_reasoning", POST),
    not_served("/api/chat", OLLAMA),
    not_served("/api/generate", OLLAMA),
    not_served("/api/show", OLLAMA),
    not_served("/api/tags", OLLAMA),
    not_served("/classify", NO_FIELDS),
    not_served("/encode", NO_FIELDS),
    not_served("/v1/audio/transcriptions", NO_FIELDS),
    not_served("/v1/classify", NO_FIELDS),
    not_served("/v1/decisions", NO_FIELDS),
    not_served("/v1/embeddings", NO_FIELDS),
    not_served("/v1/realtime", NO_FIELDS),
    not_served("/v1/rerank", NO_FIELDS),
    not_served("/v1/score", NO_FIELDS),
    not_served("/v1/systemone", NO_FIELDS),
    not_served("/vertex_generate", GENERATE),
    not_served("/open_session", SESSION),
    not_served("/close_session", SESSION),
];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
