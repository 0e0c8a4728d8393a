//! The user's shape: the values of one source as text, each with its place, and how sources are laid over each other.
//!
//! Nothing is checked here except the form of a list of workers. The environment and the defaults are read here;
//! flags are read in `cli.rs`, the file in `file.rs`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::thread::available_parallelism;

use pingora::server::configuration::ServerConf;
use serde_yaml::{Mapping, Value};

use super::kind::Kind;
use super::settings::{Setting, settings, worker_key};
use super::{Fault, Place, Problem, Role, Secret};

/// Looks up an environment variable. An argument, so that tests can run in one process.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// A worker as the user wrote it: its keys, in the form of the file for every source.
#[derive(Clone)]
pub(crate) struct WorkerDraft {
    pub(crate) place: Place,
    /// Without `url` when that has been reported as a problem.
    pub(crate) keys: BTreeMap<&'static str, Given<String>>,
}

impl fmt::Debug for WorkerDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.keys.iter().map(|(key, given)| match *key {
            key_name if worker_key::SECRETS.contains(&key_name) => (key, Secret::MASK),
            _ => (key, given.value.as_str()),
        });
        f.debug_map().entries(shown).finish()
    }
}

/// The values of one source, or of several laid over each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    pub(crate) scalars: BTreeMap<&'static str, Given<String>>,
    pub(crate) workers: BTreeMap<&'static str, Given<Vec<WorkerDraft>>>,
    /// The keys of every worker that has none of its own, of a program that gives them as text.
    pub(crate) all_workers: Option<WorkerDraft>,
    /// Pingora's keys.
    pub(crate) server: BTreeMap<String, Given<Value>>,
}

impl Draft {
    /// The default of every setting that has one.
    pub(crate) fn defaults() -> Draft {
        let mut draft = Draft::default();
        for setting in settings() {
            if let Some(default) = setting.default {
                draft.set(setting, default, Place::Default);
            }
        }
        for (key, value) in server_defaults() {
            let place = Place::Default;
            draft.server.insert(key, Given { value, place });
        }
        draft
    }

    /// The `MINI_LB_*` variables. An empty one counts as absent, as Docker Compose writes it.
    pub(crate) fn from_environment(
        environment: Environment<'_>,
        problems: &mut Vec<Problem>,
        warnings: &mut Vec<String>,
    ) -> Draft {
        let mut draft = Draft::default();
        for setting in settings() {
            let name = setting.variable();
            let Some(text) = environment(&name).filter(|text| !text.is_empty()) else {
                continue;
            };
            let place = Place::Environment(name.clone());
            let Some(text) = text.to_str() else {
                problems.push(Problem {
                    place,
                    fault: Fault::NotUtf8,
                });
                continue;
            };
            if setting.key == "port" && text.starts_with("tcp://") {
                // Kubernetes gives every pod this variable when a service is named `mini-lb`.
                warnings.push(format!(
                    "{name} is set by Kubernetes for a service and is not used as a port"
                ));
                continue;
            }
            draft.set_text(setting, text, place, problems);
        }
        draft
    }

    /// Sets a value in the form that it has in an environment variable, where workers are a list too.
    pub(crate) fn set_text(
        &mut self,
        setting: &Setting,
        text: &str,
        place: Place,
        problems: &mut Vec<Problem>,
    ) {
        let Kind::Workers(role) = setting.kind else {
            self.set(setting, text, place);
            return;
        };
        let value = workers_of_text(&place, text, role, problems);
        self.workers.insert(setting.key, Given { value, place });
    }

    pub(crate) fn set(&mut self, setting: &Setting, value: impl Into<String>, place: Place) {
        self.scalars.insert(
            setting.key,
            Given {
                value: value.into(),
                place,
            },
        );
    }

    pub(crate) fn push_worker(&mut self, setting: &Setting, list: Place, worker: WorkerDraft) {
        let empty = Given {
            value: Vec::new(),
            place: list,
        };
        self.workers
            .entry(setting.key)
            .or_insert(empty)
            .value
            .push(worker);
    }

    /// This draft, with the other's values for the keys that it does not set. Lists are not joined.
    pub(crate) fn over(mut self, mut lower: Draft) -> Draft {
        lower.scalars.append(&mut self.scalars);
        lower.workers.append(&mut self.workers);
        lower.all_workers = self.all_workers.or(lower.all_workers);
        lower.server.append(&mut self.server);
        lower
    }
}

impl WorkerDraft {
    pub(crate) fn new(place: Place) -> WorkerDraft {
        WorkerDraft {
            place,
            keys: BTreeMap::new(),
        }
    }

    /// The values of one `--prefill` (a URL, then `PORT`, `none`, `HOST:PORT` or nothing) or `--decode` (a URL).
    pub(crate) fn from_tokens(
        place: Place,
        role: Role,
        tokens: &[&str],
        problems: &mut Vec<Problem>,
    ) -> WorkerDraft {
        let mut draft = WorkerDraft::new(place);
        let (url, bootstrap) = match (role, tokens) {
            (_, [url]) => (url, None),
            // A second URL belongs to a forgotten flag.
            (Role::Prefill, [url, bootstrap]) if !bootstrap.contains("://") => {
                (url, Some(bootstrap))
            }
            _ => {
                let is_flag = matches!(draft.place, Place::Flag(_));
                let expected = match (role, is_flag) {
                    (Role::Prefill, false) => "one URL with at most a bootstrap address behind it",
                    (Role::Prefill, true) => {
                        "one URL with at most a bootstrap address behind it; repeat the flag for each worker"
                    }
                    (Role::Decode, false) => "one URL",
                    (Role::Decode, true) => "one URL; repeat the flag for each worker",
                };
                let fault = Fault::Value {
                    found: tokens.join(" "),
                    expected,
                    suggestion: None,
                };
                problems.push(Problem {
                    place: draft.place.clone(),
                    fault,
                });
                return draft;
            }
        };
        draft.set(worker_key::URL, url);
        if let Some(bootstrap) = bootstrap {
            // IPv6 without brackets is ambiguous: it is not split, so that it is refused as a port.
            let host = bootstrap.rsplit_once(':');
            let host = host.filter(|(host, _)| !host.contains(':') || host.starts_with('['));
            let port = match host {
                Some((host, port)) => {
                    draft.set(worker_key::BOOTSTRAP_HOST, host);
                    port
                }
                None => bootstrap,
            };
            draft.set(worker_key::BOOTSTRAP_PORT, port);
        }
        draft
    }

    /// Sets a key that was written at the same place as the worker.
    pub(crate) fn set(&mut self, key: &'static str, value: &str) {
        let place = self.place.clone();
        self.keys.insert(
            key,
            Given {
                value: value.to_owned(),
                place,
            },
        );
    }
}

/// Reads Pingora's keys as Pingora does.
///
/// # Errors
/// The message of the parser or of Pingora, on one line.
pub(crate) fn server_conf(keys: Mapping) -> Result<ServerConf, String> {
    let text = serde_yaml::to_string(&keys).map_err(|error| error.to_string())?;
    ServerConf::from_yaml(&text).map_err(|error| {
        // Pingora's context for an error of the parser is the whole text; only the cause names the problem.
        let why = match (&error.cause, &error.context) {
            (Some(cause), _) => cause.to_string(),
            (None, Some(context)) => context.as_str().to_owned(),
            (None, None) => error.to_string(),
        };
        // The line is one of the text above, not of the user's file.
        let why = match why.rfind(" at line ") {
            Some(end) => &why[..end],
            None => &why,
        };
        why.replace("expected usize", "expected a whole number")
    })
}

/// Idle connections to workers that are kept, over all workers. Pingora's 128 would close most of the connections
/// that a benchmark at high concurrency leaves idle at once.
const POOL_SIZE: usize = 4096;

/// Pingora's keys and their defaults, as Pingora serializes them, so that new keys appear by themselves.
///
/// Three defaults differ from Pingora's: one thread per CPU instead of one, [`POOL_SIZE`], and a process in the background
/// whose start ends when it takes signals. Work stealing is on as in Pingora: without it a stream waits while its own
/// thread is busy, though another one is idle.
/// Source: pingora-core 0.9.1, `server/configuration/mod.rs`.
pub(crate) fn server_defaults() -> BTreeMap<String, Value> {
    let mut defaults = BTreeMap::new();
    if let Ok(Value::Mapping(mapping)) = serde_yaml::to_value(ServerConf::default()) {
        for (key, value) in mapping {
            if let Value::String(key) = key {
                defaults.insert(key, value);
            }
        }
    }
    // Not a setting: the server derives it from `retry_max_retries`.
    defaults.remove("max_retries");
    let threads = available_parallelism().map_or(1, |threads| threads.get());
    defaults.insert("threads".to_owned(), Value::from(threads));
    defaults.insert("daemon_wait_for_ready".to_owned(), Value::from(true));
    defaults.insert(
        "upstream_keepalive_pool_size".to_owned(),
        Value::from(POOL_SIZE),
    );
    defaults
}

/// `http://a:1 8998, http://b:2`: commas separate workers, spaces the values of one worker.
fn workers_of_text(
    list: &Place,
    text: &str,
    role: Role,
    problems: &mut Vec<Problem>,
) -> Vec<WorkerDraft> {
    let items = text.split(',').enumerate().map(|(index, item)| {
        let place = match list {
            Place::Environment(name) => Place::Environment(format!("{name}[{index}]")),
            Place::Library(name) => Place::Library(format!("{name}[{index}]")),
            other => other.clone(),
        };
        let tokens: Vec<_> = item.split_whitespace().collect();
        WorkerDraft::from_tokens(place, role, &tokens, problems)
    });
    items.collect()
}
