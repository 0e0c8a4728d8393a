//! From a configuration to the fleet, and to the registry with the workers that the configuration names.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;

use super::StartError;
use crate::config::{
    BootstrapSpec, Config, Policy, Resilience, Secret, WorkerKeys, WorkerSpec, WorkerUrl,
    bracketed, checked_key, parse_host,
};
use crate::discovery::{
    Describe, Description, Details, First, Keeper, Listed, ProbeRules, Registry, Source,
};
use crate::fleet::{BreakerLimits, Fleet, Origin, Policies, Queue, Role, RolePolicy, WorkerParts};
use crate::pd::Bootstrap;

/// The path and the time of a probe where health checks are off: a new worker is probed all the same.
const PROBE: (&str, Duration) = ("/health", Duration::from_secs(5));

/// The fleet, without workers.
pub(super) fn fleet(config: &Config) -> Arc<Fleet> {
    let policies = Policies {
        prefill: role_policy(Role::Prefill, config.policies.prefill),
        decode: role_policy(Role::Decode, config.policies.decode),
    };
    let limits = &config.workers;
    let fleet = Fleet::new(policies, breaker_limits(&config.resilience))
        .of_engine(config.engine)
        .gated(limits.queue_size);
    fleet.set_decode_alone(config.requests.vllm_decode_alone);
    // Also without a limit: a reload may set one.
    Arc::new(fleet.limited(Queue::new(
        limits.max_concurrent_requests,
        limits.queue_size,
        Instant::now,
        rand::random,
    )))
}

/// The registry of a fleet, with the workers of the configuration: they serve at once.
///
/// # Errors
/// [`StartError::NotAHeader`].
pub(super) fn registry(
    config: &Config,
    fleet: &Arc<Fleet>,
    keys: Arc<ArcSwap<WorkerKeys>>,
) -> Result<Registry, StartError> {
    let registry = Registry::new(fleet.clone(), describe(keys));
    registry.set(&Source::Config, listed(config, First::Serve)?);
    Ok(registry)
}

/// What keeps the workers of the admin API. `None` where no file is set.
pub(super) fn keeper(config: &Config, registry: &Arc<Registry>) -> Option<Arc<Keeper>> {
    let path = config.workers_state_file.as_ref()?;
    // A process in the background has another directory later.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
    Some(Arc::new(Keeper::new(path, registry.clone())))
}

/// Lists the workers of the admin API that are kept.
///
/// # Errors
/// [`StartError::KeptWorkers`].
pub(super) fn restore(keeper: Option<&Arc<Keeper>>) -> Result<(), StartError> {
    let Some(keeper) = keeper else {
        return Ok(());
    };
    keeper.restore().map_err(|error| StartError::KeptWorkers {
        path: keeper.path().to_owned(),
        why: error.to_string(),
    })
}

/// The workers that a configuration names, prefill first.
///
/// # Errors
/// [`StartError::NotAHeader`].
pub(super) fn listed(config: &Config, first: First) -> Result<Vec<Listed>, StartError> {
    let prefill = config.prefill.iter().map(|spec| (Role::Prefill, spec));
    let decode = config.decode.iter().map(|spec| (Role::Decode, spec));
    let all = prefill.chain(decode).map(|(role, spec)| {
        Ok(Listed {
            parts: parts(role, spec)?,
            first,
            details: Details::default(),
        })
    });
    all.collect()
}

/// How workers are probed.
pub(super) fn probe_rules(config: &Config) -> ProbeRules {
    let probes = config.resilience.probes.as_ref();
    let (path, timeout) = probes.map_or(PROBE, |probes| (&probes.path, probes.timeout));
    ProbeRules {
        interval: probes.map(|probes| probes.interval),
        timeout,
        path: path.to_owned(),
    }
}

/// Makes workers of descriptions, with the rules of the configuration and the keys of the moment.
fn describe(keys: Arc<ArcSwap<WorkerKeys>>) -> Describe {
    Box::new(move |role, description| {
        let spec = spec(role, description, &keys.load())?;
        parts(role, &spec).map_err(|error| error.to_string())
    })
}

fn spec(role: Role, described: &Description, keys: &WorkerKeys) -> Result<WorkerSpec, String> {
    let url = WorkerUrl::parse(&described.url)
        .map_err(|fault| format!("`url` is not the URL of a worker: {fault}"))?;
    let key = |given: &Option<String>, shared: &Option<Secret>, name: &str| match given {
        None => Ok(shared.clone()),
        Some(text) => checked_key(text)
            .map(Some)
            .map_err(|fault| format!("`{name}`: {fault}")),
    };
    let host = match &described.bootstrap_host {
        None => url.host().to_owned(),
        Some(host) => parse_host(host).ok_or("`bootstrap_host` is a host name or an address")?,
    };
    let weight = described.weight.unwrap_or(1);
    if !(1..=1000).contains(&weight) {
        return Err("`weight` is a number from 1 to 1000".to_owned());
    }
    Ok(WorkerSpec {
        api_key: key(&described.api_key, &keys.api, "api_key")?,
        admin_api_key: key(&described.admin_api_key, &keys.admin, "admin_api_key")?,
        bootstrap: (role == Role::Prefill).then(|| BootstrapSpec {
            host: bracketed(&host),
            port: described.bootstrap_port,
        }),
        weight,
        http2: false,
        server_name: None,
        url,
    })
}

pub(super) fn role_policy(role: Role, policy: Policy) -> RolePolicy {
    match policy {
        Policy::Random => RolePolicy::Random,
        Policy::RoundRobin => RolePolicy::round_robin(),
        Policy::PowerOfTwo => RolePolicy::power_of_two(),
        Policy::LeastRequests => RolePolicy::least_requests(),
        Policy::LeastTokens => RolePolicy::least_bytes(),
        Policy::Session => RolePolicy::session(),
        Policy::ExpectedTtft if role == Role::Decode => RolePolicy::least_to_come(),
        Policy::ExpectedTtft => RolePolicy::expected_ttft(),
    }
}

pub(super) fn breaker_limits(resilience: &Resilience) -> BreakerLimits {
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
    let host = HeaderValue::try_from(spec.host_field()).map_err(|_| not_a_header("host name"))?;
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
            certified: spec.server_name.clone(),
            http2: spec.http2,
        },
        host,
        bootstrap,
        authorization: spec.api_key.as_ref().map(bearer).transpose()?,
        admin_authorization: spec.admin_api_key.as_ref().map(bearer).transpose()?,
        weight: spec.weight,
    })
}
