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
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

pub use crate::pd::Role;
use breaker::Change;
pub use breaker::{Evidence, Limits};
pub use budget::RetryBudget;
use pairs::Pairs;
pub use policy::{Policy, Random};
pub use queue::{Queue, Refusal, Ticket, Turn};
pub use rooms::{LiveRooms, Rooms};
pub use worker::{Load, Origin, Worker, WorkerId, WorkerParts};

/// All workers, and the policy that chooses among them.
pub struct Fleet {
    prefill: Vec<Arc<Worker>>,
    decode: Vec<Arc<Worker>>,
    policy: Box<dyn Policy>,
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

/// A prefill worker and a decode worker that go together.
type Pair = (Arc<Worker>, Arc<Worker>);

/// How often a pick that may not be taken is drawn anew before the candidates are looked through. In a fleet
/// in which most are well that is never needed, and the cost does not grow with the fleet.
const REDRAWS: usize = 4;

impl Fleet {
    /// A fleet of these workers under this policy.
    pub fn new(
        prefill: Vec<Arc<Worker>>,
        decode: Vec<Arc<Worker>>,
        policy: Box<dyn Policy>,
        limits: Limits,
    ) -> Self {
        Self {
            prefill,
            decode,
            policy,
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
    /// Workers and pairs that are set aside are not picked, nor those in `avoid`, unless there is no other:
    /// a worker that looks dead is better than no answer. One without an address is never picked. `draw` gives
    /// uniformly distributed 64-bit values. Limits are not asked here: [`Fleet::admit`] does that.
    ///
    /// # Errors
    /// The role that has no worker.
    pub fn select(
        &self,
        mut draw: impl FnMut() -> u64,
        now: Instant,
        avoid: &[WorkerId],
    ) -> Result<Lease, NoWorker> {
        // Where every worker has room there is always a pair.
        let pair = self.find(&mut draw, now, avoid, |_| true)?;
        let (prefill, decode) = pair.ok_or(NoWorker(Role::Decode))?;
        prefill.picked(now);
        decode.picked(now);
        Ok(Lease {
            prefill: prefill.load(),
            decode: decode.load(),
        })
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

    /// A pair that may be taken now; `None` when those that may be picked have no room. A worker that is set
    /// aside and has room does not stand in for one that is well and full.
    fn find(
        &self,
        draw: &mut impl FnMut() -> u64,
        now: Instant,
        avoid: &[WorkerId],
        has_room: impl Fn(&Worker) -> bool,
    ) -> Result<Option<Pair>, NoWorker> {
        let fit = |worker: &Worker| worker.admits(now) && !avoid.contains(&worker.id());
        let mut lonely = Vec::new();
        loop {
            let has_peer = |worker: &Worker| has_room(worker) && !lonely.contains(&worker.id());
            let found = self.pick(Role::Prefill, draw, now, avoid, fit, has_peer)?;
            let Some(prefill) = found else {
                return Ok(None);
            };
            let together = |worker: &Worker| {
                fit(worker) && self.pairs.admits((prefill.id(), worker.id()), now)
            };
            let found = self.pick(Role::Decode, draw, now, avoid, together, &has_room)?;
            if let Some(decode) = found {
                return Ok(Some((prefill, decode)));
            }
            // Every prefill worker has the same peers, but for pairs that are set aside.
            if !self.pairs.has_records() {
                return Ok(None);
            }
            lonely.push(prefill.id());
        }
    }

    /// A worker that fits and has room; of a fleet in which none fits, one that is not to be avoided, or any.
    /// `None` when those have no room.
    fn pick(
        &self,
        role: Role,
        draw: &mut impl FnMut() -> u64,
        now: Instant,
        avoid: &[WorkerId],
        fit: impl Fn(&Worker) -> bool,
        has_room: impl Fn(&Worker) -> bool,
    ) -> Result<Option<Arc<Worker>>, NoWorker> {
        let candidates = self.of(role);
        for _ in 0..REDRAWS {
            let worker = self.choose(candidates, draw).ok_or(NoWorker(role))?;
            if fit(worker) && has_room(worker) && self.accepts_share(worker, draw, now) {
                return Ok(Some(worker.clone()));
            }
        }
        let last_resorts: [&dyn Fn(&Worker) -> bool; 3] =
            [&fit, &|worker| !avoid.contains(&worker.id()), &|_| true];
        for fit in last_resorts {
            let placed = candidates.iter().filter(|worker| worker.has_address());
            let mut fitting = placed.filter(|worker| fit(worker)).peekable();
            if fitting.peek().is_some() {
                let roomy: Vec<_> = fitting.filter(|worker| has_room(worker)).cloned().collect();
                return Ok(self.choose_patiently(&roomy, draw, now).cloned());
            }
        }
        Err(NoWorker(role))
    }

    /// One of those that may be taken. Where all of them have just come back it is one of them.
    fn choose_patiently<'a>(
        &self,
        candidates: &'a [Arc<Worker>],
        draw: &mut impl FnMut() -> u64,
        now: Instant,
    ) -> Option<&'a Arc<Worker>> {
        for _ in 0..REDRAWS {
            let worker = self.choose(candidates, draw)?;
            if self.accepts_share(worker, draw, now) {
                return Some(worker);
            }
        }
        self.choose(candidates, draw)
    }

    fn choose<'a>(
        &self,
        candidates: &'a [Arc<Worker>],
        draw: &mut impl FnMut() -> u64,
    ) -> Option<&'a Arc<Worker>> {
        candidates.get(self.policy.pick(candidates, draw())?)
    }

    fn accepts_share(&self, worker: &Worker, draw: &mut impl FnMut() -> u64, now: Instant) -> bool {
        worker.accepts_share(draw, now, self.limits.slow_start)
    }
}

#[cfg(test)]
mod tests;
