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

use super::select::Pair;
use super::{Fleet, Lease, NoWorker, Selection, Worker, WorkerId};
use crate::pd::RoutingKey;

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
    request: RoutingKey,
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
        wanted: Selection<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Result<Turn, Refusal> {
        let Some(queue) = &self.queue else {
            let lease = self.select(wanted, draw).map_err(Refusal::NoWorker)?;
            return Ok(Turn::Now(lease));
        };
        let Selection {
            request,
            avoid,
            now,
        } = wanted;
        let mut line = queue.line();
        self.serve(queue, &mut line);
        let tried = !avoid.is_empty();
        // What somebody waits for is not there for the next one either: that need not be looked for.
        if tried || line.untried() == 0 {
            let members = self.members.borrow();
            let filter = self.filter(&members, avoid, now, queue.per_worker.get());
            let found = filter.pair(request, &mut draw);
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
            request: request.clone(),
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
                let members = self.members.borrow();
                let filter = self.filter(&members, &[], (queue.now)(), queue.per_worker.get());
                matches!(filter.has_pair(&mut &*queue.draw), Ok(false))
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
        let members = self.members.borrow();
        let mut place = 0;
        while let Some(waiter) = line.waiters.get(place) {
            let filter = self.filter(&members, &waiter.avoid, now, queue.per_worker.get());
            match filter.pair(&waiter.request, &mut &*queue.draw) {
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
    fn lease(self: &Arc<Self>, (prefill, decode): Pair<'_>, now: Instant) -> Lease {
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
mod random_events;
#[cfg(test)]
mod tests;
