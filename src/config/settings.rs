//! The one table of the options: flag, variable, key of the file, default and help come from here.
//!
//! Reading and checking values may not live here. The names and the defaults are those of
//! `sglang_router.launch_router` where it has the option.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py.

use super::Role;

/// One option.
pub(crate) struct Setting {
    /// Its key in the file; flag and variable are derived from it.
    pub(crate) key: &'static str,
    pub(crate) kind: Kind,
    /// As the user would write it. `None` when there is nothing to fall back on.
    pub(crate) default: Option<&'static str>,
    /// What a value is, for the sentence "`x` is not ...".
    pub(crate) expects: &'static str,
    /// The heading of `--help` that it stands under.
    pub(crate) heading: &'static str,
    /// The names of its values in `--help`.
    pub(crate) value_names: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// The form of an option's values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Number,
    /// Paths, any number of them: behind the flag, as a list in the file, with commas in the environment.
    Paths,
    /// A flag without a value; true or false in the file and the environment.
    Switch,
    Workers(Role),
}

impl Setting {
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

pub(crate) const HOST: Setting = Setting {
    key: "host",
    kind: Kind::Text,
    default: Some("0.0.0.0"),
    expects: "a host name or an address",
    heading: "Clients",
    value_names: &["HOST"],
    help: "Address to listen on",
};

pub(crate) const PORT: Setting = Setting {
    key: "port",
    kind: Kind::Number,
    default: Some("30000"),
    expects: "a port from 0 to 65535",
    heading: "Clients",
    value_names: &["PORT"],
    help: "Port to listen on; 0 lets the system choose",
};

pub(crate) const TLS_CERT_PATH: Setting = Setting {
    key: "tls_cert_path",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Clients",
    value_names: &["PATH"],
    help: "Certificate (PEM, with its chain) with which the listeners speak TLS",
};

pub(crate) const TLS_KEY_PATH: Setting = Setting {
    key: "tls_key_path",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Clients",
    value_names: &["PATH"],
    help: "Key of that certificate",
};

pub(crate) const ADMIN_LISTEN: Setting = Setting {
    key: "admin_listen",
    kind: Kind::Text,
    default: None,
    expects: "an address to listen on: HOST:PORT",
    heading: "Clients",
    value_names: &["HOST:PORT"],
    help: "A second address, at which alone workers are administered. Everything else is answered there too",
};

pub(crate) const MAX_CONNECTIONS: Setting = Setting {
    key: "max_connections",
    kind: Kind::Number,
    default: Some("0"),
    expects: "a number of connections; 0 is what the open files allow",
    heading: "Clients",
    value_names: &["N"],
    help: "Connections of clients at once; 0 is what max_inflight_requests leaves of the open files",
};

pub(crate) const MAX_CONNECTIONS_PER_IP: Setting = Setting {
    key: "max_connections_per_ip",
    kind: Kind::Number,
    default: Some("0"),
    expects: "a number of connections; 0 is no limit",
    heading: "Clients",
    value_names: &["N"],
    help: "Connections from one address at once; 0 is no limit",
};

pub(crate) const MAX_PAYLOAD_SIZE: Setting = Setting {
    key: "max_payload_size",
    kind: Kind::Number,
    default: Some("536870912"),
    expects: "a number of bytes, at least 1",
    heading: "Clients",
    value_names: &["BYTES"],
    help: "Longest request body that is accepted",
};

pub(crate) const REQUEST_TIMEOUT_SECS: Setting = Setting {
    key: "request_timeout_secs",
    kind: Kind::Number,
    default: Some("1800"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Clients",
    value_names: &["SECONDS"],
    help: "Longest time that an answer may take that is not streamed, to its last byte",
};

pub(crate) const HEAD_TIMEOUT_SECS: Setting = Setting {
    key: "head_timeout_secs",
    kind: Kind::Number,
    default: Some("10"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Clients",
    value_names: &["SECONDS"],
    help: "Longest time until the whole head of a request has arrived",
};

pub(crate) const BODY_TIMEOUT_SECS: Setting = Setting {
    key: "body_timeout_secs",
    kind: Kind::Number,
    default: Some("30"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Clients",
    value_names: &["SECONDS"],
    help: "Longest time until the whole body of a request has arrived; each MiB of it gets a second more",
};

pub(crate) const CLIENT_IDLE_TIMEOUT_SECS: Setting = Setting {
    key: "client_idle_timeout_secs",
    kind: Kind::Number,
    default: Some("75"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Clients",
    value_names: &["SECONDS"],
    help: "How long a client's connection is kept between two requests",
};

pub(crate) const CLIENT_STALL_TIMEOUT_SECS: Setting = Setting {
    key: "client_stall_timeout_secs",
    kind: Kind::Number,
    default: Some("60"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Clients",
    value_names: &["SECONDS"],
    help: "Longest time that a client may take nothing of its answer",
};

pub(crate) const MAX_INFLIGHT_REQUESTS: Setting = Setting {
    key: "max_inflight_requests",
    kind: Kind::Number,
    default: Some("0"),
    expects: "a number of requests; 0 is what the open files allow",
    heading: "Clients",
    value_names: &["N"],
    help: "Requests at once, more get 503; 0 is a third of the open files that the process may have beyond 500",
};

pub(crate) const MAX_BUFFERED_BODY_BYTES: Setting = Setting {
    key: "max_buffered_body_bytes",
    kind: Kind::Number,
    default: Some("1073741824"),
    expects: "a number of bytes, at least 1",
    heading: "Clients",
    value_names: &["BYTES"],
    help: "Memory for the bodies of all requests at once, more get 503",
};

pub(crate) const API_KEY: Setting = Setting {
    key: "api_key",
    kind: Kind::Text,
    default: None,
    expects: "a key",
    heading: "Clients",
    value_names: &["KEY"],
    help: "Key that clients must show; workers that have no key of their own get it too. Prefer the file: a command line can be read by others",
};

pub(crate) const API_KEY_FILE: Setting = Setting {
    key: "api_key_file",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Clients",
    value_names: &["PATH"],
    help: "File with keys of clients, one a line; workers never see them",
};

pub(crate) const ADMIN_API_KEY: Setting = Setting {
    key: "admin_api_key",
    kind: Kind::Text,
    default: None,
    expects: "a key",
    heading: "Clients",
    value_names: &["KEY"],
    help: "Key for /flush_cache, /abort_request, profiles and storage, where the others are then not accepted",
};

pub(crate) const PREFILL: Setting = Setting {
    key: "prefill",
    kind: Kind::Workers(Role::Prefill),
    default: None,
    expects: "a list of prefill workers",
    heading: "Workers",
    value_names: &["URL", "BOOTSTRAP"],
    help: "A prefill worker, and where decode finds its bootstrap server: PORT, HOST:PORT, or none \
           (decode then uses its own port). Repeat it for each worker",
};

pub(crate) const DECODE: Setting = Setting {
    key: "decode",
    kind: Kind::Workers(Role::Decode),
    default: None,
    expects: "a list of decode workers",
    heading: "Workers",
    value_names: &["URL"],
    help: "A decode worker. Repeat it for each worker",
};

pub(crate) const POLICY: Setting = Setting {
    key: "policy",
    kind: Kind::Text,
    default: Some("random"),
    expects: "a policy",
    heading: "Workers",
    value_names: &["NAME"],
    help: "How a pair of workers is chosen. The other policies of sglang_router are accepted, with a \
           warning, and mean random",
};

pub(crate) const CONNECT_TIMEOUT_SECS: Setting = Setting {
    key: "connect_timeout_secs",
    kind: Kind::Number,
    default: Some("2"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Workers",
    value_names: &["SECONDS"],
    help: "Longest time that a connection to a worker may take to open",
};

pub(crate) const WORKER_API_KEY_FILE: Setting = Setting {
    key: "worker_api_key_file",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Workers",
    value_names: &["PATH"],
    help: "File with the API key of all workers that have no key of their own in the configuration file",
};

pub(crate) const WORKER_ADMIN_API_KEY_FILE: Setting = Setting {
    key: "worker_admin_api_key_file",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Workers",
    value_names: &["PATH"],
    help: "File with the key that workers want for their administration (--admin-api-key of SGLang)",
};

pub(crate) const CA_CERT_PATHS: Setting = Setting {
    key: "ca_cert_paths",
    kind: Kind::Paths,
    default: None,
    expects: "a list of paths",
    heading: "Workers",
    value_names: &["PATH"],
    help: "Certificates (PEM) of the authorities that vouch for https:// workers, instead of those of the system",
};

pub(crate) const CLIENT_CERT_PATH: Setting = Setting {
    key: "client_cert_path",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Workers",
    value_names: &["PATH"],
    help: "Certificate (PEM, with its chain) that is shown to https:// workers",
};

pub(crate) const CLIENT_KEY_PATH: Setting = Setting {
    key: "client_key_path",
    kind: Kind::Text,
    default: None,
    expects: "the path of a file",
    heading: "Workers",
    value_names: &["PATH"],
    help: "Key of that certificate",
};

/// sglang_router counts the requests of the whole router, which says nothing of a worker that is full. Off as
/// there: what fits depends on the model and the memory of the workers.
///
/// Source: smg, docs/concepts/reliability/rate-limiting.md.
pub(crate) const MAX_CONCURRENT_REQUESTS: Setting = Setting {
    key: "max_concurrent_requests",
    kind: Kind::Number,
    default: Some("-1"),
    expects: "a number of requests, at least 1; -1 or 0 is no limit",
    heading: "Workers",
    value_names: &["N"],
    help: "Requests that one worker gets at once; more wait in a queue before any worker sees them. -1 is no \
           limit",
};

pub(crate) const QUEUE_SIZE: Setting = Setting {
    key: "queue_size",
    kind: Kind::Number,
    default: Some("100"),
    expects: "a number of requests",
    heading: "Workers",
    value_names: &["N"],
    help: "Requests that may wait while all workers are full, more get 429; 0 is no queue",
};

pub(crate) const QUEUE_TIMEOUT_SECS: Setting = Setting {
    key: "queue_timeout_secs",
    kind: Kind::Number,
    default: Some("60"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Workers",
    value_names: &["SECONDS"],
    help: "Longest time that a request waits in the queue; then 503",
};

pub(crate) const SHUTDOWN_GRACE_PERIOD_SECS: Setting = Setting {
    key: "shutdown_grace_period_secs",
    kind: Kind::Number,
    default: Some("180"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Process",
    value_names: &["SECONDS"],
    help: "Longest time that live requests get after SIGTERM, or after an upgrade, before they are cut",
};

/// None: who stops a process by hand, or has nobody that watches its readiness, should not wait. Behind
/// something that does, it is the time until that has noticed.
pub(crate) const DRAIN_SETTLE_SECS: Setting = Setting {
    key: "drain_settle_secs",
    kind: Kind::Number,
    default: Some("0"),
    expects: "a number of seconds up to a year",
    heading: "Process",
    value_names: &["SECONDS"],
    help: "How long new connections are still accepted after SIGTERM, while /readiness says 503. Behind \
           Kubernetes: readiness period times failure threshold",
};

pub(crate) const LOG_LEVEL: Setting = Setting {
    key: "log_level",
    kind: Kind::Text,
    default: Some("info"),
    expects: "a log filter such as `info` or `warn,mini_lb=debug`",
    heading: "Process",
    value_names: &["FILTER"],
    help: "error, warn, info, debug, trace, off, or a filter of env_logger",
};

pub(crate) const FIRST_TOKEN_TIMEOUT_SECS: Setting = Setting {
    key: "first_token_timeout_secs",
    kind: Kind::Number,
    default: Some("600"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "Longest time until the first byte of a streamed answer",
};

pub(crate) const STREAM_IDLE_TIMEOUT_SECS: Setting = Setting {
    key: "stream_idle_timeout_secs",
    kind: Kind::Number,
    default: Some("300"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "Longest silence between two pieces of a streamed answer",
};

pub(crate) const STREAM_TIMEOUT_SECS: Setting = Setting {
    key: "stream_timeout_secs",
    kind: Kind::Number,
    default: Some("0"),
    expects: "a number of seconds up to a year; 0 is no limit",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "Longest time of a whole streamed answer; 0 is no limit",
};

pub(crate) const RETRY_MAX_RETRIES: Setting = Setting {
    key: "retry_max_retries",
    kind: Kind::Number,
    default: Some("1"),
    expects: "a number from 0 to 100",
    heading: "Faults",
    value_names: &["N"],
    help: "How often a request is sent to another pair, where that is safe",
};

pub(crate) const DISABLE_RETRIES: Setting = Setting {
    key: "disable_retries",
    kind: Kind::Switch,
    default: Some("false"),
    expects: "true or false",
    heading: "Faults",
    value_names: &[],
    help: "Never send a request to another pair",
};

pub(crate) const CB_FAILURE_THRESHOLD: Setting = Setting {
    key: "cb_failure_threshold",
    kind: Kind::Number,
    default: Some("10"),
    expects: "a number from 1 to 1000000",
    heading: "Faults",
    value_names: &["N"],
    help: "Failures within the window that set a worker aside",
};

pub(crate) const CB_WINDOW_DURATION_SECS: Setting = Setting {
    key: "cb_window_duration_secs",
    kind: Kind::Number,
    default: Some("120"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "The window of these failures",
};

pub(crate) const CB_TIMEOUT_DURATION_SECS: Setting = Setting {
    key: "cb_timeout_duration_secs",
    kind: Kind::Number,
    default: Some("30"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "How long a failing worker is set aside",
};

pub(crate) const CB_SUCCESS_THRESHOLD: Setting = Setting {
    key: "cb_success_threshold",
    kind: Kind::Number,
    default: Some("3"),
    expects: "a number from 1 to 1000000",
    heading: "Faults",
    value_names: &["N"],
    help: "Successes that bring a worker back which had been set aside",
};

pub(crate) const SLOW_START_SECS: Setting = Setting {
    key: "slow_start_secs",
    kind: Kind::Number,
    default: Some("10"),
    expects: "a number of seconds up to a year; 0 is off",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "How long a worker that is back gets less than its share of the requests: a tenth first, then more \
           and more; 0 is off",
};

pub(crate) const DISABLE_CIRCUIT_BREAKER: Setting = Setting {
    key: "disable_circuit_breaker",
    kind: Kind::Switch,
    default: Some("false"),
    expects: "true or false",
    heading: "Faults",
    value_names: &[],
    help: "Never set a worker aside for failures; one that refuses connections is set aside in any case",
};

pub(crate) const HEALTH_CHECK_INTERVAL_SECS: Setting = Setting {
    key: "health_check_interval_secs",
    kind: Kind::Number,
    default: Some("10"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "Time between two probes of a worker; one that is set aside is probed every second",
};

pub(crate) const HEALTH_CHECK_TIMEOUT_SECS: Setting = Setting {
    key: "health_check_timeout_secs",
    kind: Kind::Number,
    default: Some("5"),
    expects: "a number of seconds above 0 and at most a year",
    heading: "Faults",
    value_names: &["SECONDS"],
    help: "Longest time that a probe may take",
};

pub(crate) const HEALTH_CHECK_ENDPOINT: Setting = Setting {
    key: "health_check_endpoint",
    kind: Kind::Text,
    default: Some("/health"),
    expects: "a path that begins with /",
    heading: "Faults",
    value_names: &["PATH"],
    help: "What a probe asks for",
};

pub(crate) const DISABLE_HEALTH_CHECK: Setting = Setting {
    key: "disable_health_check",
    kind: Kind::Switch,
    default: Some("false"),
    expects: "true or false",
    heading: "Faults",
    value_names: &[],
    help: "Send no probes",
};

pub(crate) const DISABLE_ABORT_REQUESTS: Setting = Setting {
    key: "disable_abort_requests",
    kind: Kind::Switch,
    default: Some("false"),
    expects: "true or false",
    heading: "Faults",
    value_names: &[],
    help: "Do not tell workers of cancelled requests by POST /abort_request, only close the connections",
};

/// All of them, in the order of `--help` and `--print-config`.
pub(crate) const SETTINGS: [&Setting; 49] = [
    &HOST,
    &PORT,
    &TLS_CERT_PATH,
    &TLS_KEY_PATH,
    &ADMIN_LISTEN,
    &MAX_CONNECTIONS,
    &MAX_CONNECTIONS_PER_IP,
    &MAX_PAYLOAD_SIZE,
    &REQUEST_TIMEOUT_SECS,
    &HEAD_TIMEOUT_SECS,
    &BODY_TIMEOUT_SECS,
    &CLIENT_STALL_TIMEOUT_SECS,
    &CLIENT_IDLE_TIMEOUT_SECS,
    &MAX_INFLIGHT_REQUESTS,
    &MAX_BUFFERED_BODY_BYTES,
    &API_KEY,
    &API_KEY_FILE,
    &ADMIN_API_KEY,
    &PREFILL,
    &DECODE,
    &POLICY,
    &CONNECT_TIMEOUT_SECS,
    &WORKER_API_KEY_FILE,
    &WORKER_ADMIN_API_KEY_FILE,
    &CA_CERT_PATHS,
    &CLIENT_CERT_PATH,
    &CLIENT_KEY_PATH,
    &MAX_CONCURRENT_REQUESTS,
    &QUEUE_SIZE,
    &QUEUE_TIMEOUT_SECS,
    &FIRST_TOKEN_TIMEOUT_SECS,
    &STREAM_IDLE_TIMEOUT_SECS,
    &STREAM_TIMEOUT_SECS,
    &RETRY_MAX_RETRIES,
    &DISABLE_RETRIES,
    &CB_FAILURE_THRESHOLD,
    &CB_WINDOW_DURATION_SECS,
    &CB_TIMEOUT_DURATION_SECS,
    &CB_SUCCESS_THRESHOLD,
    &SLOW_START_SECS,
    &DISABLE_CIRCUIT_BREAKER,
    &HEALTH_CHECK_INTERVAL_SECS,
    &HEALTH_CHECK_TIMEOUT_SECS,
    &HEALTH_CHECK_ENDPOINT,
    &DISABLE_HEALTH_CHECK,
    &DISABLE_ABORT_REQUESTS,
    &SHUTDOWN_GRACE_PERIOD_SECS,
    &DRAIN_SETTLE_SECS,
    &LOG_LEVEL,
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
            ],
            Role::Decode => &[
                URL,
                API_KEY,
                API_KEY_FILE,
                ADMIN_API_KEY,
                ADMIN_API_KEY_FILE,
            ],
        }
    }
}

/// The policies of sglang_router and smg that this program does not have; all of them mean random here.
///
/// Source: router_args.py as above; smg 1.13, docs/configuration/routing.md.
pub(crate) const FOREIGN_POLICIES: [&str; 9] = [
    "round_robin",
    "cache_aware",
    "power_of_two",
    "manual",
    "bucket",
    "least_load",
    "consistent_hashing",
    "prefix_hash",
    "passthrough",
];

/// What the user may have meant, if anything is near enough.
pub(crate) fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    names
        .into_iter()
        .map(|name| (strsim::jaro(found, name), name))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name.to_owned())
}
