//! Selecting a pair; half of the workers are prefill workers.

use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use divan::counter::ItemsCount;
use mini_lb::fleet::{
    BreakerLimits, Evidence, Fleet, Members, Policies, Role, Selection, Targets, WorkerParts,
};
use mini_lb::pd::{Route, RoutingKey};

const FLEETS: [u16; 4] = [2, 20, 200, 2_000];

/// So many workers with these policies, of which half are prefill workers.
pub(super) fn fleet(workers: u16, policies: Policies) -> Arc<Fleet> {
    let fleet = Fleet::new(policies, BreakerLimits::default());
    let members = (0..workers).map(|number| {
        let is_prefill = number < workers / 2;
        let role = if is_prefill {
            Role::Prefill
        } else {
            Role::Decode
        };
        fleet.new_worker(WorkerParts::plain(role, "127.0.0.1", 10_000 + number))
    });
    let members = Members::new(members);
    let fleet = Arc::new(fleet);
    fleet.replace(members);
    fleet
}

fn bench_selection(bencher: Bencher<'_, '_>, fleet: &Arc<Fleet>, now: Instant) {
    let request = RoutingKey {
        route: Route::ChatCompletions,
        body_bytes: 1 << 10,
        prompts: 1,
        session: None,
        prefix: None,
        to_come: 0,
        rank: None,
    };
    let wanted = Selection {
        request: &request,
        avoid: &[],
        siblings: None,
        targets: Targets::default(),
        now,
    };
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench(|| fleet.select(wanted, rand::random).is_ok());
}

#[divan::bench(args = FLEETS)]
fn all_are_well(bencher: Bencher<'_, '_>, workers: u16) {
    bench_selection(bencher, &fleet(workers, Policies::random()), Instant::now());
}

/// One in ten prefill workers refuses connections, the first one among them.
#[divan::bench(args = FLEETS)]
fn some_are_set_aside(bencher: Bencher<'_, '_>, workers: u16) {
    let (fleet, now) = (fleet(workers, Policies::random()), Instant::now());
    for worker in fleet.members().of(Role::Prefill).iter().step_by(10) {
        fleet.note(worker, Evidence::Absent, now);
    }
    bench_selection(bencher, &fleet, now);
}

/// The whole of a change, of which the swap alone holds up choices.
#[divan::bench(args = FLEETS)]
fn the_members_are_replaced(bencher: Bencher<'_, '_>, workers: u16) {
    let fleet = fleet(workers, Policies::random());
    bencher.counter(ItemsCount::new(1_usize)).bench(|| {
        let members = fleet.members();
        fleet.replace(Members::new(members.workers().cloned()));
    });
}

/// One worker more, which choices wait for.
#[divan::bench(args = FLEETS)]
fn a_worker_joins(bencher: Bencher<'_, '_>, workers: u16) {
    bencher
        .counter(ItemsCount::new(1_usize))
        .with_inputs(|| {
            let fleet = fleet(workers, Policies::random());
            let worker = fleet.new_worker(WorkerParts::plain(Role::Decode, "127.0.0.1", 1));
            (fleet, worker)
        })
        .bench_values(|(fleet, worker)| {
            fleet.join(vec![worker]);
            fleet
        });
}

/// A drain begins and ends: what holds the lock against choices.
#[divan::bench(args = FLEETS)]
fn a_worker_drains_and_serves_again(bencher: Bencher<'_, '_>, workers: u16) {
    let fleet = fleet(workers, Policies::random());
    let worker = fleet.members().of(Role::Prefill)[0].clone();
    bencher.counter(ItemsCount::new(2_usize)).bench(|| {
        fleet.set_draining(&worker, true);
        fleet.set_draining(&worker, false);
    });
}
