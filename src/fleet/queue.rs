//! The queue of requests that wait for a pair with capacity: one for the whole fleet, first come, first served.
//!
//! Where workers have a limit, a request that finds no pair with capacity waits here, and no later request overtakes
//! it. Every event that may give a pair capacity (a leg ends, a worker or a pair is set aside or comes back, the
//! members are replaced) serves the waiting requests under one lock, so that a request never waits while a pair could
//! take it, and the loads never pass the limit.
//!
//! A request that is tried again waits in front of the others, and is not counted in the size of the queue: it had
//! been let in. It avoids the worker that failed it; a request behind it may take the capacity of that worker.
//!
//! No lease is lost: it is sent to one request, and if that has left, it is dropped like any other.
//!
//! No event says that a worker's time aside is over, so that waiting requests ask once a second
//! ([`Fleet::serve_waiting`]). A leg that ends does so in a drop, which has no caller that could hand in the time and
//! a draw: the queue is given a clock and a source of draws when it is made.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use super::load::Share;
use super::{Fleet, Lease, NoWorker, Selection, Siblings, Targets, Worker, WorkerId};
use crate::pd::RoutingKey;

/// No worker has ever had a limit, so that no request can wait.
const OFF: usize = 0;

/// No worker has a limit any more. Requests may still wait.
const LIFTED: usize = usize::MAX;

/// The limit of the workers, and the requests that wait because of it.
pub struct Queue {
    /// The most requests in flight on one worker; [`OFF`], [`LIFTED`].
    per_worker: AtomicUsize,
    /// The most requests that wait for their first attempt.
    size: AtomicUsize,
    now: Box<dyn Fn() -> Instant + Send + Sync>,
    draw: Box<dyn Fn() -> u64 + Send + Sync>,
    line: Mutex<Line>,
}

/// When a request gets its pair.
pub enum Turn {
    /// Now.
    Now(Lease),
    /// When [`Ticket::turn`] resolves.
    Later(Ticket),
}

/// Why a request neither gets a pair nor may wait for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A role has no worker with an address.
    NoWorker(NoWorker),
    /// No pair has capacity, and as many requests wait as may.
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

/// A place in the queue. Dropping it gives the place up.
pub struct Ticket {
    fleet: Arc<Fleet>,
    number: u64,
    lease: oneshot::Receiver<Lease>,
}

/// The waiting requests: first those that are tried again, then the others, both in the order of their arrival.
#[derive(Default)]
struct Line {
    waiters: VecDeque<Waiter>,
    last_number: u64,
}

struct Waiter {
    number: u64,
    request: RoutingKey,
    /// Empty for a request that was not tried before.
    avoid: Vec<WorkerId>,
    siblings: Option<Arc<Siblings>>,
    targets: Targets,
    lease: oneshot::Sender<Lease>,
}

impl Queue {
    /// An empty queue. A worker takes `per_worker` requests at once, or all where it is `None`, and `size` requests may wait. `now` and `draw`
    /// give the time and uniformly distributed 64-bit values.
    pub fn new(
        per_worker: impl Into<Option<NonZeroUsize>>,
        size: usize,
        now: impl Fn() -> Instant + Send + Sync + 'static,
        draw: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let per_worker = per_worker.into();
        Self {
            per_worker: AtomicUsize::new(per_worker.map_or(OFF, NonZeroUsize::get)),
            size: AtomicUsize::new(size),
            now: Box::new(now),
            draw: Box::new(draw),
            line: Mutex::default(),
        }
    }

    fn per_worker(&self) -> usize {
        self.per_worker.load(Ordering::Relaxed)
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // Nothing panics while the lock is held.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// How many of the waiting requests are tried again. They stand in front.
    fn tried(&self) -> usize {
        self.waiters.partition_point(Waiter::was_tried)
    }

    /// How many of the waiting requests were not tried before.
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
    /// Selects a pair with capacity for one more request on both workers, now or later. Their load is counted before
    /// the next request is looked at.
    ///
    /// # Errors
    /// A role has no worker, or too many requests wait already.
    pub fn admit(
        self: &Arc<Self>,
        wanted: Selection<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Result<Turn, Refusal> {
        let Some(queue) = self.active_queue() else {
            let lease = self.select(wanted, draw).map_err(Refusal::NoWorker)?;
            return Ok(Turn::Now(lease));
        };
        let Selection {
            request,
            avoid,
            siblings,
            targets,
            now,
        } = wanted;
        let mut line = queue.line();
        self.serve(queue, &mut line);
        let tried = !avoid.is_empty();
        // If a request waits already, there is no pair for a newcomer either: the search is skipped.
        if tried || line.untried() == 0 {
            let members = self.members.borrow();
            let filter = self.filter(&members, avoid, now, queue.per_worker());
            let filter = filter.among(siblings, targets);
            let found = filter.pair(request, &mut draw);
            if let Some(pair) = found.map_err(Refusal::NoWorker)? {
                let lease = Lease::of(pair, request, now, Some(self));
                return Ok(Turn::Now(lease.taught(self, request)));
            }
        }
        // Requests that belong together are let in or refused together: the first of them decides.
        let let_in = siblings.is_some_and(|siblings| siblings.admit());
        if !tried && !let_in && line.untried() >= queue.size() {
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
            request: request.clone(),
            avoid: avoid.to_vec(),
            siblings: siblings.cloned(),
            targets,
            lease: sender,
        };
        line.waiters.insert(place, waiter);
        Ok(Turn::Later(Ticket {
            fleet: self.clone(),
            number,
            lease,
        }))
    }

    /// The queue, unless no request can wait in it.
    pub(super) fn active_queue(&self) -> Option<&Queue> {
        self.queue
            .as_ref()
            .filter(|queue| queue.per_worker() != OFF)
    }

    /// Other limits from now on; `None` is no limit. A fleet without a queue keeps none. Requests that wait are served, as
    /// far as the limits allow.
    pub fn set_queue(self: &Arc<Self>, per_worker: Option<NonZeroUsize>, size: usize) {
        self.set_gate_size(size);
        let Some(queue) = &self.queue else { return };
        queue.size.store(size, Ordering::Relaxed);
        let per_worker = match (per_worker, queue.per_worker()) {
            (Some(per_worker), _) => per_worker.get(),
            (None, OFF) => OFF,
            (None, _) => LIFTED,
        };
        queue.per_worker.store(per_worker, Ordering::Relaxed);
        self.serve_waiting();
    }

    /// Requests that wait for a pair, or at the gate.
    pub fn waiting(&self) -> usize {
        let queue = self.queue.as_ref();
        self.at_gate() + queue.map_or(0, |queue| queue.line().waiters.len())
    }

    /// The most requests in flight on one worker; `None` without a limit.
    pub fn per_worker(&self) -> Option<usize> {
        let per_worker = self.active_queue()?.per_worker();
        (per_worker != LIFTED).then_some(per_worker)
    }

    /// Whether a new request would be refused now, so that its body need not be read.
    pub fn is_full(&self) -> bool {
        if self.is_gate_full() {
            return true;
        }
        let Some(queue) = self.active_queue() else {
            return false;
        };
        let line = queue.line();
        match line.untried() {
            waiting if waiting < queue.size() => false,
            0 => {
                let members = self.members.borrow();
                let filter = self.filter(&members, &[], (queue.now)(), queue.per_worker());
                matches!(filter.has_pair(&mut &*queue.draw), Ok(false))
            }
            _ => true,
        }
    }

    /// Serves the waiting requests that can be served. Callers need it only where nothing but time has passed.
    pub fn serve_waiting(self: &Arc<Self>) {
        if let Some(queue) = self.active_queue() {
            self.serve(queue, &mut queue.line());
        }
    }

    /// Takes one request off a worker, and serves the waiting requests.
    pub(super) fn release(self: &Arc<Self>, worker: &Worker, share: Share) {
        let Some(queue) = self.active_queue() else {
            return worker.release(share);
        };
        let mut line = queue.line();
        worker.release(share);
        self.serve(queue, &mut line);
    }

    fn serve(self: &Arc<Self>, queue: &Queue, line: &mut Line) {
        // A closed gate serves them when it opens.
        if line.waiters.is_empty() || self.is_closed() {
            return;
        }
        let now = (queue.now)();
        let members = self.members.borrow();
        let mut place = 0;
        while let Some(waiter) = line.waiters.get(place) {
            let filter = self.filter(&members, &waiter.avoid, now, queue.per_worker());
            let filter = filter.among(waiter.siblings.as_ref(), waiter.targets);
            match filter.pair(&waiter.request, &mut &*queue.draw) {
                Ok(Some(pair)) => {
                    let lease = Lease::of(pair, &waiter.request, now, Some(self));
                    let lease = lease.taught(self, &waiter.request);
                    if let Some(next) = line.waiters.remove(place)
                        && let Err(lease) = next.lease.send(lease)
                    {
                        lease.end_silently();
                    }
                }
                _ if waiter.was_tried() || waiter.targets.are_named() => place += 1,
                // Nor can any request behind it: they avoid no worker either.
                _ => return,
            }
        }
    }
}

impl Lease {
    /// Ends both loads without serving the queue, which is locked and being served.
    fn end_silently(mut self) {
        self.prefill.serves = None;
        self.decode.serves = None;
    }
}

impl Ticket {
    /// The pair, when it is this request's turn. The future may be dropped and the method called again.
    pub async fn turn(&mut self) -> Lease {
        match (&mut self.lease).await {
            Ok(lease) => lease,
            // The sender waits in the queue until it has sent.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Ticket {
    /// The place goes before the receiver does, so that no lease is sent without a receiver. A lease that has been
    /// sent already is dropped with the receiver, which serves the next request.
    fn drop(&mut self) {
        if let Some(queue) = &self.fleet.queue {
            let mut line = queue.line();
            line.waiters.retain(|waiter| waiter.number != self.number);
        }
    }
}

#[cfg(test)]
mod random_events;
#[cfg(test)]
mod tests;
