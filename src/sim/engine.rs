//! The life of one item: admission (alone or through the rendezvous), tokens, end or abort.
//!
//! What the answer looks like is the endpoints' business. Source of the sequence and of the words:
//! SGLang 0.5.23, `disaggregation/prefill.py`, `decode.py`, and the transcripts `x_*`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::errors::{self, Failure, Stage};
use super::journal::{Event, Journal, RoomState, Violation};
use super::model::{self, Context};
use super::rendezvous::{
    DuplicateRoom, KvEvent, Meeting, Peers, Record, Room, RoomEvent, RoomOnPrefill, Rooms,
};
use super::request::{Batch, Item, Sampling};
use super::{DuplicateRoom as OnDuplicate, Role, SimOptions};

/// The port of a null `bootstrap_port` unless configured. Source: SGLang 0.5.23, `server_args.py`.
const DEFAULT_BOOTSTRAP_PORT: u16 = 8998;
/// More top logprobs than these do not fit into the metadata record.
/// Source: SGLang 0.5.23, `disaggregation/utils.py`.
const RECORD_TOP_LOGPROBS: usize = 128;
/// Source: `SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT` and `.._WAITING_TIMEOUT`.
const TIMEOUT_SECONDS: f64 = 300.0;

/// What the worker as a whole is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// The scheduler died; the HTTP server still says so.
    Crashed,
    Stopped,
}

/// What all requests of one worker share.
pub(crate) struct Engine {
    pub(crate) role: Role,
    pub(crate) options: SimOptions,
    pub(crate) journal: Journal,
    pub(crate) rooms: Rooms,
    peers: Peers,
    phase: watch::Sender<Phase>,
    /// Every task holds one; the worker has stopped when all are gone.
    alive: Mutex<Option<mpsc::Sender<()>>>,
    live: Mutex<HashMap<String, Arc<Abort>>>,
    computing: Arc<Semaphore>,
    kv: Arc<Semaphore>,
    running: Arc<Semaphore>,
    /// Requests from their admission to their end, for `/v1/loads`.
    pub(crate) in_flight: AtomicUsize,
}

/// How an item is told to end early.
#[derive(Default)]
pub(crate) struct Abort {
    asked: AtomicBool,
    wake: Notify,
}

impl Abort {
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Release);
        // A permit for the one task that runs the item, also when it does not wait yet.
        self.wake.notify_one();
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    async fn asked(&self) {
        while !self.is_asked() {
            self.wake.notified().await;
        }
    }

    /// The future's value, or none when the abort comes first.
    async fn or<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.asked() => None,
            value = future => Some(value),
        }
    }
}

impl Engine {
    pub(crate) fn new(role: Role, options: SimOptions, alive: mpsc::Sender<()>) -> Arc<Engine> {
        let journal = Journal::new(options.journal_entries);
        // Two heartbeats, 5 s apart, must fail. Source: `SGLANG_DISAGGREGATION_HEARTBEAT_*`.
        let peers = Peers::new(journal.clone(), options.timer(1.0), options.timer(10.0));
        Arc::new(Engine {
            role,
            rooms: Rooms::new(journal.clone()),
            peers,
            phase: watch::Sender::new(Phase::Serving),
            alive: Mutex::new(Some(alive)),
            live: Mutex::default(),
            computing: Arc::new(Semaphore::new(options.prompts_at_once)),
            kv: Arc::new(Semaphore::new(options.kv_slots)),
            running: Arc::new(Semaphore::new(options.max_running)),
            in_flight: AtomicUsize::new(0),
            journal,
            options,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Completes when the worker's phase is no longer the present one.
    pub(crate) fn phase_ends(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        let born = *phase.borrow_and_update();
        async move {
            // An error means that the engine is gone, which ends the phase too.
            let _ = phase.wait_for(|now| *now != born).await;
        }
    }

    /// Completes when the worker stops; a crash goes by.
    pub(crate) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut phase = self.phase.subscribe();
        async move {
            let _ = phase.wait_for(|now| *now == Phase::Stopped).await;
        }
    }

    /// Runs a task that ends with the phase, and that [`super::Worker::stop`] waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ends = self.phase_ends();
        self.spawn_watchful(async move {
            tokio::select! {
                () = ends => {}
                () = task => {}
            }
        });
    }

    /// Runs a task that ends by itself when the phase does.
    pub(crate) fn spawn_watchful(&self, task: impl Future<Output = ()> + Send + 'static) {
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

    /// A room was presented twice while it lives.
    pub(crate) fn duplicate_room(&self, room: Room) -> Failure {
        self.journal
            .violation(Violation::DuplicateRoom, || format!("room {room}"));
        if self.options.duplicate_room == OnDuplicate::Crash {
            self.crash();
        }
        let reason = "Duplicate or cancelled bootstrap room";
        Failure::Engine(format!("KVTransferError(bootstrap_room={room}): {reason}"))
    }

    /// Ends the item with exactly this rid, or all; what does not match is ignored.
    pub(crate) fn abort(&self, rid: Option<&str>) {
        let live = self.live();
        let matching = live
            .iter()
            .filter(|(live, _)| rid.is_none_or(|rid| rid == live.as_str()));
        for (rid, abort) in matching {
            self.journal.push(|| Event::AbortByRid { rid: rid.clone() });
            abort.ask();
        }
    }

    /// Takes a batch's items in: from here on they can be aborted.
    pub(crate) fn begin(
        self: &Arc<Engine>,
        request: u64,
        batch: &Batch,
    ) -> Result<Vec<Run>, Failure> {
        let mut runs = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            runs.push(self.run(request, item, batch.n)?);
        }
        Ok(runs)
    }

    fn run(self: &Arc<Engine>, request: u64, item: &Item, n: usize) -> Result<Run, Failure> {
        let abort = Arc::new(Abort::default());
        match self.live().entry(item.rid.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                return Err(errors::duplicate_rid(&item.rid));
            }
            std::collections::hash_map::Entry::Vacant(free) => free.insert(abort.clone()),
        };
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let context =
            Context::start(self.options.seed ^ item.sampling.seed).after_all(&item.prompt);
        let run = Run {
            engine: self.clone(),
            item: item.clone(),
            samples: n,
            abort,
            context,
            progress: Progress::Waiting,
            tail: String::new(),
            first: None,
            times: Times::start(),
            permits: Vec::new(),
        };
        if self.role != Role::Ordinary && !item.bootstrap.is_fake() {
            let Some(room) = item.bootstrap.room else {
                self.journal
                    .violation(Violation::MissingRoom, || item.rid.clone());
                return Err(errors::no_room(&item.rid));
            };
            self.journal.push(|| Event::RoomPresented {
                request,
                rid: item.rid.clone(),
                room: room.to_string(),
                host: item.bootstrap.host.clone(),
                port: item.bootstrap.port,
            });
        }
        Ok(run)
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Arc<Abort>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One item in the engine.
pub(crate) struct Run {
    engine: Arc<Engine>,
    item: Item,
    samples: usize,
    abort: Arc<Abort>,
    context: Context,
    progress: Progress,
    /// The end of the text so far, as long as the longest stop string.
    tail: String,
    /// What prefill handed over.
    first: Option<Record>,
    times: Times,
    permits: Vec<OwnedSemaphorePermit>,
}

enum Progress {
    Waiting,
    Running { produced: usize },
    Over,
}

/// Clock readings of one item, in Unix seconds, as `meta_info` shows them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) received: f64,
    pub(crate) forward_entry: f64,
    pub(crate) prefill_finished: f64,
    pub(crate) first_token: f64,
    pub(crate) now: f64,
}

impl Times {
    fn start() -> Times {
        let now = unix_seconds();
        Times {
            received: now,
            forward_entry: now,
            prefill_finished: now,
            first_token: now,
            now,
        }
    }
}

/// What an item does next.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) token: Option<u32>,
    /// The text that the token adds; cut where a stop string begins.
    pub(crate) text: String,
    /// For a request that wants logprobs.
    pub(crate) row: Option<Row>,
    pub(crate) finish: Option<Finish>,
    pub(crate) cached_tokens: usize,
    pub(crate) times: Times,
}

/// The logprobs of one output position.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) logprob: f64,
    pub(crate) top: Vec<(f64, u32)>,
    /// None for decode's first token: prefill's record does not carry it.
    pub(crate) token_ids: Option<Vec<(f64, u32)>>,
}

/// Why an item ended in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Finish {
    /// With the length that `finish_reason` shows; prefill's is 0.
    Length(usize),
    StopToken(u32),
    StopText(String),
    Abort,
}

impl Run {
    pub(crate) fn abort_handle(&self) -> Arc<Abort> {
        self.abort.clone()
    }

    /// The next step, or the failure that ends the item; none after the end.
    pub(crate) async fn advance(&mut self) -> Option<Result<Step, Failure>> {
        if matches!(self.progress, Progress::Waiting) {
            match self.admit().await {
                Ok(()) => {
                    self.times.first_token = unix_seconds();
                    self.progress = Progress::Running { produced: 0 };
                }
                Err(failure) => {
                    self.progress = Progress::Over;
                    self.times.now = unix_seconds();
                    return Some(Err(failure));
                }
            }
        }
        let Progress::Running { produced } = self.progress else {
            return None;
        };
        if produced > 0 {
            self.pause(self.engine.options.time_per_output_token).await;
        }
        let step = if self.abort.is_asked() {
            self.aborted()
        } else {
            self.generate(produced)
        };
        self.progress = match step.finish {
            Some(_) => Progress::Over,
            None => Progress::Running {
                produced: produced + 1,
            },
        };
        Some(Ok(step))
    }

    pub(crate) fn times(&self) -> Times {
        Times {
            now: unix_seconds(),
            ..self.times
        }
    }

    async fn admit(&mut self) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let fake = self.item.bootstrap.is_fake();
        match (engine.role, self.item.bootstrap.room) {
            (Role::Prefill, Some(room)) if !fake && self.item.sample == 0 => {
                self.admit_prefill(room).await?
            }
            (Role::Decode, Some(room)) if !fake => {
                // Samples share their prompt's room, and only the last one ever gets its KV.
                // Source: the transcripts gen_n2, chat_n2_stream, x_gen_n2_room_list.
                if self.item.sample + 1 < self.samples {
                    self.abort.asked().await;
                    return Err(self.failed(Stage::DecodeTransfer, room, errors::ABORTED));
                }
                self.admit_decode(room).await?;
            }
            (Role::Decode, _) => self.first = Some(self.synthetic_record()),
            _ => self
                .compute()
                .await
                .ok_or_else(|| self.aborted_in_queue())?,
        }
        if engine.role != Role::Prefill {
            let permit = self.abort.or(engine.running.clone().acquire_owned()).await;
            self.permits
                .extend(permit.ok_or_else(|| self.aborted_in_queue())?.ok());
        }
        Ok(())
    }

    async fn admit_prefill(&mut self, room: Room) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let mut held = engine
            .rooms
            .enter(room)
            .map_err(|DuplicateRoom| engine.duplicate_room(room))?;
        let timeout = engine.options.timer(TIMEOUT_SECONDS);
        let arrival = tokio::time::timeout(timeout, held.event());
        let destination = match self.abort.or(arrival).await {
            Some(Ok(RoomEvent::Destination(destination))) => destination,
            Some(Err(_)) => {
                let reason = errors::timed_out(room, timeout, "Bootstrapping");
                return Err(self.failed(Stage::PrefillBootstrap, room, &reason));
            }
            _ => return Err(self.failed(Stage::PrefillBootstrap, room, errors::ABORTED)),
        };
        held.state(RoomState::WaitingForInput);
        self.compute_unless_lost(&mut held, room).await?;
        held.state(RoomState::Transferring);
        self.pause(engine.options.transfer_time).await;
        if self.abort.is_asked() {
            return Err(self.failed(Stage::PrefillTransfer, room, errors::ABORTED));
        }
        destination.send_kv(room, self.record());
        match self.abort.or(held.event()).await {
            Some(RoomEvent::Taken) => {
                held.succeeded();
                Ok(())
            }
            _ => Err(self.failed(Stage::PrefillTransfer, room, errors::ABORTED)),
        }
    }

    /// Decode can give up while the prompt is computed.
    async fn compute_unless_lost(
        &mut self,
        held: &mut RoomOnPrefill,
        room: Room,
    ) -> Result<(), Failure> {
        let computed = tokio::select! {
            computed = self.compute() => computed,
            _ = held.event() => None,
        };
        computed.ok_or_else(|| self.failed(Stage::PrefillTransfer, room, errors::ABORTED))
    }

    async fn admit_decode(&mut self, room: Room) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let held = engine
            .peers
            .enter(room)
            .map_err(|DuplicateRoom| engine.duplicate_room(room))?;
        let Some(address) = self.bootstrap_address() else {
            engine
                .journal
                .violation(Violation::NullBootstrapHost, || format!("room {room}"));
            engine.crash();
            return Err(self.failed(Stage::DecodeHandshake, room, errors::ABORTED));
        };
        let Some(Ok(resolved)) = self.abort.or(held.resolve(&address)).await else {
            return Err(self.failed(Stage::DecodeHandshake, room, errors::ABORTED));
        };
        let permit = self.abort.or(engine.kv.clone().acquire_owned()).await;
        let Some(permit) = permit else {
            return Err(self.failed(Stage::DecodeHandshake, room, errors::ABORTED));
        };
        self.permits.extend(permit.ok());
        let mut meeting = resolved.present();
        held.state(RoomState::WaitingForInput);
        let record = self.await_record(room, &mut meeting, &address).await?;
        held.state(RoomState::Transferring);
        meeting.taken();
        held.succeeded();
        if record.prompt_fingerprint != self.context.fingerprint() {
            engine
                .journal
                .violation(Violation::LegsDiffer, || format!("room {room}"));
        }
        self.first = Some(record);
        Ok(())
    }

    async fn await_record(
        &self,
        room: Room,
        meeting: &mut Meeting,
        address: &str,
    ) -> Result<Record, Failure> {
        let timeout = self.engine.options.timer(TIMEOUT_SECONDS);
        let deadline = tokio::time::sleep(timeout);
        tokio::pin!(deadline);
        loop {
            let event = tokio::select! {
                biased;
                () = self.abort.asked() => return Err(self.failed(Stage::DecodeTransfer, room, errors::ABORTED)),
                event = meeting.event() => event,
                () = &mut deadline => {
                    let reason = errors::timed_out(room, timeout, "WaitingForInput");
                    return Err(self.failed(Stage::DecodeTransfer, room, &reason));
                }
            };
            match event {
                // Room 0 in the record means "not written yet": decode waits on, prefill is done.
                // Source: SGLang 0.5.23, `disaggregation/utils.py`, `_apply_metadata_gate`.
                KvEvent::Arrived(_) if room == 0 => meeting.taken(),
                KvEvent::Arrived(record) => return Ok(record),
                KvEvent::LostPrefill => {
                    let reason = errors::lost_prefill(address);
                    return Err(self.failed(Stage::DecodeTransfer, room, &reason));
                }
            }
        }
    }

    /// host:port of the registry, with brackets for IPv6; none without a host.
    fn bootstrap_address(&self) -> Option<String> {
        let bootstrap = &self.item.bootstrap;
        let host = bootstrap.host.as_deref()?;
        let own = match self.engine.options.bootstrap_port {
            0 => DEFAULT_BOOTSTRAP_PORT,
            port => port,
        };
        let port = bootstrap.port.unwrap_or(u64::from(own));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        Some(if bare.contains(':') {
            format!("[{bare}]:{port}")
        } else {
            format!("{bare}:{port}")
        })
    }

    /// The forward pass over the prompt; none when aborted.
    async fn compute(&mut self) -> Option<()> {
        let per_token = self.engine.options.time_per_prompt_token;
        if !per_token.is_zero() {
            let _permit = self
                .abort
                .or(self.engine.computing.clone().acquire_owned())
                .await?;
            self.times.forward_entry = unix_seconds();
            let tokens = u32::try_from(self.item.prompt.len()).unwrap_or(u32::MAX);
            self.abort
                .or(tokio::time::sleep(per_token.saturating_mul(tokens)))
                .await?;
        }
        self.times.prefill_finished = unix_seconds();
        (!self.abort.is_asked()).then_some(())
    }

    async fn pause(&self, time: Duration) {
        if !time.is_zero() {
            // What an abort means is for the caller to see.
            let _ = self.abort.or(tokio::time::sleep(time)).await;
        }
    }

    fn record(&self) -> Record {
        let token = self.context.next();
        Record {
            first_token: token,
            logprob: self.context.logprob(token),
            top: self
                .context
                .top(self.item.logprobs.top.min(RECORD_TOP_LOGPROBS)),
            cached_tokens: 0,
            prompt_fingerprint: self.context.fingerprint(),
        }
    }

    /// The fake host has no prefill: the first token is a function of the rid.
    /// Source: SGLang 0.5.23, `disaggregation/fake/conn.py`.
    fn synthetic_record(&self) -> Record {
        let token = Context::start(0)
            .after_all(&model::encode(&self.item.rid))
            .next();
        Record {
            first_token: token,
            logprob: self.context.logprob(token),
            ..self.record()
        }
    }

    fn generate(&mut self, produced: usize) -> Step {
        if self.item.sampling.max_new_tokens == 0 && self.engine.role != Role::Prefill {
            return self.step(None, String::new(), None, Some(Finish::Length(0)));
        }
        let handed = self.first.as_ref().filter(|_| produced == 0);
        let token = handed.map_or_else(|| self.context.next(), |record| record.first_token);
        let row = self.item.logprobs.wanted.then(|| self.row(token, handed));
        self.context = self.context.after(token);
        let text = model::text_of(&[token]);
        if self.engine.role == Role::Prefill {
            return self.step(Some(token), text, row, Some(Finish::Length(0)));
        }
        let (text, stopped) = self.cut_at_stop(text);
        let sampling = &self.item.sampling;
        let finish = stopped
            .map(Finish::StopText)
            .or_else(|| ends_with(sampling, token))
            .or_else(|| {
                (produced + 1 >= sampling.max_new_tokens).then_some(Finish::Length(produced + 1))
            });
        self.step(Some(token), text, row, finish)
    }

    fn row(&self, token: u32, handed: Option<&Record>) -> Row {
        let ids = self.item.logprobs.token_ids.as_deref().unwrap_or_default();
        match handed {
            Some(record) => Row {
                logprob: record.logprob,
                top: record.top.clone(),
                token_ids: None,
            },
            None => Row {
                logprob: self.context.logprob(token),
                top: self.context.top(self.item.logprobs.top),
                token_ids: Some(
                    ids.iter()
                        .map(|&id| (self.context.logprob(id), id))
                        .collect(),
                ),
            },
        }
    }

    /// The part of `text` before a stop string that ends in it, and that string.
    fn cut_at_stop(&mut self, text: String) -> (String, Option<String>) {
        let stops = &self.item.sampling.stop;
        let Some(longest) = stops.iter().map(String::len).max() else {
            return (text, None);
        };
        let before = self.tail.len();
        self.tail.push_str(&text);
        let hit = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| Some((self.tail.find(stop.as_str())?, stop)))
            .min_by_key(|(at, _)| *at);
        if let Some((at, stop)) = hit {
            // What an earlier event said cannot be taken back.
            let kept = text.get(..at.saturating_sub(before)).unwrap_or_default();
            return (kept.to_owned(), Some(stop.clone()));
        }
        let mut drop = self.tail.len().saturating_sub(longest);
        while !self.tail.is_char_boundary(drop) {
            drop -= 1;
        }
        self.tail.drain(..drop);
        (text, None)
    }

    fn aborted(&self) -> Step {
        self.step(None, String::new(), None, Some(Finish::Abort))
    }

    fn step(
        &self,
        token: Option<u32>,
        text: String,
        row: Option<Row>,
        finish: Option<Finish>,
    ) -> Step {
        let cached_tokens = self.first.as_ref().map_or(0, |record| record.cached_tokens);
        Step {
            token,
            text,
            row,
            finish,
            cached_tokens,
            times: self.times(),
        }
    }

    fn failed(&self, stage: Stage, room: Room, reason: &str) -> Failure {
        errors::transfer(stage, &self.item.rid, room, reason)
    }

    /// An abort before anything ran has no words of its own here: it is the rendezvous' one.
    fn aborted_in_queue(&self) -> Failure {
        Failure::Engine(errors::ABORTED.to_owned())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.engine.live().remove(&self.item.rid);
        self.engine.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn ends_with(sampling: &Sampling, token: u32) -> Option<Finish> {
    let ends =
        sampling.stop_token_ids.contains(&token) || (token == model::EOS && !sampling.ignore_eos);
    ends.then_some(Finish::StopToken(token))
}

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}
