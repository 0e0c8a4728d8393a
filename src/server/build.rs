//! From a configuration to the modules of the program: fleet, client, proxy, and the applications of the listeners.
//!
//! Nothing is opened here and no task runs yet. Each module receives the values that it uses, never the whole
//! configuration.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;

use super::limits::{affordable_connections, affordable_requests};
use super::listen::Apps;
use super::shutdown::Shutdown;
use super::{StartError, tls};
use crate::client::{
    BodyMemory, ConnectionLimit, ConnectionRules, Connections, Cors, Keys, Listener, Refusal,
    ShutdownWatcher,
};
use crate::config::{
    AllowedOrigins, ClientLimits, Config, Policy, PolicyConfig, RequestLimits, Resilience, Secret,
    WorkerSpec,
};
use crate::discovery::{LoadPoll, Names, Probe};
use crate::fleet::{
    BreakerLimits, Fleet, LiveRooms, Members, Origin, Policies, Queue, RetryBudget, Role,
    RolePolicy, SuspectLimits, Suspects, WorkerParts,
};
use crate::legs::Aborter;
use crate::net::{Client, Dialling};
use crate::ops::Ops;
use crate::pd::{Bootstrap, Engine};
use crate::proxy::{Affinity, Proxy, Rules, refused_head};
use crate::telemetry::{Sources, Telemetry, Traces};

/// Connections to the listener for metrics, which has no key.
const MAX_SCRAPERS: usize = 64;

/// A balancer that is ready to listen.
pub(super) struct Built {
    pub(super) apps: Apps,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) probe: Option<Probe>,
    pub(super) loads: Option<LoadPoll>,
    pub(super) names: Names,
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
    let fleet = fleet(&config)?;
    // Pingora counts connections: one for each attempt and for the one that begins again, and as many that took no byte.
    conf.max_retries = 2 * (config.requests.max_retries as usize + 2);
    let conf = Arc::new(conf);
    let client = Arc::new(Client::new(&conf, dialling));
    let shutdown = Arc::new(Shutdown::new(config.shutdown.clone()));
    let app = proxy(&config, fleet.clone(), client.clone(), &shutdown);
    let telemetry = app.telemetry.clone();
    let app = Arc::new(http_proxy(&conf, app));
    let rules = Arc::new(ArcSwap::from_pointee(connection_rules(&config)?));
    let listener = |listener| Connections {
        app: app.clone(),
        listener,
        rules: rules.clone(),
        limit: None,
        open: Arc::default(),
    };
    Ok(Built {
        apps: Apps {
            clients: Connections {
                limit: Some(Arc::new(connection_limit(&config))),
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
        loads: config.workers.load_poll_interval.map(|interval| LoadPoll {
            fleet: fleet.clone(),
            client: client.clone(),
            interval,
        }),
        names: Names::new(fleet.clone()),
        telemetry,
        probe: config.resilience.probes.map(|probes| Probe {
            fleet,
            client,
            interval: probes.interval,
            timeout: probes.timeout,
            path: probes.path,
        }),
        shutdown,
        conf,
    })
}

fn proxy(config: &Config, fleet: Arc<Fleet>, client: Arc<Client>, shutdown: &Shutdown) -> Proxy {
    let abort_requests = !config.resilience.disable_abort_requests;
    let aborter = Arc::new(Aborter::new(client.clone(), abort_requests));
    let rooms = Arc::<LiveRooms>::default();
    let sources = sources(&fleet, &rooms, &client, &aborter, shutdown);
    let traces = config.enable_trace.then_some(Traces {
        endpoint: config.otlp_traces_endpoint.as_deref(),
    });
    let telemetry = Arc::new(Telemetry::new(
        sources,
        config.debug_requests_capacity,
        traces,
    ));
    Proxy {
        engine: Engine::default(),
        rooms,
        aborter,
        budget: RetryBudget::new(Instant::now()).into(),
        suspects: Arc::new(Suspects::new(suspect_limits(&config.resilience))),
        endpoints: Arc::new(Ops::new(
            fleet.clone(),
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
fn rules(config: &Config) -> Rules {
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
    }
}

/// What applies to connections of clients.
fn connection_rules(config: &Config) -> Result<ConnectionRules, StartError> {
    let identity = config.tls.listener.as_ref();
    Ok(ConnectionRules {
        tls: identity.map(tls::acceptor).transpose()?,
        head_timeout: config.clients.head_timeout,
        idle_timeout: config.clients.client_idle_timeout,
        refusal: Arc::new(Refusal {
            response: refused_head,
            cors: cors(&config.clients),
        }),
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
    rooms: &Arc<LiveRooms>,
    client: &Arc<Client>,
    aborter: &Arc<Aborter>,
    shutdown: &Shutdown,
) -> Sources {
    let (requests, connections) = (shutdown.requests.clone(), shutdown.connections.clone());
    let (client, aborter) = (client.clone(), aborter.clone());
    Sources {
        fleet: fleet.clone(),
        rooms: rooms.clone(),
        inflight: Box::new(move || requests.live()),
        connections: Box::new(move || connections.live()),
        idle_connections: Box::new(move |worker| {
            client.idle_connections(worker.addresses(), worker.server_name())
        }),
        aborts: Box::new(move |role| aborter.sent(role)),
    }
}

fn connection_limit(config: &Config) -> ConnectionLimit {
    let (max, max_per_ip) = most_connections(config);
    ConnectionLimit::new(max, max_per_ip)
}

/// The most connections of clients, and of one address.
fn most_connections(config: &Config) -> (usize, Option<usize>) {
    let requests = config.requests.max_inflight_requests;
    let requests = requests.or_else(affordable_requests);
    let affordable = || requests.map_or(usize::MAX, affordable_connections);
    let clients = &config.clients;
    let max = clients.max_connections.unwrap_or_else(affordable);
    (max, clients.max_connections_per_ip)
}

/// The fleet, with the workers of the configuration.
fn fleet(config: &Config) -> Result<Arc<Fleet>, StartError> {
    let policies = Policies {
        prefill: role_policy(config.policies.prefill),
        decode: role_policy(config.policies.decode),
    };
    let fleet = Fleet::new(policies, breaker_limits(&config.resilience));
    let limits = &config.workers;
    let fleet = Arc::new(match limits.max_concurrent_requests {
        Some(per_worker) => {
            let queue = Queue::new(per_worker, limits.queue_size, Instant::now, rand::random);
            fleet.limited(queue)
        }
        None => fleet,
    });
    let prefill = config.prefill.iter().map(|spec| (Role::Prefill, spec));
    let decode = config.decode.iter().map(|spec| (Role::Decode, spec));
    let mut workers = Vec::new();
    for (role, spec) in prefill.chain(decode) {
        workers.push(fleet.new_worker(parts(role, spec)?));
    }
    fleet.replace(Members::new(workers));
    Ok(fleet)
}

fn role_policy(policy: Policy) -> RolePolicy {
    match policy {
        Policy::Random => RolePolicy::Random,
        Policy::RoundRobin => RolePolicy::round_robin(),
        Policy::PowerOfTwo => RolePolicy::power_of_two(),
        Policy::LeastRequests => RolePolicy::least_requests(),
        Policy::LeastTokens => RolePolicy::least_bytes(),
        Policy::Session => RolePolicy::session(),
        Policy::ExpectedTtft => RolePolicy::expected_ttft(),
    }
}

fn suspect_limits(resilience: &Resilience) -> Option<SuspectLimits> {
    let memory = resilience.suspects.as_ref()?;
    Some(SuspectLimits {
        window: memory.window,
        capacity: memory.capacity,
    })
}

fn breaker_limits(resilience: &Resilience) -> BreakerLimits {
    let slow_start = resilience.slow_start.unwrap_or(Duration::ZERO);
    match &resilience.breaker {
        None => BreakerLimits {
            failures: 0,
            slow_start,
            ..BreakerLimits::default()
        },
        Some(breaker) => BreakerLimits {
            failures: breaker.failures,
            window: breaker.window,
            successes: breaker.successes,
            pause: breaker.pause,
            slow_start,
        },
    }
}

pub(super) fn parts(role: Role, spec: &WorkerSpec) -> Result<WorkerParts, StartError> {
    let not_a_header = |what| StartError::NotAHeader {
        url: spec.url.to_string(),
        what,
    };
    let host =
        HeaderValue::try_from(spec.url.host_field()).map_err(|_| not_a_header("host name"))?;
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
        weight: spec.weight,
    })
}
