//! A configuration that takes effect while the process runs: on SIGHUP, with `watch_config` when its files change, and by
//! [`super::Handle::reload`].
//!
//! All that can fail is done before anything is changed, so that a configuration takes effect as a whole or not at all. A
//! request and a connection that is live keeps the values that it began with.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use super::build::{connection_rules, most_connections, rules};
use super::handle::{Applied, ReloadError};
use super::shutdown::Shutdown;
use super::workers::{breaker_limits, listed, probe_rules, role_policy};
use super::{StartError, dns, notify};
use crate::client::{BodyMemory, ConnectionLimit, ConnectionRules};
use crate::config::{
    Config, Contents, Effective, PolicyConfig, Reloaded, Reloader, Running, WorkerKeys,
};
use crate::discovery::{First, Life, Listed, ProbeRules, Registry, Source};
use crate::fleet::{Fleet, Role};
use crate::legs::Aborter;
use crate::proxy::Rules;
use crate::telemetry::Telemetry;

/// Between two looks at the files. A change takes effect when two looks have seen the same, so that a file that is being
/// written is not read in the middle.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long workers that leave wait for those that come with the same reload.
const REPLACE_TIME: Duration = Duration::from_secs(10);

/// What a reload changes.
pub(super) struct Live {
    pub(super) rules: Arc<ArcSwap<Rules>>,
    pub(super) connections: Arc<ArcSwap<ConnectionRules>>,
    pub(super) connection_limit: Arc<ConnectionLimit>,
    pub(super) body_memory: Arc<BodyMemory>,
    pub(super) aborter: Arc<Aborter>,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) fleet: Arc<Fleet>,
    pub(super) dns: Arc<dns::Names>,
    pub(super) registry: Arc<Registry>,
    /// The keys of workers that have none of their own.
    pub(super) worker_keys: Arc<ArcSwap<WorkerKeys>>,
    /// Has the metrics of reloads.
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) probes: watch::Sender<Arc<ProbeRules>>,
    pub(super) loads: watch::Sender<Option<Duration>>,
    /// The workers of the configuration.
    pub(super) listed: Mutex<Vec<Listed>>,
    /// Those of the fleet.
    pub(super) policies: Mutex<PolicyConfig>,
}

impl Live {
    /// Makes a configuration take effect. Waits for new workers where others leave.
    ///
    /// # Errors
    /// [`StartError`]: nothing has changed then.
    async fn apply(&self, config: &Config) -> Result<(), StartError> {
        let connections = connection_rules(config)?;
        let listed = listed(config, First::Probe)?;
        self.dns.set(config)?;
        self.rules.store(Arc::new(rules(config)));
        self.connections.store(Arc::new(connections));
        let (max, max_per_ip) = most_connections(config);
        self.connection_limit.set(max, max_per_ip);
        self.body_memory
            .set_limit(config.clients.max_buffered_body_bytes);
        self.aborter
            .set_enabled(!config.resilience.disable_abort_requests);
        self.shutdown.set(config.shutdown.clone());
        self.apply_to_fleet(config);
        self.replace_workers(listed).await;
        Ok(())
    }

    /// Makes what was read take effect, and reports that in the log and the metrics. `note` is told of what has, before the log
    /// is.
    ///
    /// # Errors
    /// That of the reading, or [`ReloadError::Refused`].
    async fn take(
        &self,
        read: Result<Reloaded, ReloadError>,
        because: &str,
        note: impl FnOnce(Reloaded),
    ) -> Result<Applied, ReloadError> {
        let taken = match read {
            Err(error) => Err(error),
            Ok(reloaded) => match self.apply(&reloaded.config).await {
                Err(error) => Err(ReloadError::Refused(error)),
                Ok(()) => Ok(reloaded),
            },
        };
        self.telemetry.metrics.note_reload(taken.is_ok());
        match taken {
            Ok(reloaded) => {
                for warning in &reloaded.warnings {
                    log::warn!("{warning}");
                }
                let applied = Applied {
                    changed: reloaded.changed.clone(),
                    at_start: reloaded.at_start.clone(),
                };
                if !applied.at_start.is_empty() {
                    let keys = applied.at_start.join(",");
                    log::warn!("settings that need a new process have changed keys={keys}");
                }
                note(reloaded);
                let changed = applied.changed.join(",");
                log::info!("config reloaded because=\"{because}\" changed=\"{changed}\"");
                Ok(applied)
            }
            Err(error) => {
                let why = error.to_string().replace('\n', "; ").replace('"', "'");
                log::error!(
                    "config not reloaded, the old one stays because=\"{because}\" error=\"{why}\""
                );
                Err(error)
            }
        }
    }

    /// Lists these workers. Where some come and others leave, those that leave stay until the new ones serve, for
    /// [`REPLACE_TIME`] at most: a list that is replaced as a whole would leave no worker in between.
    async fn replace_workers(&self, listed: Vec<Listed>) {
        let key = |listed: &Listed| {
            let origin = &listed.parts.origin;
            (origin.host.clone(), origin.port)
        };
        let old = std::mem::replace(&mut *lock(&self.listed), listed.clone());
        let (old_keys, keys): (HashSet<_>, HashSet<_>) = (
            old.iter().map(key).collect(),
            listed.iter().map(key).collect(),
        );
        let leaving = old.into_iter().filter(|old| !keys.contains(&key(old)));
        let leaving: Vec<_> = leaving.collect();
        let coming: Vec<_> = listed
            .iter()
            .filter(|new| !old_keys.contains(&key(new)))
            .map(|new| new.parts.url.clone())
            .collect();
        if !leaving.is_empty() && !coming.is_empty() {
            let all = listed.iter().cloned().chain(leaving).collect();
            self.registry.set(&Source::Config, all);
            let mut changes = self.registry.subscribe();
            let serve = async {
                let serves = |url: &String| {
                    let found = self.registry.find(url);
                    found.is_none_or(|shown| shown.life != Life::Pending)
                };
                while !coming.iter().all(serves) && changes.changed().await.is_ok() {}
            };
            let _ = tokio::time::timeout(REPLACE_TIME, serve).await;
        }
        self.registry.set(&Source::Config, listed);
    }

    fn apply_to_fleet(&self, config: &Config) {
        let workers = &config.workers;
        self.worker_keys.store(Arc::new(config.worker_keys.clone()));
        self.probes.send_replace(Arc::new(probe_rules(config)));
        self.loads.send_replace(workers.load_poll_interval);
        self.fleet
            .set_decode_alone(config.requests.vllm_decode_alone);
        self.fleet.set_limits(breaker_limits(&config.resilience));
        self.fleet
            .set_queue(workers.max_concurrent_requests, workers.queue_size);
        let (old, new) = (&mut *lock(&self.policies), &config.policies);
        // A policy that stays keeps what it has learned.
        let prefill = (old.prefill != new.prefill).then(|| role_policy(Role::Prefill, new.prefill));
        let decode = (old.decode != new.decode).then(|| role_policy(Role::Decode, new.decode));
        self.fleet.set_policies(prefill, decode);
        old.clone_from(new);
    }
}

/// Reads the configuration again, for as long as the process serves.
pub(super) struct Reload {
    live: Live,
    /// `None` while it reads.
    reloader: Option<Reloader>,
    /// Notified by SIGHUP. Signals that come while it reads are one.
    asked: Arc<Notify>,
    watches: bool,
}

impl Reload {
    pub(super) fn new(live: Live, reloader: Reloader, asked: Arc<Notify>, watches: bool) -> Self {
        Self {
            live,
            reloader: Some(reloader),
            asked,
            watches,
        }
    }

    /// Reloads for ever.
    pub(super) async fn run(&mut self) {
        let asked = self.asked.clone();
        loop {
            let because = tokio::select! {
                () = asked.notified() => "SIGHUP",
                () = self.changed() => "a file has changed",
            };
            notify::reloading();
            self.reload(because).await;
            notify::reloaded();
        }
    }

    /// Resolves when the files have other contents than those that were read last.
    async fn changed(&self) {
        let Some(reloader) = self.reloader.as_ref().filter(|_| self.watches) else {
            return std::future::pending().await;
        };
        let mut before = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let files = reloader.files().to_vec();
            // An error is a panic, which the thread has reported.
            let Ok(now) = spawn_blocking(move || Contents::of(&files)).await else {
                continue;
            };
            let is_new = now != *reloader.contents();
            if is_new && before.as_ref() == Some(&now) {
                return;
            }
            before = Some(now);
        }
    }

    async fn reload(&mut self, because: &str) {
        let Some(mut reloader) = self.reloader.take() else {
            return;
        };
        let read = spawn_blocking(move || {
            let read = reloader.read();
            (reloader, read)
        });
        let Ok((mut reloader, read)) = read.await else {
            return;
        };
        let read = read.map_err(ReloadError::Config);
        let note = |reloaded| reloader.applied(reloaded);
        // An error was logged, and nothing waits for it.
        let _ = self.live.take(read, because, note).await;
        self.reloader = Some(reloader);
    }
}

/// Lets configurations take effect that the program gives which has the balancer in it.
pub(super) struct ByProgram {
    live: Live,
    running: Running,
    given: mpsc::Receiver<Given>,
}

/// A configuration that a program has given.
pub(super) struct Given {
    pub(super) config: Config,
    pub(super) settings: Effective,
    /// The program may have left.
    pub(super) told: oneshot::Sender<Result<Applied, ReloadError>>,
}

impl ByProgram {
    pub(super) fn new(live: Live, running: Running, given: mpsc::Receiver<Given>) -> Self {
        Self {
            live,
            running,
            given,
        }
    }

    /// Reloads for ever.
    pub(super) async fn run(&mut self) {
        while let Some(given) = self.given.recv().await {
            let reloaded = self.running.compare(given.config, given.settings);
            let note = |reloaded| self.running.applied(reloaded);
            let applied = self.live.take(Ok(reloaded), "the program", note).await;
            let _ = given.told.send(applied);
        }
        // There is no handle any more.
        std::future::pending().await
    }
}

/// What reads configurations again.
pub(super) enum Reloads {
    /// Signals and the files, in a process of its own.
    BySources(Box<Reload>),
    /// The program that the balancer is in.
    ByProgram(Box<ByProgram>),
}

impl Reloads {
    /// Reloads for ever.
    pub(super) async fn run(&mut self) {
        match self {
            Self::BySources(reload) => reload.run().await,
            Self::ByProgram(reload) => reload.run().await,
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while the lock is held.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
