//! The user shape: what one source says, as text, each value with its place; and how sources are laid
//! over each other.
//!
//! Nothing is checked here beyond the form that a list of workers needs. Flags, the environment and the
//! defaults are read here; the file has `file.rs`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::thread::available_parallelism;

use pingora_core::server::configuration::ServerConf;
use serde_yaml::{Mapping, Value};

use super::settings::{Kind, PORT, SETTINGS, Setting, worker_key};
use super::{Fault, Place, Problem, Role, Secret};

/// Looks up a variable of the environment. An argument, so that tests need no process of their own.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A value and where it was written.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    pub(crate) value: T,
    pub(crate) place: Place,
}

/// A worker as it was written: its keys, in the form of the file whatever the source.
#[derive(Clone)]
pub(crate) struct WorkerDraft {
    pub(crate) place: Place,
    /// No `url` means that the problem with it is reported already.
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

/// What one source says, or several laid over each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    pub(crate) scalars: BTreeMap<&'static str, Given<String>>,
    pub(crate) workers: BTreeMap<&'static str, Given<Vec<WorkerDraft>>>,
    /// Pingora's keys.
    pub(crate) server: BTreeMap<String, Given<Value>>,
}

impl Draft {
    /// What holds when nobody says otherwise.
    pub(crate) fn defaults() -> Draft {
        let mut draft = Draft::default();
        for setting in SETTINGS {
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
        for setting in SETTINGS {
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
            if setting.key == PORT.key && text.starts_with("tcp://") {
                // Kubernetes gives every pod this variable when a service is named `mini-lb`.
                warnings.push(format!(
                    "{name} is set by Kubernetes for a service and is not used as a port"
                ));
                continue;
            }
            match setting.kind {
                Kind::Text | Kind::Paths | Kind::Number | Kind::Switch => {
                    draft.set(setting, text, place);
                }
                Kind::Workers(role) => {
                    let workers = workers_of_variable(&name, text, role, problems);
                    draft.workers.insert(
                        setting.key,
                        Given {
                            value: workers,
                            place,
                        },
                    );
                }
            }
        }
        draft
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

    /// This draft where it says something, the other where it does not. Lists are not joined.
    pub(crate) fn over(mut self, mut lower: Draft) -> Draft {
        lower.scalars.append(&mut self.scalars);
        lower.workers.append(&mut self.workers);
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

    /// The tokens behind `--prefill`, a URL and perhaps `PORT`, `none` or `HOST:PORT`, or behind `--decode`.
    pub(crate) fn from_tokens(
        place: Place,
        role: Role,
        tokens: &[&str],
        problems: &mut Vec<Problem>,
    ) -> WorkerDraft {
        let mut draft = WorkerDraft::new(place);
        let (url, bootstrap) = match (role, tokens) {
            (_, [url]) => (url, None),
            (Role::Prefill, [url, bootstrap]) => (url, Some(bootstrap)),
            _ => {
                let expected = match role {
                    Role::Prefill => "one URL with at most a bootstrap address behind it",
                    Role::Decode => "one URL",
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
            // IPv6 without brackets could be read in two ways, and a URL here is a forgotten flag: both
            // stay whole and are refused as a port.
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
/// The words of the parser or of Pingora, on one line.
pub(crate) fn server_conf(keys: Mapping) -> Result<ServerConf, String> {
    let text = serde_yaml::to_string(&keys).map_err(|error| error.to_string())?;
    ServerConf::from_yaml(&text).map_err(|error| {
        // Pingora's context for a parser's error is the whole text; the cause alone is what is wrong.
        let why = match (&error.cause, &error.context) {
            (Some(cause), _) => cause.to_string(),
            (None, Some(context)) => context.as_str().to_owned(),
            (None, None) => error.to_string(),
        };
        // A place in the text above would not be one in the user's file.
        match why.rfind(" at line ") {
            Some(end) => why[..end].to_owned(),
            None => why,
        }
    })
}

/// Idle connections to workers that are kept, over all workers.
const POOL_SIZE: usize = 4096;

/// Pingora's keys and their defaults, as Pingora writes them, so that the list cannot grow old.
/// Three differ: one thread is Pingora's default, one per CPU is ours; each of them keeps its connections to itself,
/// because a request that changes threads costs two wake-ups more than it saves; and the pool of idle connections
/// holds as many as a benchmark at high concurrency leaves behind at once, where Pingora's 128 would close most of
/// them.
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
    // How often Pingora tries again is not the user's: `retry_max_retries` says how often we do.
    defaults.remove("max_retries");
    let threads = available_parallelism().map_or(1, |threads| threads.get());
    defaults.insert("threads".to_owned(), Value::from(threads));
    defaults.insert("work_stealing".to_owned(), Value::from(false));
    defaults.insert(
        "upstream_keepalive_pool_size".to_owned(),
        Value::from(POOL_SIZE),
    );
    defaults
}

/// `http://a:1 8998, http://b:2`: workers behind commas, the tokens of one worker behind spaces.
fn workers_of_variable(
    name: &str,
    text: &str,
    role: Role,
    problems: &mut Vec<Problem>,
) -> Vec<WorkerDraft> {
    let items = text.split(',').enumerate().map(|(index, item)| {
        let place = Place::Environment(format!("{name}[{index}]"));
        let tokens: Vec<_> = item.split_whitespace().collect();
        WorkerDraft::from_tokens(place, role, &tokens, problems)
    });
    items.collect()
}
