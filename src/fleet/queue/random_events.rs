//! The queue under random events: requests arrive, are served, fail, are tried again, end and leave; workers and pairs
//! are set aside and come back; the members are replaced; time passes. Its rules are checked after each event.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::{Evidence, Lease, Load, Members, Role, Worker, WorkerId, WorkerParts};
use super::tests::{TestFleet, turn};
use super::{Refusal, Ticket, Turn};

/// The fleet and the requests of one run.
struct Run {
    test: TestFleet,
    limit: usize,
    rng: SmallRng,
    /// All workers that have ever been members.
    known: Vec<Arc<Worker>>,
    next: u64,
    waiting: Vec<(u64, Vec<WorkerId>, Ticket)>,
    held: Vec<Lease>,
    /// Legs that have outlived their peer.
    halves: Vec<Load>,
    /// The last request that was served without having been tried before.
    last: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let workers = (rng.random_range(1..=3), rng.random_range(1..=3));
        let limit = rng.random_range(1..=3);
        let size = rng.random_range(0..=6);
        let test = TestFleet::set(workers, limit, size);
        Self {
            known: test.fleet.members().workers().cloned().collect(),
            test,
            limit,
            rng,
            next: 0,
            waiting: Vec::new(),
            held: Vec::new(),
            halves: Vec::new(),
            last: 0,
        }
    }

    fn one_of<T>(rng: &mut SmallRng, from: &mut Vec<T>) -> Option<T> {
        let index = (!from.is_empty()).then(|| rng.random_range(0..from.len()))?;
        Some(from.swap_remove(index))
    }

    fn arrives(&mut self, avoid: Vec<WorkerId>) {
        self.next += 1;
        match self.test.again(&avoid) {
            Ok(Turn::Now(lease)) => self.is_served(self.next, &avoid, lease),
            Ok(Turn::Later(ticket)) => self.waiting.push((self.next, avoid, ticket)),
            Err(Refusal::QueueFull) => assert!(avoid.is_empty()),
            Err(Refusal::NoWorker(why)) => {
                assert!(self.test.fleet.members().of(why.0).is_empty(), "{why}");
            }
        }
    }

    fn is_served(&mut self, number: u64, avoid: &[WorkerId], lease: Lease) {
        if avoid.is_empty() {
            assert!(number > self.last, "{number} after {}", self.last);
            self.last = number;
        }
        for worker in [&lease.prefill, &lease.decode] {
            assert!(self.test.fleet.members().contains(worker.id()));
        }
        self.held.push(lease);
    }

    fn event(&mut self) {
        match self.rng.random_range(0..100) {
            0..40 => self.arrives(Vec::new()),
            40..45 => self.replace(),
            45..62 => {
                let ended = Self::one_of(&mut self.rng, &mut self.held);
                let Some(Lease {
                    prefill, decode, ..
                }) = ended
                else {
                    return;
                };
                match self.rng.random_range(0..4) {
                    0 => self.halves.push(prefill),
                    1 => self.halves.push(decode),
                    2 => {
                        let failed = prefill.id();
                        drop((prefill, decode));
                        self.arrives(vec![failed]);
                    }
                    _ => drop((prefill, decode)),
                }
            }
            62..75 => drop(Self::one_of(&mut self.rng, &mut self.halves)),
            75..83 => drop(Self::one_of(&mut self.rng, &mut self.waiting)),
            83..93 => {
                let worker = &self.known[self.rng.random_range(0..self.known.len())];
                let evidence = [
                    Evidence::Good,
                    Evidence::Present,
                    Evidence::Absent,
                    Evidence::Bad,
                    Evidence::Neutral,
                ][self.rng.random_range(0..5)];
                self.test.fleet.note(worker, evidence, self.test.now());
            }
            93..97 => {
                let first = |role| self.known.iter().find(move |worker| worker.role() == role);
                let (Some(prefill), Some(decode)) = (first(Role::Prefill), first(Role::Decode))
                else {
                    return;
                };
                match self.rng.random_bool(0.7) {
                    true => self
                        .test
                        .fleet
                        .note_pair_bad(prefill, decode, self.test.now()),
                    false => self.test.fleet.note_pair_good(prefill, decode),
                }
            }
            _ => {
                self.test.after(self.rng.random_range(0..2000));
                self.test.fleet.serve_waiting();
            }
        }
    }

    /// Makes some of the workers that there have been the members, and sometimes a new one.
    fn replace(&mut self) {
        if self.rng.random_bool(0.3) {
            let role = [Role::Prefill, Role::Decode][self.rng.random_range(0..2)];
            let new = self.test.fleet.new_worker(WorkerParts::for_tests(role, 1));
            assert!(self.known.iter().all(|worker| worker.id() != new.id()));
            self.known.push(new);
        }
        let members: Vec<_> = self
            .known
            .iter()
            .filter(|_| self.rng.random_bool(0.7))
            .cloned()
            .collect();
        self.test.fleet.replace(Members::new(members));
    }

    /// Takes the leases that have come, in the order in which the requests arrived: that order is checked.
    fn take_turns(&mut self) {
        let mut still = Vec::new();
        self.waiting.sort_by_key(|(number, ..)| *number);
        for (number, avoid, mut ticket) in std::mem::take(&mut self.waiting) {
            match turn(&mut ticket) {
                Some(lease) => self.is_served(number, &avoid, lease),
                None => still.push((number, avoid, ticket)),
            }
        }
        self.waiting = still;
    }

    fn check(&self) {
        let fleet = &self.test.fleet;
        let loads = self.known.iter().map(|worker| worker.in_flight());
        assert!(loads.clone().all(|load| load <= self.limit));
        let loads: usize = loads.sum();
        assert_eq!(loads, 2 * self.held.len() + self.halves.len());
        assert_eq!(
            fleet.queue.as_ref().unwrap().line().waiters.len(),
            self.waiting.len()
        );
        for (number, avoid, _) in &self.waiting {
            assert!(
                !self.could_be_served(avoid),
                "{number} waits although a pair has capacity"
            );
        }
    }

    /// Whether a pair that may be chosen has capacity: slow, and without draws.
    fn could_be_served(&self, avoid: &[WorkerId]) -> bool {
        let (fleet, now) = (&self.test.fleet, self.test.now());
        let eligible = |role| -> Vec<Arc<Worker>> {
            let all: Vec<_> = fleet.members().of(role).to_vec();
            let others: Vec<_> = all
                .iter()
                .filter(|worker| !avoid.contains(&worker.id()))
                .cloned()
                .collect();
            let well = others.iter().filter(|worker| worker.admits(now)).cloned();
            [well.collect(), others.clone(), all]
                .into_iter()
                .find(|tier| !tier.is_empty())
                .unwrap_or_default()
        };
        let (prefill, decode) = (eligible(Role::Prefill), eligible(Role::Decode));
        let pairs = || {
            let pairs = prefill.iter().map(|p| decode.iter().map(move |d| (p, d)));
            pairs.flatten()
        };
        let has_capacity = |(p, d): &(&Arc<Worker>, &Arc<Worker>)| {
            p.in_flight() < self.limit && d.in_flight() < self.limit
        };
        let admits =
            |(p, d): &(&Arc<Worker>, &Arc<Worker>)| fleet.pairs.admits((p.id(), d.id()), now);
        // Where every pair is set aside they are tried.
        let any_is_good = pairs().any(|pair| admits(&pair));
        pairs()
            .filter(|pair| admits(pair) || !any_is_good)
            .any(|pair| has_capacity(&pair))
    }
}

#[test]
fn no_request_waits_while_a_pair_has_capacity_and_no_lease_is_lost() {
    for seed in 0..400 {
        let mut run = Run::new(seed);
        for _ in 0..300 {
            run.event();
            run.take_turns();
            run.check();
        }
        run.test.fleet.replace(Members::new(run.known.clone()));
        run.take_turns();
        while !(run.held.is_empty() && run.halves.is_empty()) {
            run.held.clear();
            run.halves.clear();
            run.take_turns();
            run.check();
        }
        assert!(run.waiting.is_empty(), "every request was served");
    }
}
