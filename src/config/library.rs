//! The configuration as a Rust program writes it: [`MiniLbConfig`].
//!
//! The same draft and the same checks as for flags and files; only the places have other names.

use std::fmt::Display;
use std::time::Duration;

use serde_yaml::Value;

use super::draft::{Draft, Given, WorkerDraft};
use super::resolve::{Files, resolve};
use super::settings::{find, nearest, settings, worker_key};
use super::{Config, ConfigError, Effective, Fault, Place, Policy, Problem, Sources};

/// The configuration of a balancer that runs in another program. Values are checked in [`crate::MiniLoadBalancer::new`].
///
/// [`MiniLbConfig::set`] takes every setting by its key; the other methods are the same for one key, with the type
/// of its value.
#[derive(Debug, Clone)]
pub struct MiniLbConfig {
    draft: Draft,
    problems: Vec<Problem>,
}

impl MiniLbConfig {
    /// The values that every balancer needs; the others have the defaults of the command line.
    ///
    /// Clients connect to `host` and `port`; port 0 lets the system choose. `prefill_urls` has a bootstrap port for
    /// each worker; `None` makes decode use its own port. `timeout_secs` is the deadline for a complete
    /// non-streaming response.
    pub fn new(
        host: String,
        port: u16,
        prefill_urls: Vec<(String, Option<u16>)>,
        decode_urls: Vec<String>,
        timeout_secs: u64,
    ) -> MiniLbConfig {
        let config = MiniLbConfig {
            draft: Draft::default(),
            problems: Vec::new(),
        };
        let mut config = config
            .set("host", host)
            .set("port", port)
            .set("request_timeout_secs", timeout_secs);
        for (index, (url, bootstrap_port)) in prefill_urls.iter().enumerate() {
            let place = Place::Library(format!("prefill_urls[{index}]"));
            let mut worker = WorkerDraft::new(place);
            worker.set(worker_key::URL, url);
            if let Some(port) = bootstrap_port {
                worker.set(worker_key::BOOTSTRAP_PORT, &port.to_string());
            }
            config.push("prefill", "prefill_urls", worker);
        }
        for (index, url) in decode_urls.iter().enumerate() {
            let place = Place::Library(format!("decode_urls[{index}]"));
            let mut worker = WorkerDraft::new(place);
            worker.set(worker_key::URL, url);
            config.push("decode", "decode_urls", worker);
        }
        config
    }

    /// Sets a setting by its key in the configuration file, to a value in the form of its environment variable:
    /// `set("queue_size", 10)`, `set("cb_window_duration_secs", 0.5)`, `set("disable_retries", true)`.
    ///
    /// An unknown key and an invalid value are errors of [`crate::MiniLoadBalancer::new`]. Pingora's keys are unknown here.
    pub fn set(mut self, key: &str, value: impl Display) -> MiniLbConfig {
        let place = Place::Library(key.to_owned());
        match find(key) {
            Some(setting) => {
                let text = value.to_string();
                self.draft
                    .set_text(setting, &text, place, &mut self.problems);
            }
            None => {
                let suggestion = nearest(key, settings().map(|setting| setting.key));
                let fault = Fault::UnknownKey {
                    suggestion,
                    allowed: None,
                };
                self.problems.push(Problem { place, fault });
            }
        }
        self
    }

    /// How the workers of both roles are chosen.
    pub fn policy(self, policy: Policy) -> MiniLbConfig {
        self.set("policy", policy.name())
    }

    /// Deadline for a complete non-streaming response, where whole seconds are too coarse.
    pub fn request_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("request_timeout_secs", timeout.as_secs_f64())
    }

    /// Deadline for a complete request head.
    pub fn head_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("head_timeout_secs", timeout.as_secs_f64())
    }

    /// Deadline for a complete request body; each MiB of it adds a second.
    pub fn body_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("body_timeout_secs", timeout.as_secs_f64())
    }

    /// How long a client may read nothing of its response.
    pub fn client_stall_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("client_stall_timeout_secs", timeout.as_secs_f64())
    }

    /// How long a client connection stays open between two requests.
    pub fn client_idle_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("client_idle_timeout_secs", timeout.as_secs_f64())
    }

    /// Maximum number of concurrent requests; 0 derives it from the open files of the process.
    pub fn max_inflight_requests(self, requests: usize) -> MiniLbConfig {
        self.set("max_inflight_requests", requests)
    }

    /// Maximum number of samples of one request: `n` times its prompts.
    pub fn max_samples(self, samples: usize) -> MiniLbConfig {
        self.set("max_samples", samples)
    }

    /// Memory for all request bodies together, in bytes.
    pub fn max_buffered_body_bytes(self, bytes: usize) -> MiniLbConfig {
        self.set("max_buffered_body_bytes", bytes)
    }

    /// The API key that clients must send; workers without a key get it too.
    pub fn api_key(self, key: &str) -> MiniLbConfig {
        self.set("api_key", key)
    }

    /// The file with API keys of clients, one per line; they are not sent to workers.
    pub fn api_key_file(self, path: &str) -> MiniLbConfig {
        self.set("api_key_file", path)
    }

    /// The only API key for worker administration.
    pub fn admin_api_key(self, key: &str) -> MiniLbConfig {
        self.set("admin_api_key", key)
    }

    /// Certificate (with its chain) and private key of the listeners, as PEM files. Turns TLS on.
    pub fn tls(self, cert_path: &str, key_path: &str) -> MiniLbConfig {
        self.set("tls_cert_path", cert_path)
            .set("tls_key_path", key_path)
    }

    /// File that keeps the workers that were added by `POST /workers`, with their keys, over restarts.
    pub fn workers_state_file(self, path: &str) -> MiniLbConfig {
        self.set("workers_state_file", path)
    }

    /// Certificates of the authorities that sign those of `https://` workers, as PEM files. An empty list is the
    /// system's authorities.
    pub fn ca_cert_paths(self, paths: &[&str]) -> MiniLbConfig {
        self.set("ca_cert_paths", paths.join(","))
    }

    /// Client certificate and private key for `https://` workers that ask for one, as PEM files.
    pub fn client_cert(self, cert_path: &str, key_path: &str) -> MiniLbConfig {
        self.set("client_cert_path", cert_path)
            .set("client_key_path", key_path)
    }

    /// A second address (`HOST:PORT`, port 0 lets the system choose), the only one that accepts worker
    /// administration. [`crate::Handle::admin_address`] returns it.
    pub fn admin_listen(self, address: &str) -> MiniLbConfig {
        self.set("admin_listen", address)
    }

    /// An address that serves `/metrics` only, and asks for no key; port 0 lets the system choose.
    /// [`crate::Handle::metrics_address`] returns it.
    pub fn prometheus(self, host: &str, port: u16) -> MiniLbConfig {
        self.set("prometheus_host", host)
            .set("prometheus_port", port)
    }

    /// The origins whose web pages may read responses; `["*"]` is every origin, `["none"]` adds no CORS field.
    pub fn cors_allowed_origins(self, origins: &[&str]) -> MiniLbConfig {
        self.set("cors_allowed_origins", origins.join(","))
    }

    /// Maximum number of client connections; 0 derives it from the open files of the process.
    pub fn max_connections(self, connections: usize) -> MiniLbConfig {
        self.set("max_connections", connections)
    }

    /// Maximum number of connections from one address; 0 is no limit.
    pub fn max_connections_per_ip(self, connections: usize) -> MiniLbConfig {
        self.set("max_connections_per_ip", connections)
    }

    /// Deadline for the first byte of a streamed response.
    pub fn first_token_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("first_token_timeout_secs", timeout.as_secs_f64())
    }

    /// Longest silence within a streamed response.
    pub fn stream_idle_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("stream_idle_timeout_secs", timeout.as_secs_f64())
    }

    /// Deadline for a complete streamed response; zero is no limit.
    pub fn stream_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("stream_timeout_secs", timeout.as_secs_f64())
    }

    /// Deadline for opening a connection to a worker.
    pub fn connect_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("connect_timeout_secs", timeout.as_secs_f64())
    }

    /// How often a request is retried with another pair, where that is safe.
    pub fn retries(self, retries: u32) -> MiniLbConfig {
        self.set("retry_max_retries", retries)
    }

    /// Maximum number of concurrent requests per worker; more wait in a queue. 0 is no limit.
    pub fn max_concurrent_requests(self, requests: usize) -> MiniLbConfig {
        self.set("max_concurrent_requests", requests)
    }

    /// Maximum number of requests that wait while all workers are full, or while generation is paused; 0 is no queue.
    pub fn queue_size(self, requests: usize) -> MiniLbConfig {
        self.set("queue_size", requests)
    }

    /// How long a request may wait in the queue.
    pub fn queue_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("queue_timeout_secs", timeout.as_secs_f64())
    }

    /// How long a worker that is back gets a reduced share of the requests; zero is off.
    pub fn slow_start(self, time: Duration) -> MiniLbConfig {
        self.set("slow_start_secs", time.as_secs_f64())
    }

    /// How long a request that a worker was lost with is remembered; zero is off.
    pub fn suspect_window(self, time: Duration) -> MiniLbConfig {
        self.set("suspect_window_secs", time.as_secs_f64())
    }

    /// Deadline for one health check.
    pub fn health_check_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.set("health_check_timeout_secs", timeout.as_secs_f64())
    }

    /// Time between two health checks of a worker; `None` sends none.
    pub fn health_check_interval(self, interval: Option<Duration>) -> MiniLbConfig {
        let config = self.set("disable_health_check", interval.is_none());
        match interval {
            Some(interval) => config.set("health_check_interval_secs", interval.as_secs_f64()),
            None => config,
        }
    }

    /// Time that live requests get after [`crate::Handle::stop`] before they are cut off.
    pub fn shutdown_grace_period(self, limit: Duration) -> MiniLbConfig {
        self.set("shutdown_grace_period_secs", limit.as_secs_f64())
    }

    /// How long new connections are still accepted after [`crate::Handle::stop`], while `/readiness` returns 503.
    pub fn drain_settle(self, time: Duration) -> MiniLbConfig {
        self.set("drain_settle_secs", time.as_secs_f64())
    }

    /// Maximum request body size, in bytes.
    pub fn max_payload_size(self, bytes: usize) -> MiniLbConfig {
        self.set("max_payload_size", bytes)
    }

    /// The filter of the log, as `--log-level` takes it: of the binary's log. A balancer in another program writes to the
    /// [`log`] facade, and the program's logger has a filter of its own.
    pub fn log_level(self, filter: &str) -> MiniLbConfig {
        self.set("log_level", filter)
    }

    /// The API key of all workers, also of those that come later.
    pub fn worker_api_key(self, key: &str) -> MiniLbConfig {
        self.of_workers("worker_api_key", worker_key::API_KEY, key)
    }

    /// The key that all workers require for their administration.
    pub fn worker_admin_api_key(self, key: &str) -> MiniLbConfig {
        self.of_workers("worker_admin_api_key", worker_key::ADMIN_API_KEY, key)
    }

    /// Whether all workers are spoken to over HTTP/2, in place of HTTP/1.1. Not those that come later.
    pub fn worker_http2(self, on: bool) -> MiniLbConfig {
        self.of_workers("worker_http2", worker_key::HTTP2, &on.to_string())
    }

    fn of_workers(mut self, method: &str, key: &'static str, value: &str) -> MiniLbConfig {
        let place = Place::Library(method.to_owned());
        let all = &mut self.draft.all_workers;
        let all = all.get_or_insert_with(|| WorkerDraft::new(place.clone()));
        let value = value.to_owned();
        all.keys.insert(key, Given { value, place });
        self
    }

    /// The host at which decode reaches the bootstrap server of the prefill worker with this index, when it differs
    /// from the host of its URL. An index without a worker is ignored.
    pub fn bootstrap_host(mut self, index: usize, host: &str) -> MiniLbConfig {
        let list = self.draft.workers.get_mut("prefill");
        if let Some(worker) = list.and_then(|list| list.value.get_mut(index)) {
            worker.set(worker_key::BOOTSTRAP_HOST, host);
        }
        self
    }

    /// The threads of the binary; without this call, one per CPU. A [`crate::MiniLoadBalancer`] runs on the threads of its
    /// caller's runtime.
    pub fn threads(mut self, threads: usize) -> MiniLbConfig {
        let place = Place::Library("threads".to_owned());
        let value = Value::from(threads);
        self.draft
            .server
            .insert("threads".to_owned(), Given { value, place });
        self
    }

    /// The same configuration with these flags of a command line over it.
    #[doc(hidden)]
    pub fn with_flags(mut self, sources: Sources) -> MiniLbConfig {
        self.draft = sources.flags.over(self.draft);
        self.problems.extend(sources.problems);
        self
    }

    /// Checks all values.
    ///
    /// # Errors
    /// Every value that cannot be used, by its key or by the name of the argument.
    #[doc(hidden)]
    pub fn resolve(self) -> Result<Config, ConfigError> {
        Ok(self.resolve_with_settings()?.0)
    }

    /// The same, with the settings that led to the values.
    pub(crate) fn resolve_with_settings(self) -> Result<(Config, Effective), ConfigError> {
        let draft = self.draft.over(Draft::defaults());
        let config = resolve(&draft, Files::default(), self.problems, Vec::new())?;
        Ok((config, Effective(draft)))
    }

    fn push(&mut self, key: &str, argument: &str, worker: WorkerDraft) {
        if let Some(setting) = find(key) {
            let place = Place::Library(argument.to_owned());
            self.draft.push_worker(setting, place, worker);
        }
    }
}
