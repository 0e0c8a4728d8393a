//! The workers: raw sockets that behave as the round prescribes, and record when each leg arrived and ended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mini_lb::pd::Engine;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::recorded::{Recorded, Reply};
use super::scenarios::Scenario;
use crate::programs::balancer::{self, ReservedPort};
use crate::programs::recorded::about_the_worker;
use support::{Exchange, Worker};

/// Time between two tokens of a stream.
const GAP: Duration = Duration::from_millis(20);
/// The port of SGLang's bootstrap server, which is never used: no KV cache is transferred here.
const BOOTSTRAP_PORT: u16 = 8998;
/// Shorter than the time after which [`Worker::request`] fails.
const LISTEN: Duration = Duration::from_secs(10);

/// The role and index of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerId {
    Prefill(usize),
    Decode(usize),
}

impl WorkerId {
    pub fn is_prefill(self) -> bool {
        matches!(self, WorkerId::Prefill(_))
    }
}

/// How a worker handles a leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behaviour {
    pub first: First,
    pub then: Then,
}

/// What it does at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Sends nothing.
    Nothing,
    /// Begins a stream. Decode then sends an event every [`GAP`].
    Opening,
    /// Sends half a response.
    Half,
}

/// What it does later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Sends nothing more.
    Hold,
    /// Responds: prefill at once, decode when prefill has responded for the same rooms.
    Serve,
    /// Responds with an error, at the moment of the fault.
    Status(u16),
    /// Closes the connection, at the moment of the fault.
    Close,
    /// Resets the connection and refuses others, at the moment of the fault.
    Die,
}

/// One leg, as its worker sees it.
#[derive(Debug, Clone)]
pub struct Leg {
    pub worker_id: WorkerId,
    pub rooms: Vec<u64>,
    /// Whether it has several prompts and the parameters of one.
    pub one_for_all: bool,
    pub came: Instant,
    /// When it ended, and how.
    pub end: Option<(Instant, How)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Answered,
    Failed,
    /// The balancer closed it.
    Closed,
}

/// The state that the workers share.
#[derive(Debug, Default)]
pub struct State {
    /// Number of the round; a leg of an earlier round ends.
    round: u64,
    recorded: Arc<Recorded>,
    prefill: Vec<Behaviour>,
    decode: Vec<Behaviour>,
    /// Whether the moment of the fault has come.
    go: bool,
    served_rooms: BTreeSet<u64>,
    pub legs: Vec<Leg>,
    running: usize,
    /// The workers that shall refuse connections, and those that do.
    down: BTreeSet<WorkerId>,
    refusing: BTreeSet<WorkerId>,
}

/// The workers and their shared state.
pub struct ScriptedWorkers {
    pub prefill: Vec<balancer::Worker>,
    pub decode: Vec<balancer::Worker>,
    state: watch::Sender<State>,
}

impl ScriptedWorkers {
    /// Starts the workers of a scenario.
    pub async fn open(scenario: &Scenario) -> Result<ScriptedWorkers, String> {
        let mut workers = ScriptedWorkers {
            prefill: Vec::new(),
            decode: Vec::new(),
            state: watch::Sender::default(),
        };
        let engine = scenario.engine;
        let prefill = (0..scenario.prefill.len()).map(WorkerId::Prefill);
        let decode = (0..scenario.decode.len()).map(WorkerId::Decode);
        for worker_id in prefill.chain(decode) {
            let port = ReservedPort::new()?;
            let (address, worker) = (port.address, Worker::listen_on(port.address).await);
            let (of_role, bootstrap_port) = match worker_id {
                WorkerId::Prefill(_) => {
                    let port = (engine == Engine::Sglang).then_some(BOOTSTRAP_PORT);
                    (&mut workers.prefill, port)
                }
                WorkerId::Decode(_) => (&mut workers.decode, None),
            };
            of_role.push(balancer::Worker {
                address,
                bootstrap_port,
            });
            let state = workers.state.clone();
            tokio::spawn(run_worker(engine, worker_id, worker, port, state));
        }
        Ok(workers)
    }

    /// Begins a round in which the workers behave like this.
    pub fn begin(&self, recorded: &Arc<Recorded>, prefill: &[Behaviour], decode: &[Behaviour]) {
        self.state.send_modify(|state| {
            *state = State {
                round: state.round + 1,
                recorded: recorded.clone(),
                prefill: prefill.to_vec(),
                decode: decode.to_vec(),
                running: state.running,
                down: std::mem::take(&mut state.down),
                refusing: std::mem::take(&mut state.refusing),
                ..State::default()
            };
        });
    }

    /// The moment of the fault.
    pub fn fail(&self) {
        self.state.send_modify(|state| state.go = true);
    }

    /// Closes open legs and restarts dead workers except those in `down`. Returns when that is done.
    pub async fn end(&self, down: impl IntoIterator<Item = WorkerId>) {
        self.state.send_modify(|state| {
            state.round += 1;
            state.down = down.into_iter().collect();
        });
        self.until(|state| state.running == 0 && state.down == state.refusing)
            .await;
    }

    /// Stops all workers.
    pub async fn close(&self) {
        let prefill = (0..self.prefill.len()).map(WorkerId::Prefill);
        self.end(prefill.chain((0..self.decode.len()).map(WorkerId::Decode)))
            .await;
    }

    /// Waits for this state.
    pub async fn until(&self, is_so: impl Fn(&State) -> bool) {
        // It cannot fail: `self` holds the sender.
        let _ = self.state.subscribe().wait_for(|state| is_so(state)).await;
    }

    /// Reads the state.
    pub fn now<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.borrow())
    }
}

impl Leg {
    /// When the leg failed.
    pub fn failed_at(&self) -> Option<Instant> {
        self.end
            .and_then(|(at, how)| (how == How::Failed).then_some(at))
    }
}

impl State {
    fn behaviour(&self, worker_id: WorkerId) -> Option<Behaviour> {
        match worker_id {
            WorkerId::Prefill(index) => self.prefill.get(index).copied(),
            WorkerId::Decode(index) => self.decode.get(index).copied(),
        }
    }
}

/// Runs a worker through the times when it listens and when it refuses connections.
async fn run_worker(
    engine: Engine,
    worker_id: WorkerId,
    mut worker: Worker,
    port: ReservedPort,
    state: watch::Sender<State>,
) {
    loop {
        let is_down = async {
            // It cannot fail: the sender is here.
            let mut seen = state.subscribe();
            let _ = seen.wait_for(|state| state.down.contains(&worker_id)).await;
        };
        tokio::pin!(is_down);
        loop {
            tokio::select! {
                () = &mut is_down => break,
                asked = timeout(LISTEN, worker.request()) => if let Ok(exchange) = asked {
                    tokio::spawn(serve(engine, worker_id, exchange, state.clone()));
                },
            }
        }
        worker.stop_listening().await;
        drop(worker);
        state.send_modify(|state| {
            state.refusing.insert(worker_id);
        });
        let mut seen = state.subscribe();
        let _ = seen
            .wait_for(|state| !state.down.contains(&worker_id))
            .await;
        worker = Worker::listen_on(port.address).await;
        state.send_modify(|state| {
            state.refusing.remove(&worker_id);
        });
    }
}

/// One request: a leg, or a request for the state of the worker.
async fn serve(
    engine: Engine,
    worker_id: WorkerId,
    exchange: Exchange,
    state: watch::Sender<State>,
) {
    let target = exchange.request.head.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    if engine.route(path).is_none() {
        let said = about_the_worker(engine, path, worker_id.is_prefill());
        // The balancer may have closed the connection.
        let _ = match said {
            Some(Value::Null) => exchange.try_answer("200 OK", "").await,
            Some(said) => exchange.try_answer("200 OK", &said.to_string()).await,
            None => exchange.try_answer("404 Not Found", "{}").await,
        };
        return;
    }
    let (mut at, mut role) = ((0, 0), None);
    let body: Value = serde_json::from_slice(&exchange.request.body).unwrap_or_default();
    let rooms = rooms_of(&body);
    let prompts = body["prompt"].as_array().map_or(1, Vec::len);
    let one_for_all = prompts > 1 && body["kv_transfer_params"]["do_remote_prefill"] == true;
    state.send_modify(|state| {
        let reply = match worker_id {
            WorkerId::Prefill(_) => state.recorded.prefill.clone(),
            WorkerId::Decode(_) => state.recorded.decode.clone(),
        };
        role = state
            .behaviour(worker_id)
            .map(|behaviour| (behaviour, reply));
        at = (state.round, state.legs.len());
        state.legs.push(Leg {
            worker_id,
            rooms: rooms.clone(),
            one_for_all,
            came: Instant::now(),
            end: None,
        });
        state.running += 1;
    });
    let leg = RunningLeg {
        worker_id,
        rooms,
        state: &state,
        at,
    };
    let is_over = async {
        let is_over = |state: &State| state.round != at.0 || role.is_none();
        // It cannot fail: the sender is here.
        let _ = state.subscribe().wait_for(is_over).await;
    };
    tokio::select! {
        how = leg.go(exchange, role.as_ref()) => leg.note_end(how),
        () = is_over => {}
    }
    state.send_modify(|state| state.running -= 1);
}

/// One leg and its worker.
struct RunningLeg<'a> {
    worker_id: WorkerId,
    rooms: Vec<u64>,
    state: &'a watch::Sender<State>,
    /// Its round, and its index among the legs.
    at: (u64, usize),
}

impl RunningLeg<'_> {
    async fn go(&self, mut exchange: Exchange, role: Option<&(Behaviour, Reply)>) -> How {
        let Some((behaviour, reply)) = role else {
            return std::future::pending().await;
        };
        let begun = match behaviour.first {
            First::Nothing => &[],
            First::Opening => reply.opening(),
            First::Half => reply.half(),
        };
        if exchange.try_send(begun).await.is_err() {
            return How::Closed;
        }
        let streams = behaviour.first == First::Opening && !self.worker_id.is_prefill();
        let is_due = self.until_due(behaviour.then);
        tokio::pin!(is_due);
        loop {
            tokio::select! {
                () = exchange.until_closed() => return How::Closed,
                () = &mut is_due => break,
                () = sleep(GAP), if streams => if exchange.try_send(reply.event()).await.is_err() {
                    return How::Closed;
                },
            }
        }
        self.finish(behaviour.then, exchange, reply).await
    }

    async fn until_due(&self, then: Then) {
        let mut seen = self.state.subscribe();
        // It cannot fail: the sender is here.
        let _ = match (then, self.worker_id) {
            (Then::Hold, _) => std::future::pending().await,
            (Then::Serve, WorkerId::Prefill(_)) => return,
            (Then::Serve, WorkerId::Decode(_)) => {
                let has_met = |state: &State| {
                    let mut rooms = self.rooms.iter();
                    rooms.all(|room| state.served_rooms.contains(room))
                };
                seen.wait_for(has_met).await
            }
            _ => seen.wait_for(|state| state.go).await,
        };
    }

    /// Ends the leg as prescribed.
    async fn finish(&self, then: Then, mut exchange: Exchange, reply: &Reply) -> How {
        match then {
            Then::Hold => return std::future::pending().await,
            Then::Serve => {
                if self.worker_id.is_prefill() {
                    self.state
                        .send_modify(|state| state.served_rooms.extend(&self.rooms));
                }
                if exchange.try_send(reply.whole()).await.is_err() {
                    return How::Closed;
                }
                exchange.keep();
                return How::Answered;
            }
            Then::Status(status) => {
                self.note_end(How::Failed);
                let error = format!(
                    r#"{{"object":"error","message":"as told","type":"error","param":null,"code":{status}}}"#
                );
                // The balancer may have closed the leg meanwhile.
                let _ = exchange.try_answer(&format!("{status} Told"), &error).await;
            }
            Then::Close => {
                self.note_end(How::Failed);
                drop(exchange);
            }
            Then::Die => {
                self.state.send_modify(|state| {
                    state.down.insert(self.worker_id);
                });
                let mut seen = self.state.subscribe();
                // It cannot fail: the sender is here.
                let _ = seen
                    .wait_for(|state| state.refusing.contains(&self.worker_id))
                    .await;
                self.note_end(How::Failed);
                exchange.reset();
            }
        }
        How::Failed
    }

    /// A leg that fails ends when it begins to fail.
    fn note_end(&self, how: How) {
        let (round, number) = self.at;
        self.state.send_modify(|state| {
            if state.round == round {
                state.legs[number]
                    .end
                    .get_or_insert_with(|| (Instant::now(), how));
            }
        });
    }
}

/// The rooms of a leg, one for each prompt; none with vLLM.
fn rooms_of(body: &Value) -> Vec<u64> {
    match &body["bootstrap_room"] {
        Value::Array(rooms) => rooms.iter().filter_map(Value::as_u64).collect(),
        room => room.as_u64().into_iter().collect(),
    }
}
