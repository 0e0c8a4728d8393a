//! The gate in front of the choice of a pair: closed while generation is paused, while weights change, and while memory
//! is released.
//!
//! New requests, and those that are tried again, wait at the gate instead of at a worker that would not compute them.
//! Requests that were sent before it closed are not touched: a worker ends or keeps them as it was told to. An open gate
//! costs a request one load of a flag; nothing is locked and nothing allocated.
//!
//! The gate closes before the first worker is called, so that no request is half under the old weights and half under
//! the new ones. What the fleet as a whole is meant to do (pause, serve) is kept here, and which worker does not do it is
//! kept with the worker ([`Worker::is_paused`]): one that could not be continued gets no request, and the gate opens when
//! each role has a worker that was continued.
//!
//! How long a request waits, and what else ends its wait, is decided by its caller.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{Fleet, Role, Siblings, Worker};

/// The gate of a fleet.
pub(super) struct Gate {
    /// What `state` comes to. Read by every request.
    closed: AtomicBool,
    state: Mutex<State>,
    /// The same as `closed`, for those that wait.
    signal: watch::Sender<bool>,
    /// The most requests that wait for their first attempt.
    size: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Generation is meant to be paused.
    paused: bool,
    /// A role has no worker but paused ones, although generation is meant to go on.
    stuck: bool,
    /// Changes of weights that are under way.
    updates: usize,
    /// The memory that workers have released.
    released: BTreeSet<String>,
    /// Requests that wait for their first attempt.
    waiting: usize,
    /// Requests that wait for another attempt.
    waiting_again: usize,
}

/// Why requests wait at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Generation is paused.
    Paused,
    /// Generation was to continue, and a role has no worker that does.
    NotContinued,
    /// Weights change.
    Updating,
    /// Workers have released memory.
    Released,
}

impl Closed {
    /// The reason as a part of a sentence.
    pub const fn name(self) -> &'static str {
        match self {
            Closed::Paused => "generation is paused",
            Closed::NotContinued => "no pair of workers has continued generation",
            Closed::Updating => "weights are being updated",
            Closed::Released => "workers have released their memory",
        }
    }
}

impl State {
    fn closed(&self) -> Option<Closed> {
        match self {
            State { paused: true, .. } => Some(Closed::Paused),
            State { stuck: true, .. } => Some(Closed::NotContinued),
            State { updates: 1.., .. } => Some(Closed::Updating),
            State { released, .. } if !released.is_empty() => Some(Closed::Released),
            _ => None,
        }
    }
}

impl Gate {
    /// An open gate, at which `size` requests may wait.
    pub(super) fn new(size: usize) -> Self {
        Self {
            closed: AtomicBool::new(false),
            state: Mutex::default(),
            signal: watch::Sender::new(false),
            size: AtomicUsize::new(size),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Changes the state, and returns whether that has opened or closed the gate.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> (T, bool) {
        let mut state = self.state();
        let changed = change(&mut state);
        let closed = state.closed().is_some();
        // Under the lock, so that the flag of an older state does not come last.
        let turned = self.closed.swap(closed, Ordering::Release) != closed;
        if turned {
            self.signal.send_replace(closed);
        }
        (changed, turned)
    }
}

/// A place at the closed gate. Dropping it gives the place up.
pub struct AtGate {
    fleet: Arc<Fleet>,
    opened: watch::Receiver<bool>,
    again: bool,
}

impl AtGate {
    /// Resolves when the gate is open. The future may be dropped and the method called again.
    pub async fn opened(&mut self) {
        if self.opened.wait_for(|closed| !closed).await.is_err() {
            // The sender lives as long as the fleet.
            std::future::pending().await
        }
    }
}

impl Drop for AtGate {
    fn drop(&mut self) {
        let mut state = self.fleet.gate.state();
        match self.again {
            true => state.waiting_again -= 1,
            false => state.waiting -= 1,
        }
    }
}

/// A change of weights, during which the gate is closed. It is over when this is dropped.
pub struct Update(Arc<Fleet>);

impl Drop for Update {
    fn drop(&mut self) {
        self.0.turn_gate(|state| state.updates -= 1);
    }
}

impl Fleet {
    /// Whether requests must wait at the gate.
    pub fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    /// Why requests wait at the gate; `None` while it is open.
    pub fn closed(&self) -> Option<Closed> {
        self.gate.is_closed().then(|| self.gate.state().closed())?
    }

    /// Whether generation is meant to be paused.
    pub fn is_paused(&self) -> bool {
        self.gate.is_closed() && self.gate.state().paused
    }

    /// Requests that wait at the gate.
    pub(super) fn at_gate(&self) -> usize {
        let state = self.gate.state();
        state.waiting + state.waiting_again
    }

    /// Has so many requests wait from now on. Those that wait stay.
    pub(super) fn set_gate_size(&self, size: usize) {
        self.gate.size.store(size, Ordering::Relaxed);
    }

    /// Whether a new request would find no place at the closed gate.
    pub(super) fn is_gate_full(&self) -> bool {
        self.gate.is_closed() && self.gate.state().waiting >= self.gate.size()
    }

    /// A place at the gate; `None` where as many requests wait as may. One that is tried `again`, or belongs to requests of
    /// which one was let in, has a place in any case.
    pub fn wait_at_gate(
        self: &Arc<Self>,
        again: bool,
        siblings: Option<&Arc<Siblings>>,
    ) -> Option<AtGate> {
        let let_in = siblings.is_some_and(|siblings| siblings.admit());
        let mut state = self.gate.state();
        match again {
            true => state.waiting_again += 1,
            false if let_in || state.waiting < self.gate.size() => state.waiting += 1,
            false => return None,
        }
        Some(AtGate {
            fleet: self.clone(),
            opened: self.gate.signal.subscribe(),
            again,
        })
    }

    /// Closes the gate, because generation is about to be paused. False where it was paused already.
    pub fn pause(self: &Arc<Self>) -> bool {
        !self.turn_gate(|state| std::mem::replace(&mut state.paused, true))
    }

    /// Generation is meant to go on: the gate opens now or, where a role has no worker but paused ones, when one of them
    /// has been continued.
    pub fn unpause(self: &Arc<Self>) {
        let stuck = self.has_only_paused();
        self.turn_gate(|state| {
            state.paused = false;
            state.stuck = stuck;
        });
    }

    /// Notes whether a worker computes nothing until it is told to continue.
    pub fn note_paused(self: &Arc<Self>, worker: &Worker, paused: bool) {
        if worker.note_paused(paused) {
            self.review_gate();
        }
    }

    /// Closes the gate while weights change.
    pub fn begin_update(self: &Arc<Self>) -> Update {
        self.turn_gate(|state| state.updates += 1);
        Update(self.clone())
    }

    /// Notes that workers have released this memory: the gate is closed until all of it is there again.
    pub fn note_released(self: &Arc<Self>, tags: impl IntoIterator<Item = String>) {
        self.turn_gate(|state| state.released.extend(tags));
    }

    /// Notes that all workers have this memory again.
    pub fn note_resumed<'a>(self: &Arc<Self>, tags: impl IntoIterator<Item = &'a str>) {
        self.turn_gate(|state| {
            for tag in tags {
                state.released.remove(tag);
            }
        });
    }

    /// Looks anew whether each role has a worker that is not paused, after workers were paused, continued or removed.
    pub(super) fn review_gate(self: &Arc<Self>) {
        let stuck = self.has_only_paused();
        self.turn_gate(|state| state.stuck = stuck && !state.paused);
    }

    /// Whether the paused workers of a role are all that could serve.
    fn has_only_paused(&self) -> bool {
        let members = self.members.borrow();
        let only_paused = |role| {
            let workers = members.of(role);
            // Mostly the first one could serve, and the others are not looked at.
            let is_served = workers.iter().any(|worker| worker.is_usable());
            !is_served && workers.iter().any(|worker| worker.is_paused())
        };
        only_paused(Role::Prefill) || only_paused(Role::Decode)
    }

    fn turn_gate<T>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let (changed, turned) = self.gate.change(change);
        if turned {
            match self.closed() {
                Some(why) => log::info!("new requests wait because=\"{}\"", why.name()),
                None => {
                    log::info!("new requests are sent to workers again");
                    self.serve_waiting();
                }
            }
        }
        changed
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::WorkerParts;
    use super::super::{BreakerLimits, Members, Policies};
    use super::*;

    /// A fleet of one pair, at whose gate `size` requests may wait.
    fn pair(size: usize) -> (Arc<Fleet>, [Arc<Worker>; 2]) {
        let fleet = Fleet::new(Policies::random(), BreakerLimits::default()).gated(size);
        let fleet = Arc::new(fleet);
        let worker = |role, port| fleet.new_worker(WorkerParts::for_tests(role, port));
        let pair = [worker(Role::Prefill, 1), worker(Role::Decode, 2)];
        fleet.replace(Members::new(pair.clone()));
        (fleet, pair)
    }

    #[tokio::test]
    async fn requests_wait_while_generation_is_paused_and_all_go_on_together() {
        let (fleet, _) = pair(2);
        assert!(!fleet.is_closed());
        assert!(fleet.pause());
        assert_eq!(fleet.closed(), Some(Closed::Paused));
        let mut first = fleet.wait_at_gate(false, None).unwrap();
        let mut second = fleet.wait_at_gate(false, None).unwrap();
        assert!(fleet.is_full());
        assert!(fleet.wait_at_gate(false, None).is_none());
        let mut again = fleet.wait_at_gate(true, None).unwrap();
        assert_eq!(fleet.waiting(), 3);
        fleet.unpause();
        tokio::join!(first.opened(), second.opened(), again.opened());
        drop((first, second, again));
        assert_eq!((fleet.waiting(), fleet.is_full()), (0, false));
    }

    #[test]
    fn a_second_pause_says_that_it_is_one_and_one_continue_ends_both() {
        let (fleet, _) = pair(1);
        assert!(fleet.pause());
        assert!(!fleet.pause());
        fleet.unpause();
        assert_eq!(fleet.closed(), None);
    }

    #[test]
    fn a_worker_that_did_not_continue_keeps_the_gate_closed_only_if_its_role_has_no_other() {
        let (fleet, [prefill, decode]) = pair(1);
        let other = fleet.new_worker(WorkerParts::for_tests(Role::Decode, 3));
        fleet.pause();
        for worker in [&prefill, &decode] {
            fleet.note_paused(worker, true);
        }
        fleet.note_paused(&prefill, false);
        fleet.unpause();
        assert_eq!(fleet.closed(), Some(Closed::NotContinued));
        fleet.replace(Members::new([prefill.clone(), decode.clone(), other]));
        assert_eq!(fleet.closed(), None);
        assert!(!decode.is_usable());
        fleet.replace(Members::new([prefill, decode.clone()]));
        assert_eq!(fleet.closed(), Some(Closed::NotContinued));
        fleet.note_paused(&decode, false);
        assert_eq!(fleet.closed(), None);
    }

    #[test]
    fn a_change_of_weights_and_released_memory_close_the_gate_beside_a_pause() {
        let (fleet, _) = pair(1);
        let update = fleet.begin_update();
        let other = fleet.begin_update();
        drop(update);
        assert_eq!(fleet.closed(), Some(Closed::Updating));
        fleet.note_released(["weights".to_owned(), "kv_cache".to_owned()]);
        drop(other);
        assert_eq!(fleet.closed(), Some(Closed::Released));
        fleet.note_resumed(["weights"]);
        fleet.pause();
        fleet.note_resumed(["kv_cache"]);
        assert_eq!(fleet.closed(), Some(Closed::Paused));
        fleet.unpause();
        assert_eq!(fleet.closed(), None);
    }

    #[test]
    fn a_request_that_leaves_the_gate_makes_room_for_another() {
        let (fleet, _) = pair(1);
        fleet.pause();
        let place = fleet.wait_at_gate(false, None).unwrap();
        drop(place);
        assert!(fleet.wait_at_gate(false, None).is_some());
    }
}
