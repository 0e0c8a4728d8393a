//! The one fallible step from what the user wrote to what the program needs.
//!
//! Every value is looked at, even after the first problem. Key files are read here; nothing else is
//! opened and nobody is contacted.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use pingora_core::server::configuration::ServerConf;
use serde_yaml::Value;

use super::draft::{Draft, Given, WorkerDraft, server_conf};
use super::settings::{self, FOREIGN_POLICIES, Setting, nearest, worker_key};
use super::tls::{self, Half, Identity, Tls};
use super::worker::{bracketed, nonzero_port, parse_host, parse_listen};
use super::{
    BootstrapSpec, Breaker, Config, ConfigError, Fault, Faults, Gate, Leaving, Listen, Place,
    Policy, Probes, Problem, Queue, Role, Secret, WorkerSpec, WorkerUrl,
};

/// Resolves a draft that has the defaults in it.
///
/// # Errors
/// All problems: those that the caller brings along and those found here.
pub(crate) fn resolve(
    draft: &Draft,
    problems: Vec<Problem>,
    warnings: Vec<String>,
) -> Result<Config, ConfigError> {
    let mut resolver = Resolver {
        draft,
        problems,
        warnings,
    };
    let host = resolver.scalar(&settings::HOST, parse_host);
    let port = resolver.scalar(&settings::PORT, |text| text.parse::<u16>().ok());
    let listen = host.zip(port).map(|(host, port)| Listen { host, port });
    let admin_listen = resolver.admin_listen(listen.as_ref());
    let tls = resolver.tls();
    let max_body_bytes = resolver.scalar(&settings::MAX_PAYLOAD_SIZE, |text| {
        text.parse().ok().filter(|n| *n > 0)
    });
    let queue = resolver.queue();
    let gate = resolver.gate();
    let faults = resolver.faults();
    let connect_timeout = resolver.scalar(&settings::CONNECT_TIMEOUT_SECS, seconds);
    let policy = resolver.policy();
    let log_filter = resolver.log_filter();
    let (prefill, decode) = resolver.fleet();
    let server = resolver.server();
    let leaving = resolver.leaving(server.as_ref());
    let Resolver {
        problems, warnings, ..
    } = resolver;
    // A value is missing only when a problem says why.
    let config = move || {
        Some(Config {
            listen: listen?,
            admin_listen,
            tls,
            prefill,
            decode,
            policy: policy?,
            queue: queue?,
            gate: gate?,
            faults: faults?,
            leaving: leaving?,
            connect_timeout: connect_timeout?,
            max_body_bytes: max_body_bytes?,
            log_filter: log_filter?,
            server: server?,
            warnings,
        })
    };
    match config() {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigError { problems }),
    }
}

struct Resolver<'a> {
    draft: &'a Draft,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    fn scalar<T>(&mut self, setting: &Setting, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        // Never absent: the defaults are in the draft.
        let given = self.draft.scalars.get(setting.key)?;
        let value = read(&given.value);
        if value.is_none() {
            let fault = Fault::Value {
                found: given.value.clone(),
                expected: setting.expects,
                suggestion: None,
            };
            self.report(&given.place, fault);
        }
        value
    }

    fn policy(&mut self) -> Option<Policy> {
        let given = self.draft.scalars.get(settings::POLICY.key)?;
        let name = given.value.as_str();
        if name == "random" {
            return Some(Policy::Random);
        }
        if FOREIGN_POLICIES.contains(&name) {
            self.warnings.push(format!(
                "{}: the policy {name} does not exist here yet, random is used",
                given.place
            ));
            return Some(Policy::Random);
        }
        let suggestion = nearest(name, FOREIGN_POLICIES.into_iter().chain(["random"]));
        let expected = settings::POLICY.expects;
        self.report(
            &given.place,
            Fault::Value {
                found: name.to_owned(),
                expected,
                suggestion,
            },
        );
        None
    }

    /// The outer `None` is a problem, the inner one no limit.
    fn queue(&mut self) -> Option<Option<Queue>> {
        let per_worker = self.scalar(&settings::MAX_CONCURRENT_REQUESTS, |text| match text {
            "-1" => Some(None),
            text => text.parse().ok().map(NonZeroUsize::new),
        });
        let size = self.scalar(&settings::QUEUE_SIZE, |text| text.parse().ok());
        let timeout = self.scalar(&settings::QUEUE_TIMEOUT_SECS, seconds);
        let (size, timeout) = (size?, timeout?);
        Some(per_worker?.map(|per_worker| Queue {
            per_worker,
            size,
            timeout,
        }))
    }

    fn gate(&mut self) -> Option<Gate> {
        let head_timeout = self.scalar(&settings::HEAD_TIMEOUT_SECS, seconds);
        let body_timeout = self.scalar(&settings::BODY_TIMEOUT_SECS, seconds);
        let client_stall_timeout = self.scalar(&settings::CLIENT_STALL_TIMEOUT_SECS, seconds);
        let client_idle_timeout = self.scalar(&settings::CLIENT_IDLE_TIMEOUT_SECS, seconds);
        let max_connections = self.scalar(&settings::MAX_CONNECTIONS, limit);
        let max_connections_per_ip = self.scalar(&settings::MAX_CONNECTIONS_PER_IP, limit);
        let max_inflight_requests = self.scalar(&settings::MAX_INFLIGHT_REQUESTS, limit);
        let max_buffered_body_bytes = self.scalar(&settings::MAX_BUFFERED_BODY_BYTES, |text| {
            text.parse().ok().filter(|n| *n > 0)
        });
        let api_keys = self.client_keys();
        let admin_api_key = self.given_key(&settings::ADMIN_API_KEY);
        Some(Gate {
            api_keys,
            admin_api_key,
            max_connections: max_connections?,
            max_connections_per_ip: max_connections_per_ip?,
            max_inflight_requests: max_inflight_requests?,
            max_buffered_body_bytes: max_buffered_body_bytes?,
            head_timeout: head_timeout?,
            body_timeout: body_timeout?,
            client_stall_timeout: client_stall_timeout?,
            client_idle_timeout: client_idle_timeout?,
        })
    }

    /// An address of its own, if any.
    fn admin_listen(&mut self, listen: Option<&Listen>) -> Option<Listen> {
        let found = self.scalar(&settings::ADMIN_LISTEN, parse_listen)?;
        if found.port != 0 && Some(&found) == listen {
            let given = self.draft.scalars.get(settings::ADMIN_LISTEN.key)?;
            self.report(&given.place, Fault::SameAddress);
        }
        Some(found)
    }

    fn tls(&mut self) -> Tls {
        Tls {
            listener: self.identity(&settings::TLS_CERT_PATH, &settings::TLS_KEY_PATH),
            client: self.identity(&settings::CLIENT_CERT_PATH, &settings::CLIENT_KEY_PATH),
            roots: self.roots(),
        }
    }

    /// A certificate and its key. Both options or none.
    fn identity(&mut self, certificate: &Setting, key: &Setting) -> Option<Identity> {
        let given = |setting: &Setting| self.draft.scalars.get(setting.key);
        match (given(certificate), given(key)) {
            (None, None) => None,
            (Some(given), None) => {
                self.report(&given.place, Fault::Half { missing: key.key });
                None
            }
            (None, Some(given)) => {
                let missing = certificate.key;
                self.report(&given.place, Fault::Half { missing });
                None
            }
            (Some(certificate), Some(key)) => {
                let found = tls::read_identity(certificate.value.as_ref(), key.value.as_ref());
                found
                    .map_err(|(half, fault)| match half {
                        Half::Certificate => self.report(&certificate.place, fault),
                        Half::Key => self.report(&key.place, fault),
                    })
                    .ok()
            }
        }
    }

    fn roots(&mut self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        let Some(given) = self.draft.scalars.get(settings::CA_CERT_PATHS.key) else {
            return Vec::new();
        };
        let paths = given.value.split(',').map(str::trim);
        let mut roots = Vec::new();
        for path in paths.filter(|path| !path.is_empty()) {
            match tls::read_roots(Path::new(path)) {
                Ok(found) => roots.extend(found),
                Err(fault) => self.report(&given.place, fault),
            }
        }
        roots
    }

    fn faults(&mut self) -> Option<Faults> {
        let request_timeout = self.scalar(&settings::REQUEST_TIMEOUT_SECS, seconds);
        let first_token_timeout = self.scalar(&settings::FIRST_TOKEN_TIMEOUT_SECS, seconds);
        let stream_idle_timeout = self.scalar(&settings::STREAM_IDLE_TIMEOUT_SECS, seconds);
        let stream_timeout = self.scalar(&settings::STREAM_TIMEOUT_SECS, seconds_or_none);
        let no_retries = self.scalar(&settings::DISABLE_RETRIES, switch);
        let retries = self.scalar(&settings::RETRY_MAX_RETRIES, |text| {
            text.parse::<u32>().ok().filter(|retries| *retries <= 100)
        });
        let no_breaker = self.scalar(&settings::DISABLE_CIRCUIT_BREAKER, switch);
        let breaker = self.breaker();
        let slow_start = self.scalar(&settings::SLOW_START_SECS, seconds_or_none);
        let no_probes = self.scalar(&settings::DISABLE_HEALTH_CHECK, switch);
        let probes = self.probes();
        let no_aborts = self.scalar(&settings::DISABLE_ABORT_REQUESTS, switch);
        Some(Faults {
            request_timeout: request_timeout?,
            first_token_timeout: first_token_timeout?,
            stream_idle_timeout: stream_idle_timeout?,
            stream_timeout: stream_timeout?,
            retries: if no_retries? { 0 } else { retries? },
            breaker: breaker.filter(|_| no_breaker == Some(false)),
            slow_start: slow_start?,
            probes: probes.filter(|_| no_probes == Some(false)),
            abort_requests: !no_aborts?,
        })
    }

    /// Pingora's key for the grace period, which has no default, wins: so a configuration that was printed
    /// means the same when it is read again.
    fn leaving(&mut self, server: Option<&ServerConf>) -> Option<Leaving> {
        let settle = self.scalar(&settings::DRAIN_SETTLE_SECS, seconds_or_none);
        let grace = self.scalar(&settings::SHUTDOWN_GRACE_PERIOD_SECS, seconds);
        let pingoras = server
            .and_then(|server| server.grace_period_seconds)
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let ours = &settings::SHUTDOWN_GRACE_PERIOD_SECS;
        if let Some(given) = self.draft.scalars.get(ours.key)
            && !matches!(given.place, Place::Default)
            && pingoras.is_some_and(|pingoras| Some(pingoras) != grace)
        {
            self.warnings.push(format!(
                "{}: Pingora's grace_period_seconds is set as well and counts instead",
                given.place
            ));
        }
        Some(Leaving {
            settle: settle?.unwrap_or(Duration::ZERO),
            grace: pingoras.or(grace)?,
        })
    }

    fn breaker(&mut self) -> Option<Breaker> {
        let failures = self.scalar(&settings::CB_FAILURE_THRESHOLD, count);
        let window = self.scalar(&settings::CB_WINDOW_DURATION_SECS, seconds);
        let pause = self.scalar(&settings::CB_TIMEOUT_DURATION_SECS, seconds);
        let successes = self.scalar(&settings::CB_SUCCESS_THRESHOLD, count);
        Some(Breaker {
            failures: failures?,
            window: window?,
            pause: pause?,
            successes: successes?,
        })
    }

    fn probes(&mut self) -> Option<Probes> {
        let interval = self.scalar(&settings::HEALTH_CHECK_INTERVAL_SECS, seconds);
        let timeout = self.scalar(&settings::HEALTH_CHECK_TIMEOUT_SECS, seconds);
        let path = self.scalar(&settings::HEALTH_CHECK_ENDPOINT, |text| {
            let fit = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
            fit.then(|| text.to_owned())
        });
        Some(Probes {
            interval: interval?,
            timeout: timeout?,
            path: path?,
        })
    }

    fn log_filter(&mut self) -> Option<String> {
        let given = self.draft.scalars.get(settings::LOG_LEVEL.key)?;
        let text = given.value.as_str();
        // A lone word is a module to env_logger, so that `inof` would turn everything off but that.
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let lower = text.to_ascii_lowercase();
        let is_word = !lower.contains([',', '=']);
        let suggestion = nearest(&lower, levels).filter(|level| is_word && *level != lower);
        if suggestion.is_none()
            && env_filter::Builder::new().try_parse(text).is_ok()
            && !text.trim().is_empty()
        {
            return Some(text.to_owned());
        }
        let expected = settings::LOG_LEVEL.expects;
        self.report(
            &given.place,
            Fault::Value {
                found: text.to_owned(),
                expected,
                suggestion,
            },
        );
        None
    }

    /// Those of the option and those of the file.
    fn client_keys(&mut self) -> Vec<Secret> {
        let mut keys: Vec<_> = self.given_key(&settings::API_KEY).into_iter().collect();
        if let Some(given) = self.draft.scalars.get(settings::API_KEY_FILE.key) {
            match read_keys(Path::new(&given.value)) {
                Ok(of_file) => keys.extend(of_file),
                Err(fault) => self.report(&given.place, fault),
            }
        }
        keys
    }

    fn given_key(&mut self, setting: &Setting) -> Option<Secret> {
        let given = self.draft.scalars.get(setting.key)?;
        self.key(checked_key(&given.value), &given.place)
    }

    /// The key in the file that this option names.
    fn filed_key(&mut self, setting: &Setting) -> Option<Secret> {
        let given = self.draft.scalars.get(setting.key)?;
        self.key(read_key(Path::new(&given.value)), &given.place)
    }

    /// Both lists, each worker once.
    fn fleet(&mut self) -> (Vec<WorkerSpec>, Vec<WorkerSpec>) {
        let shared_key = match self.filed_key(&settings::WORKER_API_KEY_FILE) {
            Some(key) => Some(key),
            // As sglang_router has it: its key is the clients' and the workers'. What is wrong with it has been
            // reported.
            None => self
                .draft
                .scalars
                .get(settings::API_KEY.key)
                .and_then(|given| checked_key(&given.value).ok()),
        };
        let shared = SharedKeys {
            api: shared_key,
            admin: self.filed_key(&settings::WORKER_ADMIN_API_KEY_FILE),
        };
        let prefill = self.workers(Role::Prefill, &shared);
        let decode = self.workers(Role::Decode, &shared);
        self.each_worker_once(&prefill, &decode);
        let specs = |workers: Vec<Given<WorkerSpec>>| {
            workers.into_iter().map(|worker| worker.value).collect()
        };
        let (prefill, decode): (Vec<_>, Vec<_>) = (specs(prefill), specs(decode));
        self.warnings
            .extend(unreachable_bootstraps(&prefill, &decode));
        (prefill, decode)
    }

    fn workers(&mut self, role: Role, shared: &SharedKeys) -> Vec<Given<WorkerSpec>> {
        let key = match role {
            Role::Prefill => settings::PREFILL.key,
            Role::Decode => settings::DECODE.key,
        };
        let list = self.draft.workers.get(key);
        let drafts = list.map_or(&[][..], |list| &list.value);
        if drafts.is_empty() {
            let place = list.map_or(Place::Default, |list| list.place.clone());
            self.report(&place, Fault::NoWorkers { key });
        }
        drafts
            .iter()
            .filter_map(|draft| self.worker(role, draft, shared))
            .collect()
    }

    fn worker(
        &mut self,
        role: Role,
        draft: &WorkerDraft,
        shared: &SharedKeys,
    ) -> Option<Given<WorkerSpec>> {
        let own_key = self.worker_key(draft, worker_key::API_KEY, worker_key::API_KEY_FILE);
        let own_admin_key = self.worker_key(
            draft,
            worker_key::ADMIN_API_KEY,
            worker_key::ADMIN_API_KEY_FILE,
        );
        let given = draft.keys.get(worker_key::URL);
        let url = given.and_then(|given| match WorkerUrl::parse(&given.value) {
            Ok(url) => Some(url),
            Err(why) => {
                self.report(
                    &given.place,
                    Fault::Url {
                        found: without_user(&given.value),
                        why,
                    },
                );
                None
            }
        });
        let host = self.key_of(
            draft,
            worker_key::BOOTSTRAP_HOST,
            "a host name or an address",
            parse_host,
        );
        let port = self.key_of(
            draft,
            worker_key::BOOTSTRAP_PORT,
            "a bootstrap port: PORT (1 to 65535), HOST:PORT or none",
            |text| match text {
                text if text.eq_ignore_ascii_case("none") => Some(None),
                text => nonzero_port(text).map(Some),
            },
        );
        let url = url?;
        let bootstrap = (role == Role::Prefill).then(|| BootstrapSpec {
            host: bracketed(host.as_deref().unwrap_or(url.host())),
            port: port.flatten(),
        });
        Some(Given {
            value: WorkerSpec {
                url,
                bootstrap,
                api_key: own_key.or_else(|| shared.api.clone()),
                admin_api_key: own_admin_key.or_else(|| shared.admin.clone()),
            },
            place: draft.place.clone(),
        })
    }

    fn key_of<T>(
        &mut self,
        draft: &WorkerDraft,
        key: &str,
        expected: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let given = draft.keys.get(key)?;
        let value = read(&given.value);
        if value.is_none() {
            self.report(
                &given.place,
                Fault::Value {
                    found: given.value.clone(),
                    expected,
                    suggestion: None,
                },
            );
        }
        value
    }

    fn worker_key(
        &mut self,
        draft: &WorkerDraft,
        text: &'static str,
        file: &'static str,
    ) -> Option<Secret> {
        match (draft.keys.get(text), draft.keys.get(file)) {
            (None, None) => None,
            (Some(given), None) => self.key(checked_key(&given.value), &given.place),
            (None, Some(given)) => self.key(read_key(Path::new(&given.value)), &given.place),
            (Some(_), Some(given)) => {
                self.report(&given.place, Fault::TwoKeys { text, file });
                None
            }
        }
    }

    fn key(&mut self, key: Result<Secret, Fault>, place: &Place) -> Option<Secret> {
        key.map_err(|fault| self.report(place, fault)).ok()
    }

    fn each_worker_once(&mut self, prefill: &[Given<WorkerSpec>], decode: &[Given<WorkerSpec>]) {
        // The same port speaks TLS or not.
        let mut seen: HashMap<String, (Role, &Place)> = HashMap::new();
        let all = prefill.iter().map(|worker| (Role::Prefill, worker));
        for (role, worker) in all.chain(decode.iter().map(|worker| (Role::Decode, worker))) {
            let url = &worker.value.url;
            let Some((first_role, first)) = seen.get(&url.authority()).copied() else {
                seen.insert(url.authority(), (role, &worker.place));
                continue;
            };
            let (url, first) = (url.to_string(), Box::new(first.clone()));
            let fault = if first_role == role {
                Fault::Duplicate { url, first }
            } else {
                Fault::BothRoles {
                    url,
                    prefill: first,
                }
            };
            self.report(&worker.place, fault);
        }
    }

    fn server(&mut self) -> Option<ServerConf> {
        let given = self.draft.server.iter();
        let keys = given.map(|(key, given)| (Value::from(key.as_str()), given.value.clone()));
        match server_conf(keys.collect()) {
            Ok(conf) if conf.threads == 0 => {
                let place = self
                    .draft
                    .server
                    .get("threads")
                    .map_or(Place::Default, |given| given.place.clone());
                self.report(&place, Fault::Server("must be at least 1".to_owned()));
                None
            }
            Ok(conf) => Some(conf),
            Err(why) => {
                self.report(&Place::Default, Fault::Server(why));
                None
            }
        }
    }

    fn report(&mut self, place: &Place, fault: Fault) {
        self.problems.push(Problem {
            place: place.clone(),
            fault,
        });
    }
}

/// The keys of workers that have none of their own.
struct SharedKeys {
    api: Option<Secret>,
    admin: Option<Secret>,
}

/// A URL as it may be shown: a password is as secret as a key.
fn without_user(url: &str) -> String {
    let Some((user, rest)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = user
        .split_once("://")
        .map_or(String::new(), |(scheme, _)| format!("{scheme}://"));
    format!("{scheme}{}@{rest}", Secret::MASK)
}

fn switch(text: &str) -> Option<bool> {
    text.parse().ok()
}

/// `None` for zero.
fn limit(text: &str) -> Option<Option<usize>> {
    text.parse::<usize>().ok().map(|n| (n > 0).then_some(n))
}

fn count(text: &str) -> Option<u32> {
    text.parse().ok().filter(|n| (1..=1_000_000).contains(n))
}

/// `None` for zero.
fn seconds_or_none(text: &str) -> Option<Option<Duration>> {
    seconds(text)
        .map(Some)
        .or_else(|| (text.parse() == Ok(0.0)).then_some(None))
}

/// Above zero, and small enough that a deadline can be computed from it on every platform.
fn seconds(text: &str) -> Option<Duration> {
    let year = 365.0 * 24.0 * 3600.0;
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| *seconds <= year)?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
}

fn read_key(path: &Path) -> Result<Secret, Fault> {
    // Editors and `echo` end a file with a line break.
    checked_key(read_text(path)?.trim())
}

/// One a line. No keys would be open doors, so there must be one.
fn read_keys(path: &Path) -> Result<Vec<Secret>, Fault> {
    let text = read_text(path)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let keys: Vec<_> = lines.map(checked_key).collect::<Result<_, _>>()?;
    if keys.is_empty() {
        return Err(Fault::Empty);
    }
    Ok(keys)
}

fn read_text(path: &Path) -> Result<String, Fault> {
    let bytes = std::fs::read(path).map_err(|error| {
        let (path, why) = (path.to_owned(), error.to_string());
        Fault::Unreadable { path, why }
    })?;
    String::from_utf8(bytes).map_err(|_| Fault::NotUtf8)
}

/// A key that can stand behind `Bearer ` in a header.
fn checked_key(text: &str) -> Result<Secret, Fault> {
    match text {
        "" => Err(Fault::Empty),
        Secret::MASK => Err(Fault::MaskedKey),
        text if text.bytes().all(|b| b.is_ascii_graphic()) => Ok(Secret::new(text)),
        _ => Err(Fault::BadKey),
    }
}

/// One warning for each prefill worker whose loopback address decode workers elsewhere would dial: they
/// would find themselves.
fn unreachable_bootstraps(prefill: &[WorkerSpec], decode: &[WorkerSpec]) -> Vec<String> {
    let elsewhere = decode.iter().any(|worker| !is_loopback(worker.url.host()));
    let dialled = prefill
        .iter()
        .filter_map(|worker| Some((&worker.url, worker.bootstrap.as_ref()?)));
    dialled
        .filter(|(_, bootstrap)| elsewhere && is_loopback(bootstrap.host.trim_matches(['[', ']'])))
        .map(|(url, bootstrap)| {
            format!(
                "prefill {url}: decode workers on other hosts cannot reach its bootstrap host {}, set bootstrap_host",
                bootstrap.host
            )
        })
        .collect()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_positive_finite_and_at_most_a_year() {
        assert_eq!(seconds("1800"), Some(Duration::from_secs(1800)));
        assert_eq!(seconds("0.25"), Some(Duration::from_millis(250)));
        for text in [
            "0", "-1", "0.0", "1e-12", "NaN", "inf", "1e300", "31536001", "", "2s",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }

    #[test]
    fn a_key_must_fit_into_a_header() {
        assert_eq!(checked_key("sk-1"), Ok(Secret::new("sk-1")));
        assert_eq!(checked_key(""), Err(Fault::Empty));
        assert_eq!(checked_key("***"), Err(Fault::MaskedKey));
        for text in ["a b", "a\r\nx: y", "schlüssel", "a\u{7f}"] {
            assert_eq!(checked_key(text), Err(Fault::BadKey), "{text:?}");
        }
    }
}
