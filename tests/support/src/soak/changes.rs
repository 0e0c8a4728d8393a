//! A fleet that changes under a load: workers are added and removed by the admin API, restarted after a drain, killed,
//! and switched to the other role, and the configuration is reloaded. Only a request that met a killed worker may fail.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mini_lb::sim::{Role, SimOptions, Worker};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::fleet::Disturbance;
use super::{HUNG, Held, Verdict};
use crate::process::{Process, Signal};
use crate::{Client, soon};

/// How often each thing changes, and for how long.
#[derive(Clone)]
pub struct Changes {
    /// The binary of mini-lb.
    pub binary: PathBuf,
    /// The time over which the changes are spread; `None` makes them one after the other, and does not look at memory, which
    /// still grows to its size then.
    pub time: Option<Duration>,
    /// Additions, each followed by the removal of the same worker.
    pub additions: usize,
    /// Restarts of workers after a drain.
    pub restarts: usize,
    /// Restarts of workers without a drain.
    pub kills: usize,
    /// Switches of a worker to the other role.
    pub flips: usize,
    /// Reloads, each with other workers, limits and policies.
    pub reloads: usize,
    /// Concurrent requests.
    pub clients: usize,
}

/// The roles of the workers that are always listed. The last one is switched, and the others are restarted.
const ROLES: [Role; 5] = [
    Role::Prefill,
    Role::Prefill,
    Role::Decode,
    Role::Decode,
    Role::Decode,
];

/// The roles of those that the API adds and removes, and then of those that only every other file lists.
const OTHERS: [Role; 4] = [Role::Prefill, Role::Decode, Role::Decode, Role::Prefill];
const LISTED: [Role; 2] = [Role::Prefill, Role::Decode];

const POLICIES: [&str; 4] = ["random", "round_robin", "expected_ttft", "session"];

/// Makes the changes, spread over one another, while clients send requests. `say` gets the lines of the report.
pub async fn run(changes: Changes, say: impl Fn(String)) -> Verdict {
    let mut fleet = Fleet::start(&changes.binary).await;
    let counts = Arc::<Counts>::default();
    let begin = |fleet: &Fleet| Load::begin(fleet.address, changes.clients, &counts, &fleet.kills);
    let mut before = None;
    if let Some(time) = changes.time {
        // Memory is compared with that after some of the same load, with one change of each kind.
        let warm_up = begin(&fleet);
        let ends = Instant::now() + time / 10;
        fleet.change_all(0).await;
        tokio::time::sleep_until(ends).await;
        warm_up.end().await;
        before = Some(fleet.rest(None).await);
        fleet.made = Made::default();
    }
    let load = begin(&fleet);
    let begun = Instant::now();
    for step in 0..changes.additions {
        if let Some(time) = changes.time {
            let share = step as f64 / changes.additions as f64;
            tokio::time::sleep_until(begun + time.mul_f64(share)).await;
        }
        fleet.change(step, &changes).await;
        if due(step, changes.additions, 10) {
            say(fleet.report(&counts));
        }
    }
    if let Some(time) = changes.time {
        tokio::time::sleep_until(begun + time).await;
    }
    load.end().await;
    let after = fleet.rest(before.as_ref()).await;
    say(format!("at rest: {}", fleet.report(&counts)));
    let mut verdict = Verdict::default();
    counts.judge(&mut verdict);
    fleet.judge(&mut verdict).await;
    if let Some(before) = before {
        after.compare(&before, &mut verdict);
        say(format!(
            "memory at rest: {} KiB before, {} KiB after",
            before.rss_kib, after.rss_kib
        ));
    }
    verdict
}

/// Whether this is one of the `wanted` steps among `all`, which are as far apart as can be.
fn due(step: usize, all: usize, wanted: usize) -> bool {
    (step + 1) * wanted / all > step * wanted / all
}

/// Requests by outcome.
#[derive(Default)]
struct Counts {
    ok: AtomicUsize,
    /// An error while a killed worker was missing.
    killed: AtomicUsize,
    failed: AtomicUsize,
    hung: AtomicUsize,
    /// Descriptions of the first failures.
    seen: Mutex<Vec<String>>,
}

impl Counts {
    fn note(&self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Ok => &self.ok,
            Outcome::Killed => &self.killed,
            Outcome::Hung => &self.hung,
            Outcome::Failed(words) => {
                let mut seen = self.seen.lock().unwrap();
                if seen.len() < 20 {
                    seen.push(words);
                }
                &self.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn judge(&self, verdict: &mut Verdict) {
        for (what, count) in [("failed", &self.failed), ("hung", &self.hung)] {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                verdict.broken.push(format!("{count} requests {what}"));
            }
        }
        verdict.broken.append(&mut self.seen.lock().unwrap());
    }
}

enum Outcome {
    Ok,
    Killed,
    Failed(String),
    Hung,
}

/// How often each change was made.
#[derive(Debug, Default)]
struct Made {
    additions: usize,
    restarts: usize,
    kills: usize,
    flips: usize,
    reloads: usize,
}

struct Fleet {
    workers: Vec<Worker>,
    /// Those that are added and removed.
    others: Vec<Worker>,
    /// Those that only every other file lists.
    listed: Vec<Worker>,
    process: Process,
    address: SocketAddr,
    directory: TempDir,
    kills: Arc<Disturbance>,
    made: Made,
    /// Whether the file lists the two workers more.
    lists_more: bool,
    /// What went wrong at workers that have been stopped, and in the log.
    wrong: Vec<String>,
}

impl Fleet {
    async fn start(binary: &PathBuf) -> Self {
        let (workers, others, listed) =
            tokio::join!(started(&ROLES), started(&OTHERS), started(&LISTED));
        let directory = TempDir::new().unwrap();
        let conf = directory.path().join("conf.yaml");
        fs::write(&conf, file(&workers, &[], 0)).unwrap();
        let mut process = Process::start(binary, &["--conf", conf.to_str().unwrap()]);
        Self {
            address: process.address().await,
            process,
            workers,
            others,
            listed,
            directory,
            kills: Arc::default(),
            made: Made::default(),
            lists_more: false,
            wrong: Vec::new(),
        }
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = ask(self.address, method, path, body).await;
        assert!(status < 300, "{method} {path} {body}: {status} {answer}");
        answer
    }

    /// The changes that are due with this step.
    async fn change(&mut self, step: usize, changes: &Changes) {
        let due = |wanted| due(step, changes.additions, wanted);
        self.add_and_remove(step).await;
        if due(changes.restarts) {
            self.restart(self.made.restarts).await;
        }
        if due(changes.kills) {
            self.kill(self.made.kills).await;
        }
        if due(changes.flips) {
            self.flip().await;
        }
        if due(changes.reloads) {
            self.reload().await;
        }
        self.note_lines();
    }

    /// One change of each kind.
    async fn change_all(&mut self, step: usize) {
        self.add_and_remove(step).await;
        self.restart(step).await;
        self.kill(step).await;
        self.flip().await;
        self.reload().await;
    }

    async fn add_and_remove(&mut self, step: usize) {
        let url = self.others[step % self.others.len()].url();
        self.call("POST", "/workers?wait=true", &json!({"url": url}))
            .await;
        let path = format!("{}?wait=true", path_of(&url));
        self.call("DELETE", &path, &Value::Null).await;
        self.made.additions += 1;
    }

    /// Drains a worker, stops it, starts another one at its address, and lets that serve.
    async fn restart(&mut self, nth: usize) {
        let place = nth % (ROLES.len() - 1);
        let path = format!("{}?wait=true", path_of(&self.workers[place].url()));
        self.call("PUT", &path, &json!({"state": "draining"})).await;
        let port = self.start_anew(place).await;
        let serving = json!({"state": "serving", "bootstrap_port": port});
        self.call("PUT", &path, &serving).await;
        self.made.restarts += 1;
    }

    /// Stops a worker in the middle of its work, and starts another one at its address.
    async fn kill(&mut self, nth: usize) {
        let place = nth % (ROLES.len() - 1);
        let path = path_of(&self.workers[place].url());
        self.kills.begin();
        let port = self.start_anew(place).await;
        self.call("PUT", &path, &json!({"bootstrap_port": port}))
            .await;
        self.kills.end();
        self.made.kills += 1;
    }

    /// Another worker in this place, and the port of its bootstrap server, which is a new one: decode workers hear of the end
    /// of a prefill worker by its heartbeats only, and would take the new one for the old one until then.
    async fn start_anew(&mut self, place: usize) -> Option<u16> {
        let old = self.workers.remove(place);
        self.wrong.extend(violations(&old));
        let (role, port) = (ROLES[place], old.address().port());
        old.stop().await;
        let new = Worker::start(role, options(port)).await.unwrap();
        let port = new.bootstrap_port().filter(|_| role == Role::Prefill);
        self.workers.insert(place, new);
        port
    }

    async fn flip(&mut self) {
        let worker = &self.workers[ROLES.len() - 1];
        let role = match worker.role() {
            Role::Decode => "prefill",
            _ => "decode",
        };
        let body = json!({"worker_url": worker.url(), "new_role": role});
        let told = self.call("POST", "/pd_role_switch", &body).await;
        assert_eq!(told["state"], "serving", "{told}");
        self.made.flips += 1;
    }

    /// Every other file lists two workers more, and each has another policy and other limits.
    async fn reload(&mut self) {
        self.made.reloads += 1;
        self.lists_more = !self.lists_more;
        let more = match self.lists_more {
            true => &self.listed[..],
            false => &[],
        };
        let text = file(&self.workers, more, self.made.reloads);
        fs::write(self.directory.path().join("conf.yaml"), text).unwrap();
        self.process.signal(Signal::Hangup).await;
        let line = self.process.line("reloaded").await;
        if !line.contains("config reloaded") {
            self.wrong.push(line);
        }
    }

    fn note_lines(&mut self) {
        let lines = self.process.lines();
        let panics = lines.into_iter().filter(|line| line.contains("panicked"));
        self.wrong.extend(panics);
    }

    fn all(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter().chain(&self.others).chain(&self.listed)
    }

    /// What the process holds once no room is open, no surplus connection, and nothing more than `before`, without the
    /// descriptors of connections to workers. Those to workers that are gone are closed within seconds.
    async fn rest(&mut self, before: Option<&Held>) -> Held {
        let kept = self.all().count() * super::KEPT;
        let others = || {
            let held = Held::of(&self.process).unwrap().descriptors;
            held.saturating_sub(self.connections())
        };
        let holds_more = || before.is_some_and(|before| others() > before.descriptors);
        let rests = async {
            while self.rooms() > 0 || self.connections() > kept || holds_more() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        // Rooms that are left then are in the verdict anyway.
        let _ = tokio::time::timeout(super::REST, rests).await;
        let connections = self.connections();
        if connections > kept {
            let left = format!("at rest {connections} connections are open at the workers");
            self.wrong.push(left);
        }
        let held = Held::of(&self.process).unwrap();
        Held {
            // How many of them are kept is chance.
            descriptors: held.descriptors.saturating_sub(connections),
            ..held
        }
    }

    fn connections(&self) -> usize {
        let open = self.all().map(|worker| worker.journal().open_connections());
        open.sum()
    }

    /// Rooms that are open at the workers.
    fn rooms(&self) -> usize {
        let rooms = self.all().map(|worker| worker.journal().open_rooms());
        rooms.sum()
    }

    /// What must hold when nothing runs any more.
    async fn judge(&mut self, verdict: &mut Verdict) {
        let list = self.call("GET", "/workers", &Value::Null).await;
        for worker in list["workers"].as_array().unwrap() {
            if worker["state"] != "serving" || worker["load"] != 0 {
                verdict.broken.push(format!("at the end: {worker}"));
            }
        }
        let listed = usize::from(self.lists_more) * self.listed.len();
        if list["total"] != ROLES.len() + listed {
            let total = &list["total"];
            verdict.broken.push(format!("{total} workers are listed"));
        }
        let metrics = crate::program::get(self.address, "/metrics").await;
        if !metrics.text().contains("mini_lb_live_rooms 0\n") {
            verdict
                .broken
                .push("rooms are left at the balancer".to_owned());
        }
        if self.rooms() > 0 {
            let rooms = self.rooms();
            verdict
                .broken
                .push(format!("{rooms} rooms are left at the workers"));
        }
        let of_workers: Vec<_> = self.all().flat_map(violations).collect();
        verdict.broken.extend(of_workers);
        self.process.signal(Signal::Terminate).await;
        let ended = soon("the balancer ends", self.process.ended()).await;
        if !ended.success() {
            verdict.broken.push("it did not leave well".to_owned());
        }
        self.note_lines();
        verdict.broken.append(&mut self.wrong);
    }

    fn report(&self, counts: &Counts) -> String {
        let Made {
            additions,
            restarts,
            kills,
            flips,
            reloads,
        } = self.made;
        let [ok, killed, failed, hung] = [&counts.ok, &counts.killed, &counts.failed, &counts.hung]
            .map(|count| count.load(Ordering::Relaxed));
        let rooms = self.rooms();
        let rss = Held::of(&self.process).map_or(0, |held| held.rss_kib);
        format!(
            "additions={additions} removals={additions} restarts={restarts} kills={kills} flips={flips} reloads={reloads} \
             requests={} ok={ok} of_killed_workers={killed} failed={failed} hung={hung} rooms={rooms} rss_kib={rss}",
            ok + killed + failed + hung
        )
    }
}

async fn started(roles: &[Role]) -> Vec<Worker> {
    let mut workers = Vec::new();
    for role in roles {
        workers.push(Worker::start(*role, options(0)).await.unwrap());
    }
    workers
}

/// What a worker saw that must not happen.
fn violations(worker: &Worker) -> Option<String> {
    let violations = worker.journal().violations();
    (!violations.is_empty()).then(|| format!("{}: {violations:?}", worker.url()))
}

/// The configuration file with these workers. The one that is switched stands in it with the role that it began with.
fn file(workers: &[Worker], more: &[Worker], nth: usize) -> String {
    let roles = ROLES.iter().zip(workers).chain(LISTED.iter().zip(more));
    let of = |wanted: Role| {
        let lines = roles.clone().filter(|(role, _)| **role == wanted);
        let line = |(_, worker): (&Role, &Worker)| {
            let port = worker.bootstrap_port().filter(|_| wanted == Role::Prefill);
            let port = port.map_or(String::new(), |port| format!(", bootstrap_port: {port}"));
            format!("  - {{url: \"{}\"{port}}}\n", worker.url())
        };
        lines.map(line).collect::<String>()
    };
    format!(
        "version: 1\nhost: 127.0.0.1\nport: 0\nhealth_check_interval_secs: 1\nlog_level: \"warn,mini_lb::server=info\"\n\
         queue_size: {}\npolicy: {}\nprefill:\n{}decode:\n{}",
        100 + nth,
        POLICIES[nth % POLICIES.len()],
        of(Role::Prefill),
        of(Role::Decode)
    )
}

/// Clients that send requests until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    fn begin(
        address: SocketAddr,
        clients: usize,
        counts: &Arc<Counts>,
        kills: &Arc<Disturbance>,
    ) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let clients = (0..clients).map(|nth| {
            let (counts, kills, stop) = (counts.clone(), kills.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    counts.note(visit(address, nth, &kills).await);
                }
            })
        });
        Self {
            clients: clients.collect(),
            stop,
        }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// One request: every other client streams.
async fn visit(address: SocketAddr, nth: usize, kills: &Disturbance) -> Outcome {
    let stream = nth.is_multiple_of(2);
    let body = json!({"text": format!("a b c {nth}"), "stream": stream,
        "sampling_params": {"max_new_tokens": 12, "ignore_eos": true}});
    let begun = std::time::Instant::now();
    let asked = tokio::time::timeout(HUNG, ask(address, "POST", "/generate", &body)).await;
    match asked {
        Err(_) => Outcome::Hung,
        Ok((200, answer))
            if !stream || answer.as_str().is_some_and(|text| text.contains("[DONE]")) =>
        {
            Outcome::Ok
        }
        Ok(_) if kills.was_since(begun) => Outcome::Killed,
        Ok((status, answer)) => Outcome::Failed(format!("{status} {answer}")),
    }
}

/// The status and the body of a response: JSON, or a text where it is none.
async fn ask(address: SocketAddr, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let length = body.len();
    let mut client = Client::connect(address).await;
    client
        .send(format!(
            "{method} {path} HTTP/1.1\r\nhost: balancer\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ))
        .await;
    let answer = client.answer().await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    (answer.status(), body)
}

fn path_of(url: &str) -> String {
    format!("/workers/{}", url.replace(':', "%3A").replace('/', "%2F"))
}

fn options(port: u16) -> SimOptions {
    SimOptions {
        port,
        role_switch: true,
        time_per_output_token: Duration::from_millis(1),
        timers_scale: 0.03,
        health_time: Duration::ZERO,
        journal_entries: 0,
        ..SimOptions::default()
    }
}
