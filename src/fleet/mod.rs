//! Who exists and who serves the next request: workers, their load, the policy, and the live rooms.
//!
//! Nothing here opens a socket or reads a clock. Randomness is an argument: [`Fleet::select`] accepts_share the
//! draws, so that a test decides them. Load is an RAII value ([`Load`]): it is counted up when a pair is
//! leased and down when the leg that carries it ends, on whatever path. Where workers have a limit, requests
//! that find them full wait in the [`Queue`].

mod breaker;
mod budget;
mod pairs;
mod policy;
mod queue;
mod rooms;
mod select;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use crate::pd::Role;
use breaker::Change;
pub use breaker::{Evidence, Limits};
pub use budget::RetryBudget;
use pairs::Pairs;
pub use policy::{Candidate, Policies, Policy, RolePolicy};
pub use queue::{Queue, Refusal, Ticket, Turn};
pub use rooms::{LiveRooms, Rooms};
use select::Filter;
pub use select::Selection;
pub use worker::{Load, Origin, Worker, WorkerId, WorkerParts};

/// All workers, and the policy that chooses among them.
pub struct Fleet {
    prefill: Vec<Arc<Worker>>,
    decode: Vec<Arc<Worker>>,
    policies: Policies,
    limits: Limits,
    pairs: Pairs,
    /// `None` when workers take as many requests as come.
    queue: Option<Queue>,
}

/// A pair of workers that serves one request, and the load that the request puts on each.
///
/// The two halves are separate because the legs end at different times: prefill's when it has answered,
/// decode's when its stream has ended.
pub struct Lease {
    /// The prefill worker's half.
    pub prefill: Load,
    /// The decode worker's half.
    pub decode: Load,
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
    /// A fleet of these workers under this policy.
    pub fn new(
        prefill: Vec<Arc<Worker>>,
        decode: Vec<Arc<Worker>>,
        policies: Policies,
        limits: Limits,
    ) -> Self {
        Self {
            prefill,
            decode,
            policies,
            limits,
            pairs: Pairs::default(),
            queue: None,
        }
    }

    /// The same fleet, whose workers take no more requests at once than this queue says.
    pub fn limited(mut self, queue: Queue) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Both workers or none: a leg without its peer would wait for the engine's 300 s timer.
    ///
    /// Workers and pairs that are set aside are not chosen, nor those that failed the request, unless there is no
    /// other: a worker that looks dead is better than no answer. One without an address is never chosen. `draw` gives
    /// uniformly distributed 64-bit values. Limits are not asked here: [`Fleet::admit`] does that.
    ///
    /// # Errors
    /// The role that has no worker.
    pub fn select(
        &self,
        wanted: Selection<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Result<Lease, NoWorker> {
        let filter = self.filter(wanted.avoid, wanted.now, usize::MAX);
        // Where every worker has capacity there is always a pair.
        let pair = filter.pair(wanted.request, &mut draw)?;
        let (prefill, decode) = pair.ok_or(NoWorker(Role::Decode))?;
        prefill.picked(wanted.now);
        decode.picked(wanted.now);
        Ok(Lease {
            prefill: prefill.load(),
            decode: decode.load(),
        })
    }

    fn filter<'a>(&'a self, avoid: &'a [WorkerId], now: Instant, capacity: usize) -> Filter<'a> {
        Filter {
            prefill: &self.prefill,
            decode: &self.decode,
            policies: &self.policies,
            pairs: &self.pairs,
            slow_start: self.limits.slow_start,
            avoid,
            now,
            capacity,
        }
    }

    /// Whether a request could be sent to a pair that is not set aside.
    pub fn has_pair(&self, now: Instant) -> bool {
        [&self.prefill, &self.decode]
            .into_iter()
            .all(|workers| workers.iter().any(|worker| worker.admits(now)))
    }

    /// What a leg or a probe says about its worker. A change of mind is a line in the log.
    pub fn note(self: &Arc<Self>, worker: &Worker, evidence: Evidence, now: Instant) {
        let (role, url) = (worker.role(), worker.url());
        match worker.note(evidence, now, &self.limits) {
            Some(Change::SetAside) => {
                log::warn!("worker set aside role={role} worker={url} because={evidence:?}");
            }
            Some(Change::Back) => log::info!("worker is back role={role} worker={url}"),
            None => {}
        }
        self.serve_waiting();
    }

    /// Both workers have served a request together.
    pub fn note_pair_good(self: &Arc<Self>, prefill: &Worker, decode: &Worker) {
        self.pairs.good((prefill.id(), decode.id()));
        self.serve_waiting();
    }

    /// They have failed together, each of them being there.
    pub fn note_pair_bad(self: &Arc<Self>, prefill: &Worker, decode: &Worker, now: Instant) {
        if self.pairs.bad((prefill.id(), decode.id()), now) {
            let (prefill, decode) = (prefill.url(), decode.url());
            log::warn!("pair set aside prefill={prefill} decode={decode}");
        }
        self.serve_waiting();
    }

    /// The workers of one role, in the order of the configuration.
    pub fn of(&self, role: Role) -> &[Arc<Worker>] {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    /// Every worker: prefill first, each role in the order of the configuration.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.prefill.iter().chain(&self.decode)
    }
}

#[cfg(test)]
mod tests;
