//! From an item's arrival to its first token: by a forward pass on this worker, or through the rendezvous.
//!
//! The order of the checks, the timeouts and the messages are SGLang's. The rest of the tokens is `run`'s.
//! Source: SGLang 0.5.23, `disaggregation/prefill.py`, `decode.py`, and the transcripts `x_*`.

use super::run::{Run, unix_seconds};
use super::stage::Stage;
use crate::sim::Role;
use crate::sim::chaos::ItemFault;
use crate::sim::errors::{self, Failure, TransferPhase};
use crate::sim::journal::{RoomState, Violation};
use crate::sim::model::{self, Context};
use crate::sim::rendezvous::{
    DuplicateRoom, KvEvent, Meeting, Record, Room, RoomEvent, RoomOnPrefill,
};

/// Port of the registry for a request whose `bootstrap_port` is null, unless configured. Source: SGLang 0.5.23, `server_args.py`.
pub(crate) const DEFAULT_BOOTSTRAP_PORT: u16 = 8998;
/// Number of top logprobs that fit into the metadata record.
/// Source: SGLang 0.5.23, `disaggregation/utils.py`.
const RECORD_TOP_LOGPROBS: usize = 128;
/// Time that a worker waits for the other leg.
/// Source: `SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT` and `.._WAITING_TIMEOUT`.
const TIMEOUT_SECONDS: f64 = 300.0;

impl Run {
    pub(super) async fn admit(&mut self) -> Result<(), Failure> {
        let engine = self.engine.clone();
        if engine.is_vllm() {
            return self.admit_vllm().await;
        }
        let _ = self.abort.race(engine.pause.moves()).await;
        let fake = self.item.bootstrap.is_fake();
        let meets = engine.role() != Role::Ordinary && !fake;
        if meets && self.item.bootstrap.room.is_none() {
            return Err(errors::no_room(&self.item.rid));
        }
        self.check_logprob_start()?;
        match (engine.role(), self.item.bootstrap.room) {
            (Role::Prefill, Some(room)) if !fake => self.admit_prefill(room).await?,
            (Role::Decode, Some(room)) if !fake => self.admit_decode(room).await?,
            (Role::Decode, _) => self.first = Some(self.synthetic_record()),
            _ => self
                .compute()
                .await
                .ok_or_else(|| self.aborted_in_queue())?,
        }
        if engine.role() != Role::Prefill {
            self.await_turn()
                .await
                .ok_or_else(|| self.aborted_in_queue())?;
        }
        self.stage.enter(Stage::Running);
        Ok(())
    }

    /// Waits for a place among those that generate; none when aborted.
    pub(super) async fn await_turn(&mut self) -> Option<()> {
        self.stage.enter(Stage::Ready);
        let running = self.engine.running.clone();
        let permit = self.abort.race(running.acquire_owned()).await?;
        self.permits.extend(permit.ok());
        Some(())
    }

    fn check_logprob_start(&self) -> Result<(), Failure> {
        let (plan, prompt) = (&self.item.logprobs, self.item.prompt.len());
        match plan.start.filter(|&start| plan.wanted && start > prompt) {
            Some(start) => Err(errors::start_beyond_prompt(start, prompt)),
            None => Ok(()),
        }
    }

    async fn admit_prefill(&mut self, room: Room) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let mut held = engine
            .rooms
            .enter(room)
            .map_err(|DuplicateRoom| errors::duplicate_room(room))?;
        if let Some(reason) = engine.rank_conflict(&self.item, room) {
            return Err(self.failed(TransferPhase::PrefillBootstrap, room, &reason));
        }
        let timeout = engine.options.timer(TIMEOUT_SECONDS);
        let is_misled = engine.is_misled(&self.item, room);
        let arrival = async {
            match is_misled {
                false => held.event().await,
                true => std::future::pending().await,
            }
        };
        let arrival = tokio::time::timeout(timeout, arrival);
        let destination = match self.abort.race(arrival).await {
            Some(Ok(RoomEvent::Destination(destination))) => destination,
            Some(Err(_)) => {
                let reason = errors::timed_out(room, timeout, "Bootstrapping");
                return Err(self.failed(TransferPhase::PrefillBootstrap, room, &reason));
            }
            _ => return Err(self.failed(TransferPhase::PrefillBootstrap, room, errors::ABORTED)),
        };
        held.state(RoomState::WaitingForInput);
        self.compute_unless_lost(&mut held, room).await?;
        held.state(RoomState::Transferring);
        self.stage.enter(Stage::Sending);
        self.pause(engine.options.transfer_time).await;
        self.fail_by_script(TransferPhase::PrefillTransfer, room)
            .await?;
        if self.abort.is_requested() {
            return Err(self.failed(TransferPhase::PrefillTransfer, room, errors::ABORTED));
        }
        destination.send_kv(room, self.record());
        match self.abort.race(held.event()).await {
            Some(RoomEvent::Taken) => {
                held.succeeded();
                Ok(())
            }
            _ => Err(self.failed(TransferPhase::PrefillTransfer, room, errors::ABORTED)),
        }
    }

    /// Applies a scripted fault of the KV transfer.
    async fn fail_by_script(&self, phase: TransferPhase, room: Room) -> Result<(), Failure> {
        match self.fault {
            ItemFault::None | ItemFault::AbortAfter(_) => return Ok(()),
            ItemFault::LoseKv => {}
            ItemFault::CrashInTransfer => {
                self.engine.crash();
                // A process that is gone says nothing. The connection may not have been closed yet.
                std::future::pending().await
            }
        }
        Err(self.failed(phase, room, errors::LOST_KV))
    }

    /// The forward pass, which ends early when decode gives the room up.
    async fn compute_unless_lost(
        &mut self,
        held: &mut RoomOnPrefill,
        room: Room,
    ) -> Result<(), Failure> {
        let computed = tokio::select! {
            computed = self.compute() => computed,
            _ = held.event() => None,
        };
        computed.ok_or_else(|| self.failed(TransferPhase::PrefillTransfer, room, errors::ABORTED))
    }

    async fn admit_decode(&mut self, room: Room) -> Result<(), Failure> {
        let engine = self.engine.clone();
        let held = engine
            .peers
            .enter(room)
            .map_err(|DuplicateRoom| errors::duplicate_room(room))?;
        let address = self.bootstrap_address();
        let Some(Ok(resolved)) = self.abort.race(held.resolve(&address)).await else {
            return Err(self.failed(TransferPhase::DecodeHandshake, room, errors::ABORTED));
        };
        let permit = self.abort.race(engine.kv.clone().acquire_owned()).await;
        let Some(permit) = permit else {
            return Err(self.failed(TransferPhase::DecodeHandshake, room, errors::ABORTED));
        };
        self.permits.extend(permit.ok());
        self.stage.enter(Stage::Receiving);
        let mut meeting = resolved.present();
        held.state(RoomState::WaitingForInput);
        let record = self.await_record(room, &mut meeting, &address).await?;
        held.state(RoomState::Transferring);
        self.fail_by_script(TransferPhase::DecodeTransfer, room)
            .await?;
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
        let event = tokio::select! {
            biased;
            () = self.abort.requested() => return Err(self.failed(TransferPhase::DecodeTransfer, room, errors::ABORTED)),
            event = meeting.event() => event,
            () = &mut deadline => {
                let reason = errors::timed_out(room, timeout, "WaitingForInput");
                return Err(self.failed(TransferPhase::DecodeTransfer, room, &reason));
            }
        };
        match event {
            KvEvent::Arrived(record) => Ok(record),
            KvEvent::Refused => Err(errors::duplicate_room(room)),
            KvEvent::LostPrefill => {
                let reason = errors::lost_prefill(address);
                Err(self.failed(TransferPhase::DecodeTransfer, room, &reason))
            }
        }
    }

    /// `host:port` of the registry, with brackets for IPv6. `rules` has refused a request without a host.
    fn bootstrap_address(&self) -> String {
        let bootstrap = &self.item.bootstrap;
        let host = bootstrap.host.as_deref().unwrap_or_default();
        let own = match self.engine.options.bootstrap_port {
            0 => DEFAULT_BOOTSTRAP_PORT,
            port => port,
        };
        let port = bootstrap.port.unwrap_or(u64::from(own));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if bare.contains(':') {
            format!("[{bare}]:{port}")
        } else {
            format!("{bare}:{port}")
        }
    }

    /// The forward pass over the prompt; none when aborted.
    pub(super) async fn compute(&mut self) -> Option<()> {
        self.stage.enter(Stage::Queued);
        let engine = self.engine.clone();
        self.abort.race(engine.pause.moves()).await?;
        let rank = self.engine.rank(&self.item).clone();
        let options = &self.engine.options;
        let computed = if options.chunked_prefill_tokens > 0 {
            let queued = rank.queue(self.item.prompt.as_slice().into(), self.reusable());
            // An error means that the worker has crashed.
            self.abort.race(queued).await?.ok()?
        } else {
            let is_free = options.time_per_prompt_token.is_zero() && options.attention_ns == 0.0;
            let _permit = match is_free {
                true => None,
                false => Some(self.abort.race(rank.computing.acquire()).await?),
            };
            self.stage.enter(Stage::Computing);
            let mut computed = rank.begin(&self.item.prompt, self.reusable());
            let cached = computed.cached_tokens;
            let time = options.forward_time(cached, self.item.prompt.len() - cached);
            if !is_free {
                self.abort.race(tokio::time::sleep(time)).await?;
            }
            rank.end(&self.item.prompt, &mut computed);
            computed
        };
        self.cached_tokens = computed.cached_tokens;
        self.times.forward_entry = computed.forward_entry;
        self.times.prefill_finished = unix_seconds();
        self.computed = Some(computed);
        (!self.abort.is_requested()).then_some(())
    }

    /// Length of the beginning of the prompt that may come from the prefix cache: all but the last token, and only tokens
    /// before the first position whose logprob is wanted.
    fn reusable(&self) -> usize {
        let logprobs = &self.item.logprobs;
        let wanted = logprobs
            .start
            .filter(|_| logprobs.wanted || self.engine.is_vllm());
        let most = self.item.prompt.len().saturating_sub(1);
        most.min(wanted.unwrap_or(most))
    }

    fn record(&self) -> Record {
        let token = self.context.next();
        Record {
            first_token: token,
            logprob: self.context.logprob(token),
            top: self
                .context
                .top(self.item.logprobs.top.min(RECORD_TOP_LOGPROBS)),
            cached_tokens: self.cached_tokens,
            prompt_fingerprint: self.context.fingerprint(),
        }
    }

    /// The record for the fake host, which has no prefill: its first token is a function of the request id.
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

    fn failed(&self, phase: TransferPhase, room: Room, reason: &str) -> Failure {
        errors::transfer(phase, &self.item.rid, room, reason)
    }

    /// An abort before the forward pass has the message of an abort in the rendezvous.
    fn aborted_in_queue(&self) -> Failure {
        errors::aborted(errors::ABORTED.to_owned())
    }
}
