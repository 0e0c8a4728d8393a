//! The queue before full workers: one for all, first come, first served.
//!
//! Where workers have a limit, a request that finds no pair with room waits here, and nobody overtakes it. Every
//! event that may make room (a leg ends, a worker or a pair is set aside or comes back) serves those who wait,
//! under one lock, so that room and waiting requests never stand side by side and the loads never pass the limit.
//! A request that is tried again waits in front of the others, and beyond the size of the queue: it had been let
//! in. It avoids the worker that failed it; whoever is behind it may take the room that it does not want.
//!
//! No lease can be lost: it is handed to one request, and when that has left, dropped like any other.
//! Time alone makes room too, when a worker's time aside is over, and is no event here: those who wait ask again
//! from time to time ([`Fleet::serve_waiting`]). Room that is left when a request ends has no caller that could
//! say what time it is, so the queue is given a clock and its draws when it is made.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Fleet, Lease, NoWorker, Pair, Worker, WorkerId};

/// The limit of the workers, and who waits for room.
pub struct Queue {
    per_worker: NonZeroUsize,
    size: usize,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    draw: Box<dyn Fn() -> u64 + Send + Sync>,
    line: Mutex<Line>,
}

/// When a request is served.
pub enum Turn {
    /// Now.
    Now(Lease),
    /// When the ticket says so.
    Later(Ticket),
}

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is nobody to serve it, ever.
    NoWorker(NoWorker),
    /// There is no room, and as many wait for it as may.
    QueueFull,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NoWorker(why) => write!(f, "{why}"),
            Refusal::QueueFull => f.write_str("all workers are full, and so is the queue"),
        }
    }
}

impl std::error::Error for Refusal {}

/// A place in the queue. It is given up by dropping it.
pub struct Ticket {
    fleet: Arc<Fleet>,
    number: u64,
    lease: oneshot::Receiver<Lease>,
}

/// Those who wait: first those that are tried again, then the others, each in the order in which they came.
#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    last_number: u64,
}

struct Waiter {
    number: u64,
    /// Empty for a request that was not tried before.
    avoid: Vec<WorkerId>,
    lease: oneshot::Sender<Lease>,
}

impl Queue {
    /// Nobody waits. Each worker accepts_share `per_worker` requests at once, and `size` requests may wait. `now` and
    /// `draw` give the time and uniformly distributed 64-bit values.
    pub fn new(
        per_worker: NonZeroUsize,
        size: usize,
        now: impl Fn() -> Instant + Send + Sync + 'static,
        draw: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self {
            per_worker,
            size,
            now: Box::new(now),
            draw: Box::new(draw),
            line: Mutex::default(),
        }
    }

    fn has_room(&self, worker: &Worker) -> bool {
        worker.in_flight() < self.per_worker.get()
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing panics while the lock is held.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// How many of those who wait are tried again. They stand in front.
    fn tried(&self) -> usize {
        self.waiters.partition_point(Waiter::was_tried)
    }

    /// How many of those who wait were not tried before.
    fn untried(&self) -> usize {
        self.waiters.len() - self.tried()
    }
}

impl Waiter {
    fn was_tried(&self) -> bool {
        !self.avoid.is_empty()
    }
}

impl Fleet {
    /// [`Fleet::select`] with room for one more request on both workers, now or later. The load of both is
    /// counted before anybody else is asked. `avoid` is empty for a request that was not tried before.
    ///
    /// # Errors
    /// A role has no worker, or too many wait already.
    pub fn admit(
        self: &Arc<Self>,
        mut draw: impl FnMut() -> u64,
        now: Instant,
        avoid: &[WorkerId],
    ) -> Result<Turn, Refusal> {
        let Some(queue) = &self.queue else {
            let lease = self.select(draw, now, avoid).map_err(Refusal::NoWorker)?;
            return Ok(Turn::Now(lease));
        };
        let mut line = queue.line();
        self.serve(queue, &mut line);
        let tried = !avoid.is_empty();
        // What somebody waits for is not there for the next one either: that need not be looked for.
        if tried || line.untried() == 0 {
            let found = self.find(&mut draw, now, avoid, |worker| queue.has_room(worker));
            if let Some(pair) = found.map_err(Refusal::NoWorker)? {
                return Ok(Turn::Now(self.lease(pair, now)));
            }
        }
        if !tried && line.untried() >= queue.size {
            return Err(Refusal::QueueFull);
        }
        line.last_number += 1;
        let number = line.last_number;
        let (sender, lease) = oneshot::channel();
        let place = if tried {
            line.tried()
        } else {
            line.waiters.len()
        };
        let waiter = Waiter {
            number,
            avoid: avoid.to_vec(),
            lease: sender,
        };
        line.waiters.insert(place, waiter);
        Ok(Turn::Later(Ticket {
            fleet: self.clone(),
            number,
            lease,
        }))
    }

    /// Whether a request that was not tried before would be refused now, so that it need not be read.
    pub fn is_full(&self) -> bool {
        let Some(queue) = &self.queue else {
            return false;
        };
        let line = queue.line();
        match line.untried() {
            waiting if waiting < queue.size => false,
            0 => {
                let has_room = |worker: &Worker| queue.has_room(worker);
                let found = self.find(&mut &*queue.draw, (queue.now)(), &[], has_room);
                matches!(found, Ok(None))
            }
            _ => true,
        }
    }

    /// Serves those who wait and can be served. Needed when nothing but time has passed.
    pub fn serve_waiting(self: &Arc<Self>) {
        if let Some(queue) = &self.queue {
            self.serve(queue, &mut queue.line());
        }
    }

    /// A leg of this worker has ended.
    pub(super) fn release(self: &Arc<Self>, worker: &Worker) {
        let Some(queue) = &self.queue else {
            return worker.release();
        };
        let mut line = queue.line();
        worker.release();
        self.serve(queue, &mut line);
    }

    fn serve(self: &Arc<Self>, queue: &Queue, line: &mut Line) {
        if line.waiters.is_empty() {
            return;
        }
        let now = (queue.now)();
        let mut place = 0;
        while let Some(waiter) = line.waiters.get(place) {
            let has_room = |worker: &Worker| queue.has_room(worker);
            let found = self.find(&mut &*queue.draw, now, &waiter.avoid, has_room);
            match found {
                Ok(Some(pair)) => {
                    let lease = self.lease(pair, now);
                    let sent = line
                        .waiters
                        .remove(place)
                        .map(|next| next.lease.send(lease));
                    if let Some(Err(lease)) = sent {
                        lease.end_untold();
                    }
                }
                _ if waiter.was_tried() => place += 1,
                // Nor can anybody behind.
                _ => return,
            }
        }
    }

    /// Counts the load of the pair; under the lock of the queue.
    fn lease(self: &Arc<Self>, (prefill, decode): Pair, now: Instant) -> Lease {
        prefill.picked(now);
        decode.picked(now);
        Lease {
            prefill: prefill.load_of(Some(self.clone())),
            decode: decode.load_of(Some(self.clone())),
        }
    }
}

impl Lease {
    /// Ends both loads without telling the fleet, whose queue is locked and being served.
    fn end_untold(mut self) {
        self.prefill.told = None;
        self.decode.told = None;
    }
}

impl Ticket {
    /// Resolves when it is this request's turn. May be dropped and called again.
    pub async fn turn(&mut self) -> Lease {
        match (&mut self.lease).await {
            Ok(lease) => lease,
            // The sender waits in the queue until it has sent.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Ticket {
    /// The place is given up before the receiver is, so that no lease is sent to nobody. One that was sent
    /// already is dropped with the receiver, and serves the next.
    fn drop(&mut self) {
        if let Some(queue) = &self.fleet.queue {
            let mut line = queue.line();
            line.waiters.retain(|waiter| waiter.number != self.number);
        }
    }
}

#[cfg(test)]
mod course;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::super::tests::{draws, unlimited};
    use super::super::{Evidence, Role};
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
                fleet: Arc::new(unlimited(workers.0, workers.1).limited(queue)),
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
            self.fleet.admit(&mut self.draw, now, avoid)
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
            self.fleet.of(role)[index].clone()
        }
    }

    pub(super) fn turn(ticket: &mut Ticket) -> Option<Lease> {
        ticket.turn().now_or_never()
    }

    #[test]
    fn without_a_limit_everybody_is_served_at_once() {
        let fleet = Arc::new(unlimited(1, 1));
        let mut leases = Vec::new();
        for _ in 0..1000 {
            assert!(!fleet.is_full());
            match fleet.admit(|| 0, Instant::now(), &[]) {
                Ok(Turn::Now(lease)) => leases.push(lease),
                _ => panic!("not served at once"),
            }
        }
        drop(leases);
        assert!(fleet.workers().all(|worker| worker.in_flight() == 0));
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
        assert!(stage.fleet.workers().all(|worker| worker.in_flight() == 0));
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
        let fleet = Arc::new(unlimited(2, 2).limited(queue));
        let clients = (0..16).map(|client| {
            let fleet = fleet.clone();
            tokio::spawn(async move {
                for round in 0..500 {
                    let turn = fleet.admit(rand::random, Instant::now(), &[]).unwrap();
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
        assert!(fleet.workers().all(|worker| worker.in_flight() == 0));
    }
}
