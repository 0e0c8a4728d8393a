//! A fleet that changes under a load, by the balancer's own administration: workers are added and removed, restarted
//! after a drain, and switched to the other role. No request may fail, because no worker is killed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mini_lb::MiniLbConfig;
use mini_lb::sim::{Role, SimOptions, Worker};
use serde_json::{Value, json};

use super::{HUNG, Verdict};
use crate::{Balancer, Client, soon};

/// How often each thing changes.
pub struct Changes {
    /// Additions, each followed by the removal of the same worker.
    pub additions: usize,
    /// Restarts of workers after a drain.
    pub restarts: usize,
    /// Switches of a worker to the other role.
    pub flips: usize,
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

/// Requests by outcome.
#[derive(Default)]
struct Counts {
    ok: AtomicUsize,
    wrong: std::sync::Mutex<Vec<String>>,
}

/// Makes the changes, spread over one another, while clients send requests. `say` gets a line at the end.
pub async fn run(changes: Changes, say: impl Fn(String)) -> Verdict {
    let mut fleet = Fleet::start().await;
    let counts = Arc::<Counts>::default();
    let stop = Arc::<AtomicBool>::default();
    let clients: Vec<_> = (0..changes.clients)
        .map(|nth| {
            tokio::spawn(visit(
                fleet.balancer.address,
                nth,
                counts.clone(),
                stop.clone(),
            ))
        })
        .collect();
    for step in 0..changes.additions {
        fleet.add_and_remove(step).await;
        if due(step, changes.additions, changes.restarts) {
            fleet.restart(step).await;
        }
        if due(step, changes.additions, changes.flips) {
            fleet.flip().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let mut verdict = Verdict::default();
    verdict.broken.append(&mut counts.wrong.lock().unwrap());
    fleet.look(&mut verdict).await;
    say(format!(
        "additions={} restarts={} flips={} requests={} wrong={}",
        changes.additions,
        fleet.restarts,
        fleet.flips,
        counts.ok.load(Ordering::Relaxed),
        verdict.broken.len()
    ));
    verdict
}

/// Whether this is one of the `wanted` steps among `all`, which are as far apart as can be.
fn due(step: usize, all: usize, wanted: usize) -> bool {
    (step + 1) * wanted / all > step * wanted / all
}

struct Fleet {
    workers: Vec<Worker>,
    /// Those that are added and removed.
    others: Vec<Worker>,
    balancer: Balancer,
    restarts: usize,
    flips: usize,
}

impl Fleet {
    async fn start() -> Self {
        let mut workers = Vec::new();
        for role in ROLES {
            workers.push(Worker::start(role, options(0)).await.unwrap());
        }
        let mut others = Vec::new();
        for role in [Role::Prefill, Role::Decode, Role::Decode, Role::Prefill] {
            others.push(Worker::start(role, options(0)).await.unwrap());
        }
        let prefills = workers[..2].iter();
        let prefills = prefills.map(|worker| (worker.url(), worker.bootstrap_port()));
        let decodes = workers[2..].iter().map(Worker::url);
        let config = MiniLbConfig::new(
            "127.0.0.1".into(),
            0,
            prefills.collect(),
            decodes.collect(),
            60,
        );
        Self {
            balancer: Balancer::start(config.health_check_interval(None)).await,
            workers,
            others,
            restarts: 0,
            flips: 0,
        }
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = ask(self.balancer.address, method, path, body).await;
        assert!(status < 300, "{method} {path} {body}: {status} {answer}");
        answer
    }

    async fn add_and_remove(&self, step: usize) {
        let url = self.others[step % self.others.len()].url();
        self.call("POST", "/workers?wait=true", &json!({"url": url}))
            .await;
        self.call(
            "DELETE",
            &format!("{}?wait=true", path_of(&url)),
            &Value::Null,
        )
        .await;
    }

    /// Drains a worker, stops it, starts another one at its address, and lets that serve. Its bootstrap server has another
    /// port: decode workers hear of the end of a prefill worker by its heartbeats only, and would take the new one for the
    /// old one until then.
    async fn restart(&mut self, step: usize) {
        let place = step % (ROLES.len() - 1);
        let address = self.workers[place].address();
        let path = format!("{}?wait=true", path_of(&self.workers[place].url()));
        self.call("PUT", &path, &json!({"state": "draining"})).await;
        self.workers.remove(place).stop().await;
        let new = Worker::start(ROLES[place], options(address.port()))
            .await
            .unwrap();
        let port = new
            .bootstrap_port()
            .filter(|_| ROLES[place] == Role::Prefill);
        self.workers.insert(place, new);
        let serving = json!({"state": "serving", "bootstrap_port": port});
        self.call("PUT", &path, &serving).await;
        self.restarts += 1;
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
        self.flips += 1;
    }

    /// What must hold when nothing runs any more.
    async fn look(&self, verdict: &mut Verdict) {
        let list = self.call("GET", "/workers", &Value::Null).await;
        for worker in list["workers"].as_array().unwrap() {
            if worker["state"] != "serving" || worker["load"] != 0 {
                verdict.broken.push(format!("at the end: {worker}"));
            }
        }
        if list["total"] != ROLES.len() {
            verdict
                .broken
                .push(format!("{} workers are left", list["total"]));
        }
        let metrics = crate::program::get(self.balancer.address, "/metrics").await;
        if !metrics.text().contains("mini_lb_live_rooms 0\n") {
            verdict
                .broken
                .push("rooms are left at the balancer".to_owned());
        }
        for worker in self.workers.iter().chain(&self.others) {
            let (url, journal) = (worker.url(), worker.journal());
            let rooms = async {
                while journal.open_rooms() > 0 {
                    tokio::task::yield_now().await;
                }
            };
            soon("rooms to close at the workers", rooms).await;
            if !journal.violations().is_empty() {
                verdict
                    .broken
                    .push(format!("{url}: {:?}", journal.violations()));
            }
        }
    }
}

/// A client that sends requests until it is told to stop.
async fn visit(address: SocketAddr, nth: usize, counts: Arc<Counts>, stop: Arc<AtomicBool>) {
    let stream = nth.is_multiple_of(2);
    let body = json!({"text": format!("a b c {nth}"), "stream": stream,
        "sampling_params": {"max_new_tokens": 12, "ignore_eos": true}});
    while !stop.load(Ordering::Relaxed) {
        let asked = tokio::time::timeout(HUNG, ask(address, "POST", "/generate", &body)).await;
        let wrong = match asked {
            Err(_) => "a request hung".to_owned(),
            Ok((200, answer))
                if !stream || answer.as_str().is_some_and(|text| text.contains("[DONE]")) =>
            {
                counts.ok.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            Ok((status, answer)) => format!("{status} {answer}"),
        };
        counts.wrong.lock().unwrap().push(wrong);
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
