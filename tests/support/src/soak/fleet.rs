//! The simulated workers of the soak, which are killed and restarted at the same addresses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mini_lb::sim::{Role, SimOptions, Worker};
use rand::RngExt;
use rand::rngs::StdRng;

/// A restarted worker is found by a probe within a second; requests that meet it before may fail.
const AFTERMATH: Duration = Duration::from_secs(3);

/// The workers, which are killed and restarted on the same ports.
pub(super) struct Fleet {
    pub(super) workers: Vec<tokio::sync::Mutex<Slot>>,
    pub(super) restarts: AtomicUsize,
    pub(super) kills: Disturbance,
    violations: Mutex<Vec<String>>,
}

/// The address of a worker, and the worker while it runs.
pub(super) struct Slot {
    role: Role,
    address: SocketAddr,
    bootstrap_port: u16,
    worker: Option<Worker>,
}

/// The times at which a killed worker was missing.
#[derive(Default)]
pub(super) struct Disturbance(Mutex<Disturbed>);

#[derive(Default)]
struct Disturbed {
    now: bool,
    until: Option<Instant>,
}

impl Disturbance {
    /// A worker is being killed.
    pub(super) fn begin(&self) {
        self.0.lock().unwrap().now = true;
    }

    /// Another one listens in its place.
    pub(super) fn end(&self) {
        *self.0.lock().unwrap() = Disturbed {
            now: false,
            until: Some(Instant::now() + AFTERMATH),
        };
    }

    /// Whether a worker was missing, or had just come back, at some time since `begun`.
    pub(super) fn was_since(&self, begun: Instant) -> bool {
        let disturbed = self.0.lock().unwrap();
        disturbed.now || disturbed.until.is_some_and(|until| until > begun)
    }
}

impl Fleet {
    pub(super) async fn start() -> Self {
        let mut workers = Vec::new();
        for role in [Role::Prefill, Role::Prefill, Role::Decode, Role::Decode] {
            let worker = Worker::start(role, options(0, 0)).await.unwrap();
            workers.push(tokio::sync::Mutex::new(Slot {
                role,
                address: worker.address(),
                bootstrap_port: worker.bootstrap_port().unwrap_or(0),
                worker: Some(worker),
            }));
        }
        Self {
            workers,
            restarts: AtomicUsize::new(0),
            kills: Disturbance::default(),
            violations: Mutex::default(),
        }
    }

    /// The command line of a balancer in front of them.
    pub(super) fn arguments(&self, conf: PathBuf, port: u16, more: &str) -> Vec<String> {
        let mut line = format!(
            "--conf {} --host 127.0.0.1 --port {port} --log-level warn,mini_lb::server=info {more}",
            conf.display()
        );
        for slot in &self.workers {
            let slot = slot.try_lock().unwrap();
            line += &match slot.role {
                Role::Prefill => {
                    format!(" --prefill http://{} {}", slot.address, slot.bootstrap_port)
                }
                _ => format!(" --decode http://{}", slot.address),
            };
        }
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Kills a worker in the middle of its work, and starts another one in its slot.
    pub(super) async fn restart_one(&self, rng: &mut StdRng) {
        let mut slot = self.workers[rng.random_range(0..self.workers.len())]
            .lock()
            .await;
        self.kills.begin();
        if let Some(worker) = slot.worker.take() {
            self.note_violations(&worker);
            worker.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..500))).await;
        let options = options(slot.address.port(), slot.bootstrap_port);
        slot.worker = Some(Worker::start(slot.role, options).await.unwrap());
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.kills.end();
    }

    /// Whether no room and at most `kept` connections are open.
    pub(super) async fn rests(&self, kept: usize) -> bool {
        let (connections, rooms) = self.open().await;
        connections <= kept && rooms == 0
    }

    /// Connections and rooms at all workers.
    pub(super) async fn open(&self) -> (usize, usize) {
        let mut open = (0, 0);
        for slot in &self.workers {
            if let Some(worker) = &slot.lock().await.worker {
                open.0 += worker.journal().open_connections();
                open.1 += worker.journal().open_rooms();
            }
        }
        open
    }

    /// As [`Self::open`], without the workers that are being restarted.
    pub(super) fn glimpse(&self) -> (usize, usize) {
        let slots = self.workers.iter().filter_map(|slot| slot.try_lock().ok());
        slots.fold((0, 0), |(connections, rooms), slot| match &slot.worker {
            Some(worker) => (
                connections + worker.journal().open_connections(),
                rooms + worker.journal().open_rooms(),
            ),
            None => (connections, rooms),
        })
    }

    fn note_violations(&self, worker: &Worker) {
        let found = worker.journal().violations();
        if !found.is_empty() {
            self.violations.lock().unwrap().push(format!("{found:?}"));
        }
    }

    pub(super) async fn violations(&self) -> String {
        for slot in &self.workers {
            if let Some(worker) = &slot.lock().await.worker {
                self.note_violations(worker);
            }
        }
        self.violations.lock().unwrap().join(" ")
    }
}

/// Quick workers with short timeouts, which notice at once when a client leaves.
fn options(port: u16, bootstrap_port: u16) -> SimOptions {
    SimOptions {
        port,
        bootstrap_port,
        time_per_output_token: Duration::from_millis(1),
        timers_scale: 0.03,
        keep_alive: Duration::from_secs(4),
        journal_entries: 0,
        ..SimOptions::default()
    }
}
