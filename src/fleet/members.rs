//! The members of the fleet at one moment: one consistent list, which is replaced as a whole and never changed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use super::{Worker, WorkerId};
use crate::pd::Role;

/// The workers that may get requests.
#[derive(Default)]
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
            let of_role = match worker.role() {
                Role::Prefill => &mut members.prefill,
                Role::Decode => &mut members.decode,
            };
            if let Entry::Vacant(place) = members.places.entry(worker.id()) {
                place.insert(of_role.len());
                members.has_weights |= worker.weight() != 1;
                of_role.push(worker);
            }
        }
        members
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
