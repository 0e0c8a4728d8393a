//! The soak: a mini-lb process between a mixed load with faults and simulated workers, observed from outside.
//!
//! Phases: warm-up, rest (memory and descriptors are measured), load with faults, rest (measured again), and
//! upgrades under a load without faults. The verdict lists the conditions that do not hold afterwards. Used by
//! `examples/soak.rs` for minutes and by `tests/faults/soak.rs` for seconds.

pub mod changes;
pub mod client;
mod fleet;

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use self::client::{Case, Client, Outcome};
use self::fleet::Fleet;
use crate::process::{Process, Signal};

/// A request that takes longer than this counts as hung: many times the longest response.
const HUNG: Duration = Duration::from_secs(30);

/// The most connections that a worker keeps at rest: probes and the heartbeats between workers use them in
/// turn, so that none is idle long enough to be closed.
const KEPT: usize = 4;

/// How long it may take to come to rest. Pooled connections stay idle for some seconds first.
const REST: Duration = Duration::from_secs(30);

/// How many of the last lines of a failed process are shown.
const LAST_LINES: usize = 20;

/// Growth in KiB, beyond a tenth, that is not a leak: arenas and stacks of an idle process.
const SLACK_KIB: usize = 4096;

/// The load and its duration.
pub struct Plan {
    /// The binary of mini-lb.
    pub binary: PathBuf,
    /// Duration of the load with faults.
    pub load: Duration,
    /// Time between two lines of the report.
    pub report: Duration,
    /// Time between two restarts of a worker.
    pub kills: Duration,
    /// Concurrent requests.
    pub clients: usize,
    /// Number of upgrades at the end.
    pub upgrades: usize,
    /// Seed of the random choice of requests and faults.
    pub seed: u64,
}

/// The conditions that do not hold; none after a good run.
#[derive(Default)]
pub struct Verdict {
    pub broken: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.broken.as_slice() {
            [] => f.write_str("verdict: ok"),
            broken => write!(f, "verdict: broken\n  {}", broken.join("\n  ")),
        }
    }
}

/// Runs the plan; `say` gets the lines of the report.
pub async fn run(plan: Plan, say: impl Fn(String) + Send + Sync) -> Verdict {
    let mut soak = Soak::begin(plan).await;
    let mut verdict = Verdict::default();
    let warm_up = (soak.plan.load / 5).min(Duration::from_secs(30));
    soak.load(warm_up, true, &say).await;
    let before = soak.rest(&mut verdict, &say).await;
    soak.load(soak.plan.load, true, &say).await;
    let after = soak.rest(&mut verdict, &say).await;
    after.compare(&before, &mut verdict);
    soak.upgrades(&say).await;
    soak.rest(&mut verdict, &say).await;
    soak.end(&mut verdict).await;
    verdict
}

struct Soak {
    plan: Plan,
    fleet: Arc<Fleet>,
    process: Process,
    address: SocketAddr,
    directory: TempDir,
    counts: Arc<Counts>,
    panics: Vec<String>,
    /// The last lines of the process.
    last: VecDeque<String>,
    waves: u64,
}

/// Requests by outcome.
#[derive(Default)]
struct Counts {
    ok: AtomicUsize,
    /// The client left on purpose.
    left: AtomicUsize,
    /// An error while a worker was missing.
    disturbed: AtomicUsize,
    unexpected: AtomicUsize,
    hung: AtomicUsize,
    /// Descriptions of the first unexpected outcomes.
    seen: Mutex<Vec<String>>,
}

/// Resources of the process at rest.
struct Held {
    rss_kib: usize,
    /// Without the descriptors of connections to workers.
    descriptors: usize,
}

impl Held {
    /// `None` where the process has ended.
    fn of(process: &Process) -> Option<Self> {
        let process = PathBuf::from(format!("/proc/{}", process.id()));
        let status = fs::read_to_string(process.join("status")).ok()?;
        // The entry is missing when the process has ended.
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(Self {
            rss_kib: rss.trim().trim_end_matches(" kB").parse().ok()?,
            descriptors: fs::read_dir(process.join("fd")).ok()?.count(),
        })
    }

    fn compare(&self, before: &Held, verdict: &mut Verdict) {
        let Held {
            rss_kib,
            descriptors,
        } = self;
        if *rss_kib > before.rss_kib * 11 / 10 + SLACK_KIB {
            let was = before.rss_kib;
            verdict
                .broken
                .push(format!("memory grew from {was} to {rss_kib} KiB"));
        }
        if *descriptors > before.descriptors * 11 / 10 + 1 {
            let was = before.descriptors;
            verdict
                .broken
                .push(format!("descriptors grew from {was} to {descriptors}"));
        }
    }
}

impl Soak {
    async fn begin(plan: Plan) -> Self {
        let fleet = Arc::new(Fleet::start().await);
        let directory = TempDir::new().unwrap();
        let path = directory.path().display();
        let conf =
            format!("version: 1\nupgrade_sock: {path}/up.sock\nhealth_check_interval_secs: 1\n");
        fs::write(directory.path().join("conf.yaml"), conf).unwrap();
        let mut process = Process::start(
            &plan.binary,
            &fleet.arguments(directory.path().join("conf.yaml"), 0, ""),
        );
        let address = process.address().await;
        Self {
            plan,
            fleet,
            process,
            address,
            directory,
            counts: Arc::default(),
            panics: Vec::new(),
            last: VecDeque::new(),
            waves: 0,
        }
    }

    /// Runs clients for this long, with faults or without.
    async fn load(&mut self, time: Duration, faults: bool, say: &(impl Fn(String) + Sync)) {
        let wave = self.wave(faults);
        let ends = Instant::now() + time;
        let mut reports = tokio::time::interval(self.plan.report);
        let mut kills = tokio::time::interval(self.plan.kills);
        kills.tick().await;
        let mut rng = StdRng::seed_from_u64(self.plan.seed ^ self.waves);
        while Instant::now() < ends {
            tokio::select! {
                _ = reports.tick() => say(self.report()),
                _ = kills.tick(), if faults => self.fleet.restart_one(&mut rng).await,
                () = tokio::time::sleep_until(ends.into()) => {}
            }
        }
        wave.end().await;
    }

    fn wave(&mut self, faults: bool) -> Wave {
        self.waves += 1;
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..self.plan.clients as u64)
            .map(|number| {
                let seed = self.plan.seed ^ (self.waves << 32) ^ (number << 40);
                let visitor = Visitor {
                    client: Client::new(self.address),
                    rng: StdRng::seed_from_u64(seed),
                    fleet: self.fleet.clone(),
                    counts: self.counts.clone(),
                    faults,
                };
                tokio::spawn(visitor.visit(stop.clone()))
            })
            .collect();
        Wave { stop, clients }
    }

    /// Waits until no surplus connection and no room is left at the workers, and measures.
    async fn rest(&mut self, verdict: &mut Verdict, say: &impl Fn(String)) -> Held {
        let deadline = Instant::now() + REST;
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        let kept = self.fleet.workers.len() * KEPT;
        while !self.fleet.rests(kept).await && Instant::now() < deadline {
            looks.tick().await;
        }
        let (connections, rooms) = self.fleet.open().await;
        if connections > kept || rooms > 0 {
            verdict.broken.push(format!(
                "at rest {connections} connections and {rooms} rooms are open at the workers"
            ));
        }
        say(format!("at rest: {}", self.report()));
        let mut held = self.held();
        // These have been checked above; how many of them are kept is chance.
        held.descriptors = held.descriptors.saturating_sub(connections);
        held
    }

    async fn upgrades(&mut self, say: &(impl Fn(String) + Sync)) {
        let wave = self.wave(false);
        let served = self.counts.ok.load(Ordering::Relaxed);
        for _ in 0..self.plan.upgrades {
            let conf = self.directory.path().join("conf.yaml");
            let arguments = self.fleet.arguments(conf, self.address.port(), "--upgrade");
            let mut successor = Process::start(&self.plan.binary, &arguments);
            successor
                .line("waiting for the sockets of the old process")
                .await;
            self.process.signal(Signal::Quit).await;
            successor.address().await;
            if !self.process.ended().await.success() {
                self.panics.push("an upgraded process failed".to_owned());
            }
            self.note_panics();
            self.process = successor;
        }
        wave.end().await;
        let served = self.counts.ok.load(Ordering::Relaxed) - served;
        say(format!(
            "upgrades: {} with {served} requests",
            self.plan.upgrades
        ));
    }

    async fn end(mut self, verdict: &mut Verdict) {
        self.process.signal(Signal::Terminate).await;
        if !self.process.ended().await.success() {
            verdict.broken.push("it did not leave well".to_owned());
        }
        self.note_panics();
        let mut unexpected = std::mem::take(&mut *self.counts.seen.lock().unwrap());
        verdict.broken.append(&mut unexpected);
        verdict.broken.append(&mut self.panics);
        let violations = self.fleet.violations().await;
        if !violations.is_empty() {
            verdict.broken.push(format!("at the workers: {violations}"));
        }
    }

    fn note_panics(&mut self) {
        for line in self.process.lines() {
            if line.contains("panicked") {
                self.panics.push(line.clone());
            }
            if self.last.len() == LAST_LINES {
                self.last.pop_front();
            }
            self.last.push_back(line);
        }
    }

    fn report(&mut self) -> String {
        self.note_panics();
        let counts = &self.counts;
        let [ok, left, disturbed, unexpected, hung] = [
            &counts.ok,
            &counts.left,
            &counts.disturbed,
            &counts.unexpected,
            &counts.hung,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        let held = self.held();
        let (connections, rooms) = self.fleet.glimpse();
        format!(
            "requests={} ok={ok} left={left} worker_missing={disturbed} unexpected={unexpected} hung={hung} \
             worker_connections={connections} rooms={rooms} restarts={} rss_kib={} fds={} panics={}",
            ok + left + disturbed + unexpected + hung,
            self.fleet.restarts.load(Ordering::Relaxed),
            held.rss_kib,
            held.descriptors,
            self.panics.len(),
        )
    }

    fn held(&self) -> Held {
        Held::of(&self.process)
            .unwrap_or_else(|| panic!("mini-lb is gone; its last lines: {:#?}", self.last))
    }
}

/// Clients that send requests until they are told to stop.
struct Wave {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Wave {
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// One client with its random generator.
struct Visitor {
    client: Client,
    rng: StdRng,
    fleet: Arc<Fleet>,
    counts: Arc<Counts>,
    faults: bool,
}

impl Visitor {
    async fn visit(mut self, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            let case = Case::choose(&mut self.rng, self.faults);
            let begun = Instant::now();
            let outcome = tokio::time::timeout(HUNG, self.client.ask(&case)).await;
            let counts = &self.counts;
            let (count, words) = match outcome {
                Err(_) => {
                    self.client.hang_up();
                    (&counts.hung, Some("hung".to_owned()))
                }
                Ok(Outcome::Ok) => (&counts.ok, None),
                Ok(Outcome::Left) => (&counts.left, None),
                Ok(Outcome::Wrong(_)) if self.fleet.kills.was_since(begun) => {
                    (&counts.disturbed, None)
                }
                Ok(Outcome::Wrong(words)) => (&counts.unexpected, Some(words)),
            };
            count.fetch_add(1, Ordering::Relaxed);
            let mut seen = counts.seen.lock().unwrap();
            if let Some(words) = words
                && seen.len() < 20
            {
                seen.push(format!("{}: {words}", case.name));
            }
        }
    }
}
