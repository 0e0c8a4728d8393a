//! The fleet: leases, and workers and pairs that fail and come back.

#![allow(clippy::unwrap_used)]

mod replace;
mod siblings;

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::pd::{Route, RoutingKey};

fn fleet(prefills: u16, decodes: u16) -> Arc<Fleet> {
    populated(empty(Policies::random()), prefills, decodes)
}

/// A fleet without members.
pub(super) fn empty(policies: Policies) -> Fleet {
    Fleet::new(policies, BreakerLimits::default())
}

/// The same with so many workers of each role.
pub(super) fn populated(fleet: Fleet, prefills: u16, decodes: u16) -> Arc<Fleet> {
    let fleet = Arc::new(fleet);
    let workers = |role, count| (0..count).map(move |port| WorkerParts::for_tests(role, port));
    let all = workers(Role::Prefill, prefills).chain(workers(Role::Decode, decodes));
    fleet.replace(Members::new(all.map(|parts| fleet.new_worker(parts))));
    fleet
}

impl Fleet {
    /// A member, by its place among those of its role.
    pub(super) fn member(&self, role: Role, index: usize) -> Arc<Worker> {
        self.members().of(role)[index].clone()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.members()
            .workers()
            .all(|worker| worker.in_flight() == 0)
    }
}

/// A request for tests whose policies read nothing of it.
pub(super) const REQUEST: RoutingKey = RoutingKey {
    route: Route::Generate,
    body_bytes: 0,
    prompts: 1,
    session: None,
    prefix: None,
    to_come: 0,
    rank: None,
};

pub(super) fn wanted(now: Instant, avoid: &[WorkerId]) -> Selection<'_> {
    Selection {
        request: &REQUEST,
        avoid,
        siblings: None,
        targets: Targets::default(),
        now,
    }
}

/// Draws that reach every candidate.
pub(super) fn draws() -> impl FnMut() -> u64 {
    let mut state = 0u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        state
    }
}

/// Draws that are independent of one another.
pub(super) fn unrelated_draws() -> impl FnMut() -> u64 {
    let mut rng = SmallRng::seed_from_u64(1);
    move || rng.random()
}

#[test]
fn a_lease_counts_up_both_workers_and_down_again_when_its_halves_drop() {
    let fleet = fleet(1, 1);
    let lease = fleet.select(wanted(Instant::now(), &[]), || 7).unwrap();
    assert_eq!(fleet.member(Role::Prefill, 0).in_flight(), 1);
    assert_eq!(fleet.member(Role::Decode, 0).in_flight(), 1);
    drop(lease.prefill);
    assert_eq!(fleet.member(Role::Prefill, 0).in_flight(), 0);
    assert_eq!(fleet.member(Role::Decode, 0).in_flight(), 1);
    drop(lease.decode);
    assert_eq!(fleet.member(Role::Decode, 0).in_flight(), 0);
}

#[test]
fn a_fleet_without_a_role_leases_nothing_and_names_the_role() {
    let now = Instant::now();
    let one_sided = fleet(1, 0);
    assert_eq!(
        one_sided.select(wanted(now, &[]), || 0).err(),
        Some(NoWorker(Role::Decode))
    );
    assert_eq!(one_sided.member(Role::Prefill, 0).in_flight(), 0);
    assert!(!one_sided.has_pair(now));
    let other = fleet(0, 1);
    assert_eq!(
        other.select(wanted(now, &[]), || 0).err(),
        Some(NoWorker(Role::Prefill))
    );
}

#[test]
fn a_worker_without_an_address_is_never_picked_until_it_has_one() {
    let now = Instant::now();
    let fleet = Arc::new(empty(Policies::random()));
    let unresolved = fleet.new_worker(WorkerParts::plain(Role::Prefill, "prefill", 1));
    let decode = fleet.new_worker(WorkerParts::for_tests(Role::Decode, 1));
    fleet.replace(Members::new([unresolved.clone(), decode]));
    // Whatever is noted about it, and although no other worker has its role.
    for evidence in [Evidence::Neutral, Evidence::Absent, Evidence::Good] {
        fleet.note(&unresolved, evidence, now);
        assert!(!fleet.has_pair(now));
        let refused = fleet.select(wanted(now, &[]), draws()).err();
        assert_eq!(refused, Some(NoWorker(Role::Prefill)));
    }
    unresolved.set_addresses(vec![([127, 0, 0, 1], 1).into()]);
    assert!(fleet.has_pair(now) && fleet.select(wanted(now, &[]), draws()).is_ok());
}

#[test]
fn a_worker_that_stops_responding_is_news_once_and_so_is_its_return() {
    let worker = Worker::for_tests(Role::Prefill, 1);
    let responded = [true, false, false, false, true, true, false];
    let news = responded.map(|responded| worker.note_answered(responded));
    assert_eq!(news, [false, true, false, false, true, false, true]);
}

#[test]
fn a_worker_that_refuses_connections_gets_nothing_as_long_as_there_is_another() {
    let fleet = fleet(2, 3);
    let now = Instant::now();
    let gone = fleet.member(Role::Prefill, 0);
    fleet.note(&gone, Evidence::Absent, now);
    let mut draw = draws();
    for _ in 0..1000 {
        let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
        assert_ne!(lease.prefill.id(), gone.id());
    }
    assert!(fleet.has_pair(now));
}

#[test]
fn a_worker_that_is_back_gets_a_tenth_of_a_share_first_and_a_whole_one_in_the_end() {
    let fleet = fleet(1, 2);
    let now = Instant::now();
    let returned = fleet.member(Role::Decode, 0);
    let mut draw = unrelated_draws();
    let mut percent = |now| {
        let picks = (0..10_000).filter(|_| {
            let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
            lease.decode.id() == returned.id()
        });
        (picks.count() + 50) / 100
    };
    assert_eq!(percent(now), 50, "at the first start");
    fleet.note(&returned, Evidence::Absent, now);
    assert_eq!(percent(now), 0);
    fleet.note(&returned, Evidence::Present, now);
    // The percentage of a worker with a part of its share, beside one with a whole share.
    for (seconds, expected) in [(0, 10 * 100 / 110), (5, 55 * 100 / 155), (10, 50)] {
        let seen = percent(now + Duration::from_secs(seconds));
        assert!(
            seen.abs_diff(expected) <= 1,
            "{seen} % after {seconds} s, not {expected} %"
        );
    }
}

#[test]
fn slow_start_refuses_no_request_where_all_workers_have_just_come_back() {
    let fleet = fleet(1, 2);
    let now = Instant::now();
    for worker in fleet.members().workers() {
        fleet.note(worker, Evidence::Absent, now);
        fleet.note(worker, Evidence::Present, now);
    }
    let mut draw = unrelated_draws();
    let picks = (0..1000).filter(|_| {
        let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
        lease.decode.id() == fleet.member(Role::Decode, 0).id()
    });
    assert!((450..550).contains(&picks.count()));
}

#[test]
fn when_all_workers_look_dead_they_are_tried() {
    let fleet = fleet(2, 1);
    let now = Instant::now();
    for worker in fleet.members().workers() {
        fleet.note(worker, Evidence::Absent, now);
    }
    assert!(!fleet.has_pair(now));
    let tried = fleet.select(wanted(now, &[]), draws()).unwrap();
    let other = fleet
        .select(
            wanted(now, &[tried.prefill.id(), tried.decode.id()]),
            draws(),
        )
        .unwrap();
    assert_ne!(other.prefill.id(), tried.prefill.id());
    assert_eq!(other.decode.id(), tried.decode.id(), "there is no other");
}

#[test]
fn a_pair_that_fails_together_is_not_picked_together() {
    let fleet = fleet(2, 2);
    let now = Instant::now();
    let (prefill, decode) = (
        fleet.member(Role::Prefill, 0),
        fleet.member(Role::Decode, 0),
    );
    for _ in 0..3 {
        fleet.note_pair_bad(&prefill, &decode, now);
    }
    let mut draw = draws();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..1000 {
        let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
        seen.insert((lease.prefill.id(), lease.decode.id()));
    }
    assert_eq!(seen.len(), 3);
    assert!(!seen.contains(&(prefill.id(), decode.id())));
    fleet.note_pair_good(&prefill, &decode);
    let back = (0..1000).any(|_| {
        let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
        (lease.prefill.id(), lease.decode.id()) == (prefill.id(), decode.id())
    });
    assert!(back);
}

#[test]
fn a_prefill_worker_all_of_whose_pairs_are_set_aside_is_not_picked() {
    let fleet = fleet(2, 1);
    let now = Instant::now();
    let (broken, decode) = (
        fleet.member(Role::Prefill, 0),
        fleet.member(Role::Decode, 0),
    );
    (0..3).for_each(|_| fleet.note_pair_bad(&broken, &decode, now));
    let mut draw = draws();
    for _ in 0..1000 {
        let lease = fleet.select(wanted(now, &[]), &mut draw).unwrap();
        assert_ne!(lease.prefill.id(), broken.id());
    }
    let other = fleet.member(Role::Prefill, 1);
    (0..3).for_each(|_| fleet.note_pair_bad(&other, &decode, now));
    assert!(
        fleet.select(wanted(now, &[]), &mut draw).is_ok(),
        "when all pairs look broken they are tried"
    );
}
