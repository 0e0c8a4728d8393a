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
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn fleet(prefills: u16, decodes: u16) -> Arc<Fleet> {
        Arc::new(unlimited(prefills, decodes))
    }

    /// Prefill workers from 1000, decode workers from 2000.
    pub(super) fn unlimited(prefills: u16, decodes: u16) -> Fleet {
        let workers = |role, ports: std::ops::Range<u16>| {
            ports
                .map(|port| Arc::new(Worker::for_tests(role, port)))
                .collect()
        };
        Fleet::new(
            workers(Role::Prefill, 1000..1000 + prefills),
            workers(Role::Decode, 2000..2000 + decodes),
            Box::new(Random),
            Limits::default(),
        )
    }

    /// Draws that reach every candidate in turn.
    pub(super) fn draws() -> impl FnMut() -> u64 {
        let mut state = 0u64;
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            state
        }
    }

    /// Draws that say nothing about the next one.
    fn unrelated_draws() -> impl FnMut() -> u64 {
        let mut rng = SmallRng::seed_from_u64(1);
        move || rng.random()
    }

    #[test]
    fn a_lease_counts_up_both_workers_and_down_again_when_its_halves_drop() {
        let fleet = fleet(1, 1);
        let lease = fleet.select(|| 7, Instant::now(), &[]).unwrap();
        assert_eq!(fleet.of(Role::Prefill)[0].in_flight(), 1);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 1);
        drop(lease.prefill);
        assert_eq!(fleet.of(Role::Prefill)[0].in_flight(), 0);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 1);
        drop(lease.decode);
        assert_eq!(fleet.of(Role::Decode)[0].in_flight(), 0);
    }

    #[test]
    fn a_fleet_without_a_role_leases_nothing_and_names_the_role() {
        let now = Instant::now();
        let one_sided = fleet(1, 0);
        assert_eq!(
            one_sided.select(|| 0, now, &[]).err(),
            Some(NoWorker(Role::Decode))
        );
        assert_eq!(one_sided.of(Role::Prefill)[0].in_flight(), 0);
        assert!(!one_sided.has_pair(now));
        let other = fleet(0, 1);
        assert_eq!(
            other.select(|| 0, now, &[]).err(),
            Some(NoWorker(Role::Prefill))
        );
    }

    #[test]
    fn a_worker_without_an_address_is_never_picked_until_it_has_one() {
        let now = Instant::now();
        let parts = WorkerParts::named_for_tests(Role::Prefill, "prefill", 1);
        let unplaced = Arc::new(Worker::new(WorkerId(9), parts));
        let decode = Arc::new(Worker::for_tests(Role::Decode, 1));
        let fleet = Arc::new(Fleet::new(
            vec![unplaced.clone()],
            vec![decode],
            Box::new(Random),
            Limits::default(),
        ));
        // Whatever is said about it, and however urgent it is.
        for evidence in [Evidence::Neutral, Evidence::Absent, Evidence::Good] {
            fleet.note(&unplaced, evidence, now);
            assert!(!fleet.has_pair(now));
            let refused = fleet.select(draws(), now, &[]).err();
            assert_eq!(refused, Some(NoWorker(Role::Prefill)));
        }
        unplaced.set_address(([127, 0, 0, 1], 1).into());
        assert!(fleet.has_pair(now) && fleet.select(draws(), now, &[]).is_ok());
    }

    #[test]
    fn silence_is_news_once_and_so_is_its_end() {
        let worker = Worker::for_tests(Role::Prefill, 1);
        let answers = [true, false, false, false, true, true, false];
        let news = answers.map(|answered| worker.note_answered(answered));
        assert_eq!(news, [false, true, false, false, true, false, true]);
    }

    #[test]
    fn a_worker_that_refuses_connections_gets_nothing_as_long_as_there_is_another() {
        let fleet = fleet(2, 3);
        let now = Instant::now();
        let gone = fleet.of(Role::Prefill)[0].clone();
        fleet.note(&gone, Evidence::Absent, now);
        let mut draw = draws();
        for _ in 0..1000 {
            let lease = fleet.select(&mut draw, now, &[]).unwrap();
            assert_ne!(lease.prefill.id(), gone.id());
        }
        assert!(fleet.has_pair(now));
    }

    #[test]
    fn a_worker_that_is_back_gets_a_tenth_of_a_share_first_and_a_whole_one_in_the_end() {
        let fleet = fleet(1, 2);
        let now = Instant::now();
        let returned = fleet.of(Role::Decode)[0].clone();
        let mut draw = unrelated_draws();
        let mut percent = |now| {
            let picks = (0..10_000).filter(|_| {
                let lease = fleet.select(&mut draw, now, &[]).unwrap();
                lease.decode.id() == returned.id()
            });
            (picks.count() + 50) / 100
        };
        assert_eq!(percent(now), 50, "at the first start");
        fleet.note(&returned, Evidence::Absent, now);
        assert_eq!(percent(now), 0);
        fleet.note(&returned, Evidence::Present, now);
        // The part of a worker against one with a whole share.
        for (seconds, expected) in [(0, 10 * 100 / 110), (5, 55 * 100 / 155), (10, 50)] {
            let seen = percent(now + Duration::from_secs(seconds));
            assert!(
                seen.abs_diff(expected) <= 1,
                "{seen} % after {seconds} s, not {expected} %"
            );
        }
    }

    #[test]
    fn slow_start_refuses_nobody_where_all_have_just_come_back() {
        let fleet = fleet(1, 2);
        let now = Instant::now();
        for worker in fleet.workers() {
            fleet.note(worker, Evidence::Absent, now);
            fleet.note(worker, Evidence::Present, now);
        }
        let mut draw = unrelated_draws();
        let picks = (0..1000).filter(|_| {
            let lease = fleet.select(&mut draw, now, &[]).unwrap();
            lease.decode.id() == fleet.of(Role::Decode)[0].id()
        });
        assert!((450..550).contains(&picks.count()));
    }

    #[test]
    fn when_all_look_dead_they_are_tried() {
        let fleet = fleet(2, 1);
        let now = Instant::now();
        for worker in fleet.workers() {
            fleet.note(worker, Evidence::Absent, now);
        }
        assert!(!fleet.has_pair(now));
        let tried = fleet.select(draws(), now, &[]).unwrap();
        let other = fleet
            .select(draws(), now, &[tried.prefill.id(), tried.decode.id()])
            .unwrap();
        assert_ne!(other.prefill.id(), tried.prefill.id());
        assert_eq!(other.decode.id(), tried.decode.id(), "there is no other");
    }

    #[test]
    fn a_pair_that_fails_together_is_not_picked_together() {
        let fleet = fleet(2, 2);
        let now = Instant::now();
        let (prefill, decode) = (&fleet.of(Role::Prefill)[0], &fleet.of(Role::Decode)[0]);
        for _ in 0..3 {
            fleet.note_pair_bad(prefill, decode, now);
        }
        let mut draw = draws();
        let mut seen = std::collections::HashSet::new();
        for _ in 0..1000 {
            let lease = fleet.select(&mut draw, now, &[]).unwrap();
            seen.insert((lease.prefill.id(), lease.decode.id()));
        }
        assert_eq!(seen.len(), 3);
        assert!(!seen.contains(&(prefill.id(), decode.id())));
        fleet.note_pair_good(prefill, decode);
        let back = (0..1000).any(|_| {
            let lease = fleet.select(&mut draw, now, &[]).unwrap();
            (lease.prefill.id(), lease.decode.id()) == (prefill.id(), decode.id())
        });
        assert!(back);
    }
}
