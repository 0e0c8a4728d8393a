//! The state that a worker's requests share: memory, queues, live request ids, the worker's phase; and aborts.
//!
//! `rules` refuses requests that break a rule, `admission` brings an item to its first token, `run` to its last; on a vLLM
//! worker `nixl` takes the place of the first two. The shape of a response belongs to its endpoint.

mod admission;
mod nixl;
mod radix;
mod rank;
mod rules;
mod run;
mod stage;

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::administration::Pause;
use super::chaos::{Chaos, ItemFault};
use super::errors::{self, Failure};
use super::journal::{Event, Journal, Violation};
use super::rendezvous::{Peers, Room, Rooms};
use super::request::{Batch, Item};
use super::vllm::nixl::Nixl;
use super::{Role, SimOptions};

pub(crate) use admission::DEFAULT_BOOTSTRAP_PORT;
pub(crate) use rank::Queued;
use rank::Rank;
pub(crate) use run::{Finish, Row, Run, Step, Times};
pub(crate) use stage::{Stage, Stages};

/// The state of the worker as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// A scripted fault took the worker down: only `/health` (503) and the journal respond.
    Crashed,
    Stopped,
}

/// The state that all requests of one worker share.
pub(crate) struct Engine {
    started_as: Role,
    role: Mutex<Role>,
    pub(crate) options: SimOptions,
    pub(crate) journal: Journal,
    pub(crate) rooms: Rooms,
    pub(crate) chaos: Chaos,
    /// vLLM's part in KV transfers; an ordinary worker has none.
    pub(crate) nixl: Option<Nixl>,
    /// vLLM: nothing is scheduled while this is true.
    pub(crate) paused: watch::Sender<bool>,
    /// vLLM: the worker says that it sleeps.
    pub(crate) sleeping: AtomicBool,
    /// SGLang: whether the worker is paused.
    pub(crate) pause: Pause,
    peers: Peers,
    phase: watch::Sender<Phase>,
    /// Every task holds a clone. The worker has stopped when all are dropped.
    alive: Mutex<Option<mpsc::Sender<()>>>,
    live: Mutex<HashMap<String, Arc<Abort>>>,
    /// At least one.
    ranks: Vec<Arc<Rank>>,
    /// The rank of the next item without a room.
    next_rank: AtomicUsize,
    kv: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// Where the items are.
    pub(crate) stages: Arc<Stages>,
    /// Number of items between their arrival and their end.
    pub(crate) in_flight: watch::Sender<usize>,
}

/// Ends an item early. The item's task and those that may abort it hold one.
#[derive(Default)]
pub(crate) struct Abort {
    requested: AtomicBool,
    wake: Notify,
}

impl Abort {
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::Release);
        // Leaves a permit, so that the item's task sees it even if it does not wait yet.
        self.wake.notify_one();
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    async fn requested(&self) {
        while !self.is_requested() {
            self.wake.notified().await;
        }
    }

    /// The future's value, or none when an abort is requested first.
    async fn race<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.requested() => None,
            value = future => Some(value),
        }
    }
}

impl Engine {
    /// `side_channel` is the address of the side channel of a vLLM worker.
    pub(crate) fn new(
        role: Role,
        options: SimOptions,
        side_channel: Option<SocketAddr>,
        alive: mpsc::Sender<()>,
    ) -> Arc<Engine> {
        let journal = Journal::new(options.journal_entries);
        let nixl = side_channel.map(|address| Nixl::of(&options, journal.clone(), address));
        // Prefill is lost after two missed heartbeats, 5 s apart. Source: `SGLANG_DISAGGREGATION_HEARTBEAT_*`.
        let peers = Peers::new(journal.clone(), options.timer(1.0), options.timer(10.0));
        Arc::new(Engine {
            started_as: role,
            role: Mutex::new(role),
            chaos: Chaos::new(role, options.chaos.clone()),
            pause: Pause::default(),
            rooms: Rooms::new(journal.clone()),
            nixl,
            paused: watch::Sender::new(false),
            sleeping: AtomicBool::new(false),
            peers,
            phase: watch::Sender::new(Phase::Serving),
            alive: Mutex::new(Some(alive)),
            live: Mutex::default(),
            ranks: (0..options.ranks()).map(|_| Rank::new(&options)).collect(),
            next_rank: AtomicUsize::new(0),
            kv: Arc::new(Semaphore::new(options.kv_slots)),
            running: Arc::new(Semaphore::new(options.max_running)),
            stages: Arc::default(),
            in_flight: watch::Sender::new(0),
            journal,
            options,
        })
    }

    /// What it is now.
    pub(crate) fn role(&self) -> Role {
        *self.role.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it was started as.
    pub(crate) fn started_as(&self) -> Role {
        self.started_as
    }

    /// Gives it another role, where no item is in flight.
    pub(crate) fn switch(&self, role: Role) -> bool {
        let mut now = self.role.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = *self.in_flight.borrow() == 0;
        if is_idle {
            *now = role;
        }
        is_idle
    }

    /// Starts the forward passes of chunked prefill.
    pub(crate) fn start(&self) {
        let computes = self.role() != Role::Decode || self.is_vllm() || self.options.role_switch;
        if self.options.chunked_prefill_tokens > 0 && computes {
            for rank in &self.ranks {
                self.spawn(rank.clone().passes(self.options.clone()));
            }
        }
    }

    /// The rank that computes an item: the room decides on prefill, so that decode finds it.
    /// Source: SGLang 0.5.23, `arg_groups/serving_hook.py` (`follow_bootstrap_room`).
    fn rank(&self, item: &Item) -> &Arc<Rank> {
        let ranks = self.ranks.len();
        let room = item.bootstrap.room.filter(|_| self.role() == Role::Prefill);
        let index = match (room, item.rank) {
            (Some(room), _) => self.rank_of(room),
            (None, Some(named)) => named % ranks,
            (None, None) => self.next_rank.fetch_add(1, Ordering::Relaxed) % ranks,
        };
        &self.ranks[index]
    }

    /// The rank of a room on prefill.
    fn rank_of(&self, room: Room) -> usize {
        // The remainder is below the number of ranks.
        usize::try_from(room.rem_euclid(self.ranks.len() as Room)).unwrap_or(0)
    }

    /// Why prefill fails an item in this room at once: each replica takes itself for rank 0 of attention, and compares the room
    /// with that unless the request names the rank.
    /// Source: SGLang 0.5.23, `disaggregation/common/conn.py` (`CommonKVSender`).
    fn rank_conflict(&self, item: &Item, room: Room) -> Option<String> {
        let rank = self.rank_of(room);
        let is_refused = self.options.dp_size > 1 && rank > 0 && item.prefill_rank.is_none();
        is_refused.then(|| errors::rank_conflict(room, rank))
    }

    /// Whether decode looks for an item in this room on another rank than prefill has it on.
    fn is_misled(&self, item: &Item, room: Room) -> bool {
        let named = item.prefill_rank;
        named.is_some_and(|named| named != self.rank_of(room) as i128)
    }

    /// Whether the worker is vLLM's, and not SGLang's.
    pub(crate) fn is_vllm(&self) -> bool {
        self.options.vllm.is_some()
    }

    /// How long a vLLM worker holds blocks for decode.
    pub(crate) fn lease(&self) -> Duration {
        let lease = self.options.vllm.as_ref().map(|options| options.lease);
        self.options.timer(lease.unwrap_or_default().as_secs_f64())
    }

    /// What waits on each rank.
    pub(crate) fn queued(&self) -> Vec<Queued> {
        self.ranks.iter().map(|rank| rank.queued()).collect()
    }

    /// Empties the prefix caches.
    pub(crate) fn flush(&self) {
        for rank in &self.ranks {
            rank.flush();
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Completes when the worker leaves its present phase.
    pub(crate) fn phase_ends(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        let born = *phase.borrow_and_update();
        async move {
            // An error means that the engine is dropped, which ends the phase too.
            let _ = phase.wait_for(|now| *now != born).await;
        }
    }

    /// Completes when the worker stops, and not when a fault takes it down.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            let _ = phase.wait_for(|now| *now == Phase::Stopped).await;
        }
    }

    /// Spawns a task that is dropped when the phase ends. [`super::Worker::stop`] waits for it.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ends = self.phase_ends();
        self.spawn_tracked(async move {
            tokio::select! {
                () = ends => {}
                () = task => {}
            }
        });
    }

    /// Spawns a task that watches the phase itself. [`super::Worker::stop`] waits for it.
    pub(crate) fn spawn_tracked(&self, task: impl Future<Output = ()> + Send + 'static) {
        let alive = self
            .alive
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        tokio::spawn(async move {
            task.await;
            drop(alive);
        });
    }

    /// Takes the worker down, for a scripted fault.
    pub(crate) fn crash(&self) {
        self.phase.send_if_modified(|phase| {
            let serving = *phase == Phase::Serving;
            if serving {
                *phase = Phase::Crashed;
            }
            serving
        });
        self.peers.disconnect();
    }

    pub(crate) fn stop(&self) {
        self.phase.send_replace(Phase::Stopped);
        self.peers.disconnect();
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Aborts the item with exactly this request id, or all items. An unknown id is ignored.
    pub(crate) fn abort(&self, rid: Option<&str>) {
        self.abort_those(|live| rid.is_none_or(|rid| rid == live));
    }

    /// Aborts the items with such request ids, and gives their number.
    pub(crate) fn abort_those(&self, is_meant: impl Fn(&str) -> bool) -> usize {
        let live = self.live();
        let matching = live.iter().filter(|(rid, _)| is_meant(rid));
        let mut aborted = 0;
        for (rid, abort) in matching {
            self.journal.push(|| Event::AbortByRid { rid: rid.clone() });
            abort.request();
            aborted += 1;
        }
        aborted
    }

    /// Registers the items of a batch, which can be aborted from then on.
    ///
    /// # Errors
    /// When a rule is broken, or a request id is live already.
    pub(crate) fn begin(
        self: &Arc<Engine>,
        request: u64,
        batch: &Batch,
        fault: ItemFault,
    ) -> Result<Vec<Run>, Failure> {
        if !self.is_vllm() {
            rules::check(self.role(), batch).map_err(|broken| {
                self.journal.violation(broken.rule, || broken.rid);
                broken.failure
            })?;
        }
        let mut runs = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            runs.push(self.run(request, item, fault)?);
        }
        Ok(runs)
    }

    fn run(
        self: &Arc<Engine>,
        request: u64,
        item: &Item,
        fault: ItemFault,
    ) -> Result<Run, Failure> {
        let abort = Arc::new(Abort::default());
        match self.live().entry(item.rid.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                return Err(errors::duplicate_rid(&item.rid));
            }
            std::collections::hash_map::Entry::Vacant(free) => free.insert(abort.clone()),
        };
        self.in_flight.send_modify(|items| *items += 1);
        let run = Run::new(self.clone(), request, item.clone(), fault, abort);
        if self.role() != Role::Ordinary && !self.is_vllm() && !item.bootstrap.is_fake() {
            match item.bootstrap.room {
                None => self
                    .journal
                    .violation(Violation::MissingRoom, || item.rid.clone()),
                Some(room) => self.journal.push(|| Event::RoomPresented {
                    request,
                    rid: item.rid.clone(),
                    room: room.to_string(),
                    host: item.bootstrap.host.clone(),
                    port: item.bootstrap.port,
                }),
            }
        }
        Ok(run)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Arc<Abort>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
