//! The wiring: a configuration becomes a fleet, a client, a proxy, an ops room and a Pingora service.
//!
//! The only file that sees every room. Two ways lead out of it: [`run`], a whole process under Pingora's
//! `Server` (signals, daemon, upgrade), and [`MiniLoadBalancer`], a service inside somebody else's runtime.
//! How both leave is in `leaving.rs`.

mod shutdown;
mod tls;
mod upgrade;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{IntoRawFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use http::HeaderValue;
use pingora_core::apps::HttpServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::server::configuration::{Opt, ServerConf};
use pingora_core::server::{Fds, ListenFds, RunArgs, Server, ShutdownWatch};
use pingora_core::services::Service as PingoraService;
use pingora_core::services::listening::Service;
use pingora_proxy::{HttpProxy, http_proxy};
use tokio::sync::watch;

use crate::client::{BodyMemory, ConnectionLimit, Connections, Keys, Listener, ShutdownWatcher};
use crate::config::{
    Config, ConfigError, Faults, Listen, MiniLbConfig, Policy, Secret, WorkerSpec,
};
use crate::discovery::{Names, Probe};
use crate::fleet::{
    self, Fleet, LiveRooms, Members, Origin, Policies, Queue, RetryBudget, Role, WorkerParts,
};
use crate::legs::Aborter;
use crate::net::{Client, Dialling};
use crate::ops::Ops;
use crate::pd::{Bootstrap, Engine};
use crate::proxy::{Limits, Proxy};
use shutdown::{Opening, Shutdown, Signals};
use upgrade::OldProcess;

/// The connections of a listener, whose requests go to the proxy.
type ProxyConnections = Connections<HttpProxy<Proxy>>;

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
    /// No roots for workers that speak TLS; what is wrong with them.
    Roots(String),
    /// TLS refuses the certificate of the listeners; its words.
    Tls(String),
    /// A signal handler could not be installed.
    Signals(io::Error),
    /// The sockets of a old_process did not come.
    Upgrade {
        /// Where they were awaited.
        upgrade_sock: String,
        /// What is wrong.
        why: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, why } if why.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: another process does already; stop it or choose another port"
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
            StartError::Roots(why) => write!(
                f,
                "no certificates to judge https:// workers by: {why}; install the system's (ca-certificates) or set ca_cert_paths"
            ),
            StartError::Tls(why) => write!(f, "the certificate of the listeners is refused: {why}"),
            StartError::Signals(why) => write!(f, "cannot listen for signals: {why}"),
            StartError::Upgrade { upgrade_sock, why } => write!(
                f,
                "no predecessor gave its sockets at upgrade_sock {upgrade_sock}: {why}"
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen { why, .. } | StartError::Signals(why) => Some(why),
            StartError::NotAHeader { .. }
            | StartError::ConfInUse
            | StartError::Roots(_)
            | StartError::Tls(_)
            | StartError::Upgrade { .. } => None,
        }
    }
}

/// Runs a process of its own until a signal ends it: SIGTERM lets live requests finish, SIGINT does not,
/// SIGQUIT hands the listeners to a successor that was started with `-u` and then does as SIGTERM.
///
/// # Errors
/// [`StartError`]: nothing was started then.
pub fn run(config: Config, options: Opt) -> Result<(), StartError> {
    let listen = Listening::of(&config);
    // What is busy is said before anything else is looked at, what a old_process has to give is taken last: it
    // goes on with its work when this process does not come to its own.
    let bound = (!options.upgrade)
        .then(|| Bound::new(&listen, None))
        .transpose()?;
    let assembled = assemble(config)?;
    let bound = match bound {
        Some(bound) => bound,
        None => {
            let mut old_process = OldProcess::await_sockets(&assembled.conf.upgrade_sock)?;
            let bound = Bound::new(&listen, Some(&mut old_process))?;
            old_process.release();
            bound
        }
    };
    let (signals, opening) =
        Signals::new(assembled.exit.clone(), assembled.conf.upgrade_sock.clone());
    let server_conf = Arc::try_unwrap(assembled.conf).map_err(|_| StartError::ConfInUse)?;
    let listeners = Listeners {
        services: bound.services(assembled.clients, assembled.admins, &assembled.exit),
        probe: assembled.probe,
        names: assembled.names,
        opening: Some(opening),
    };
    let mut server = Server::new_with_opt_and_conf(
        Opt {
            conf: None,
            upgrade: false, // the sockets are there already
            ..options
        },
        server_conf,
    );
    server.bootstrap();
    server.add_service(listeners);
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
    bound: watch::Sender<Option<Addresses>>,
}

/// Where a balancer listens.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    clients: SocketAddr,
    admins: Option<SocketAddr>,
}

/// Where a balancer listens, and how it is stopped. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    closing: Arc<watch::Sender<bool>>,
    bound: watch::Receiver<Option<Addresses>>,
}

impl Handle {
    /// The address that is listened on, once it is; `None` when the balancer ended without.
    pub async fn address(&self) -> Option<SocketAddr> {
        Some(self.addresses().await?.clients)
    }

    /// The address at which workers are administered, once it is listened on; `None` when it is no other, or
    /// the balancer ended without.
    pub async fn admin_address(&self) -> Option<SocketAddr> {
        self.addresses().await?.admins
    }

    async fn addresses(&self) -> Option<Addresses> {
        let mut bound = self.bound.clone();
        *bound.wait_for(Option::is_some).await.ok()?
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
        let bound = Bound::new(&Listening::of(&self.config), None)?;
        let addresses = bound.addresses();
        let assembled = assemble(self.config)?;
        // Pingora's part, which closes the idle connections of a listener that has ended.
        let proxy = assembled.clients.app.clone();
        let mut listeners = Listeners {
            services: bound.services(assembled.clients, assembled.admins, &assembled.exit),
            probe: assembled.probe,
            names: assembled.names,
            opening: None,
        };
        self.bound.send_replace(addresses);
        let mut closed = self.closed;
        let left = async {
            // The other end lives in `self.handle`.
            let _ = closed.wait_for(|closed| *closed).await;
            assembled.exit.leave().await;
        };
        tokio::join!(
            listeners.start_service(None, watch::channel(false).1, 1),
            left
        );
        proxy.http_cleanup().await;
        Ok(())
    }
}

/// What a configuration becomes.
struct Assembled {
    clients: ProxyConnections,
    admins: Option<ProxyConnections>,
    exit: Arc<Shutdown>,
    probe: Option<Probe>,
    names: Names,
    conf: Arc<ServerConf>,
}

fn assemble(mut config: Config) -> Result<Assembled, StartError> {
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let mut conf = std::mem::take(&mut config.server);
    let acceptor = match &config.tls.listener {
        Some(identity) => Some(tls::acceptor(identity)?),
        None => None,
    };
    let dialling = Dialling {
        connect_timeout: config.connect_timeout,
        trust: tls::trust(&config, &mut conf)?,
    };
    let policies = match config.policy {
        Policy::Random => Policies::random(),
    };
    let mut fleet = Fleet::new(policies, breaker_limits(&config.faults));
    if let Some(queue) = &config.queue {
        let (per_worker, size) = (queue.per_worker, queue.size);
        fleet = fleet.limited(Queue::new(per_worker, size, Instant::now, rand::random));
    }
    let fleet = Arc::new(fleet);
    fleet.replace(members(&fleet, &config)?);
    // An attempt of Pingora's is one of ours, or a pooled connection that the worker had closed.
    conf.max_retries = crate::net::STALE_ATTEMPTS + config.faults.retries as usize;
    let conf = Arc::new(conf);
    let client = Arc::new(Client::new(&conf, dialling));
    let exit = Arc::new(Shutdown::new(config.leaving));
    let (faults, gate) = (config.faults, config.gate);
    let max_inflight = gate
        .max_inflight_requests
        .unwrap_or_else(affordable_requests);
    let crowd = ConnectionLimit::new(
        gate.max_connections
            .unwrap_or_else(|| affordable_connections(max_inflight)),
        gate.max_connections_per_ip,
    );
    let apart = config.admin_listen.is_some();
    let names = Names::new(fleet.clone());
    let probe = faults.probes.map(|probes| Probe {
        fleet: fleet.clone(),
        client: client.clone(),
        interval: probes.interval,
        timeout: probes.timeout,
        path: probes.path,
    });
    let proxy = Proxy {
        engine: Engine::default(),
        rooms: Arc::new(LiveRooms::default()),
        aborter: Arc::new(Aborter::new(client.clone(), faults.abort_requests)),
        budget: RetryBudget::new(Instant::now()).into(),
        endpoints: Arc::new(Ops::new(
            fleet.clone(),
            client.clone(),
            config.max_body_bytes,
            !gate.api_keys.is_empty(),
            exit.unready(),
        )),
        fleet,
        client,
        inflight: exit.requests.clone(),
        has_admin_listener: apart,
        shutdown: ShutdownWatcher::new(exit.stage()),
        body_memory: BodyMemory::new(gate.max_buffered_body_bytes),
        keys: Keys::new(
            gate.api_keys.iter().map(|key| key.expose()),
            gate.admin_api_key.iter().map(|key| key.expose()),
        ),
        limits: Limits {
            max_body_bytes: config.max_body_bytes,
            max_inflight_requests: max_inflight,
            body_timeout: gate.body_timeout,
            queue_timeout: config.queue.map_or(Duration::ZERO, |queue| queue.timeout),
            client_stall_timeout: gate.client_stall_timeout,
            max_attempts: faults.retries + 1,
            first_token_timeout: faults.first_token_timeout,
            stream_idle_timeout: faults.stream_idle_timeout,
            request_timeout: faults.request_timeout,
            stream_timeout: faults.stream_timeout,
        },
    };
    let proxy = Arc::new(http_proxy(&conf, proxy));
    let connections = |listener| Connections {
        app: proxy.clone(),
        listener,
        tls: acceptor.clone(),
        head_timeout: gate.head_timeout,
        idle_timeout: gate.client_idle_timeout,
        limit: None,
        open: Arc::default(),
    };
    Ok(Assembled {
        clients: Connections {
            limit: Some(Arc::new(crowd)),
            open: exit.connections.clone(),
            ..connections(Listener::Clients)
        },
        // However many clients there are, and whatever is waited for: who administers gets in.
        admins: apart.then(|| connections(Listener::Admins)),
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
    usable_files().map_or(usize::MAX, |files| (files / 3).max(100))
}

/// As many connections as have descriptors beside the legs of so many requests; at least one for each of these.
fn affordable_connections(requests: usize) -> usize {
    usable_files().map_or(usize::MAX, |files| {
        files
            .saturating_sub(requests.saturating_mul(2))
            .max(requests)
    })
}

/// The descriptors that are there for requests; `None` when there is no limit.
fn usable_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    Some(open_files(&limits)?.saturating_sub(RESERVED_FILES))
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

/// The workers of the configuration.
fn members(fleet: &Fleet, config: &Config) -> Result<Members, StartError> {
    let prefill = config.prefill.iter().map(|spec| (Role::Prefill, spec));
    let decode = config.decode.iter().map(|spec| (Role::Decode, spec));
    let mut workers = Vec::new();
    for (role, spec) in prefill.chain(decode) {
        workers.push(fleet.new_worker(parts(role, spec)?));
    }
    Ok(Members::new(workers))
}

fn parts(role: Role, spec: &WorkerSpec) -> Result<WorkerParts, StartError> {
    let not_a_header = |what| StartError::NotAHeader {
        url: spec.url.to_string(),
        what,
    };
    let host =
        HeaderValue::try_from(spec.url.authority()).map_err(|_| not_a_header("host name"))?;
    let bearer = |key: &Secret| {
        let bearer = [b"Bearer ", key.expose()].concat();
        let mut value = HeaderValue::from_bytes(&bearer).map_err(|_| not_a_header("API key"))?;
        value.set_sensitive(true);
        Ok(value)
    };
    let bootstrap = spec
        .bootstrap
        .as_ref()
        .map(|bootstrap| Bootstrap::new(&bootstrap.host, bootstrap.port));
    Ok(WorkerParts {
        role,
        url: spec.url.to_string(),
        origin: Origin {
            host: spec.url.host().to_owned(),
            port: spec.url.port(),
            tls: spec.url.is_tls(),
        },
        host,
        bootstrap,
        authorization: spec.api_key.as_ref().map(bearer).transpose()?,
        admin_authorization: spec.admin_api_key.as_ref().map(bearer).transpose()?,
    })
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

/// What Pingora reads of a client goes where it is wanted, without 64 KiB in between for each connection; a head and a
/// short body leave in one write.
const CLIENT_BUFFERS: L4BufferSettings = L4BufferSettings {
    read: Some(0),
    write: Some(4 << 10),
};

/// Where is listened.
struct Listening {
    clients: Listen,
    admins: Option<Listen>,
}

impl Listening {
    fn of(config: &Config) -> Self {
        Self {
            clients: config.listen.clone(),
            admins: config.admin_listen.clone(),
        }
    }
}

/// A listening socket.
enum Socket {
    Own(TcpListener),
    /// The old_process's, which this process has as well.
    Inherited(RawFd),
}

/// The addresses of the listeners, and their sockets.
struct Bound {
    clients: (String, Socket),
    admins: Option<(String, Socket)>,
}

impl Bound {
    /// Sockets of its own where the old_process has none, if there is one.
    fn new(
        listen: &Listening,
        mut old_process: Option<&mut OldProcess>,
    ) -> Result<Self, StartError> {
        let mut bound = |listen: &Listen| {
            let address = listen.to_string();
            if let Some(old_process) = &mut old_process
                && let Some(socket) = old_process.give(&address)
            {
                return Ok((address, Socket::Inherited(socket)));
            }
            let socket = bind(listen)?;
            let address = match listen.port {
                0 => local_address(&socket, listen)?.to_string(),
                _ => address,
            };
            Ok((address, Socket::Own(socket)))
        };
        Ok(Self {
            clients: bound(&listen.clients)?,
            admins: listen.admins.as_ref().map(bound).transpose()?,
        })
    }

    /// `None` when they are a old_process's.
    fn addresses(&self) -> Option<Addresses> {
        let local = |socket: &Socket| match socket {
            Socket::Own(socket) => socket.local_addr().ok(),
            Socket::Inherited(_) => None,
        };
        Some(Addresses {
            clients: local(&self.clients.1)?,
            admins: self.admins.as_ref().and_then(|(_, socket)| local(socket)),
        })
    }

    fn services(
        self,
        clients: ProxyConnections,
        admins: Option<ProxyConnections>,
        exit: &Shutdown,
    ) -> Vec<ListeningService> {
        let gate = |app: ProxyConnections, (address, socket): (String, Socket)| {
            let listener = app.listener;
            let mut service = Service::new("mini-lb".to_owned(), app);
            service.add_listener(ListenerConfig::tcp(&address).l4_buffer(CLIENT_BUFFERS));
            ListeningService {
                listener,
                service,
                address,
                socket: Some(socket),
                closed: Some(Box::pin(exit.closed(listener))),
            }
        };
        let clients = gate(clients, self.clients);
        let admins = admins.zip(self.admins);
        let admins = admins.map(|(app, bound)| gate(app, bound));
        std::iter::once(clients).chain(admins).collect()
    }
}

/// One of Pingora's listening services with a socket that was bound before.
struct ListeningService {
    listener: Listener,
    service: Service<ProxyConnections>,
    address: String,
    /// Taken at the start.
    socket: Option<Socket>,
    /// Resolves when idle is let in any more. Taken at the start.
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl ListeningService {
    async fn open(&mut self, fds: ListenFds, listeners_per_fd: usize) {
        let (stop, stopped) = watch::channel(false);
        if let Some(closed) = self.closed.take() {
            tokio::spawn(async move {
                closed.await;
                stop.send_replace(true);
            });
        }
        match self.listener {
            Listener::Clients => log::info!("listening address={}", self.address),
            Listener::Admins => log::info!("open for administration address={}", self.address),
        }
        PingoraService::start_service(&mut self.service, Some(fds), stopped, listeners_per_fd)
            .await;
    }
}

/// All services as one of Pingora's services, with what goes on for as long.
struct Listeners {
    services: Vec<ListeningService>,
    probe: Option<Probe>,
    names: Names,
    opening: Option<Opening>,
}

#[async_trait]
impl PingoraService for Listeners {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let fds = fds.unwrap_or_else(|| ListenFds::new(Fds::new().into()));
        for gate in &mut self.services {
            let socket = match gate.socket.take() {
                Some(Socket::Own(socket)) => socket.into_raw_fd(),
                Some(Socket::Inherited(socket)) => socket,
                None => continue,
            };
            fds.lock().add(gate.address.clone(), socket);
        }
        if let Some(opening) = self.opening.take() {
            opening.open(fds.clone()).await;
        }
        // Who connects meanwhile is served a moment later.
        self.names.begin().await;
        let services = self.services.iter_mut();
        let serving = join_all(services.map(|gate| gate.open(fds.clone(), listeners_per_fd)));
        let probing = async {
            match &self.probe {
                Some(probe) => probe.run().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = serving => {}
            () = probing => {}
            () = self.names.watch() => {}
        }
    }

    fn name(&self) -> &str {
        "mini-lb"
    }

    fn listen_addresses(&self) -> Option<Vec<String>> {
        Some(
            self.services
                .iter()
                .map(|gate| gate.address.clone())
                .collect(),
        )
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
