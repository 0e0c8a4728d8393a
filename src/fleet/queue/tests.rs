//! The queue, one situation after the other, with a clock that the test turns.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::FutureExt;

use super::super::tests::{draws, empty, populated, wanted};
use super::super::{Evidence, Members, Policies, Role, WorkerParts};
use super::*;

/// A fleet whose clock the test turns.
pub(super) struct Stage {
    pub(super) fleet: Arc<Fleet>,
    now: Arc<Mutex<Instant>>,
    draw: Box<dyn FnMut() -> u64>,
}

impl Stage {
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
fn without_a_limit_everybody_is_served_at_once() {
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
fn who_finds_all_workers_full_waits_and_is_served_in_the_order_of_coming() {
    let mut stage = Stage::set((1, 1), 2, 10);
    let (one, two) = (stage.served(), stage.served());
    let (mut three, mut four) = (stage.waits(), stage.waits());
    drop(one.prefill);
    assert!(turn(&mut three).is_none(), "decode is full still");
    drop(one.decode);
    let mut five = stage.waits();
    assert!(turn(&mut four).is_none() && turn(&mut five).is_none());
    let three = turn(&mut three).unwrap();
    drop((two, three));
    let (four, five) = (turn(&mut four).unwrap(), turn(&mut five).unwrap());
    assert_eq!(stage.of(Role::Decode, 0).in_flight(), 2);
    drop((four, five));
    stage.served();
}

#[test]
fn who_leaves_gives_up_its_place_and_a_turn_that_it_had_goes_to_the_next() {
    let mut stage = Stage::set((1, 1), 1, 2);
    let lease = stage.served();
    let (one, two) = (stage.waits(), stage.waits());
    assert!(stage.is_refused());
    drop(one);
    let mut three = stage.waits();
    drop(lease);
    // It is the second one's turn, which leaves without having looked.
    drop(two);
    assert!(turn(&mut three).is_some());
    assert!(stage.fleet.is_idle());
}

#[test]
fn a_full_queue_refuses_and_one_of_no_size_refuses_where_there_is_no_room() {
    let mut stage = Stage::set((1, 1), 1, 1);
    let _lease = stage.served();
    assert!(!stage.fleet.is_full());
    let _ticket = stage.waits();
    assert!(stage.is_refused());
    let mut stage = Stage::set((1, 1), 1, 0);
    assert!(!stage.fleet.is_full());
    let lease = stage.served();
    assert!(stage.is_refused());
    drop(lease.prefill);
    assert!(stage.is_refused());
    drop(lease.decode);
    stage.served();
}

#[test]
fn a_request_that_is_tried_again_waits_in_front_and_others_take_what_it_avoids() {
    let mut stage = Stage::set((2, 1), 1, 1);
    let (failed, other) = (stage.of(Role::Prefill, 0), stage.of(Role::Prefill, 1));
    let legs = [&failed, &other].map(|worker| worker.load_of(Some(stage.fleet.clone())));
    let [one, two] = legs;
    let mut waits = stage.waits();
    let mut tried = stage.waits_again(&[failed.id()]);
    assert!(stage.is_refused(), "it is not among those that are counted");
    drop(one);
    assert!(
        turn(&mut tried).is_none(),
        "room where it has failed is none"
    );
    let served = turn(&mut waits).unwrap();
    assert_eq!(served.prefill.id(), failed.id());
    drop(two);
    assert!(turn(&mut tried).is_none(), "decode is full still");
    let mut waits = stage.waits();
    drop(served);
    assert!(turn(&mut waits).is_none(), "it is behind");
    assert_eq!(turn(&mut tried).unwrap().prefill.id(), other.id());
}

#[test]
fn a_well_worker_that_is_full_is_waited_for_rather_than_one_that_is_set_aside() {
    let mut stage = Stage::set((2, 1), 3, 10);
    let (gone, well) = (stage.of(Role::Prefill, 0), stage.of(Role::Prefill, 1));
    stage.fleet.note(&gone, Evidence::Absent, stage.now());
    let full = [0; 3].map(|_| well.load());
    let mut ticket = stage.waits();
    stage.after(500);
    assert!(
        turn(&mut ticket).is_none(),
        "nobody has looked at the clock"
    );
    stage.fleet.serve_waiting();
    let trial = turn(&mut ticket).unwrap();
    assert_eq!(trial.prefill.id(), gone.id());
    let mut ticket = stage.waits();
    stage.fleet.note(&gone, Evidence::Good, stage.now());
    assert_eq!(turn(&mut ticket).unwrap().prefill.id(), gone.id());
    stage.fleet.note(&gone, Evidence::Absent, stage.now());
    let mut ticket = stage.waits();
    // When all look dead they are tried.
    stage.fleet.note(&well, Evidence::Absent, stage.now());
    assert_eq!(turn(&mut ticket).unwrap().prefill.id(), gone.id());
    drop(full);
}

#[test]
fn a_pair_that_is_set_aside_is_waited_around() {
    let mut stage = Stage::set((2, 2), 1, 10);
    let (prefill, decode) = (stage.of(Role::Prefill, 0), stage.of(Role::Decode, 0));
    for _ in 0..3 {
        stage.fleet.note_pair_bad(&prefill, &decode, stage.now());
    }
    let others = (
        stage.of(Role::Prefill, 1).load(),
        stage.of(Role::Decode, 1).load(),
    );
    let mut ticket = stage.waits();
    stage.fleet.note_pair_good(&prefill, &decode);
    let lease = turn(&mut ticket).unwrap();
    assert_eq!(
        (lease.prefill.id(), lease.decode.id()),
        (prefill.id(), decode.id())
    );
    drop(others);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_turn_comes_where_threads_come_end_and_leave_at_once() {
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
        served.await.expect("every turn comes").unwrap();
    }
    assert!(fleet.is_idle());
}

#[test]
fn waiting_requests_are_served_by_new_members_and_not_by_removed_ones() {
    let mut stage = Stage::set((1, 1), 1, 10);
    let new =
        |stage: &Stage, role, port| stage.fleet.new_worker(WorkerParts::for_tests(role, port));
    let (prefill, decode) = (stage.of(Role::Prefill, 0), stage.of(Role::Decode, 0));
    let lease = stage.served();
    let (mut one, mut two) = (stage.waits(), stage.waits());
    let pair = [new(&stage, Role::Prefill, 8), new(&stage, Role::Decode, 9)];
    let all = [prefill, decode.clone()].into_iter().chain(pair.clone());
    stage.fleet.replace(Members::new(all));
    let served = turn(&mut one).unwrap();
    assert_eq!(served.decode.id(), pair[1].id());
    assert!(turn(&mut two).is_none(), "all are full again");
    // The decode worker whose lease ends is removed before it ends.
    stage.fleet.replace(Members::new(pair.clone()));
    drop(lease);
    assert_eq!(decode.in_flight(), 0);
    assert!(turn(&mut two).is_none(), "it gets nothing any more");
    drop(served);
    assert_eq!(turn(&mut two).unwrap().decode.id(), pair[1].id());
}

#[test]
fn a_request_waits_through_a_time_without_workers() {
    let mut stage = Stage::set((1, 1), 1, 10);
    let members = || stage.fleet.members().workers().cloned().collect::<Vec<_>>();
    let members = members();
    let lease = stage.served();
    let mut ticket = stage.waits();
    stage.fleet.replace(Members::default());
    drop(lease);
    assert!(turn(&mut ticket).is_none());
    stage.fleet.replace(Members::new(members));
    assert!(turn(&mut ticket).is_some());
}
