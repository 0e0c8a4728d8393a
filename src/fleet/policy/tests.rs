//! The seam of the policies, with two small ones: what they see, when they are asked, and for which role.

#![allow(clippy::unwrap_used)]

mod lines;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::FutureExt;

use super::super::load::Share;
use super::super::tests::{draws, empty, populated, unrelated_draws};
use super::super::{
    Evidence, Fleet, Layout, Lease, Queue, Selection, Spread, Targets, Turn, WorkerId,
};
use super::*;
use crate::pd::{BLOCK_BYTES, Route};

/// One question to a policy.
type Asked = (RoutingKey, Vec<Candidate>);

/// Candidates in turn. Keeps all questions.
#[derive(Default)]
struct RoundRobin {
    last: Option<WorkerId>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Policy for RoundRobin {
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        _draw: u64,
    ) -> Option<usize> {
        let asked = (request.clone(), candidates.to_vec());
        self.asked.lock().unwrap().push(asked);
        let after = |candidate: &Candidate| self.last.is_none_or(|last| candidate.id > last);
        let next = candidates.iter().position(after).unwrap_or(0);
        self.last = Some(candidates.get(next)?.id);
        Some(next)
    }
}

/// Long requests to the first candidate, short ones to the last.
struct ByLength;

impl Policy for ByLength {
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        _draw: u64,
    ) -> Option<usize> {
        let last = candidates.len().checked_sub(1)?;
        Some(if request.body_bytes >= 1000 { 0 } else { last })
    }
}

/// A fleet whose roles have a round robin each, and what those were asked.
struct Watched {
    fleet: Arc<Fleet>,
    prefill: Arc<Mutex<Vec<Asked>>>,
    decode: Arc<Mutex<Vec<Asked>>>,
    now: Instant,
}

impl Watched {
    fn unlimited(prefills: u16, decodes: u16) -> Self {
        Self::new(prefills, decodes, |fleet, _| fleet)
    }

    /// One request at once for each worker, and ten that wait.
    fn limited(prefills: u16, decodes: u16) -> Self {
        Self::new(prefills, decodes, |fleet, now| {
            fleet.limited(Queue::new(NonZeroUsize::MIN, 10, move || now, || 0))
        })
    }

    fn new(prefills: u16, decodes: u16, limit: impl FnOnce(Fleet, Instant) -> Fleet) -> Self {
        let (prefill, decode) = (RoundRobin::default(), RoundRobin::default());
        let (asked_prefill, asked_decode) = (prefill.asked.clone(), decode.asked.clone());
        let now = Instant::now();
        let fleet = empty(Policies {
            prefill: RolePolicy::stateful(prefill),
            decode: RolePolicy::stateful(decode),
        });
        Self {
            fleet: populated(limit(fleet, now), prefills, decodes),
            prefill: asked_prefill,
            decode: asked_decode,
            now,
        }
    }

    fn select(&self) -> Lease {
        select(&self.fleet, &request(1), &[], self.now)
    }

    fn admit(&self, body_bytes: usize) -> Turn {
        let request = request(body_bytes);
        let wanted = Selection {
            request: &request,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now: self.now,
        };
        self.fleet.admit(wanted, || 0).unwrap()
    }

    /// How often each role was asked.
    fn count(&self) -> (usize, usize) {
        let count = |asked: &Mutex<Vec<Asked>>| asked.lock().unwrap().len();
        (count(&self.prefill), count(&self.decode))
    }

    fn ids(&self, role: Role) -> Vec<WorkerId> {
        let members = self.fleet.members();
        members.of(role).iter().map(|worker| worker.id()).collect()
    }
}

fn request(body_bytes: usize) -> RoutingKey {
    RoutingKey {
        route: Route::ChatCompletions,
        body_bytes,
        prompts: 1,
        session: None,
        prefix: None,
        to_come: 0,
        rank: None,
    }
}

/// A request about which nothing is known.
pub(super) fn key() -> RoutingKey {
    request(0)
}

/// Candidates without load.
pub(super) fn candidates(number: u64) -> Vec<Candidate> {
    let candidate = |id| Candidate {
        id: WorkerId(id),
        rank: 0,
        ranks: 1,
        are_replicas: false,
        in_flight: 0,
        body_bytes: 0,
        to_come: 0,
        cache_tokens: 0,
        weight: 1,
        digest: id,
    };
    (0..number).map(candidate).collect()
}

fn select(fleet: &Arc<Fleet>, request: &RoutingKey, avoid: &[WorkerId], now: Instant) -> Lease {
    let wanted = Selection {
        request,
        avoid,
        siblings: None,
        targets: Targets::default(),
        now,
    };
    fleet.select(wanted, draws()).unwrap()
}

fn last(asked: &Mutex<Vec<Asked>>) -> Asked {
    asked.lock().unwrap().last().unwrap().clone()
}

#[test]
fn a_policy_sees_the_request_and_the_workers_that_may_take_it_with_their_load() {
    let watched = Watched::unlimited(4, 1);
    let fleet = &watched.fleet;
    let workers: Vec<_> = fleet.members().of(Role::Prefill).to_vec();
    fleet.note(&workers[0], Evidence::Absent, watched.now);
    let _busy = [workers[3].load(), workers[3].load()];
    let long = request(70_000);
    let failed = [workers[1].id()];
    let share = Share {
        body_bytes: 500,
        ..Share::default()
    };
    let busy = workers[3].load_of(share, None);
    let seen = [2, 3].map(|index| workers[index].candidate());
    assert_eq!(
        seen.map(|seen| (seen.in_flight, seen.body_bytes)),
        [(0, 0), (3, 500)]
    );
    let lease = select(fleet, &long, &failed, watched.now);
    assert_eq!(lease.prefill.id(), workers[2].id());
    let loaded = workers[2].candidate();
    assert_eq!((loaded.in_flight, loaded.body_bytes), (1, 70_000));
    drop((lease, busy));
    assert_eq!(workers[2].candidate(), seen[0]);
    let seen = seen.to_vec();
    assert_eq!(last(&watched.prefill), (long, seen));
}

#[test]
fn a_policy_that_learns_is_told_how_legs_end_and_which_caches_are_lost() {
    let policies = Policies {
        prefill: RolePolicy::expected_ttft(),
        decode: RolePolicy::Random,
    };
    let fleet = populated(empty(policies), 1, 1);
    let now = Instant::now();
    let prefix = Arc::new(Prefix::for_tests(0..100, 100 * BLOCK_BYTES));
    let long = RoutingKey {
        prefix: Some(prefix.clone()),
        ..request(60_000)
    };
    let cached = || {
        let lease = select(&fleet, &long, &[], now);
        let usage = Usage {
            prompt_tokens: 100 * BLOCK_BYTES as u64,
            cached_tokens: None,
        };
        lease.prefill.served(Some(usage));
        lease.forecast.unwrap().expected().cached_tokens
    };
    assert_eq!(cached(), 0);
    let first = cached();
    assert!(first > 1000, "{first}");
    // A byte is a token here, of which each response tells more.
    assert!(cached() > first);
    let member = fleet.member(Role::Prefill, 0);
    fleet.note_flushed(&member);
    assert_eq!(cached(), 0);
    fleet.note(&member, Evidence::Absent, now);
    fleet.note(&member, Evidence::Present, now);
    assert_eq!(cached(), 0, "it may have been started again");
}

#[test]
fn a_choice_can_follow_from_the_request() {
    let policies = Policies {
        prefill: RolePolicy::stateful(ByLength),
        decode: RolePolicy::Random,
    };
    let fleet = populated(empty(policies), 3, 3);
    let now = Instant::now();
    let chosen = |bytes| select(&fleet, &request(bytes), &[], now).prefill.id();
    let members = fleet.members();
    let prefill = members.of(Role::Prefill);
    assert_eq!(chosen(1_000_000), prefill[0].id());
    assert_eq!(chosen(10), prefill[2].id());
}

#[test]
fn each_role_has_a_policy_of_its_own_that_is_asked_once_for_each_request() {
    let watched = Watched::unlimited(2, 3);
    let (prefill, decode) = (watched.ids(Role::Prefill), watched.ids(Role::Decode));
    for request in 0..6 {
        let lease = watched.select();
        assert_eq!(lease.prefill.id(), prefill[request % 2]);
        assert_eq!(lease.decode.id(), decode[request % 3]);
        assert_eq!(watched.count(), (request + 1, request + 1));
    }
}

#[test]
fn round_robin_skips_and_starves_no_worker_while_others_are_set_aside() {
    let watched = Watched::unlimited(5, 1);
    for gone in [0, 2] {
        let gone = watched.fleet.member(Role::Prefill, gone);
        watched.fleet.note(&gone, Evidence::Absent, watched.now);
    }
    let mut served = BTreeMap::new();
    for _ in 0..9 {
        *served.entry(watched.select().prefill.id()).or_insert(0) += 1;
    }
    let well = [1, 3, 4].map(|index| (watched.ids(Role::Prefill)[index], 3));
    assert_eq!(served, BTreeMap::from(well));
}

#[test]
fn a_policy_is_asked_once_where_pairs_are_set_aside_and_sees_no_worker_without_a_peer() {
    let watched = Watched::unlimited(3, 2);
    let fleet = &watched.fleet;
    let members = fleet.members();
    let (prefill, decode) = (members.of(Role::Prefill), members.of(Role::Decode));
    for lonely in decode {
        (0..3).for_each(|_| fleet.note_pair_bad(&prefill[0], lonely, watched.now));
    }
    (0..3).for_each(|_| fleet.note_pair_bad(&prefill[1], &decode[0], watched.now));
    let lease = watched.select();
    let ids = |(_, seen): Asked| seen.iter().map(|seen| seen.id).collect::<Vec<_>>();
    assert_eq!(lease.prefill.id(), prefill[1].id());
    assert_eq!(
        ids(last(&watched.prefill)),
        [prefill[1].id(), prefill[2].id()]
    );
    assert_eq!(ids(last(&watched.decode)), [decode[1].id()]);
    assert_eq!(watched.count(), (1, 1));
}

#[test]
fn a_policy_is_not_asked_when_no_pair_can_come_of_it() {
    let watched = Watched::limited(2, 1);
    let Turn::Now(served) = watched.admit(1) else {
        panic!("there is capacity");
    };
    assert_eq!(watched.count(), (1, 1));
    // A prefill worker has capacity, decode has none.
    let waits = watched.admit(2);
    assert!(!watched.fleet.is_full());
    watched.fleet.serve_waiting();
    assert!(matches!(waits, Turn::Later(_)));
    assert_eq!(watched.count(), (1, 1));
    drop((served, waits));
}

#[test]
fn a_request_that_waited_is_shown_with_the_candidates_of_its_turn() {
    let watched = Watched::limited(2, 2);
    let take = || match watched.admit(1) {
        Turn::Now(lease) => lease,
        Turn::Later(_) => panic!("there is capacity"),
    };
    let (_one, two) = (take(), take());
    let Turn::Later(mut ticket) = watched.admit(4242) else {
        panic!("all workers are full");
    };
    let freed = (two.prefill.id(), two.decode.id());
    drop(two);
    assert_eq!(watched.count(), (3, 3));
    let lease = ticket.turn().now_or_never().unwrap();
    assert_eq!((lease.prefill.id(), lease.decode.id()), freed);
    let members = watched.fleet.members();
    let free = |id| {
        let freed = members.workers().find(|worker| worker.id() == id);
        vec![Candidate {
            in_flight: 0,
            body_bytes: 0,
            ..freed.unwrap().candidate()
        }]
    };
    assert_eq!(last(&watched.prefill), (request(4242), free(freed.0)));
    assert_eq!(last(&watched.decode), (request(4242), free(freed.1)));
}

#[test]
fn slow_start_hides_a_worker_from_the_policy_for_most_requests() {
    let watched = Watched::unlimited(1, 2);
    let back = watched.fleet.member(Role::Decode, 0);
    watched.fleet.note(&back, Evidence::Absent, watched.now);
    watched.fleet.note(&back, Evidence::Present, watched.now);
    let (key, mut draw) = (request(1), unrelated_draws());
    let mut seen = 0;
    for _ in 0..2000 {
        let wanted = Selection {
            request: &key,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now: watched.now,
        };
        watched.fleet.select(wanted, &mut draw).unwrap();
        let (_, candidates) = last(&watched.decode);
        seen += usize::from(candidates.len() == 2);
    }
    // A tenth of the requests, as slow start has just begun.
    assert!((150..250).contains(&seen), "{seen} of 2000");
}
