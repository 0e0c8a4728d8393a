//! Configuration: the settings that a user wrote become the values that the program needs.
//!
//! [`MiniLbConfig`] is how a program writes them, and [`ConfigError`] says what is wrong with them.
//!
//! The resolved shape is in this file: every value is checked, has its Rust type and is not checked again. The
//! user's shape (flags, environment, file) stays inside this module. Names and defaults of the settings follow
//! `sglang_router.launch_router --mini-lb`; the server keys are Pingora's.
//!
//! | file | holds |
//! |---|---|
//! | `settings`, `kind` | the table: one row for each setting, and the form and bounds of its values |
//! | `foreign` | the flags of sglang_router that have no effect here |
//! | `draft`, `file`, `library` | the sources: flags and variables, the YAML file, a Rust program |
//! | `sources` | the sources of a command line, laid over each other |
//! | `text` | the bytes of a file that is named |
//! | `locate` | the line of a key in the file |
//! | `origins` | the origins of `cors_allowed_origins` |
//! | `labels`, `kubernetes` | the selectors of workers in Kubernetes, and where they are looked for |
//! | `resolve`, `workers`, `keys`, `tls`, `worker` | from text to values |
//! | `log_filter` | the words of log levels |
//! | `background` | what a process in the background needs of the machine |
//! | `error` | every problem that a configuration can have, and its place |
//! | `dns` | names of DNS in place of workers |
//! | `print` | `--print-config` |
//! | `reload` | the same sources, read again |
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py;
//! pingora-core 0.9.1, src/server/configuration/mod.rs.

mod background;
mod dns;
mod draft;
mod error;
mod file;
pub(crate) mod foreign;
mod keys;
pub(crate) mod kind;
mod kubernetes;
mod labels;
mod library;
mod locate;
mod log_filter;
mod origins;
mod policy;
mod print;
mod reload;
mod resolve;
pub(crate) mod settings;
mod sources;
mod text;
mod tls;
mod worker;
mod workers;

#[doc(hidden)]
pub use background::Background;
#[doc(hidden)]
pub use dns::{DnsSpec, DnsUrl};
#[doc(hidden)]
pub use draft::Environment;
pub(crate) use draft::{Draft, Given, WorkerDraft};
pub use error::{ConfigError, Fault, Place, Problem};
pub(crate) use keys::checked_key;
#[doc(hidden)]
pub use kubernetes::{DiscoveryKind, KubernetesConfig};
#[doc(hidden)]
pub use labels::Labels;
pub use library::MiniLbConfig;
#[doc(hidden)]
pub use origins::AllowedOrigins;
pub use policy::Policy;
#[doc(hidden)]
pub use policy::PolicyConfig;
#[doc(hidden)]
pub use print::Effective;
#[doc(hidden)]
pub use reload::{Contents, Reloaded, Reloader, Running};
#[cfg(feature = "cli")]
pub(crate) use sources::OwnListener;
#[doc(hidden)]
pub use sources::Sources;
#[cfg(feature = "cli")]
pub(crate) use tls::read_roots;
#[doc(hidden)]
pub use tls::{Identity, Tls};
pub use worker::UrlFault;
#[doc(hidden)]
pub use worker::{BootstrapSpec, Secret, WorkerSpec, WorkerUrl};
pub(crate) use worker::{bracketed, parse_host};

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use pingora::server::configuration::ServerConf;

use crate::limits::{Group, Settings, setting_group};
use crate::pd::Engine;
pub(crate) use crate::pd::Role;

#[doc(hidden)]
pub use crate::limits::{KvConnector, RequestLimits};

/// The configuration, resolved. Each module receives the values that it uses.
#[derive(Debug)]
#[doc(hidden)]
pub struct Config {
    /// The address that clients connect to.
    pub listen: Listen,
    /// The address for worker administration, when it is a separate one.
    pub admin_listen: Option<Listen>,
    /// The address that serves metrics only, when there is one.
    pub prometheus: Option<Listen>,
    /// Certificates and keys.
    pub tls: Tls,
    /// The prefill workers, each URL once in the whole configuration. At least one, unless they may come later.
    pub prefill: Vec<WorkerSpec>,
    /// The decode workers, each URL once in the whole configuration. At least one, unless they may come later.
    pub decode: Vec<WorkerSpec>,
    /// The keys of workers that have none of their own.
    pub worker_keys: WorkerKeys,
    /// The engine of all workers; `None` is asked of them.
    pub engine: Option<Engine>,
    /// The names of DNS whose addresses are workers, each once.
    pub dns: Vec<DnsSpec>,
    /// The DNS servers for these names; those of the system where there are none.
    pub dns_servers: Vec<SocketAddr>,
    /// The file that keeps the workers that were added by the admin API; `None` where they are not kept.
    pub workers_state_file: Option<PathBuf>,
    /// The workers that Kubernetes has; `None` when it is not asked.
    pub kubernetes: Option<KubernetesConfig>,
    /// How a pair is chosen.
    pub policies: PolicyConfig,
    /// Connections and memory of clients.
    pub clients: ClientLimits,
    /// The keys that clients need.
    pub client_keys: ClientKeys,
    /// Sizes and deadlines of one request.
    pub requests: RequestLimits,
    /// What one worker gets.
    pub workers: WorkerLimits,
    /// Circuit breaker, slow start and health checks.
    pub resilience: Resilience,
    /// How the process ends.
    pub shutdown: ShutdownConfig,
    /// How long a process that was started with `--upgrade` waits for the sockets of the old one. Never zero.
    pub upgrade_wait: Duration,
    /// The filter of the log, in the syntax of `env_logger`: `info`, `info,mini_lb=debug`.
    pub log_filter: String,
    /// Whether each line of the log is a JSON object.
    pub log_json: bool,
    /// Whether requests are traced.
    pub enable_trace: bool,
    /// Where spans go: a URL, or host and port. `None` leaves it to the variables of OpenTelemetry.
    pub otlp_traces_endpoint: Option<String>,
    /// Whether the log line of a request leaves out the address of its client.
    pub disable_log_client_address: bool,
    /// How many finished requests are remembered for `/debug/requests`; 0 is none.
    pub debug_requests_capacity: usize,
    /// Pingora's part; `threads` is the number of CPUs unless the user set it.
    pub server: ServerConf,
    /// Settings that are accepted and have no effect, one line each, for the log.
    pub warnings: Vec<String>,
    /// What a process in the background needs of the machine. Empty in the foreground.
    pub background: Background,
    /// Whether files are watched and read again when they change.
    pub watch_config: bool,
    /// The files that were read: that of the configuration first, then those that settings name.
    pub files: ReadFiles,
}

impl Config {
    /// Checks what a process in the background needs of the machine: the directories of its files, its user and group.
    ///
    /// Apart from the other checks, because it depends on the machine that the process will run on.
    ///
    /// # Errors
    /// Every directory, user and group that is missing.
    pub fn check_machine(&self) -> Result<(), ConfigError> {
        let problems = self.background.problems();
        match problems.is_empty() {
            true => Ok(()),
            false => Err(ConfigError { problems }),
        }
    }

    /// The last line of `--test`.
    pub fn summary(&self) -> String {
        format!(
            "configuration ok: {} prefill, {} decode, listening on {}",
            self.prefill.len(),
            self.decode.len(),
            self.listen
        )
    }
}

/// Paths of files. `Debug` shows none: where a configuration comes from is no part of what it means.
#[derive(Clone, Default, PartialEq, Eq)]
#[doc(hidden)]
pub struct ReadFiles(pub(crate) Vec<PathBuf>);

impl fmt::Debug for ReadFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReadFiles")
    }
}

/// Whether a new value of the setting with this key takes effect by a reload.
#[doc(hidden)]
pub fn reloads(key: &str) -> bool {
    settings::find(key).is_some_and(|setting| setting.reloads)
}

/// The address that clients connect to. `Display` is `host:port`, as Pingora takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
pub struct Listen {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl Listen {
    /// Whether the system refuses to listen on both: one port, and one address or all of IPv4. Names are not looked up.
    fn overlaps(&self, other: &Listen) -> bool {
        let all = |listen: &Listen| listen.host == "0.0.0.0";
        let is_v4 = |listen: &Listen| listen.host.parse::<std::net::Ipv4Addr>().is_ok();
        let is_covered = (all(self) && is_v4(other)) || (all(other) && is_v4(self));
        self.port != 0 && self.port == other.port && (is_covered || self.host == other.host)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        worker::write_authority(f, &self.host, self.port)
    }
}

setting_group! {
    /// Connections of clients, and the memory of their requests. No duration is zero.
    #[doc(hidden)]
    pub struct ClientLimits {
        /// From the start of a connection, or the first byte of a further request, to the end of the head.
        head_timeout: Duration = "head_timeout_secs",
        /// Between two requests of a connection.
        client_idle_timeout: Duration = "client_idle_timeout_secs",
        /// Connections at once; `None` is derived from the open files of the process. Never zero.
        max_connections: Option<usize> = "max_connections",
        /// Connections of one address at once; `None` is no limit. Never zero.
        max_connections_per_ip: Option<usize> = "max_connections_per_ip",
        /// Memory for the bodies of all requests together, in bytes. Never zero.
        max_buffered_body_bytes: usize = "max_buffered_body_bytes",
        /// Whether listeners speak HTTP/2 beside HTTP/1.1.
        http2: bool = "http2",
        /// The origins whose pages may read responses in a browser.
        cors_allowed_origins: AllowedOrigins = "cors_allowed_origins",
    }
}

setting_group! {
    /// What one worker gets. No duration is zero.
    #[doc(hidden)]
    pub struct WorkerLimits {
        /// The opening of one connection, TLS included.
        connect_timeout: Duration = "connect_timeout_secs",
        /// Requests of one worker at once; `None` is no limit, and then no request waits.
        max_concurrent_requests: Option<NonZeroUsize> = "max_concurrent_requests",
        /// Requests that wait for a worker; zero is no queue.
        queue_size: usize = "queue_size",
        /// Between two requests for the load of a worker; `None` is never.
        load_poll_interval: Option<Duration> = "load_poll_interval_secs",
    }
}

setting_group! {
    /// What keeps requests from workers that fail.
    #[doc(hidden)]
    pub struct Resilience {
        /// `None` when it is off.
        breaker: Option<Breaker>,
        /// How long a worker that is back gets less than its share; `None` is off.
        slow_start: Option<Duration> = "slow_start_secs",
        /// `None` when it is off.
        suspects: Option<SuspectMemory>,
        /// `None` when it is off.
        probes: Option<Probes>,
        /// Whether a cancelled request only closes its connections, without `POST /abort_request`.
        disable_abort_requests: bool = "disable_abort_requests",
    }
}

setting_group! {
    /// The circuit breaker of a worker. No duration and no number is zero.
    #[doc(hidden)]
    pub struct Breaker {
        /// Failures within the window that open it.
        failures: u32 = "cb_failure_threshold",
        /// The window.
        window: Duration = "cb_window_duration_secs",
        /// How long it stays open.
        pause: Duration = "cb_timeout_duration_secs",
        /// Successes that close it.
        successes: u32 = "cb_success_threshold",
    }
}

impl Group for Option<Breaker> {
    fn read(settings: &mut impl Settings) -> Option<Self> {
        let disabled: Option<bool> = settings.get("disable_circuit_breaker");
        let breaker = Breaker::read(settings)?;
        disabled.map(|disabled| (!disabled).then_some(breaker))
    }
}

setting_group! {
    /// How requests are remembered that a worker was lost with. Neither is zero.
    pub struct SuspectMemory {
        /// From the last loss to the end.
        window: Duration = "suspect_window_secs",
        /// Requests at once.
        capacity: usize = "suspect_capacity",
    }
}

impl Group for Option<SuspectMemory> {
    fn read(settings: &mut impl Settings) -> Option<Self> {
        let memory = SuspectMemory::read(settings)?;
        Some((!memory.window.is_zero()).then_some(memory))
    }
}

setting_group! {
    /// Health checks of workers. No duration is zero.
    #[doc(hidden)]
    pub struct Probes {
        /// Between two probes of a worker.
        interval: Duration = "health_check_interval_secs",
        /// Of one probe, from connecting to the end of the response.
        timeout: Duration = "health_check_timeout_secs",
        /// The path of the request.
        path: String = "health_check_endpoint",
    }
}

impl Group for Option<Probes> {
    fn read(settings: &mut impl Settings) -> Option<Self> {
        let disabled: Option<bool> = settings.get("disable_health_check");
        let probes = Probes::read(settings)?;
        disabled.map(|disabled| (!disabled).then_some(probes))
    }
}

setting_group! {
    /// How the process ends after SIGTERM.
    #[doc(hidden)]
    pub struct ShutdownConfig {
        /// How long new connections are still accepted, while the process reports that it is not ready.
        settle: Duration = "drain_settle_secs",
        /// The time that live requests get after that. Never zero.
        grace: Duration = "shutdown_grace_period_secs",
    }
}

/// The keys of workers that have none of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[doc(hidden)]
pub struct WorkerKeys {
    /// For requests.
    pub api: Option<Secret>,
    /// For administration; `None` is that for requests.
    pub admin: Option<Secret>,
}

/// The keys that clients need.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
pub struct ClientKeys {
    /// Any of them admits a client; when there are none, clients need none.
    pub api: Vec<ClientKey>,
    /// The only key for worker administration, when it is set.
    pub admin: Option<Secret>,
}

/// A key that admits clients.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(hidden)]
pub struct ClientKey {
    /// The key.
    pub key: Secret,
    /// Its name in the log: `api_key`, its line in the file, as in `line-3`, or the name behind it in that line.
    pub name: String,
}
