//! What the user wrote, and what the program needs.
//!
//! The resolved shape lives here: every value is checked, has its Rust type and needs no second look.
//! The user shape (flags, environment, file) may not leave this room. The names and the defaults of the
//! options follow `sglang_router.launch_router --mini-lb`; the server keys are Pingora's.
//!
//! Source: sglang, sgl-model-gateway/bindings/python/src/sglang_router/router_args.py;
//! pingora-core 0.9.1, src/server/configuration/mod.rs.

mod draft;
mod error;
mod file;
pub(crate) mod foreign;
mod library;
mod locate;
mod print;
mod resolve;
pub(crate) mod settings;
mod tls;
mod worker;

pub use draft::Environment;
pub(crate) use draft::{Draft, Given, WorkerDraft};
pub use error::{ConfigError, Fault, Place, Problem};
pub use library::MiniLbConfig;
pub use print::Effective;
pub use tls::{Identity, Tls};
pub use worker::{BootstrapSpec, Secret, UrlFault, WorkerSpec, WorkerUrl};

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use pingora_core::server::configuration::ServerConf;

pub(crate) use crate::pd::Role;

/// What the rooms of the program receive, field by field.
#[derive(Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Where those connect who administer the workers, if that is another place.
    pub admin_listen: Option<Listen>,
    /// Certificates and keys.
    pub tls: Tls,
    /// The prefill workers, at least one, each URL once in the whole configuration.
    pub prefill: Vec<WorkerSpec>,
    /// The decode workers, at least one, each URL once in the whole configuration.
    pub decode: Vec<WorkerSpec>,
    /// How a pair is chosen.
    pub policy: Policy,
    /// How many requests a worker gets at once, and who waits; `None` is as many as come.
    pub queue: Option<Queue>,
    /// What clients may send, and who they must be.
    pub gate: Gate,
    /// How long things may take, how often they are tried, and when a worker is set aside.
    pub faults: Faults,
    /// How the process leaves.
    pub leaving: Leaving,
    /// The longest that one connection to a worker may take to open. Never zero.
    pub connect_timeout: Duration,
    /// The longest request body that is accepted, in bytes. Never zero.
    pub max_body_bytes: usize,
    /// The filter of the log, in the syntax of `env_logger`: `info`, `info,mini_lb=debug`.
    pub log_filter: String,
    /// Pingora's part; `threads` is the number of CPUs unless the user set it.
    pub server: ServerConf,
    /// What is accepted and has no effect. One line each, to be logged once at the start.
    pub warnings: Vec<String>,
}

impl Config {
    /// The sentence that `--test` ends with.
    pub fn summary(&self) -> String {
        format!(
            "configuration ok: {} prefill, {} decode, listening on {}",
            self.prefill.len(),
            self.decode.len(),
            self.listen
        )
    }
}

/// What the command line says, before the environment and the file are laid under it.
#[derive(Debug, Default)]
pub struct Sources {
    pub(crate) flags: Draft,
    pub(crate) conf: Option<Given<PathBuf>>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<String>,
}

impl Sources {
    /// Reads the other sources and resolves all of them. A flag wins over a variable of the environment,
    /// that over the file, and that over the default.
    ///
    /// # Errors
    /// Every problem of every source.
    pub fn load(self, environment: Environment<'_>) -> Result<(Config, Effective), ConfigError> {
        let (mut problems, mut warnings) = (self.problems, self.warnings);
        let variables = Draft::from_environment(environment, &mut problems, &mut warnings);
        let file = match self.conf.or_else(|| conf_of(environment)) {
            None => Draft::default(),
            Some(conf) => match file::read(&conf, environment, &mut problems) {
                Some(file) => file,
                // Without the file the other sources would seem to lack what it has.
                None => return Err(ConfigError { problems }),
            },
        };
        let draft = self
            .flags
            .over(variables)
            .over(file)
            .over(Draft::defaults());
        let config = resolve::resolve(&draft, problems, warnings)?;
        Ok((config, Effective(draft)))
    }
}

fn conf_of(environment: Environment<'_>) -> Option<Given<PathBuf>> {
    let path = environment(settings::CONF_VARIABLE).filter(|path| !path.is_empty())?;
    let place = Place::Environment(settings::CONF_VARIABLE.to_owned());
    Some(Given {
        value: PathBuf::from(path),
        place,
    })
}

/// The address that clients connect to. `Display` is `host:port`, as Pingora takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        worker::write_authority(f, &self.host, self.port)
    }
}

/// How many requests a worker gets at once, and how the others wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Requests of each worker at once.
    pub per_worker: NonZeroUsize,
    /// Requests that may wait; zero is none.
    pub size: usize,
    /// The longest that one waits. Never zero.
    pub timeout: Duration,
}

/// What clients may send. No duration is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The longest until the whole head of a request has arrived.
    pub head_timeout: Duration,
    /// The longest until the whole body of a request has arrived; each MiB of it gets a second more.
    pub body_timeout: Duration,
    /// The longest that a client may take nothing of its answer.
    pub client_stall_timeout: Duration,
    /// The longest that a connection is kept between two requests.
    pub client_idle_timeout: Duration,
    /// Requests at once; `None` is what the descriptors of the process allow. Never zero.
    pub max_inflight_requests: Option<usize>,
    /// Connections of clients at once; `None` is what the requests leave of the descriptors. Never zero.
    pub max_connections: Option<usize>,
    /// Connections of one address at once; `None` is no limit. Never zero.
    pub max_connections_per_ip: Option<usize>,
    /// Memory for the bodies of all requests at once, in bytes. Never zero.
    pub max_buffered_body_bytes: usize,
    /// The keys that clients may show; when there are none they need none.
    pub api_keys: Vec<Secret>,
    /// The key that administration needs instead, when there is one.
    pub admin_api_key: Option<Secret>,
}

/// What is done about faults. No duration is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// The longest that an answer may take that is not streamed, to its last byte.
    pub request_timeout: Duration,
    /// The longest until the first byte of a streamed answer.
    pub first_token_timeout: Duration,
    /// The longest silence between two pieces of a streamed answer.
    pub stream_idle_timeout: Duration,
    /// The longest that a whole streamed answer may take; `None` is no limit.
    pub stream_timeout: Option<Duration>,
    /// How often a request is sent to another pair, where that is safe.
    pub retries: u32,
    /// When a worker is set aside for failures; `None` is never.
    pub breaker: Option<Breaker>,
    /// How long a worker that is back gets less than its share; `None` is not at all.
    pub slow_start: Option<Duration>,
    /// How workers are probed; `None` is not at all.
    pub probes: Option<Probes>,
    /// Whether workers are told of cancelled requests by id.
    pub abort_requests: bool,
}

/// How the process leaves after SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaving {
    /// How long new connections are still accepted, while the process says that it is not ready.
    pub settle: Duration,
    /// The longest that live requests get after that. Never zero.
    pub grace: Duration,
}

/// When a worker is set aside for failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Breaker {
    /// Failures within the window that set it aside.
    pub failures: u32,
    /// The window.
    pub window: Duration,
    /// How long it is set aside.
    pub pause: Duration,
    /// Successes that bring it back.
    pub successes: u32,
}

/// How workers are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probes {
    /// Between two probes of a worker.
    pub interval: Duration,
    /// The longest that one may take.
    pub timeout: Duration,
    /// The path that is asked for.
    pub path: String,
}

/// How the pair that serves a request is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// One prefill and one decode worker, each uniformly at random.
    #[default]
    Random,
}
