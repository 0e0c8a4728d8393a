//! The workers, their load and their health, and the choice of the pair that serves a request.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Fleet`]: the members, and the evidence of legs and probes |
//! | `members.rs` | the snapshot of the members, and their change |
//! | `parts.rs` | what a worker is made of |
//! | `worker.rs`, `load.rs`, `lease.rs` | one worker, the load that a request puts on it, and the pair of both |
//! | `ranks.rs` | the data parallel ranks of a prefill worker |
//! | `select.rs`, `sample.rs`, `policy/` | which pair serves a request: a filter, then the policy of each role |
//! | `engine.rs` | the engine of all workers, and workers that are not what they are listed as |
//! | `drain.rs` | workers that get no new request while they end those that they have |
//! | `siblings.rs` | requests that belong together: one prefill worker, several decode workers |
//! | `queue.rs` | requests that wait because workers are at their limit |
//! | `gate.rs` | requests that wait because generation is paused |
//! | `alone.rs` | decode without a prefill worker, where the engine and the configuration allow it |
//! | `breaker.rs`, `pairs.rs` | which workers and pairs are set aside, and for how long |
//! | `budget.rs` | how many requests may be tried again |
//! | `suspects/` | requests that a worker was lost with |
//! | `tally.rs`, `loads.rs` | what the legs of a worker came to, and what it says about its load |
//! | `kv.rs` | the engines by which decode asks a prefill worker for blocks, with Mooncake |
//! | `stored.rs` | which pair has a stored response |
//! | `rooms.rs` | the bootstrap rooms of live requests |
//!
//! Nothing here opens a socket or reads a clock: the time and the random numbers are arguments, so that a test decides
//! them. Load is an RAII value ([`Load`]): it is counted when a pair is leased, and ends with the leg that carries it,
//! on whatever path.

mod alone;
mod breaker;
mod budget;
mod drain;
mod engine;
mod gate;
mod kv;
mod lease;
mod load;
mod loads;
mod members;
mod pairs;
mod parts;
mod policy;
mod queue;
mod ranks;
mod rooms;
mod sample;
mod select;
mod siblings;
mod stored;
pub mod suspects;
mod tally;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use crate::pd::Role;
use crate::pd::{Engine, RoutingKey};
use alone::Alone;
use breaker::Change;
pub use breaker::{BreakerLimits, Condition, Evidence};
pub use budget::RetryBudget;
use engine::EngineOfAll;
pub use engine::{Mismatch, UnknownEngine};
use gate::Gate;
pub use gate::{AtGate, Closed, Update};
pub use lease::Lease;
pub use load::{Forecast, Load};
pub use loads::Loads;
pub use members::Members;
use pairs::Pairs;
pub use parts::{Origin, WorkerParts};
use policy::InUse;
pub use policy::{
    Asked, Candidate, Choice, Ended, Expected, Learning, Policies, Policy, Report, RolePolicy,
    WorkerReport,
};
pub use queue::{Queue, Refusal, Ticket, Turn};
pub use ranks::{Layout, MAX_RANKS, Place, Spread};
pub use rooms::{LiveRooms, Rooms};
use select::{Filter, Pair};
pub use select::{Selection, Targets};
pub use siblings::Siblings;
pub use stored::{StoredAt, StoredResponses};
pub use suspects::{SuspectLimits, Suspects};
pub use tally::{Outcome, Tally};
pub(crate) use worker::digest;
pub use worker::{Worker, WorkerId};

/// The workers, and what decides which of them serve a request.
pub struct Fleet {
    /// A lock around one pointer, with a signal. A choice holds the read lock from its first look at the members until
    /// its load is counted, so that after [`Fleet::replace`] no request can still be on its way to a removed worker.
    /// That takes microseconds, and the write lock is held for the swap or for an addition alone.
    ///
    /// Locked after the queue and before the records of pairs and a policy.
    members: watch::Sender<Arc<Members>>,
    next_id: AtomicU64,
    engine: EngineOfAll,
    alone: Alone,
    policies: ArcSwap<InUse>,
    limits: ArcSwap<BreakerLimits>,
    pairs: Pairs,
    /// `None`, or off, when workers take as many requests as come.
    queue: Option<Queue>,
    gate: Gate,
    stored: StoredResponses,
    /// Whether any worker has told that it has several data parallel ranks.
    has_ranks: AtomicBool,
}

/// No worker of this role can take the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoWorker(pub Role);

impl fmt::Display for NoWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no {} worker is available", self.0)
    }
}

impl std::error::Error for NoWorker {}

impl Fleet {
    /// A fleet of SGLang without members. [`Fleet::replace`] gives it the first ones.
    pub fn new(policies: Policies, limits: BreakerLimits) -> Self {
        Self {
            members: watch::Sender::new(Arc::default()),
            next_id: AtomicU64::new(0),
            engine: EngineOfAll::new(Some(Engine::default())),
            alone: Alone::default(),
            policies: ArcSwap::from_pointee(policies.into()),
            limits: ArcSwap::from_pointee(limits),
            pairs: Pairs::default(),
            queue: None,
            gate: Gate::new(usize::MAX),
            stored: StoredResponses::default(),
            has_ranks: AtomicBool::new(false),
        }
    }

    /// The same fleet with the limit of this queue on the requests that a worker takes at once.
    pub fn limited(mut self, queue: Queue) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Replaces the policies that are given. One that is not keeps what it has learned.
    pub fn set_policies(&self, prefill: Option<RolePolicy>, decode: Option<RolePolicy>) {
        let (prefill, decode) = (prefill.map(Arc::new), decode.map(Arc::new));
        self.policies.rcu(|old| InUse {
            prefill: prefill.clone().unwrap_or_else(|| old.prefill.clone()),
            decode: decode.clone().unwrap_or_else(|| old.decode.clone()),
        });
    }

    /// Other limits of circuit breakers from now on. What is set aside stays so for its time.
    pub fn set_limits(&self, limits: BreakerLimits) {
        self.limits.store(Arc::new(limits));
    }

    /// The same fleet with room for so many requests while generation is paused.
    pub fn gated(mut self, size: usize) -> Self {
        self.gate = Gate::new(size);
        self
    }

    /// A new worker, with an id that no other worker of this fleet has had. It gets no request before
    /// [`Fleet::replace`] makes it a member.
    pub fn new_worker(&self, parts: WorkerParts) -> Arc<Worker> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        Arc::new(Worker::new(WorkerId(id), parts))
    }

    /// Which pairs have which responses.
    pub fn stored_responses(&self) -> &StoredResponses {
        &self.stored
    }

    /// Both workers or none: a leg without its peer would wait for the engine's 300 s timer.
    ///
    /// Workers and pairs that are set aside are not chosen, nor workers that failed the request before, unless there
    /// is no other: a worker that looks dead is better than no response. Nor are workers that do not answer probes. A
    /// worker without an address, one that is paused or being drained, or one that says that it has another role, is never
    /// chosen.
    /// `draw` gives uniformly distributed 64-bit values. The limit of a queue is not applied: [`Fleet::admit`] does
    /// that.
    ///
    /// # Errors
    /// The role that has no worker.
    pub fn select(
        self: &Arc<Self>,
        wanted: Selection<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Result<Lease, NoWorker> {
        let members = self.members.borrow();
        let filter = self.filter(&members, wanted.avoid, wanted.now, usize::MAX);
        let filter = filter.among(wanted.siblings, wanted.targets);
        // Without a limit on the workers there is always a pair.
        let pair = filter.pair(wanted.request, &mut draw)?;
        let pair = pair.ok_or(NoWorker(Role::Decode))?;
        Ok(Lease::of(pair, wanted.request, wanted.now, None).taught(self, wanted.request))
    }

    /// The same pair once more, on the same ranks, for a request that begins again with it. No limit is applied: the lease that
    /// it had is about to end.
    pub fn lease_again(
        self: &Arc<Self>,
        prefill: &Arc<Worker>,
        spread: Option<Spread>,
        decode: &Arc<Worker>,
        request: &RoutingKey,
    ) -> Lease {
        let queue_of = self.active_queue().map(|_| self);
        let now = Instant::now();
        let asked = Asked {
            request,
            draw: 0,
            now,
        };
        let chosen = prefill.candidate().on(spread.unwrap_or_default());
        let pair = Pair {
            prefill,
            decode,
            spread,
            expected: match prefill.id().is_absent() {
                true => None,
                false => self.policies.load().prefill.again(&asked, chosen),
            },
        };
        Lease::of(pair, request, now, queue_of).taught(self, request)
    }

    /// Whether a request could be sent to a pair of workers that are not set aside.
    pub fn has_pair(&self, now: Instant) -> bool {
        let members = self.members.borrow();
        // Where generation is paused, requests wait: they are accepted, and no load balancer in front need look elsewhere.
        let closed = self.is_closed();
        let waits = |worker: &Worker| closed && worker.is_paused() && !worker.is_draining();
        let is_there = |worker: &Worker| worker.admits(now) || waits(worker);
        let has_worker = |role| members.of(role).iter().any(|worker| is_there(worker));
        has_worker(Role::Decode) && (has_worker(Role::Prefill) || self.goes_alone())
    }

    /// The health of a worker now, in a word.
    pub fn condition(&self, worker: &Worker, now: Instant) -> Condition {
        worker.condition(now, self.limits.load().slow_start)
    }

    /// Notes what a leg or a probe says about its worker. A member that is set aside or comes back is logged.
    pub fn note(self: &Arc<Self>, worker: &Worker, evidence: Evidence, now: Instant) {
        // Its `/health` generates, and waits as well; and a pause may end requests with errors that are no worker's fault.
        // Source: SGLang 0.5.23, `/pause_generation` with `abort`: 500 "Aborted by AbortReq" from prefill.
        let is_excused = match evidence {
            Evidence::Silent => worker.is_paused(),
            Evidence::Bad => self.is_closed(),
            _ => false,
        };
        if is_excused {
            return;
        }
        if let Some(change) = worker.note(evidence, now, &self.limits.load())
            && self.members.borrow().contains(worker.id())
        {
            let (role, url) = (worker.role(), worker.url());
            match change {
                Change::SetAside => {
                    let because = self.limits.load().because(evidence);
                    log::warn!("worker set aside role={role} worker={url} because=\"{because}\"");
                }
                Change::Back => {
                    log::info!("worker is back role={role} worker={url}");
                    // It may have been started again, with other ranks.
                    self.note_flushed(worker);
                    worker.ranks().ask_again();
                }
                Change::FallsSilent => {
                    log::warn!("worker does not answer its probe role={role} worker={url}");
                }
                Change::AnswersAgain => {
                    log::info!("worker answers again role={role} worker={url}");
                }
            }
        }
        self.serve_waiting();
    }

    /// Notes that a worker has lost its prefix cache.
    pub fn note_flushed(&self, worker: &Worker) {
        let policies = self.policies.load();
        if let Some(mut policy) = policies.of(worker.role()).learning() {
            policy.flushed(worker.id());
        }
    }

    /// Whether a worker is to be asked for its layout: a prefill worker until it has told it, and again when it has come back.
    pub fn wants_layout(&self, worker: &Worker) -> bool {
        worker.role() == Role::Prefill && !worker.ranks().are_told()
    }

    /// Notes the layout that a worker has told.
    pub fn note_layout(&self, worker: &Worker, layout: Layout) {
        if worker.ranks().note(layout) {
            let (role, url, ranks) = (worker.role(), worker.url(), worker.ranks().count());
            log::info!("worker has data parallel ranks role={role} worker={url} ranks={ranks}");
            if ranks > 1 {
                self.has_ranks.store(true, Ordering::Relaxed);
            }
            // What it held is on other ranks now.
            self.note_flushed(worker);
        }
    }

    /// Whether any worker has several data parallel ranks, or had, so that a request may name one.
    pub fn has_ranks(&self) -> bool {
        self.has_ranks.load(Ordering::Relaxed)
    }

    /// How often each role's policy has chosen, with its name in settings. Random choices are not counted.
    pub fn choices(&self) -> Vec<(Role, &'static str, u64)> {
        self.policies.load().choices()
    }

    /// What came of the choices of prefill workers; `None` where the policy does not learn.
    pub fn report(&self, now: Instant) -> Option<Report> {
        let policies = self.policies.load();
        let policy = policies.prefill.learning()?;
        Some(policy.report(now))
    }

    /// Tells the policy that a leg of its choice has ended.
    fn note_ended(&self, ended: &Ended<'_>) {
        let policies = self.policies.load();
        if let Some(mut policy) = policies.prefill.learning() {
            policy.ended(ended);
        }
    }

    /// Notes that both workers have served a request together.
    pub fn note_pair_good(self: &Arc<Self>, prefill: &Worker, decode: &Worker) {
        self.pairs.good((prefill.id(), decode.id()));
        self.serve_waiting();
    }

    /// Notes that the workers have failed together, although each of them responds.
    pub fn note_pair_bad(self: &Arc<Self>, prefill: &Worker, decode: &Worker, now: Instant) {
        if self.is_closed() {
            return;
        }
        let pair = (prefill.id(), decode.id());
        let set_aside = {
            // Noted under the lock of the members, so that no record is made after its worker was removed.
            let members = self.members.borrow();
            members.contains(pair.0) && members.contains(pair.1) && self.pairs.bad(pair, now)
        };
        if set_aside {
            let (prefill, decode) = (prefill.url(), decode.url());
            log::warn!(
                "pair set aside prefill={prefill} decode={decode} because=\"{} failures in a row\"",
                pairs::FAILURES
            );
        }
        self.serve_waiting();
    }

    fn filter<'a>(
        &'a self,
        members: &'a Members,
        avoid: &'a [WorkerId],
        now: Instant,
        capacity: usize,
    ) -> Filter<'a> {
        Filter {
            members,
            policies: self.policies.load(),
            pairs: &self.pairs,
            slow_start: self.limits.load().slow_start,
            avoid,
            siblings: None,
            targets: Targets::default(),
            now,
            capacity,
            absent: self.absent(),
        }
    }
}

#[cfg(test)]
mod tests;
