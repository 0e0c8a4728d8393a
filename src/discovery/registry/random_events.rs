//! The laws of a changing fleet, over random sequences of events: lists, additions, removals, drains, switches, probes that
//! end well or badly, workers that fail and recover, requests that begin and end.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::task::{Complaint, TaskId, Told};
use super::tests::{REQUEST, listed};
use super::*;
use crate::fleet::{
    BreakerLimits, Evidence, Lease, Load, Members, NoWorker, Policies, Selection, Targets,
    WorkerId, WorkerParts,
};

/// Few, so that a worker comes and goes many times.
const PORTS: std::ops::Range<u16> = 1..9;

struct Run {
    fleet: Arc<Fleet>,
    registry: Registry,
    tasks: mpsc::UnboundedReceiver<Task>,
    /// Probes and drains whose end is still to come.
    waits: Vec<(TaskId, Until)>,
    rng: SmallRng,
    now: Instant,
    leases: Vec<Lease>,
    /// Legs that have outlived their peer.
    halves: Vec<Load>,
    /// All workers that have ever been a member, by id.
    known: HashMap<WorkerId, Arc<Worker>>,
    /// Snapshots that are held, each with the workers that it had.
    held: Vec<(Arc<Members>, Vec<WorkerId>)>,
    /// The ids of entries that are there, and of those that were.
    listed: HashSet<String>,
    gone: HashSet<String>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let fleet = Arc::new(Fleet::new(Policies::random(), BreakerLimits::default()));
        let describe: Describe = Box::new(|role, description| {
            let port = description.url.rsplit(':').next().unwrap().parse().unwrap();
            Ok(WorkerParts::for_tests(role, port))
        });
        let registry = Registry::new(fleet.clone(), describe);
        let tasks = registry.tasks.lock().unwrap().take().unwrap();
        Self {
            fleet,
            registry,
            tasks,
            waits: Vec::new(),
            rng: SmallRng::seed_from_u64(seed),
            now: Instant::now(),
            leases: Vec::new(),
            halves: Vec::new(),
            known: HashMap::new(),
            held: Vec::new(),
            listed: HashSet::new(),
            gone: HashSet::new(),
        }
    }

    fn role(&mut self) -> Role {
        [Role::Prefill, Role::Decode][self.rng.random_range(0..2)]
    }

    fn listed(&mut self) -> Listed {
        let firsts = [First::Serve, First::Probe, First::Ask { role: true }];
        let first = firsts[self.rng.random_range(0..firsts.len())];
        let mut listed = listed(self.role(), self.rng.random_range(PORTS), first);
        if self.rng.random_bool(0.1) {
            listed.parts.weight = self.rng.random_range(1..4);
            listed.parts.authorization = Some(http::HeaderValue::from_static("Bearer k"));
        }
        listed
    }

    fn name(&mut self) -> String {
        format!("http://127.0.0.1:{}", self.rng.random_range(PORTS))
    }

    fn event(&mut self) {
        match self.rng.random_range(0..100) {
            0..5 => {
                let sources = [Source::Config, Source::Kubernetes, Source::Dns("d".into())];
                let source = sources[self.rng.random_range(0..sources.len())].clone();
                let count = self.rng.random_range(0..5);
                let list = (0..count).map(|_| self.listed()).collect();
                self.registry.set(&source, list);
            }
            5..12 => {
                let listed = self.listed();
                let _ = self.registry.add(listed);
            }
            12..16 => {
                let leaves = [Leave::Now, Leave::Within(Duration::from_secs(1))];
                let leave = leaves[self.rng.random_range(0..2)];
                let name = self.name();
                self.registry.remove(&name, leave);
            }
            16..20 => {
                let name = self.name();
                self.registry.drain(&name);
            }
            20..24 => {
                let name = self.name();
                match self.rng.random_bool(0.5) {
                    true => self.registry.serve(&name),
                    false => self.registry.probe(&name),
                };
            }
            24..26 => self.switch(),
            26..40 => self.end_a_wait(),
            40..65 => self.select(),
            65..75 if !self.leases.is_empty() => {
                let ended = self.rng.random_range(0..self.leases.len());
                let Lease {
                    prefill, decode, ..
                } = self.leases.swap_remove(ended);
                drop(prefill);
                self.halves.push(decode);
            }
            75..85 if !self.halves.is_empty() => {
                let ended = self.rng.random_range(0..self.halves.len());
                drop(self.halves.swap_remove(ended));
            }
            85..92 => self.fail_or_recover(),
            92..95 => self.hold_or_drop(),
            _ => self.now += Duration::from_secs(self.rng.random_range(0..20)),
        }
    }

    /// As `/pd_role_switch` does it: only a worker that is drained and idle.
    fn switch(&mut self) {
        let name = self.name();
        if let Some(shown) = self.registry.drain(&name)
            && shown.life == Life::Draining
            && shown.worker.in_flight() == 0
        {
            self.registry
                .switch(&name, shown.worker.role().other(), None);
        }
    }

    /// A probe ends, or a worker is idle: as the task of the registry would note it.
    fn end_a_wait(&mut self) {
        while let Ok(task) = self.tasks.try_recv() {
            self.waits.push((task.id, task.until));
        }
        if self.waits.is_empty() {
            return;
        }
        let (id, until) = self
            .waits
            .swap_remove(self.rng.random_range(0..self.waits.len()));
        match until {
            Until::Idle(_) => {
                let is_busy = self
                    .registry
                    .state()
                    .get(id.0)
                    .is_some_and(|entry| entry.worker.in_flight() > 0);
                match is_busy {
                    true => self.waits.push((id, until)),
                    false => self.registry.change(|state| state.note_idle(id)),
                }
            }
            Until::Well(first) => {
                let told = match self.rng.random_range(0..10) {
                    0 => Err(Complaint::Contradicts("other".to_owned())),
                    1..3 => Err(Complaint::ForNow("not yet".to_owned())),
                    _ => Ok(Told {
                        role: matches!(first, First::Ask { role: true }).then(|| self.role()),
                        bootstrap_port: None,
                        layout: None,
                    }),
                };
                if self.registry.change(|state| state.note_probe(id, told)) {
                    self.waits.push((id, until));
                }
            }
        }
    }

    fn select(&mut self) {
        let wanted = Selection {
            request: &REQUEST,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now: self.now,
        };
        let rng = &mut self.rng;
        let selected = self.fleet.select(wanted, || rng.random());
        let members = self.fleet.members();
        match selected {
            Ok(lease) => {
                for worker in [&lease.prefill, &lease.decode] {
                    assert!(members.contains(worker.id()), "it is a member");
                    assert!(!worker.is_draining(), "it is not drained");
                }
                assert_eq!(
                    (lease.prefill.role(), lease.decode.role()),
                    (Role::Prefill, Role::Decode)
                );
                self.leases.push(lease);
            }
            // None is lost: a role without a worker that serves is the only reason.
            Err(NoWorker(role)) => {
                assert!(
                    members.of(role).iter().all(|worker| worker.is_draining()),
                    "{role}"
                );
            }
        }
    }

    /// Workers that were removed fail and recover as well: their last legs report on them.
    fn fail_or_recover(&mut self) {
        let evidence = [
            Evidence::Absent,
            Evidence::Bad,
            Evidence::Good,
            Evidence::Silent,
        ];
        let evidence = evidence[self.rng.random_range(0..evidence.len())];
        let mut known: Vec<_> = self.known.values().cloned().collect();
        known.sort_by_key(|worker| worker.id());
        if !known.is_empty() {
            let worker = &known[self.rng.random_range(0..known.len())];
            self.fleet.note(worker, evidence, self.now);
        }
    }

    /// As a choice, a probe or a broadcast does, for a while.
    fn hold_or_drop(&mut self) {
        if self.rng.random_bool(0.5) && !self.held.is_empty() {
            self.held
                .swap_remove(self.rng.random_range(0..self.held.len()));
            return;
        }
        let members = self.fleet.members();
        let ids = members.workers().map(|worker| worker.id()).collect();
        self.held.push((members, ids));
    }

    fn check_snapshots(&self) {
        for (members, had) in &self.held {
            let has: Vec<_> = members.workers().map(|worker| worker.id()).collect();
            assert_eq!(has, *had, "a snapshot that is held does not change");
            assert!(had.iter().all(|id| members.contains(*id)));
        }
        let members = self.fleet.members();
        for role in [Role::Prefill, Role::Decode] {
            assert!(members.of(role).iter().all(|worker| worker.role() == role));
        }
    }

    fn check_ids(&mut self) {
        let now: HashSet<_> = self
            .registry
            .workers()
            .into_iter()
            .map(|shown| shown.id)
            .collect();
        self.gone.extend(self.listed.difference(&now).cloned());
        assert!(
            self.gone.is_disjoint(&now),
            "the id of an entry was used twice"
        );
        self.listed = now;
    }

    fn check(&mut self) {
        self.check_snapshots();
        self.check_ids();
        let members: Arc<Members> = self.fleet.members();
        let mut addresses = HashSet::new();
        for worker in members.workers() {
            assert!(
                addresses.insert(worker.origin().port),
                "a worker is a member once, in one role"
            );
            let known = self
                .known
                .entry(worker.id())
                .or_insert_with(|| worker.clone());
            assert!(Arc::ptr_eq(known, worker), "an id was used twice");
        }
        let mut ids = HashSet::new();
        for shown in self.registry.workers() {
            assert!(ids.insert(shown.id.clone()), "two entries have one id");
            let is_member = members.contains(shown.worker.id());
            match shown.life {
                Life::Serving => assert!(is_member && !shown.worker.is_draining()),
                Life::Draining | Life::Leaving => assert!(shown.worker.is_draining()),
                Life::Pending => assert!(!is_member || shown.worker.is_draining()),
                Life::Failed => assert!(!is_member),
            }
            if is_member {
                addresses.remove(&shown.worker.origin().port);
            }
        }
        assert!(addresses.is_empty(), "every member is listed");
        let mut expected: HashMap<WorkerId, usize> = HashMap::new();
        let pairs = self
            .leases
            .iter()
            .map(|lease| [&lease.prefill, &lease.decode]);
        for load in pairs.flatten().chain(&self.halves) {
            *expected.entry(load.id()).or_default() += 1;
        }
        for worker in self.known.values() {
            assert_eq!(
                worker.in_flight(),
                expected.get(&worker.id()).copied().unwrap_or_default()
            );
        }
    }
}

#[test]
fn in_every_sequence_of_events_no_request_goes_to_a_worker_that_left_and_none_is_lost() {
    for seed in 0..150 {
        let mut run = Run::new(seed);
        for _ in 0..400 {
            run.event();
            run.check();
        }
        run.leases.clear();
        run.halves.clear();
        run.check();
        assert!(run.known.values().all(|worker| worker.in_flight() == 0));
        // What leaves is forgotten once nothing runs.
        while !run.waits.is_empty() || !run.tasks.is_empty() {
            run.end_a_wait();
            run.check();
        }
        let left = run.registry.workers();
        assert!(left.iter().all(|shown| shown.life != Life::Leaving));
        assert!(left.iter().all(|shown| shown.life != Life::Pending));
    }
}
