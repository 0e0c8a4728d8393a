//! The queue, one rule after the other.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::FutureExt;

use super::super::tests::{draws, empty, populated, wanted};
use super::super::{Evidence, Members, Policies, Role, WorkerParts};
use super::*;

/// A fleet whose clock the test turns.
pub(super) struct TestFleet {
    pub(super) fleet: Arc<Fleet>,
    now: Arc<Mutex<Instant>>,
    draw: Box<dyn FnMut() -> u64>,
}

impl TestFleet {
    pub(super) fn set(workers: (u16, u16), per_worker: usize, size: usize) -> Self {
        let now = Arc::new(Mutex::new(Instant::now()));
        let (clock, draws_of_queue) = (now.clone(), Mutex::new(draws()));
        let queue = Queue::new(
            NonZeroUsize::new(per_worker).unwrap(),
            size,
            move || *clock.lock().unwrap(),
            move || draws_of_queue.lock().unwrap()(),
        );
        Self {
            fleet: populated(
                empty(Policies::random()).limited(queue),
                workers.0,
                workers.1,
            ),
            now,
            draw: Box::new(draws()),
        }
    }

    pub(super) fn now(&self) -> Instant {
        *self.now.lock().unwrap()
    }

    pub(super) fn after(&self, millis: u64) {
        *self.now.lock().unwrap() += Duration::from_millis(millis);
    }

    pub(super) fn again(&mut self, avoid: &[WorkerId]) -> Result<Turn, Refusal> {
        let now = self.now();
        self.fleet.admit(wanted(now, avoid), &mut self.draw)
    }

    fn served(&mut self) -> Lease {
        match self.again(&[]) {
            Ok(Turn::Now(lease)) => lease,
            _ => panic!("not served at once"),
        }
    }

    fn waits(&mut self) -> Ticket {
        self.waits_again(&[])
    }

    fn waits_again(&mut self, avoid: &[WorkerId]) -> Ticket {
        match self.again(avoid) {
            Ok(Turn::Later(ticket)) => ticket,
            _ => panic!("it does not wait"),
        }
    }

    fn is_refused(&mut self) -> bool {
        let refused = matches!(self.again(&[]), Err(Refusal::QueueFull));
        assert_eq!(refused, self.fleet.is_full());
        refused
    }

    pub(super) fn of(&self, role: Role, index: usize) -> Arc<Worker> {
        self.fleet.member(role, index)
    }
}

pub(super) fn turn(ticket: &mut Ticket) -> Option<Lease> {
    ticket.turn().now_or_never()
}

#[test]
fn without_a_limit_every_request_is_served_at_once() {
    let fleet = populated(empty(Policies::random()), 1, 1);
    let mut leases = Vec::new();
    for _ in 0..1000 {
        assert!(!fleet.is_full());
        match fleet.admit(wanted(Instant::now(), &[]), || 0) {
            Ok(Turn::Now(lease)) => leases.push(lease),
            _ => panic!("not served at once"),
        }
    }
    drop(leases);
    assert!(fleet.is_idle());
}

#[test]
fn requests_that_find_all_workers_full_wait_and_are_served_in_the_order_of_arrival() {
    let mut test = TestFleet::set((1, 1), 2, 10);
    let (one, two) = (test.served(), test.served());
    let (mut three, mut four) = (test.waits(), test.waits());
    drop(one.prefill);
    assert!(turn(&mut three).is_none(), "decode is still full");
    drop(one.decode);
    let mut five = test.waits();
    assert!(turn(&mut four).is_none() && turn(&mut five).is_none());
    let three = turn(&mut three).unwrap();
    drop((two, three));
    let (four, five) = (turn(&mut four).unwrap(), turn(&mut five).unwrap());
    assert_eq!(test.of(Role::Decode, 0).in_flight(), 2);
    drop((four, five));
    test.served();
}

#[test]
fn a_request_that_leaves_gives_up_its_place_and_its_lease_goes_to_the_next() {
    let mut test = TestFleet::set((1, 1), 1, 2);
    let lease = test.served();
    let (one, two) = (test.waits(), test.waits());
    assert!(test.is_refused());
    drop(one);
    let mut three = test.waits();
    drop(lease);
    // The second request has its lease now, and leaves without having taken it.
    drop(two);
    assert!(turn(&mut three).is_some());
    assert!(test.fleet.is_idle());
}

#[test]
fn a_full_queue_refuses_and_a_queue_of_size_zero_refuses_where_no_pair_has_capacity() {
    let mut test = TestFleet::set((1, 1), 1, 1);
    let _lease = test.served();
    assert!(!test.fleet.is_full());
    let _ticket = test.waits();
    assert!(test.is_refused());
    let mut test = TestFleet::set((1, 1), 1, 0);
    assert!(!test.fleet.is_full());
    let lease = test.served();
    assert!(test.is_refused());
    drop(lease.prefill);
    assert!(test.is_refused());
    drop(lease.decode);
    test.served();
}

#[test]
fn a_request_that_is_tried_again_waits_in_front_and_others_take_what_it_avoids() {
    let mut test = TestFleet::set((2, 1), 1, 1);
    let (failed, other) = (test.of(Role::Prefill, 0), test.of(Role::Prefill, 1));
    let legs =
        [&failed, &other].map(|worker| worker.load_of(Share::default(), Some(test.fleet.clone())));
    let [one, two] = legs;
    let mut waits = test.waits();
    let mut tried = test.waits_again(&[failed.id()]);
    assert!(
        test.is_refused(),
        "a request that is tried again is not counted"
    );
    drop(one);
    assert!(
        turn(&mut tried).is_none(),
        "the capacity of the worker that failed it does not count"
    );
    let served = turn(&mut waits).unwrap();
    assert_eq!(served.prefill.id(), failed.id());
    drop(two);
    assert!(turn(&mut tried).is_none(), "decode is still full");
    let mut waits = test.waits();
    drop(served);
    assert!(turn(&mut waits).is_none(), "it waits behind the other");
    assert_eq!(turn(&mut tried).unwrap().prefill.id(), other.id());
}

#[test]
fn a_request_waits_for_a_full_worker_rather_than_take_one_that_is_set_aside() {
    let mut test = TestFleet::set((2, 1), 3, 10);
    let (gone, well) = (test.of(Role::Prefill, 0), test.of(Role::Prefill, 1));
    test.fleet.note(&gone, Evidence::Absent, test.now());
    let full = [0; 3].map(|_| well.load());
    let mut ticket = test.waits();
    test.after(500);
    assert!(turn(&mut ticket).is_none(), "the time alone is no event");
    test.fleet.serve_waiting();
    let trial = turn(&mut ticket).unwrap();
    assert_eq!(trial.prefill.id(), gone.id());
    let mut ticket = test.waits();
    test.fleet.note(&gone, Evidence::Good, test.now());
    assert_eq!(turn(&mut ticket).unwrap().prefill.id(), gone.id());
    test.fleet.note(&gone, Evidence::Absent, test.now());
    let mut ticket = test.waits();
    // When all workers look dead they are tried.
    test.fleet.note(&well, Evidence::Absent, test.now());
    assert_eq!(turn(&mut ticket).unwrap().prefill.id(), gone.id());
    drop(full);
}

#[test]
fn a_request_waits_rather_than_take_a_pair_that_is_set_aside() {
    let mut test = TestFleet::set((2, 2), 1, 10);
    let (prefill, decode) = (test.of(Role::Prefill, 0), test.of(Role::Decode, 0));
    for _ in 0..3 {
        test.fleet.note_pair_bad(&prefill, &decode, test.now());
    }
    let others = (
        test.of(Role::Prefill, 1).load(),
        test.of(Role::Decode, 1).load(),
    );
    let mut ticket = test.waits();
    test.fleet.note_pair_good(&prefill, &decode);
    let lease = turn(&mut ticket).unwrap();
    assert_eq!(
        (lease.prefill.id(), lease.decode.id()),
        (prefill.id(), decode.id())
    );
    drop(others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_request_is_served_while_threads_begin_end_and_leave_at_once() {
    let limit = NonZeroUsize::new(2).unwrap();
    let queue = Queue::new(limit, usize::MAX, Instant::now, rand::random);
    let fleet = populated(empty(Policies::random()).limited(queue), 2, 2);
    let clients = (0..16).map(|client| {
        let fleet = fleet.clone();
        tokio::spawn(async move {
            for round in 0..500 {
                let turn = fleet
                    .admit(wanted(Instant::now(), &[]), rand::random)
                    .unwrap();
                let lease = match turn {
                    Turn::Now(lease) => lease,
                    Turn::Later(_) if (client + round) % 5 == 0 => continue,
                    Turn::Later(mut ticket) => ticket.turn().await,
                };
                assert!(lease.decode.in_flight() <= limit.get());
                tokio::task::yield_now().await;
                drop(lease.prefill);
                tokio::task::yield_now().await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        let served = tokio::time::timeout(Duration::from_secs(30), client);
        served.await.expect("every request is served").unwrap();
    }
    assert!(fleet.is_idle());
}

#[test]
fn waiting_requests_are_served_by_new_members_and_not_by_removed_ones() {
    let mut test = TestFleet::set((1, 1), 1, 10);
    let new =
        |test: &TestFleet, role, port| test.fleet.new_worker(WorkerParts::for_tests(role, port));
    let (prefill, decode) = (test.of(Role::Prefill, 0), test.of(Role::Decode, 0));
    let lease = test.served();
    let (mut one, mut two) = (test.waits(), test.waits());
    let pair = [new(&test, Role::Prefill, 8), new(&test, Role::Decode, 9)];
    let all = [prefill, decode.clone()].into_iter().chain(pair.clone());
    test.fleet.replace(Members::new(all));
    let served = turn(&mut one).unwrap();
    assert_eq!(served.decode.id(), pair[1].id());
    assert!(turn(&mut two).is_none(), "all are full again");
    // The decode worker whose lease ends is removed before it ends.
    test.fleet.replace(Members::new(pair.clone()));
    drop(lease);
    assert_eq!(decode.in_flight(), 0);
    assert!(turn(&mut two).is_none(), "it gets nothing any more");
    drop(served);
    assert_eq!(turn(&mut two).unwrap().decode.id(), pair[1].id());
}

#[test]
fn a_waiting_request_survives_a_time_without_workers() {
    let mut test = TestFleet::set((1, 1), 1, 10);
    let members = || test.fleet.members().workers().cloned().collect::<Vec<_>>();
    let members = members();
    let lease = test.served();
    let mut ticket = test.waits();
    test.fleet.replace(Members::default());
    drop(lease);
    assert!(turn(&mut ticket).is_none());
    test.fleet.replace(Members::new(members));
    assert!(turn(&mut ticket).is_some());
}
