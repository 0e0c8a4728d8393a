//! Which worker of a role serves the next request. One policy, one file.
//!
//! A policy sees the request and the candidates: the workers that may take it, after everything that rules a worker
//! out (no address, set aside, full, failed before, slow start) has been filtered out. It is asked once for each
//! request, when it is certain that the request gets a pair, so it may count what it chose. A request that waited in
//! the queue is shown to it with the candidates of the moment of its turn, not those of its arrival.

mod least;
mod power_of_two;
mod random;
mod round_robin;
mod session;
mod weights;

use std::sync::{Mutex, PoisonError};

use super::WorkerId;
use crate::pd::{Role, RoutingKey};
use least::Least;
use power_of_two::PowerOfTwo;
pub(super) use random::Random;
use round_robin::RoundRobin;
use session::Session;

/// A rule that chooses among candidates.
pub trait Policy: Send {
    /// The index of the chosen candidate; `None` only when there are none.
    ///
    /// `draw` is a uniformly distributed value: a policy makes no randomness of its own. Called under the policy's
    /// lock, on the path of every request: it must not block.
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        draw: u64,
    ) -> Option<usize>;
}

/// A worker that may take the request, as a policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The same for as long as the worker lives, and never another worker's.
    pub id: WorkerId,
    /// Requests whose leg on the worker has not ended.
    pub in_flight: usize,
    /// The lengths of their bodies together, in bytes.
    pub body_bytes: usize,
    /// Its share of the requests, beside those of the others; at least 1.
    pub weight: u32,
    /// A digest of its URL, the same in every balancer.
    pub digest: u64,
}

/// The policy of one role.
pub enum RolePolicy {
    /// Every candidate with a probability in proportion to its weight. Without state there is no lock, and in a healthy
    /// fleet of equal weights no list of candidates: a worker is drawn and taken, at a cost that does not grow with the
    /// fleet.
    Random,
    /// A policy that may keep state, asked about one request at a time.
    Stateful(Mutex<Box<dyn Policy>>),
}

/// The policies of a fleet.
pub struct Policies {
    /// Chooses the prefill worker of a pair.
    pub prefill: RolePolicy,
    /// Chooses the decode worker of a pair, after the prefill worker has been chosen.
    pub decode: RolePolicy,
}

impl Policies {
    /// [`RolePolicy::Random`] for both roles.
    pub fn random() -> Self {
        Self {
            prefill: RolePolicy::Random,
            decode: RolePolicy::Random,
        }
    }

    /// Whether both roles choose at random.
    pub(super) fn are_random(&self) -> bool {
        matches!(
            (&self.prefill, &self.decode),
            (RolePolicy::Random, RolePolicy::Random)
        )
    }

    pub(super) fn of(&self, role: Role) -> &RolePolicy {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }
}

impl RolePolicy {
    /// Candidates in turn.
    pub fn round_robin() -> Self {
        Self::stateful(RoundRobin::default())
    }

    /// The less loaded of two random candidates.
    pub fn power_of_two() -> Self {
        Self::stateful(PowerOfTwo)
    }

    /// The candidate with the fewest requests.
    pub fn least_requests() -> Self {
        Self::stateful(Least::Requests)
    }

    /// The candidate whose requests have the shortest bodies together.
    pub fn least_bytes() -> Self {
        Self::stateful(Least::Bytes)
    }

    /// The same candidate for all requests of a session.
    pub fn session() -> Self {
        Self::stateful(Session)
    }

    /// A policy that may keep state.
    pub fn stateful(policy: impl Policy + 'static) -> Self {
        Self::Stateful(Mutex::new(Box::new(policy)))
    }

    /// [`Policy::choose`] of this role's policy.
    pub(super) fn choose(
        &self,
        request: &RoutingKey,
        candidates: &[Candidate],
        draw: u64,
    ) -> Option<usize> {
        match self {
            Self::Random => Random.choose(request, candidates, draw),
            Self::Stateful(policy) => {
                // A policy that has panicked goes on with the state that it had.
                let mut policy = policy.lock().unwrap_or_else(PoisonError::into_inner);
                policy.choose(request, candidates, draw)
            }
        }
    }
}

#[cfg(test)]
mod tests;
