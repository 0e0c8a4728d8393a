//! Which worker of a role serves the next request. One policy, one file.
//!
//! A policy sees the request and the candidates: the workers that may take it, after everything that rules a worker
//! out (no address, set aside, full, failed before, slow start) has been filtered out. It is asked once for each
//! request, when it is certain that the request gets a pair, so it may count what it chose. A request that waited in
//! the queue is shown to it with the candidates of the moment of its turn, not those of its arrival.

mod expected_ttft;
mod least;
mod power_of_two;
mod random;
mod round_robin;
mod session;
mod weights;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::WorkerId;
use crate::pd::{Prefix, Role, RoutingKey, Usage};
use expected_ttft::ExpectedTtft;
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

/// A rule that learns from what came of its choices. All methods are called under the policy's lock, on the path of every
/// request: they must not block.
pub trait Learning: Send {
    /// [`Policy::choose`], with what is expected of the choice. The request counts as sent to the worker until
    /// [`Learning::ended`] says otherwise.
    fn choose(&mut self, asked: &Asked<'_>, candidates: &[Candidate]) -> Option<Choice>;

    /// The leg of a request that was sent to a worker has ended.
    fn ended(&mut self, ended: &Ended<'_>);

    /// A worker has lost its prefix cache.
    fn flushed(&mut self, worker: WorkerId);

    /// The members have changed.
    fn retain(&mut self, is_member: &dyn Fn(WorkerId) -> bool);
}

/// A question to a policy.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What is known of the request.
    pub request: &'a RoutingKey,
    /// A uniformly distributed value.
    pub draw: u64,
    /// The time of the choice.
    pub now: Instant,
}

/// The answer of a policy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The index of the chosen candidate.
    pub index: usize,
    /// What the policy expects; `None` where it expects nothing.
    pub expected: Option<Expected>,
}

/// What a policy expects of the worker that it has chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// The time until prefill has responded, in seconds, with what the worker has to do before.
    pub prefill_seconds: f64,
    /// The tokens of the prompt that are in the worker's prefix cache.
    pub cached_tokens: u64,
}

/// The end of a leg.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The worker of the leg.
    pub worker: WorkerId,
    /// The prompt of the request, the same value as in its [`RoutingKey`].
    pub prefix: &'a Arc<Prefix>,
    /// Whether the worker has computed the prompt.
    pub served: bool,
    /// What it reports; `None` where it reports nothing.
    pub usage: Option<Usage>,
    /// The time of the end.
    pub now: Instant,
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
    /// A policy that learns from what came of its choices.
    Learning(Mutex<Box<dyn Learning>>),
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
}

/// The policies that a fleet uses now.
pub(super) struct InUse {
    pub(super) prefill: Arc<RolePolicy>,
    pub(super) decode: Arc<RolePolicy>,
}

impl From<Policies> for InUse {
    fn from(policies: Policies) -> Self {
        Self {
            prefill: policies.prefill.into(),
            decode: policies.decode.into(),
        }
    }
}

impl InUse {
    /// Whether both roles choose at random.
    pub(super) fn are_random(&self) -> bool {
        matches!(
            (&*self.prefill, &*self.decode),
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

    /// The prefill worker from which the first token is expected first.
    pub fn expected_ttft() -> Self {
        Self::Learning(Mutex::new(Box::new(ExpectedTtft::default())))
    }

    /// A policy that may keep state.
    pub fn stateful(policy: impl Policy + 'static) -> Self {
        Self::Stateful(Mutex::new(Box::new(policy)))
    }

    /// [`Learning::choose`] of this role's policy.
    pub fn choose(&self, asked: &Asked<'_>, candidates: &[Candidate]) -> Option<Choice> {
        let index = match self {
            Self::Random => Random.choose(asked.request, candidates, asked.draw),
            Self::Stateful(policy) => locked(policy).choose(asked.request, candidates, asked.draw),
            Self::Learning(policy) => return locked(policy).choose(asked, candidates),
        };
        index.map(|index| Choice {
            index,
            expected: None,
        })
    }

    /// The policy, where it learns.
    pub fn learning(&self) -> Option<MutexGuard<'_, Box<dyn Learning>>> {
        match self {
            Self::Learning(policy) => Some(locked(policy)),
            Self::Random | Self::Stateful(_) => None,
        }
    }

    /// Whether the policy learns.
    pub(super) fn learns(&self) -> bool {
        matches!(self, Self::Learning(_))
    }
}

/// A policy that has panicked goes on with the state that it had.
fn locked<T: ?Sized>(policy: &Mutex<Box<T>>) -> MutexGuard<'_, Box<T>> {
    policy.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
