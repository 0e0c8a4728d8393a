//! The configuration as a program writes it: `MiniLbConfig`.
//!
//! The same draft and the same checks as for flags and files; only the places have other names.

use std::time::Duration;

use serde_yaml::Value;

use super::draft::{Draft, Given, WorkerDraft};
use super::resolve::resolve;
use super::settings::{self, Setting, worker_key};
use super::{Config, ConfigError, Place, Policy};

/// What a program that embeds the balancer gives it. Nothing is checked before [`MiniLbConfig::resolve`].
#[derive(Debug, Clone)]
pub struct MiniLbConfig {
    draft: Draft,
}

impl MiniLbConfig {
    /// The values that every balancer needs; the others have the defaults of the command line.
    ///
    /// `host` and `port` are where clients connect, and port 0 lets the system choose. `prefill_urls`
    /// has a bootstrap port for each worker; without one decode uses its own. `timeout_secs` limits a
    /// whole request.
    pub fn new(
        host: String,
        port: u16,
        prefill_urls: Vec<(String, Option<u16>)>,
        decode_urls: Vec<String>,
        timeout_secs: u64,
    ) -> MiniLbConfig {
        let mut config = MiniLbConfig {
            draft: Draft::default(),
        };
        config.set(&settings::HOST, host);
        config.set(&settings::PORT, port.to_string());
        config.set(&settings::REQUEST_TIMEOUT_SECS, timeout_secs.to_string());
        for (index, (url, bootstrap_port)) in prefill_urls.iter().enumerate() {
            let place = Place::Library(format!("prefill_urls[{index}]"));
            let mut worker = WorkerDraft::new(place);
            worker.set(worker_key::URL, url);
            if let Some(port) = bootstrap_port {
                worker.set(worker_key::BOOTSTRAP_PORT, &port.to_string());
            }
            config.push(&settings::PREFILL, "prefill_urls", worker);
        }
        for (index, url) in decode_urls.iter().enumerate() {
            let place = Place::Library(format!("decode_urls[{index}]"));
            let mut worker = WorkerDraft::new(place);
            worker.set(worker_key::URL, url);
            config.push(&settings::DECODE, "decode_urls", worker);
        }
        config
    }

    /// How a pair is chosen.
    pub fn policy(mut self, policy: Policy) -> MiniLbConfig {
        let name = match policy {
            Policy::Random => "random",
        };
        self.set(&settings::POLICY, name);
        self
    }

    /// The longest that an answer may take that is not streamed, where whole seconds are too coarse.
    pub fn request_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::REQUEST_TIMEOUT_SECS, timeout)
    }

    /// The longest until the whole head of a request has arrived.
    pub fn head_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::HEAD_TIMEOUT_SECS, timeout)
    }

    /// The longest until the whole body of a request has arrived; each MiB of it gets a second more.
    pub fn body_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::BODY_TIMEOUT_SECS, timeout)
    }

    /// The longest that a client may take nothing of its answer.
    pub fn client_stall_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::CLIENT_STALL_TIMEOUT_SECS, timeout)
    }

    /// The longest that a client's connection is kept between two requests.
    pub fn client_idle_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::CLIENT_IDLE_TIMEOUT_SECS, timeout)
    }

    /// Requests at once; 0 is what the descriptors of the process allow.
    pub fn max_inflight_requests(mut self, requests: usize) -> MiniLbConfig {
        self.set(&settings::MAX_INFLIGHT_REQUESTS, requests.to_string());
        self
    }

    /// Memory for the bodies of all requests at once, in bytes.
    pub fn max_buffered_body_bytes(mut self, bytes: usize) -> MiniLbConfig {
        self.set(&settings::MAX_BUFFERED_BODY_BYTES, bytes.to_string());
        self
    }

    /// The key that clients must show; workers that have no key of their own get it too.
    pub fn api_key(mut self, key: &str) -> MiniLbConfig {
        self.set(&settings::API_KEY, key);
        self
    }

    /// The file with keys of clients, one a line; workers never see them.
    pub fn api_key_file(mut self, path: &str) -> MiniLbConfig {
        self.set(&settings::API_KEY_FILE, path);
        self
    }

    /// The key that administration needs.
    pub fn admin_api_key(mut self, key: &str) -> MiniLbConfig {
        self.set(&settings::ADMIN_API_KEY, key);
        self
    }

    /// Certificate (with its chain) and key, PEM files, with which the listeners speak TLS.
    pub fn tls(mut self, cert_path: &str, key_path: &str) -> MiniLbConfig {
        self.set(&settings::TLS_CERT_PATH, cert_path);
        self.set(&settings::TLS_KEY_PATH, key_path);
        self
    }

    /// Certificates of the authorities that vouch for `https://` workers, PEM files, instead of those of the
    /// system. Without any it is the system's.
    pub fn ca_cert_paths(mut self, paths: &[&str]) -> MiniLbConfig {
        self.set(&settings::CA_CERT_PATHS, paths.join(","));
        self
    }

    /// Certificate and key, PEM files, that are shown to `https://` workers.
    pub fn client_cert(mut self, cert_path: &str, key_path: &str) -> MiniLbConfig {
        self.set(&settings::CLIENT_CERT_PATH, cert_path);
        self.set(&settings::CLIENT_KEY_PATH, key_path);
        self
    }

    /// A second address (`HOST:PORT`, port 0 lets the system choose) at which alone workers are administered;
    /// [`crate::Handle::admin_address`] tells it.
    pub fn admin_listen(mut self, address: &str) -> MiniLbConfig {
        self.set(&settings::ADMIN_LISTEN, address);
        self
    }

    /// Connections of clients at once; 0 is what the descriptors of the process allow.
    pub fn max_connections(mut self, connections: usize) -> MiniLbConfig {
        self.set(&settings::MAX_CONNECTIONS, connections.to_string());
        self
    }

    /// Connections of one address at once; 0 is no limit.
    pub fn max_connections_per_ip(mut self, connections: usize) -> MiniLbConfig {
        self.set(&settings::MAX_CONNECTIONS_PER_IP, connections.to_string());
        self
    }

    /// The longest until the first byte of a streamed answer.
    pub fn first_token_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::FIRST_TOKEN_TIMEOUT_SECS, timeout)
    }

    /// The longest silence between two pieces of a streamed answer.
    pub fn stream_idle_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::STREAM_IDLE_TIMEOUT_SECS, timeout)
    }

    /// The longest that a whole streamed answer may take; without it there is no limit.
    pub fn stream_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::STREAM_TIMEOUT_SECS, timeout)
    }

    /// The longest that a connection to a worker may take to open.
    pub fn connect_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::CONNECT_TIMEOUT_SECS, timeout)
    }

    /// How often a request is sent to another pair, where that is safe.
    pub fn retries(mut self, retries: u32) -> MiniLbConfig {
        self.set(&settings::RETRY_MAX_RETRIES, retries.to_string());
        self
    }

    /// Requests that one worker gets at once; 0 is no limit. More wait in a queue.
    pub fn max_concurrent_requests(mut self, requests: usize) -> MiniLbConfig {
        self.set(&settings::MAX_CONCURRENT_REQUESTS, requests.to_string());
        self
    }

    /// Requests that may wait while all workers are full; 0 is none.
    pub fn queue_size(mut self, requests: usize) -> MiniLbConfig {
        self.set(&settings::QUEUE_SIZE, requests.to_string());
        self
    }

    /// The longest that a request waits in the queue.
    pub fn queue_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::QUEUE_TIMEOUT_SECS, timeout)
    }

    /// How long a worker that is back gets less than its share of the requests; zero is not at all.
    pub fn slow_start(self, time: Duration) -> MiniLbConfig {
        self.duration(&settings::SLOW_START_SECS, time)
    }

    /// The longest that a probe of a worker may take.
    pub fn health_check_timeout(self, timeout: Duration) -> MiniLbConfig {
        self.duration(&settings::HEALTH_CHECK_TIMEOUT_SECS, timeout)
    }

    /// Time between two probes of a worker; `None` sends none.
    pub fn health_check_interval(mut self, interval: Option<Duration>) -> MiniLbConfig {
        let off = interval.is_none().to_string();
        self.set(&settings::DISABLE_HEALTH_CHECK, off);
        match interval {
            Some(interval) => self.duration(&settings::HEALTH_CHECK_INTERVAL_SECS, interval),
            None => self,
        }
    }

    /// The longest that live requests get after [`crate::Handle::stop`] before they are cut.
    pub fn shutdown_grace_period(self, limit: Duration) -> MiniLbConfig {
        self.duration(&settings::SHUTDOWN_GRACE_PERIOD_SECS, limit)
    }

    /// How long new connections are still accepted after [`crate::Handle::stop`], while the readiness is 503.
    pub fn drain_settle(self, time: Duration) -> MiniLbConfig {
        self.duration(&settings::DRAIN_SETTLE_SECS, time)
    }

    /// The longest request body that is accepted, in bytes.
    pub fn max_payload_size(mut self, bytes: usize) -> MiniLbConfig {
        self.set(&settings::MAX_PAYLOAD_SIZE, bytes.to_string());
        self
    }

    fn duration(mut self, setting: &Setting, duration: Duration) -> MiniLbConfig {
        self.set(setting, duration.as_secs_f64().to_string());
        self
    }

    /// The filter of the log, as `--log-level` takes it.
    pub fn log_level(mut self, filter: &str) -> MiniLbConfig {
        self.set(&settings::LOG_LEVEL, filter);
        self
    }

    /// The API key of all workers.
    pub fn worker_api_key(self, key: &str) -> MiniLbConfig {
        self.of_workers(worker_key::API_KEY, key)
    }

    /// The key that all workers want for their administration.
    pub fn worker_admin_api_key(self, key: &str) -> MiniLbConfig {
        self.of_workers(worker_key::ADMIN_API_KEY, key)
    }

    fn of_workers(mut self, worker_key: &'static str, value: &str) -> MiniLbConfig {
        for worker in self
            .draft
            .workers
            .values_mut()
            .flat_map(|list| &mut list.value)
        {
            worker.set(worker_key, value);
        }
        self
    }

    /// The host at which decode finds the bootstrap server of the prefill worker with this index, when
    /// it is not the host of its URL. Without such a worker nothing happens.
    pub fn bootstrap_host(mut self, index: usize, host: &str) -> MiniLbConfig {
        let list = self.draft.workers.get_mut(settings::PREFILL.key);
        if let Some(worker) = list.and_then(|list| list.value.get_mut(index)) {
            worker.set(worker_key::BOOTSTRAP_HOST, host);
        }
        self
    }

    /// The threads of a process of its own ([`crate::run`]); one per CPU if it is not called. A
    /// [`crate::MiniLoadBalancer`] has those of its caller's runtime.
    pub fn threads(mut self, threads: usize) -> MiniLbConfig {
        let place = Place::Library("threads".to_owned());
        self.draft.server.insert(
            "threads".to_owned(),
            Given {
                value: Value::from(threads),
                place,
            },
        );
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// Every value that cannot be used, by the name of its argument.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        resolve(&self.draft.over(Draft::defaults()), Vec::new(), Vec::new())
    }

    fn set(&mut self, setting: &Setting, value: impl Into<String>) {
        self.draft
            .set(setting, value, Place::Library(setting.key.to_owned()));
    }

    fn push(&mut self, setting: &Setting, argument: &str, worker: WorkerDraft) {
        self.draft
            .push_worker(setting, Place::Library(argument.to_owned()), worker);
    }
}
