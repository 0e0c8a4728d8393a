//! The members are replaced while requests begin and end.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::*;

/// The fleet and the requests of one run of random events.
struct Run {
    fleet: Arc<Fleet>,
    rng: SmallRng,
    now: Instant,
    /// All workers that have ever been members.
    known: Vec<Arc<Worker>>,
    leases: Vec<Lease>,
    /// Legs that have outlived their peer.
    halves: Vec<Load>,
}

impl Run {
    fn new(seed: u64) -> Self {
        Self {
            fleet: Arc::new(empty(Policies::random())),
            rng: SmallRng::seed_from_u64(seed),
            now: Instant::now(),
            known: Vec::new(),
            leases: Vec::new(),
            halves: Vec::new(),
        }
    }

    fn any_worker(&mut self) -> Option<Arc<Worker>> {
        let count = self.known.len();
        (count > 0).then(|| self.known[self.rng.random_range(0..count)].clone())
    }

    fn event(&mut self) {
        match self.rng.random_range(0..100) {
            0..10 => self.replace(),
            10..50 => self.select(),
            50..65 if !self.leases.is_empty() => {
                let ended = self.rng.random_range(0..self.leases.len());
                let Lease {
                    prefill, decode, ..
                } = self.leases.swap_remove(ended);
                drop(prefill);
                self.halves.push(decode);
            }
            65..80 if !self.halves.is_empty() => {
                let ended = self.rng.random_range(0..self.halves.len());
                drop(self.halves.swap_remove(ended));
            }
            // Workers that were removed fail and recover as well: their last legs report on them.
            80..90 => {
                let evidence = [Evidence::Absent, Evidence::Bad, Evidence::Good];
                let evidence = evidence[self.rng.random_range(0..evidence.len())];
                if let Some(worker) = self.any_worker() {
                    self.fleet.note(&worker, evidence, self.now);
                }
            }
            90..97 => {
                if let (Some(one), Some(other)) = (self.any_worker(), self.any_worker()) {
                    self.fleet.note_pair_bad(&one, &other, self.now);
                }
            }
            _ => self.now += Duration::from_secs(self.rng.random_range(0..20)),
        }
    }

    fn replace(&mut self) {
        for _ in 0..self.rng.random_range(0..3) {
            let role = [Role::Prefill, Role::Decode][self.rng.random_range(0..2)];
            let parts = WorkerParts::for_tests(role, 1);
            self.known.push(self.fleet.new_worker(parts));
        }
        let members: Vec<_> = self
            .known
            .iter()
            .filter(|_| self.rng.random_bool(0.6))
            .cloned()
            .collect();
        self.fleet.replace(Members::new(members));
    }

    fn select(&mut self) {
        let rng = &mut self.rng;
        let selected = self.fleet.select(wanted(self.now, &[]), || rng.random());
        let members = self.fleet.members();
        match selected {
            Ok(lease) => {
                assert!(members.contains(lease.prefill.id()));
                assert!(members.contains(lease.decode.id()));
                self.leases.push(lease);
            }
            Err(NoWorker(role)) => assert!(members.of(role).is_empty()),
        }
    }

    fn check(&self) {
        let mut expected: HashMap<WorkerId, usize> = HashMap::new();
        let pairs = self
            .leases
            .iter()
            .map(|lease| [&lease.prefill, &lease.decode]);
        for load in pairs.flatten().chain(&self.halves) {
            *expected.entry(load.id()).or_default() += 1;
        }
        for worker in &self.known {
            let expected = expected.get(&worker.id()).copied().unwrap_or_default();
            assert_eq!(worker.in_flight(), expected);
        }
        let ids: HashSet<_> = self.known.iter().map(|worker| worker.id()).collect();
        assert_eq!(ids.len(), self.known.len(), "an id was used twice");
        let members = self.fleet.members();
        for (prefill, decode) in self.fleet.pairs.recorded() {
            assert!(members.contains(prefill) && members.contains(decode));
        }
    }
}

#[test]
fn no_removed_worker_gets_a_request_no_load_is_lost_and_no_id_is_used_twice() {
    for seed in 0..200 {
        let mut run = Run::new(seed);
        for _ in 0..300 {
            run.event();
            run.check();
        }
        run.leases.clear();
        run.halves.clear();
        run.check();
    }
}

#[test]
fn a_removed_worker_drains_and_has_its_load_and_health_when_it_comes_back() {
    let fleet = fleet(2, 1);
    let now = Instant::now();
    let all: Vec<_> = fleet.members().workers().cloned().collect();
    let (leaves, stays) = (all[0].clone(), all[1].clone());
    let load = leaves.load();
    fleet.replace(Members::new(all[1..].iter().cloned()));
    for _ in 0..100 {
        let lease = fleet.select(wanted(now, &[]), draws()).unwrap();
        assert_eq!(lease.prefill.id(), stays.id());
    }
    fleet.note(&leaves, Evidence::Absent, now);
    assert_eq!(leaves.in_flight(), 1);
    fleet.replace(Members::new(all));
    assert!(!leaves.admits(now));
    drop(load);
    assert_eq!(leaves.in_flight(), 0);
}

#[test]
fn a_pair_that_was_set_aside_is_unknown_after_the_removal_of_a_worker() {
    let fleet = fleet(1, 2);
    let now = Instant::now();
    let all: Vec<_> = fleet.members().workers().cloned().collect();
    for _ in 0..3 {
        fleet.note_pair_bad(&all[0], &all[1], now);
        fleet.note_pair_bad(&all[0], &all[2], now);
    }
    fleet.replace(Members::new([all[0].clone(), all[2].clone()]));
    // A leg that began before the removal reports on it.
    fleet.note_pair_bad(&all[0], &all[1], now);
    let recorded = fleet.pairs.recorded();
    assert_eq!(recorded, [(all[0].id(), all[2].id())]);
}

#[test]
fn a_worker_that_joins_is_not_in_the_lists_that_are_held() {
    let fleet = fleet(1, 1);
    let held = fleet.members();
    let joins = fleet.new_worker(WorkerParts::for_tests(Role::Decode, 9));
    fleet.join(vec![joins.clone(), joins.clone()]);
    assert_eq!(held.of(Role::Decode).len(), 1);
    assert!(!held.contains(joins.id()));
    assert_eq!(fleet.members().of(Role::Decode).len(), 2);
    assert_eq!(fleet.member(Role::Decode, 1).id(), joins.id());
}

#[test]
fn a_worker_that_is_named_twice_is_one_member() {
    let fleet = Arc::new(empty(Policies::random()));
    let worker = fleet.new_worker(WorkerParts::for_tests(Role::Decode, 1));
    let members = Members::new([worker.clone(), worker]);
    assert_eq!(members.workers().count(), 1);
}

/// Chooses the first candidate, but not before the test has begun to change the members.
struct Slow {
    asked: Arc<AtomicBool>,
    changing: Arc<AtomicBool>,
}

impl Policy for Slow {
    fn choose(&mut self, _: &RoutingKey, candidates: &[Candidate], _: u64) -> Option<usize> {
        self.asked.store(true, Ordering::SeqCst);
        wait_for(&self.changing);
        // Time enough for a change that does not wait.
        (0..10_000).for_each(|_| std::thread::yield_now());
        (!candidates.is_empty()).then_some(0)
    }
}

fn wait_for(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

/// Makes a change while a choice is under way, and returns the pair with the requests that it carried after the change.
fn changed_under_a_choice(
    change: impl FnOnce(&Arc<Fleet>, &Worker),
) -> ([Arc<Worker>; 2], [usize; 2]) {
    let (asked, changing) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
    let policies = Policies {
        prefill: RolePolicy::Random,
        decode: RolePolicy::stateful(Slow {
            asked: asked.clone(),
            changing: changing.clone(),
        }),
    };
    let fleet = populated(empty(policies), 1, 1);
    let pair = [Role::Prefill, Role::Decode].map(|role| fleet.member(role, 0));
    let carried = std::thread::scope(|scope| {
        let selecting = scope.spawn(|| fleet.select(wanted(Instant::now(), &[]), || 0));
        wait_for(&asked);
        changing.store(true, Ordering::SeqCst);
        change(&fleet, &pair[1]);
        // The lease is held by the result of the other thread.
        let carried = [pair[0].in_flight(), pair[1].in_flight()];
        drop(selecting.join().unwrap());
        carried
    });
    (pair, carried)
}

#[test]
fn a_change_of_the_members_waits_until_the_loads_of_choices_under_way_are_counted() {
    let changes: [fn(&Arc<Fleet>, &Worker); 2] = [
        |fleet, _| fleet.replace(Members::default()),
        |fleet, decode| fleet.set_draining(decode, true),
    ];
    for change in changes {
        let (pair, carried) = changed_under_a_choice(change);
        assert_eq!(carried, [1, 1]);
        assert!(pair.iter().all(|worker| worker.in_flight() == 0));
    }
}

#[tokio::test]
async fn a_worker_that_drains_gets_no_request_even_where_there_is_no_other() {
    let fleet = fleet(1, 1);
    let now = Instant::now();
    let decode = fleet.member(Role::Decode, 0);
    let lease = fleet.select(wanted(now, &[]), draws()).unwrap();
    fleet.set_draining(&decode, true);
    let refused = fleet.select(wanted(now, &[]), draws()).err();
    assert_eq!(refused, Some(NoWorker(Role::Decode)));
    assert!(!fleet.has_pair(now));
    assert_eq!(fleet.condition(&decode, now), Condition::Draining);
    let drained = decode.drained();
    tokio::pin!(drained);
    let pending = futures_util::poll!(drained.as_mut());
    assert!(pending.is_pending(), "it has a request");
    drop(lease);
    drained.await;
    fleet.set_draining(&decode, false);
    assert!(fleet.select(wanted(now, &[]), draws()).is_ok());
}
