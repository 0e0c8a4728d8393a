//! The table of settings. One row gives a setting its key, flag, variable, form, bounds, default and help.
//!
//! From it come `--help`, the command line, the file, the environment, `--print-config`, "did you mean", and what
//! the tables of the documentation are checked against. A new setting is a row here, a field of a group
//! (`setting_group!`), its use, and a line in `conf/mini-lb.yaml`. Names and defaults are those of
//! `sglang_router.launch_router` where it has the option.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py.

use super::Role;
use super::kind::Kind;
use super::kubernetes::DiscoveryKind;
use crate::limits::{KvConnector, ServerTiming};

/// One setting.
pub(crate) struct Setting {
    /// Its key in the file; flag and variable are derived from it.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    /// As the user would write it. `None` when there is nothing to fall back on.
    pub(crate) default: Option<&'static str>,
    /// The end of the sentence "`x` is not ...".
    pub(crate) expects: &'static str,
    /// The names of its values in `--help`.
    pub(crate) value_names: &'static [&'static str],
    pub(crate) help: &'static str,
    /// Whether a reload makes a new value take effect. Otherwise it needs a new process.
    pub(crate) reloads: bool,
}

impl Setting {
    const fn new(key: &'static str, kind: Kind, help: &'static str) -> Setting {
        Setting {
            key,
            kind,
            default: None,
            expects: kind.expects(),
            value_names: kind.value_names(),
            help,
            reloads: true,
        }
    }

    /// A new value takes effect in a new process alone.
    const fn at_start(mut self) -> Setting {
        self.reloads = false;
        self
    }

    const fn default(mut self, default: &'static str) -> Setting {
        self.default = Some(default);
        self
    }

    const fn expects(mut self, expects: &'static str) -> Setting {
        self.expects = expects;
        self
    }

    const fn value(mut self, names: &'static [&'static str]) -> Setting {
        self.value_names = names;
        self
    }

    pub(crate) fn flag(&self) -> String {
        self.key.replace('_', "-")
    }

    pub(crate) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.key.to_ascii_uppercase())
    }
}

const VARIABLE_PREFIX: &str = "MINI_LB_";

/// The variable that names the file when no `--conf` does.
pub(crate) const CONF_VARIABLE: &str = "MINI_LB_CONF";

/// The headings of `--help`, each with its settings, in the order of `--help` and `--print-config`.
pub(crate) const GROUPS: [(&str, &[Setting]); 5] = [
    ("Clients", CLIENTS),
    ("Workers", WORKERS),
    ("Kubernetes", KUBERNETES),
    ("Faults", FAULTS),
    ("Process", PROCESS),
];

/// All rows.
pub(crate) fn settings() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|(_, settings)| settings.iter())
}

/// The row of a key.
pub(crate) fn find(key: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.key == key)
}

#[rustfmt::skip]
const CLIENTS: &[Setting] = &[
    Setting::new("host", Kind::Text, "Address to listen on")
        .default("0.0.0.0").value(&["HOST"]).expects("a host name or an address").at_start(),
    Setting::new("port", Kind::between(0, 65535), "Port to listen on; 0 picks a free one")
        .default("30000").value(&["PORT"]).expects("a port from 0 to 65535").at_start(),
    Setting::new("tls_cert_path", Kind::Path,
        "Certificate of the listeners (PEM, with its chain); turns TLS on"),
    Setting::new("tls_key_path", Kind::Path, "Private key of that certificate (PEM)"),
    Setting::new("admin_listen", Kind::Text,
        "Second address to listen on, the only one that accepts worker administration; all other endpoints are \
         served on both")
        .value(&["HOST:PORT"]).expects("an address to listen on: HOST:PORT").at_start(),
    // sglang_router listens at 29000 also where no flag is given: a port that is open unasked is a surprise.
    Setting::new("prometheus_port", Kind::between(0, 65535),
        "Port of another listener, which serves /metrics only and asks for no key; 0 picks a free one. 29000 where only \
         prometheus_host is given")
        .value(&["PORT"]).expects("a port from 0 to 65535").at_start(),
    Setting::new("prometheus_host", Kind::Text,
        "Address that it listens on; 0.0.0.0 where only prometheus_port is given")
        .value(&["HOST"]).expects("a host name or an address").at_start(),
    // Meshes and load balancers in front speak it to their backends, and HTTP/1.1 pays nothing for it.
    Setting::new("http2", Kind::Word(&["true", "false"]),
        "Whether listeners speak HTTP/2 beside HTTP/1.1: with clients that begin with it (h2c), and with TLS with those that \
         negotiate it")
        .default("true").expects("true or false"),
    Setting::new("max_connections", Kind::at_least(0),
        "Maximum number of client connections; 0 derives it from the limit of open files and max_inflight_requests")
        .default("0").expects("a number of connections; 0 derives the limit from the open files"),
    Setting::new("max_connections_per_ip", Kind::at_least(0),
        "Maximum number of connections from one address; 0 is no limit")
        .default("0").expects("a number of connections; 0 is no limit"),
    Setting::new("max_payload_size", Kind::BYTES,
        "Maximum request body size, in bytes; larger bodies get 413")
        .default("536870912").value(&["BYTES"]).expects("a number of bytes, at least 1"),
    Setting::new("request_timeout_secs", Kind::Seconds, "Deadline for a complete non-streaming response")
        .default("1800"),
    Setting::new("head_timeout_secs", Kind::Seconds, "Deadline for a complete request head")
        .default("10"),
    Setting::new("body_timeout_secs", Kind::Seconds,
        "Deadline for a complete request body; each MiB of it adds a second")
        .default("30"),
    Setting::new("client_stall_timeout_secs", Kind::Seconds,
        "How long a client may read nothing of its response before the connection is closed")
        .default("60"),
    Setting::new("client_idle_timeout_secs", Kind::Seconds,
        "How long a client connection stays open between two requests")
        .default("75"),
    Setting::new("stream_keepalive_secs", Kind::SecondsOrZero,
        "Silence after which a comment keeps a stream of the OpenAI and Anthropic endpoints alive; 0 is never")
        .default("0").expects("a number of seconds up to a year; 0 is never"),
    Setting::new("max_inflight_requests", Kind::at_least(0),
        "Maximum number of concurrent requests, more get 503; 0 is a third of the open files beyond 500")
        .default("0").expects("a number of requests; 0 derives the limit from the open files"),
    Setting::new("max_samples", Kind::at_least(1),
        "Maximum number of samples of one request, n times its prompts; more get 400")
        .default("128").value(&["SAMPLES"]).expects("a number of samples, at least 1"),
    Setting::new("max_buffered_body_bytes", Kind::BYTES,
        "Memory for all request bodies together, in bytes; requests that exceed it get 503")
        .default("1073741824").value(&["BYTES"]).expects("a number of bytes, at least 1"),
    // OpenAI allows 20 for chat and 5 for completions, SGLang any number.
    Setting::new("max_top_logprobs", Kind::between(0, i32::MAX as u64),
        "Maximum number of alternatives per token that a request may ask for (top_logprobs, logprobs, \
         top_logprobs_num); more get 400")
        .default("1024").expects("a number from 0 to 2147483647"),
    Setting::new("api_key", Kind::Secret,
        "API key that clients must send; workers without a key get it too. Prefer the file: other users of the \
         machine can read a command line"),
    Setting::new("api_key_file", Kind::Path,
        "File with API keys of clients, one per line, each with a name for the log behind it if you like (KEY # NAME); they \
         are not sent to workers"),
    Setting::new("cors_allowed_origins", Kind::Origins,
        "Origins whose web pages may read responses: `*` is every origin, `none` leaves CORS to others. A list in \
         the file, or several behind the flag")
        .default("*"),
    Setting::new("server_timing", Kind::Word(ServerTiming::WORDS),
        "Which responses have Server-Timing and name their pair: off, observers (where the request has x-mini-lb-timing: 1 and \
         could read /metrics), on_request (where it has that header), always")
        .default("observers").expects("one of off, observers, on_request, always"),
    Setting::new("allow_target_headers", Kind::Switch,
        "Let a request name its workers by x-mini-lb-prefill and x-mini-lb-decode, each with the URL of a worker")
        .default("false"),
    Setting::new("admin_api_key", Kind::Secret,
        "API key for /flush_cache, /abort_request, profiles and storage, where client keys are then refused"),
];

#[rustfmt::skip]
const WORKERS: &[Setting] = &[
    Setting::new("prefill", Kind::Workers(Role::Prefill),
        "A prefill worker, and the address at which decode workers reach its bootstrap server: PORT, HOST:PORT, or \
         none (decode then uses its own port). Repeat it for each worker. dns+http://NAME:PORT and srv+http://NAME are \
         all workers of that name of DNS"),
    Setting::new("decode", Kind::Workers(Role::Decode),
        "A decode worker, or a name of DNS as for prefill. Repeat it for each worker"),
    Setting::new("engine", Kind::Word(&["sglang", "vllm", "auto"]),
        "The engine of all workers: sglang, vllm with its NixlConnector, or auto, which asks them")
        .default("sglang").expects("sglang, vllm or auto").at_start(),
    Setting::new("dns_servers", Kind::Addresses,
        "DNS servers for dns+http:// and srv+http:// workers, instead of the system's: a list in the file, or several behind the \
         flag")
        .at_start(),
    Setting::new("policy", Kind::Text,
        "How a worker is chosen: random, round_robin, power_of_two, least_requests, least_tokens, session or expected_ttft. The \
         policies of sglang_router and smg mean the one that is nearest to them")
        .default("random").value(&["NAME"]).expects("a policy"),
    Setting::new("prefill_policy", Kind::Text, "The same for the prefill worker alone")
        .value(&["NAME"]).expects("a policy"),
    Setting::new("decode_policy", Kind::Text, "The same for the decode worker alone")
        .value(&["NAME"]).expects("a policy"),
    Setting::new("session_header", Kind::Text,
        "Header that names the session of a request, for the policy session; x-smg-routing-key, x-session-id and \
         x-correlation-id do so as well, and the body's session_id and user")
        .value(&["NAME"]).expects("the name of a header"),
    Setting::new("connect_timeout_secs", Kind::Seconds, "Deadline for opening a connection to a worker")
        .default("2").at_start(),
    Setting::new("load_poll_interval_secs", Kind::SecondsOrZero,
        "Time between two requests for the load of a worker (/v1/loads), for metrics and the dashboard; 0 is never")
        .default("0").expects("a number of seconds up to a year; 0 is never"),
    Setting::new("worker_api_key_file", Kind::Path,
        "File with the API key of all workers that have no key in the configuration file"),
    Setting::new("worker_admin_api_key_file", Kind::Path,
        "File with the key that workers require for their administration (--admin-api-key of SGLang)"),
    Setting::new("workers_state_file", Kind::Path,
        "File that keeps the workers that were added by POST /workers, with their keys, over restarts")
        .at_start(),
    Setting::new("ca_cert_paths", Kind::Paths,
        "Certificates (PEM) of the authorities that sign those of https:// workers, instead of the system's").at_start(),
    Setting::new("client_cert_path", Kind::Path,
        "Client certificate (PEM, with its chain) for https:// workers that ask for one").at_start(),
    Setting::new("client_key_path", Kind::Path, "Private key of that certificate (PEM)").at_start(),
    // sglang_router limits the requests of the whole router, which does not tell whether one worker is full. Off, as
    // there: the right number depends on the model and the memory of the workers.
    // Source: smg, docs/concepts/reliability/rate-limiting.md.
    Setting::new("max_concurrent_requests", Kind::at_least(-1),
        "Maximum number of concurrent requests per worker; more wait in a queue. -1 is no limit")
        .default("-1").expects("a number of requests, at least 1; -1 or 0 is no limit"),
    Setting::new("queue_size", Kind::at_least(0),
        "Maximum number of requests that wait while all workers are full, more get 429, or while generation is paused, more get 503; 0 is no queue")
        .default("100").expects("a number of requests"),
    Setting::new("queue_timeout_secs", Kind::Seconds,
        "How long a request may wait in the queue before it gets 503")
        .default("60"),
];

#[rustfmt::skip]
const KUBERNETES: &[Setting] = &[
    Setting::new("service_discovery", Kind::Switch,
        "Take workers from Kubernetes as well: those that the selectors match, for as long as they are ready")
        .default("false").at_start(),
    Setting::new("service_discovery_kind", Kind::Word(DiscoveryKind::WORDS),
        "What the selectors match: pods, or the endpointslices of services")
        .default("pods").expects("pods or endpointslices").at_start(),
    Setting::new("prefill_selector", Kind::Labels,
        "Labels of prefill workers. A list or a mapping in the file, or several behind the flag").at_start(),
    Setting::new("decode_selector", Kind::Labels, "Labels of decode workers").at_start(),
    // sglang_router ignores it beside prefill and decode.
    Setting::new("selector", Kind::Labels, "Labels of all workers, besides those of their role. Alone: each worker is asked for its role").at_start(),
    Setting::new("service_discovery_namespace", Kind::Text, "Namespace of the workers; without it all namespaces")
        .value(&["NAME"]).expects("the name of a namespace").at_start(),
    Setting::new("service_discovery_port", Kind::between(1, 65535),
        "Port of workers whose pod has no annotation for it, and whose slice names none")
        .default("80").value(&["PORT"]).expects("a port from 1 to 65535").at_start(),
    Setting::new("port_annotation", Kind::Text, "Annotation of a pod with the port of its worker")
        .default("mini-lb/port").value(&["KEY"]).expects("the key of an annotation").at_start(),
    Setting::new("bootstrap_port_annotation", Kind::Text,
        "Annotation of a prefill pod with its bootstrap port; without it the worker is asked")
        .default("sglang.ai/bootstrap-port").value(&["KEY"]).expects("the key of an annotation").at_start(),
    Setting::new("service_discovery_kubeconfig", Kind::Path,
        "Kubeconfig with the API server and the credentials. Otherwise KUBECONFIG, ~/.kube/config, or the service account of \
         the pod").at_start(),
];

#[rustfmt::skip]
const FAULTS: &[Setting] = &[
    Setting::new("first_token_timeout_secs", Kind::Seconds,
        "Deadline for the first byte of a streamed response")
        .default("600"),
    Setting::new("stream_idle_timeout_secs", Kind::Seconds,
        "Longest silence within a streamed response")
        .default("300"),
    Setting::new("stream_timeout_secs", Kind::SecondsOrZero,
        "Deadline for a complete streamed response; 0 is no limit")
        .default("0").expects("a number of seconds up to a year; 0 is no limit"),
    Setting::new("retry_max_retries", Kind::between(0, 100),
        "How often a request is retried with another pair, where that is safe")
        .default("1").expects("a number from 0 to 100"),
    Setting::new("vllm_decode_alone", Kind::Word(&["true", "false"]),
        "With vLLM: let decode compute a prompt where prefill has failed, and there is no other prefill worker")
        .default("true").expects("true or false"),
    Setting::new("kv_connector", Kind::Word(KvConnector::WORDS),
        "With vLLM: how blocks get from prefill to decode: nixl, or mooncake, whose prefill workers have a bootstrap server")
        .default("nixl").expects("nixl or mooncake"),
    Setting::new("vllm_kv_lease_secs", Kind::Seconds,
        "With vLLM: how long a prefill worker keeps the blocks of a prompt for decode, its kv_lease_duration")
        .default("30"),
    Setting::new("disable_retries", Kind::Switch, "Never retry a request")
        .default("false"),
    Setting::new("cb_failure_threshold", Kind::between(1, 1_000_000),
        "Failures in a row, all within the window, that open the circuit breaker of a worker")
        .default("10").expects("a number from 1 to 1000000"),
    Setting::new("cb_window_duration_secs", Kind::Seconds, "Window in which these failures are counted")
        .default("120"),
    Setting::new("cb_timeout_duration_secs", Kind::Seconds,
        "How long an open circuit breaker keeps requests from its worker")
        .default("30"),
    Setting::new("cb_success_threshold", Kind::between(1, 1_000_000),
        "Successes after that time that close the circuit breaker")
        .default("3").expects("a number from 1 to 1000000"),
    Setting::new("slow_start_secs", Kind::SecondsOrZero,
        "How long a worker that is back gets a reduced share of the requests, rising from a tenth; 0 is off")
        .default("10").expects("a number of seconds up to a year; 0 is off"),
    Setting::new("disable_circuit_breaker", Kind::Switch,
        "Never open a circuit breaker for failed requests; a worker that refuses connections still gets none")
        .default("false"),
    Setting::new("suspect_window_secs", Kind::SecondsOrZero,
        "How long a request that a worker was lost with is remembered; after a second loss it gets 503 for as long. 0 \
         is off")
        .default("300").expects("a number of seconds up to a year; 0 is off").at_start(),
    Setting::new("suspect_capacity", Kind::between(1, 1_000_000),
        "How many such requests are remembered at once")
        .default("1024").expects("a number from 1 to 1000000").at_start(),
    Setting::new("health_check_interval_secs", Kind::Seconds,
        "Time between two health checks of a worker; one that is set aside is checked every second")
        .default("10"),
    Setting::new("health_check_timeout_secs", Kind::Seconds, "Deadline for one health check")
        .default("5"),
    Setting::new("health_check_endpoint", Kind::UrlPath, "Path that health checks request")
        .default("/health"),
    Setting::new("disable_health_check", Kind::Switch, "Send no health checks")
        .default("false"),
    Setting::new("disable_abort_requests", Kind::Switch,
        "Do not send POST /abort_request to workers for cancelled requests, only close the connections")
        .default("false"),
];

#[rustfmt::skip]
const PROCESS: &[Setting] = &[
    Setting::new("shutdown_grace_period_secs", Kind::Seconds,
        "Time that live requests get to finish after SIGTERM, or after an upgrade, before they are cut off")
        .default("180"),
    // Off: a process that is stopped by hand, or whose readiness is not watched, should not wait.
    Setting::new("drain_settle_secs", Kind::SecondsOrZero,
        "How long new connections are still accepted after SIGTERM, while /readiness returns 503. With Kubernetes: \
         readiness period times failure threshold")
        .default("0"),
    Setting::new("upgrade_wait_secs", Kind::Seconds,
        "How long a process that was started with --upgrade waits for the sockets of the old one, which sends them at \
         SIGQUIT")
        .default("60").at_start(),
    Setting::new("log_level", Kind::Text, "off, critical, fatal, error, warning, warn, info, debug, trace, notset, or a filter of env_logger")
        .default("info").value(&["FILTER"]).expects(
        "one of off, critical, fatal, error, warning, warn, info, debug, trace, notset, or a filter such as \
         `warn,mini_lb=debug`"),
    // With the slowest ones 10,000 at most: see telemetry/requests.
    Setting::new("debug_requests_capacity", Kind::between(0, 9500),
        "How many finished requests /debug/requests remembers, besides the slowest; 0 turns the page off")
        .default("1000").value(&["REQUESTS"]).expects("a number of requests from 0 to 9500; 0 turns the page off").at_start(),
    Setting::new("log_json", Kind::Switch, "Write each line of the log as one JSON object")
        .default("false").at_start(),
    Setting::new("enable_trace", Kind::Switch,
        "Trace requests with OpenTelemetry: a span for each request, and one for each of its legs")
        .default("false").at_start(),
    Setting::new("otlp_traces_endpoint", Kind::Text,
        "Where spans go: HOST:PORT is OTLP over gRPC, an http:// or https:// URL is OTLP over HTTP, at /v1/traces unless it has a \
         path. Otherwise OTEL_EXPORTER_OTLP_ENDPOINT, or localhost:4317")
        .value(&["HOST:PORT|URL"]).expects("an address or a URL of a collector: HOST:PORT, http://HOST:PORT").at_start(),
    Setting::new("watch_config", Kind::Switch,
        "Reload the configuration when its file, or a file that it names, has changed, as SIGHUP does")
        .default("false").at_start(),
    Setting::new("disable_log_client_address", Kind::Switch,
        "Leave the address of the client out of the log line of a request")
        .default("false"),
];

/// The keys of one worker in the file.
pub(crate) mod worker_key {
    use super::Role;

    pub(crate) const URL: &str = "url";
    pub(crate) const BOOTSTRAP_PORT: &str = "bootstrap_port";
    pub(crate) const BOOTSTRAP_HOST: &str = "bootstrap_host";
    pub(crate) const API_KEY: &str = "api_key";
    pub(crate) const API_KEY_FILE: &str = "api_key_file";
    pub(crate) const ADMIN_API_KEY: &str = "admin_api_key";
    pub(crate) const ADMIN_API_KEY_FILE: &str = "admin_api_key_file";
    pub(crate) const WEIGHT: &str = "weight";
    pub(crate) const HTTP2: &str = "http2";

    /// Those whose values must not be shown.
    pub(crate) const SECRETS: [&str; 2] = [API_KEY, ADMIN_API_KEY];

    pub(crate) fn of(role: Role) -> &'static [&'static str] {
        match role {
            Role::Prefill => &[
                URL,
                BOOTSTRAP_PORT,
                BOOTSTRAP_HOST,
                API_KEY,
                API_KEY_FILE,
                ADMIN_API_KEY,
                ADMIN_API_KEY_FILE,
                WEIGHT,
                HTTP2,
            ],
            Role::Decode => &[
                URL,
                API_KEY,
                API_KEY_FILE,
                ADMIN_API_KEY,
                ADMIN_API_KEY_FILE,
                WEIGHT,
                HTTP2,
            ],
        }
    }
}

/// The name that the user may have meant, if one is near enough.
pub(crate) fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    names
        .into_iter()
        .map(|name| (strsim::jaro(found, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        // The first of those that are equally near: a list begins with what is set most often.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, name)| name.to_owned())
}
