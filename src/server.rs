//! The wiring: a configuration becomes a fleet, a client, a proxy, an ops room and a Pingora service.
//!
//! The only file that sees every room. Two ways lead out of it: [`run`], a whole process under Pingora's
//! `Server` (signals, daemon, upgrade), and [`MiniLoadBalancer`], a service inside somebody else's runtime.
//! How both leave is in `leaving.rs`.

mod leaving;
mod names;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::HeaderValue;
use pingora_core::apps::HttpServerApp;
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{Fds, ListenFds, RunArgs, Server, ShutdownWatch};
use pingora_core::services::Service as PingoraService;
use pingora_core::services::listening::Service;
use tokio::sync::watch;

use crate::config::{Config, ConfigError, Faults, Listen, MiniLbConfig, Policy, WorkerSpec};
use crate::fleet::{self, Fleet, LiveRooms, Queue, Random, RetryBudget, Role, Worker, WorkerId};
use crate::net::Client;
use crate::ops::{Ops, Probe};
use crate::pd::Bootstrap;
use crate::proxy::{Aborter, Buffered, Connections, Departure, Keys, Limits, Proxy, Stage};
use leaving::{Exit, Opening, Signals};
use names::Names;

/// Why the balancer did not start.
#[derive(Debug)]
pub enum StartError {
    /// The address cannot be listened on.
    Listen {
        /// Host and port.
        address: String,
        /// The system's answer.
        why: io::Error,
    },
    /// A key or host that cannot be sent in a header.
    NotAHeader {
        /// The worker.
        url: String,
        /// What cannot be sent.
        what: &'static str,
    },
    /// A defect: Pingora's configuration has another owner, so its server cannot have it.
    ConfInUse,
    /// A signal handler could not be installed.
    Signals(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, why } if why.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: another process does already; stop it or choose another --port"
                )
            }
            StartError::Listen { address, why } => write!(f, "cannot listen on {address}: {why}"),
            StartError::NotAHeader { url, what } => {
                write!(
                    f,
                    "the {what} of the worker {url} has characters that no HTTP header can carry"
                )
            }
            StartError::ConfInUse => {
                f.write_str("internal error: Pingora's configuration is in use")
            }
            StartError::Signals(why) => write!(f, "cannot listen for signals: {why}"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen { why, .. } | StartError::Signals(why) => Some(why),
            StartError::NotAHeader { .. } | StartError::ConfInUse => None,
        }
    }
}

/// Runs a process of its own until a signal ends it: SIGTERM lets live requests finish, SIGINT does not,
/// SIGQUIT hands the listeners to a successor that was started with `-u` and then does as SIGTERM.
///
/// # Errors
/// [`StartError`]: nothing was started then.
pub fn run(config: Config, options: Opt) -> Result<(), StartError> {
    let mut address = config.listen.to_string();
    let mut socket = None;
    // With an upgrade the predecessor hands its socket over.
    if !options.upgrade {
        let bound = bind(&config.listen)?;
        if config.listen.port == 0 {
            address = local_address(&bound, &config.listen)?.to_string();
        }
        socket = Some(bound);
    }
    let assembled = assemble(config)?;
    let (signals, opening) =
        Signals::new(assembled.exit.clone(), assembled.conf.upgrade_sock.clone());
    let server_conf = Arc::try_unwrap(assembled.conf).map_err(|_| StartError::ConfInUse)?;
    let mut server = Server::new_with_opt_and_conf(
        Opt {
            conf: None,
            ..options
        },
        server_conf,
    );
    server.bootstrap();
    server.add_service(Entrance::new(
        assembled.app,
        assembled.probe,
        assembled.names,
        address,
        socket,
        assembled.exit.stage(),
        Some(opening),
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(signals),
    });
    Ok(())
}

/// A balancer inside the caller's tokio runtime. Several live in one process side by side.
///
/// ```no_run
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// use mini_lb::{MiniLbConfig, MiniLoadBalancer};
///
/// let config = MiniLbConfig::new(
///     "127.0.0.1".into(),
///     8080,
///     vec![("http://127.0.0.1:30000".into(), Some(8998))],
///     vec!["http://127.0.0.1:30001".into()],
///     1800,
/// );
/// MiniLoadBalancer::new(config)?.start().await?;
/// # Ok(()) }
/// ```
pub struct MiniLoadBalancer {
    config: Config,
    handle: Handle,
    closed: watch::Receiver<bool>,
    bound: watch::Sender<Option<SocketAddr>>,
}

/// Where a balancer listens, and how it is stopped. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    closing: Arc<watch::Sender<bool>>,
    bound: watch::Receiver<Option<SocketAddr>>,
}

impl Handle {
    /// The address that is listened on, once it is; `None` when the balancer ended without.
    pub async fn address(&self) -> Option<SocketAddr> {
        let mut bound = self.bound.clone();
        bound
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|address| *address)
    }

    /// Stops listening. `start` returns when the live requests have ended.
    pub fn stop(&self) {
        self.closing.send_replace(true);
    }
}

impl MiniLoadBalancer {
    /// Checks the configuration. Nothing is opened yet.
    ///
    /// # Errors
    /// Every problem of the configuration, not only the first.
    pub fn new(config: MiniLbConfig) -> Result<Self, ConfigError> {
        Ok(Self::from_config(config.resolve()?))
    }

    /// A balancer of a configuration that has been checked.
    pub fn from_config(config: Config) -> Self {
        let (closing, closed) = watch::channel(false);
        let (bound, is_bound) = watch::channel(None);
        Self {
            config,
            handle: Handle {
                closing: Arc::new(closing),
                bound: is_bound,
            },
            closed,
            bound,
        }
    }

    /// For stopping it, and for learning its port.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Listens and serves until [`Handle::stop`], then until the live requests have ended.
    ///
    /// # Errors
    /// [`StartError`]: nothing is listened on then.
    pub async fn start(self) -> Result<(), StartError> {
        let socket = bind(&self.config.listen)?;
        let address = local_address(&socket, &self.config.listen)?;
        let assembled = assemble(self.config)?;
        let proxy = assembled.app.proxy();
        let mut entrance = Entrance::new(
            assembled.app,
            assembled.probe,
            assembled.names,
            address.to_string(),
            Some(socket),
            assembled.exit.stage(),
            None,
        );
        self.bound.send_replace(Some(address));
        let mut closed = self.closed;
        let left = async {
            // The other end lives in `self.handle`.
            let _ = closed.wait_for(|closed| *closed).await;
            assembled.exit.leave().await;
        };
        tokio::join!(
            entrance.start_service(None, watch::channel(false).1, 1),
            left
        );
        proxy.http_cleanup().await;
        Ok(())
    }
}

/// What a configuration becomes.
struct Assembled {
    app: Connections,
    exit: Arc<Exit>,
    probe: Option<Probe>,
    names: Names,
    conf: Arc<ServerConf>,
}

fn assemble(config: Config) -> Result<Assembled, StartError> {
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let mut ids = (0..).map(WorkerId);
    let mut names = Names::new(config.connect_timeout);
    let mut workers = |role, specs: &[WorkerSpec]| {
        specs
            .iter()
            .zip(&mut ids)
            .map(|(spec, id)| {
                let worker = Arc::new(worker(id, role, spec, config.connect_timeout)?);
                if !worker.is_placed() {
                    names.add(&worker, spec.url.host(), spec.url.port());
                }
                Ok(worker)
            })
            .collect::<Result<Vec<_>, _>>()
    };
    let policy = match config.policy {
        Policy::Random => Box::new(Random),
    };
    let mut fleet = Fleet::new(
        workers(Role::Prefill, &config.prefill)?,
        workers(Role::Decode, &config.decode)?,
        policy,
        breaker_limits(&config.faults),
    );
    if let Some(queue) = &config.queue {
        let (per_worker, size) = (queue.per_worker, queue.size);
        fleet = fleet.limited(Queue::new(per_worker, size, Instant::now, rand::random));
    }
    let fleet = Arc::new(fleet);
    let mut conf = config.server;
    // An attempt of Pingora's is one of ours, or a pooled connection that the worker had closed.
    conf.max_retries = crate::net::STALE_ATTEMPTS + config.faults.retries as usize;
    let conf = Arc::new(conf);
    let client = Arc::new(Client::new(&conf));
    let exit = Arc::new(Exit::new(config.leaving));
    let (faults, gate) = (config.faults, config.gate);
    let probe = faults.probes.map(|probes| Probe {
        fleet: fleet.clone(),
        client: client.clone(),
        interval: probes.interval,
        timeout: probes.timeout,
        path: probes.path,
    });
    let proxy = Proxy {
        rooms: Arc::new(LiveRooms::default()),
        aborter: Arc::new(Aborter::new(client.clone(), faults.abort_requests)),
        budget: RetryBudget::new(Instant::now()).into(),
        side_door: Arc::new(Ops::new(
            fleet.clone(),
            client.clone(),
            config.max_body_bytes,
            exit.unready(),
        )),
        fleet,
        client,
        inflight: exit.requests.clone(),
        departure: Departure::new(exit.stage()),
        buffered: Buffered::new(gate.max_buffered_body_bytes),
        keys: Keys::new(
            gate.api_keys.iter().map(|key| key.expose()),
            gate.admin_api_key.iter().map(|key| key.expose()),
        ),
        limits: Limits {
            max_body_bytes: config.max_body_bytes,
            inflight: gate
                .max_inflight_requests
                .unwrap_or_else(affordable_requests),
            body: gate.body_timeout,
            queue: config.queue.map_or(Duration::ZERO, |queue| queue.timeout),
            stall: gate.client_stall_timeout,
            attempts: faults.retries + 1,
            first_token: faults.first_token_timeout,
            silence: faults.stream_idle_timeout,
            request: faults.request_timeout,
            stream: faults.stream_timeout,
        },
    };
    Ok(Assembled {
        app: Connections::new(&conf, proxy, gate.head_timeout, exit.connections.clone()),
        exit,
        probe,
        names,
        conf,
    })
}

/// Descriptors that are not for requests: listeners, logs, probes, idle connections.
const RESERVED_FILES: usize = 500;

/// As many requests as have descriptors: one for the client and one for each leg.
fn affordable_requests() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    open_files(&limits).map_or(usize::MAX, |files| {
        (files.saturating_sub(RESERVED_FILES) / 3).max(100)
    })
}

/// The soft limit in the text of `/proc/self/limits`; `None` when there is none.
fn open_files(limits: &str) -> Option<usize> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn breaker_limits(faults: &Faults) -> fleet::Limits {
    let slow_start = faults.slow_start.unwrap_or(Duration::ZERO);
    match &faults.breaker {
        None => fleet::Limits {
            failures: 0,
            slow_start,
            ..fleet::Limits::default()
        },
        Some(breaker) => fleet::Limits {
            failures: breaker.failures,
            window: breaker.window,
            successes: breaker.successes,
            pause: breaker.pause,
            slow_start,
        },
    }
}

fn worker(
    id: WorkerId,
    role: Role,
    spec: &WorkerSpec,
    connect_timeout: Duration,
) -> Result<Worker, StartError> {
    let url = spec.url.to_string();
    let not_a_header = |what| StartError::NotAHeader {
        url: spec.url.to_string(),
        what,
    };
    let host =
        HeaderValue::try_from(spec.url.authority()).map_err(|_| not_a_header("host name"))?;
    let authorization = match &spec.api_key {
        None => None,
        Some(key) => {
            let bearer = [b"Bearer ", key.expose()].concat();
            let mut value =
                HeaderValue::from_bytes(&bearer).map_err(|_| not_a_header("API key"))?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    let bootstrap = spec
        .bootstrap
        .as_ref()
        .map(|bootstrap| Bootstrap::new(&bootstrap.host, bootstrap.port));
    Ok(Worker::new(
        id,
        role,
        url,
        host,
        names::literal(spec.url.host(), spec.url.port(), connect_timeout),
        bootstrap,
        authorization,
    ))
}

/// A busy port fails here, at once: Pingora would try for 30 s and then live on without a listener.
fn bind(listen: &Listen) -> Result<TcpListener, StartError> {
    let failed = |why| StartError::Listen {
        address: listen.to_string(),
        why,
    };
    let socket = TcpListener::bind((listen.host.as_str(), listen.port)).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(socket)
}

fn local_address(socket: &TcpListener, listen: &Listen) -> Result<SocketAddr, StartError> {
    socket.local_addr().map_err(|why| StartError::Listen {
        address: listen.to_string(),
        why,
    })
}

/// Pingora's listening service with a socket that was bound before.
struct Entrance {
    service: Service<Connections>,
    probe: Option<Probe>,
    names: Names,
    address: String,
    socket: Option<TcpListener>,
    stage: watch::Receiver<Stage>,
    opening: Option<Opening>,
}

impl Entrance {
    fn new(
        app: Connections,
        probe: Option<Probe>,
        names: Names,
        address: String,
        socket: Option<TcpListener>,
        stage: watch::Receiver<Stage>,
        opening: Option<Opening>,
    ) -> Self {
        let mut service = Service::new("clients".to_owned(), app);
        service.add_tcp(&address);
        Self {
            service,
            probe,
            names,
            address,
            socket,
            stage,
            opening,
        }
    }
}

#[async_trait]
impl PingoraService for Entrance {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let fds = fds.unwrap_or_else(|| ListenFds::new(Fds::new().into()));
        if let Some(socket) = self.socket.take() {
            fds.lock().add(self.address.clone(), socket.into_raw_fd());
        }
        if let Some(opening) = self.opening.take() {
            opening.open(fds.clone()).await;
        }
        let (stop, stopped) = watch::channel(false);
        let mut stage = self.stage.clone();
        tokio::spawn(async move {
            // When nobody can end it any more, it has ended.
            let _ = stage.wait_for(|stage| *stage >= Stage::Closed).await;
            stop.send_replace(true);
        });
        // Who connects meanwhile is served a moment later.
        self.names.begin().await;
        log::info!("listening address={}", self.address);
        let probing = async {
            match &self.probe {
                Some(probe) => probe.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = PingoraService::start_service(
                &mut self.service,
                Some(fds),
                stopped,
                listeners_per_fd,
            ) => {}
            () = probing => {}
            () = self.names.watch() => {}
        }
    }

    fn name(&self) -> &str {
        "mini-lb"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        PingoraService::listen_addresses(&self.service)
    }
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_read() {
        let limits = |soft: &str| {
            format!(
                "Limit                     Soft Limit           Hard Limit           Units\n\
                 Max open files            {soft}                20000                files\n"
            )
        };
        assert_eq!(open_files(&limits("1024")), Some(1024));
        assert_eq!(open_files(&limits("unlimited")), None);
        assert_eq!(open_files(""), None);
    }
}
