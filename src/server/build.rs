//! From a configuration to the modules of the program: fleet, client, proxy, and the applications of the listeners.
//!
//! Nothing is opened here and no task runs yet. Each module receives the values that it uses, never the whole
//! configuration.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use tokio::sync::watch;

use super::kubernetes::kubernetes;
use super::limits::{affordable_connections, affordable_requests};
use super::listen::Apps;
use super::reload::Live;
use super::shutdown::Shutdown;
use super::workers::{fleet, keeper, listed, probe_rules, registry};
use super::{StartError, dns, tls};
use crate::client::{
    BodyMemory, ConnectionLimit, ConnectionRules, Connections, Cors, Keys, Listener, Refusal,
    ShutdownWatcher,
};
use crate::config::{
    AllowedOrigins, ClientLimits, Config, Policy, PolicyConfig, RequestLimits, Resilience,
};
use crate::discovery::{
    EngineQuestion, Examiner, First, Keeper, Kubernetes, LoadPoll, Names, Probe, Registry,
    START_TIMEOUT,
};
use crate::fleet::{Fleet, LiveRooms, RetryBudget, SuspectLimits, Suspects};
use crate::legs::Aborter;
use crate::net::{Client, Dialling};
use crate::ops::Ops;
use crate::proxy::{Affinity, Proxy, Rules, refused_head};
use crate::telemetry::{Sources, Telemetry, Traces};

/// Connections to the listener for metrics, which has no key.
const MAX_SCRAPERS: usize = 64;

/// The largest value of `retry_max_retries`.
const MAX_RETRIES: usize = 100;

/// A balancer that is ready to listen.
pub(super) struct Built {
    pub(super) apps: Apps,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) engine: EngineQuestion,
    pub(super) probe: Probe,
    pub(super) loads: LoadPoll,
    pub(super) names: Names,
    pub(super) registry: Arc<Registry>,
    pub(super) examiner: Examiner,
    pub(super) live: Live,
    /// Its workers are not listed yet: those of an old process are when it has handed over.
    pub(super) keeper: Option<Arc<Keeper>>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) dns: Arc<dns::Names>,
    /// Flushed at the end.
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) conf: Arc<ServerConf>,
}

/// Builds every module's part.
///
/// # Errors
/// [`StartError`], except those of sockets and signals.
pub(super) fn build(mut config: Config) -> Result<Built, StartError> {
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
    let mut conf = std::mem::take(&mut config.server);
    let dialling = Dialling {
        connect_timeout: config.workers.connect_timeout,
        trust: tls::trust(&config, &mut conf)?,
    };
    let fleet = fleet(&config);
    let keys = Arc::new(ArcSwap::from_pointee(config.worker_keys.clone()));
    let registry = Arc::new(registry(&config, &fleet, keys.clone())?);
    let keeper = keeper(&config, &registry);
    let probes = watch::Sender::new(Arc::new(probe_rules(&config)));
    let loads = watch::Sender::new(config.workers.load_poll_interval);
    // Pingora counts connections: one for each attempt, for the one that begins again and the one that is decode's alone,
    // and as many that took no byte. For the most attempts that there can be, because a reload may allow more than now.
    conf.max_retries = 2 * (MAX_RETRIES + 3);
    let conf = Arc::new(conf);
    let client = Arc::new(Client::new(&conf, dialling));
    let shutdown = Arc::new(Shutdown::new(config.shutdown.clone()));
    let app = proxy(
        &config,
        fleet.clone(),
        registry.clone(),
        client.clone(),
        &shutdown,
    );
    let telemetry = app.telemetry.clone();
    let rules = Arc::new(ArcSwap::from_pointee(connection_rules(&config)?));
    let limit = Arc::new(connection_limit(&config));
    let (probed, polled) = (probes.subscribe(), loads.subscribe());
    let dns = Arc::new(dns::Names::new(&config, &registry)?);
    let live = Live {
        dns: dns.clone(),
        rules: app.rules.clone(),
        connections: rules.clone(),
        connection_limit: limit.clone(),
        body_memory: app.body_memory.clone(),
        aborter: app.aborter.clone(),
        shutdown: shutdown.clone(),
        fleet: fleet.clone(),
        registry: registry.clone(),
        worker_keys: keys,
        telemetry: telemetry.clone(),
        probes,
        loads,
        listed: Mutex::new(listed(&config, First::Probe)?),
        policies: Mutex::new(config.policies.clone()),
    };
    let app = Arc::new(http_proxy(&conf, app));
    let listener = |listener| Connections {
        app: app.clone(),
        listener,
        rules: rules.clone(),
        limit: None,
        open: Arc::default(),
        open_http2: shutdown.http2_connections.clone(),
        shutdown: ShutdownWatcher::new(shutdown.stage()),
    };
    Ok(Built {
        apps: Apps {
            clients: Connections {
                limit: Some(limit),
                open: shutdown.connections.clone(),
                ..listener(Listener::Clients)
            },
            // Without a connection limit: administration must work when clients use up theirs.
            admins: config
                .admin_listen
                .is_some()
                .then(|| listener(Listener::Admins)),
            metrics: config.prometheus.is_some().then(|| Connections {
                limit: Some(Arc::new(ConnectionLimit::new(MAX_SCRAPERS, None))),
                ..listener(Listener::Metrics)
            }),
        },
        loads: LoadPoll {
            fleet: fleet.clone(),
            client: client.clone(),
            interval: polled,
        },
        names: Names::new(fleet.clone()),
        registry,
        examiner: Examiner {
            fleet: fleet.clone(),
            client: client.clone(),
            rules: probed.clone(),
        },
        live,
        keeper,
        kubernetes: config.kubernetes.take().and_then(kubernetes),
        dns,
        telemetry,
        engine: EngineQuestion {
            fleet: fleet.clone(),
            client: client.clone(),
            rules: probed.clone(),
        },
        probe: Probe {
            fleet,
            client,
            rules: probed,
            start_timeout: START_TIMEOUT,
        },
        shutdown,
        conf,
    })
}

fn proxy(
    config: &Config,
    fleet: Arc<Fleet>,
    registry: Arc<Registry>,
    client: Arc<Client>,
    shutdown: &Shutdown,
) -> Proxy {
    let abort_requests = !config.resilience.disable_abort_requests;
    let aborter = Arc::new(Aborter::new(client.clone(), abort_requests));
    let rooms = Arc::<LiveRooms>::default();
    let sources = sources(&fleet, &registry, &rooms, &client, &aborter, shutdown);
    let traces = config.enable_trace.then_some(Traces {
        endpoint: config.otlp_traces_endpoint.as_deref(),
    });
    let telemetry = Arc::new(Telemetry::new(
        sources,
        config.debug_requests_capacity,
        traces,
    ));
    Proxy {
        rooms,
        aborter,
        budget: RetryBudget::new(Instant::now()).into(),
        suspects: Arc::new(Suspects::new(suspect_limits(&config.resilience))),
        endpoints: Arc::new(Ops::new(
            fleet.clone(),
            registry,
            client.clone(),
            telemetry.clone(),
            shutdown.unready(),
        )),
        fleet,
        client,
        inflight: shutdown.requests.clone(),
        pages: Arc::default(),
        has_admin_listener: config.admin_listen.is_some(),
        shutdown: ShutdownWatcher::new(shutdown.stage()),
        body_memory: BodyMemory::new(config.clients.max_buffered_body_bytes),
        telemetry,
        rules: Arc::new(ArcSwap::from_pointee(rules(config))),
    }
}

/// What applies to requests.
pub(super) fn rules(config: &Config) -> Rules {
    let keys = &config.client_keys;
    Rules {
        limits: RequestLimits {
            max_inflight_requests: config
                .requests
                .max_inflight_requests
                .or_else(affordable_requests),
            ..config.requests.clone()
        },
        keys: Keys::new(
            keys.api
                .iter()
                .map(|named| (named.key.expose(), &*named.name)),
            keys.admin.iter().map(|key| (key.expose(), "admin_api_key")),
        ),
        cors: cors(&config.clients),
        logs_client_addresses: !config.disable_log_client_address,
        affinity: affinity(&config.policies),
        reads_prefixes: config.policies.prefill == Policy::ExpectedTtft,
        reads_lengths: config.policies.decode == Policy::ExpectedTtft,
    }
}

/// What applies to connections of clients.
pub(super) fn connection_rules(config: &Config) -> Result<ConnectionRules, StartError> {
    let http2 = config.clients.http2;
    let identity = config.tls.listener.as_ref();
    let acceptor = |identity| tls::acceptor(identity, http2);
    Ok(ConnectionRules {
        tls: identity.map(acceptor).transpose()?,
        head_timeout: config.clients.head_timeout,
        idle_timeout: config.clients.client_idle_timeout,
        refusal: Arc::new(Refusal {
            response: refused_head,
            cors: cors(&config.clients),
        }),
        http2,
    })
}

/// What finds the session of a request, where a policy asks for it.
fn affinity(policies: &PolicyConfig) -> Option<Affinity> {
    let asked = [policies.prefill, policies.decode].contains(&Policy::Session);
    asked.then(|| Affinity {
        header: policies.session_header.clone(),
    })
}

fn cors(clients: &ClientLimits) -> Cors {
    match &clients.cors_allowed_origins {
        AllowedOrigins::Any => Cors::Any,
        AllowedOrigins::None => Cors::Off,
        AllowedOrigins::Listed(origins) => Cors::Listed(origins.clone()),
    }
}

/// What the metrics read.
fn sources(
    fleet: &Arc<Fleet>,
    registry: &Arc<Registry>,
    rooms: &Arc<LiveRooms>,
    client: &Arc<Client>,
    aborter: &Arc<Aborter>,
    shutdown: &Shutdown,
) -> Sources {
    let (requests, connections) = (shutdown.requests.clone(), shutdown.connections.clone());
    let (client, aborter) = (client.clone(), aborter.clone());
    let registry = registry.clone();
    Sources {
        fleet: fleet.clone(),
        rooms: rooms.clone(),
        inflight: Box::new(move || requests.live()),
        connections: Box::new(move || connections.live()),
        idle_connections: Box::new(move |worker| {
            client.idle_connections(worker.addresses(), worker.server_name())
        }),
        aborts: Box::new(move |role| aborter.sent(role)),
        listed: Box::new(move || {
            let workers = registry.workers();
            let states = workers
                .iter()
                .map(|shown| (shown.worker.role(), shown.life.name()));
            states.collect()
        }),
    }
}

fn connection_limit(config: &Config) -> ConnectionLimit {
    let (max, max_per_ip) = most_connections(config);
    ConnectionLimit::new(max, max_per_ip)
}

/// The most connections of clients, and of one address.
pub(super) fn most_connections(config: &Config) -> (usize, Option<usize>) {
    let requests = config.requests.max_inflight_requests;
    let requests = requests.or_else(affordable_requests);
    let affordable = || requests.map_or(usize::MAX, affordable_connections);
    let clients = &config.clients;
    let max = clients.max_connections.unwrap_or_else(affordable);
    (max, clients.max_connections_per_ip)
}

fn suspect_limits(resilience: &Resilience) -> Option<SuspectLimits> {
    let memory = resilience.suspects.as_ref()?;
    Some(SuspectLimits {
        window: memory.window,
        capacity: memory.capacity,
    })
}
