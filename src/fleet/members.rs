//! The members of the fleet at one moment: one consistent list, which does not change for those that hold it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tokio::sync::watch;

use super::{Fleet, Worker, WorkerId};
use crate::pd::Role;

/// The workers that may get requests.
#[derive(Clone, Default)]
pub struct Members {
    prefill: Vec<Arc<Worker>>,
    decode: Vec<Arc<Worker>>,
    /// The place of each worker among those of its role.
    places: HashMap<WorkerId, usize>,
    has_weights: bool,
}

impl Members {
    /// These workers, in this order within each role. A worker that is there twice counts once.
    pub fn new(workers: impl IntoIterator<Item = Arc<Worker>>) -> Self {
        let mut members = Self::default();
        for worker in workers {
            members.push(worker);
        }
        members
    }

    /// One worker more, behind the others of its role.
    pub(super) fn push(&mut self, worker: Arc<Worker>) {
        let of_role = match worker.role() {
            Role::Prefill => &mut self.prefill,
            Role::Decode => &mut self.decode,
        };
        if let Entry::Vacant(place) = self.places.entry(worker.id()) {
            place.insert(of_role.len());
            self.has_weights |= worker.weight() != 1;
            of_role.push(worker);
        }
    }

    /// The workers of one role.
    pub fn of(&self, role: Role) -> &[Arc<Worker>] {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    /// Whether the share of some worker is not that of the others.
    pub(super) fn has_weights(&self) -> bool {
        self.has_weights
    }

    /// All workers: prefill first.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Worker>> {
        self.prefill.iter().chain(&self.decode)
    }

    /// Whether the worker with this id is one of them.
    pub fn contains(&self, id: WorkerId) -> bool {
        self.places.contains_key(&id)
    }

    /// The worker of this role with this id.
    pub(super) fn find(&self, role: Role, id: WorkerId) -> Option<&Arc<Worker>> {
        let worker = self.of(role).get(*self.places.get(&id)?)?;
        (worker.id() == id).then_some(worker)
    }
}

impl Fleet {
    /// Makes these workers the members.
    ///
    /// A worker that is removed gets no request any more; those that it has keep it until their leases end. What was
    /// known of its pairs is forgotten. A worker that stays keeps its load and its health, and one that comes back
    /// after a removal has those that it had. Requests that wait are served by the new members.
    pub fn replace(self: &Arc<Self>, members: Members) {
        let members = Arc::new(members);
        self.members.send_modify(|current| {
            self.pairs.retain(|id| members.contains(id));
            let policies = self.policies.load();
            if let Some(mut policy) = policies.prefill.learning() {
                policy.retain(&|id| members.contains(id));
            }
            *current = members;
        });
        self.review_gate();
        self.serve_waiting();
    }

    /// Makes these workers members as well, behind the others of their role. What this costs does not grow with the fleet:
    /// the list is copied only where the one of this moment is held elsewhere.
    pub fn join(self: &Arc<Self>, workers: Vec<Arc<Worker>>) {
        self.members.send_modify(|current| {
            let members = Arc::make_mut(current);
            workers.into_iter().for_each(|worker| members.push(worker));
        });
        self.review_gate();
        self.serve_waiting();
    }

    /// Says whether a worker is being drained: it gets no new request then, not even where there is no other worker. When
    /// this returns, no request is on its way to it whose load is not counted.
    pub fn set_draining(self: &Arc<Self>, worker: &Worker, draining: bool) {
        // The lock is what matters: a choice holds it until its load is counted. The list itself stays.
        self.members.send_if_modified(|_| {
            worker.note_draining(draining);
            false
        });
        self.serve_waiting();
    }

    /// The members now.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// The members now and after each change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Members>> {
        self.members.subscribe()
    }
}

#[cfg(test)]
impl Members {
    /// Two prefill workers on the ports 1 and 2, and a decode worker on port 3.
    pub(crate) fn for_tests() -> Self {
        let roles = [Role::Prefill, Role::Prefill, Role::Decode];
        let workers = (1..).zip(roles);
        Self::new(workers.map(|(port, role)| Arc::new(Worker::for_tests(role, port))))
    }
}
