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

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Place, Spread, WorkerId};
use crate::histogram::Snapshot;
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

    /// Workers that must be among the candidates where these are a sample of a large fleet, at most so many.
    fn favourites(&self, request: &RoutingKey, limit: usize) -> Vec<WorkerId>;

    /// The leg of a request that was sent to a worker has ended.
    fn ended(&mut self, ended: &Ended<'_>);

    /// A worker has lost its prefix cache.
    fn flushed(&mut self, worker: WorkerId);

    /// The members have changed.
    fn retain(&mut self, is_member: &dyn Fn(WorkerId) -> bool);

    /// What came of the choices so far.
    fn report(&self, now: Instant) -> Report;
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

impl Expected {
    /// The time until prefill has responded.
    pub fn prefill(self) -> Duration {
        Duration::try_from_secs_f64(self.prefill_seconds).unwrap_or_default()
    }
}

/// What a policy has expected, what came of it, and what it knows now, for metrics.
#[derive(Debug)]
pub struct Report {
    /// By worker, in no order.
    pub(crate) workers: Vec<(WorkerId, WorkerReport)>,
    /// The memory of what the policy knows of prefix caches, in bytes.
    pub(crate) mirror_bytes: usize,
    /// The time that prefill took as a part of the time that was expected: 1 is right.
    pub(crate) time_ratio: Snapshot,
}

/// The part of one worker. The tokens are those of prompts whose cached tokens the worker reports.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WorkerReport {
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens that were expected to be in its prefix cache.
    pub expected_cached_tokens: u64,
    /// Tokens that were there.
    pub cached_tokens: u64,
    /// How often the worker was found to have lost its cache, or said to have.
    pub flushes: u64,
    /// Blocks that are believed to be in its cache.
    pub blocks: usize,
    /// How long a prompt would wait there, in seconds: the mean of its ranks.
    pub wait_seconds: f64,
}

/// The end of a leg.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The worker of the leg.
    pub worker: WorkerId,
    /// The ranks of the worker that the prompts were on.
    pub spread: Spread,
    /// The prompt of the request, the same value as in its [`RoutingKey`].
    pub prefix: &'a Arc<Prefix>,
    /// Whether the worker has computed the prompt.
    pub served: bool,
    /// What it reports; `None` where it reports nothing.
    pub usage: Option<Usage>,
    /// The time of the end.
    pub now: Instant,
}

/// A worker that may take the request, as a policy sees it, or one of its data parallel ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The same for as long as the worker lives, and never another worker's.
    pub id: WorkerId,
    /// The rank, from 0.
    pub rank: u32,
    /// How many ranks the worker has; at least 1.
    pub ranks: u32,
    /// Whether they are replicas: then the prompts of a request are on one of them.
    pub are_replicas: bool,
    /// Requests whose leg on the worker has not ended.
    pub in_flight: usize,
    /// The lengths of their bodies together, in bytes.
    pub body_bytes: usize,
    /// The tokens that these requests may still generate together, where the policy of decode asks for it.
    pub to_come: usize,
    /// The tokens that its prefix cache holds at most, as it says; 0 where it does not.
    pub cache_tokens: u64,
    /// Its share of the requests, beside those of the others; at least 1.
    pub weight: u32,
    /// A digest of its URL and rank, the same in every balancer.
    pub digest: u64,
}

impl Candidate {
    /// The rank of the first of these prompts.
    pub(super) fn on(self, spread: Spread) -> Self {
        let (rank, ranks) = (spread.first(), spread.of());
        Self {
            rank,
            ranks,
            are_replicas: spread.named().is_some(),
            ..self
        }
    }

    /// Where so many prompts are when they begin on this rank.
    pub fn spread(&self, prompts: usize) -> Spread {
        match self.are_replicas {
            true => Spread::on_replica(self.rank, self.ranks),
            false => Spread::new(self.rank, self.ranks, prompts),
        }
    }

    /// The worker and the rank.
    pub fn place(&self) -> Place {
        Place {
            worker: self.id,
            rank: self.rank,
        }
    }
}

/// The policy of one role.
pub enum RolePolicy {
    /// Every candidate with a probability in proportion to its weight. Without state there is no lock, and in a healthy
    /// fleet of equal weights no list of candidates: a worker is drawn and taken, at a cost that does not grow with the
    /// fleet.
    Random,
    /// A policy that may keep state, asked about one request at a time.
    Stateful(Counted<dyn Policy>),
    /// A policy that learns from what came of its choices.
    Learning(Counted<dyn Learning>),
}

/// A policy, and how often it has chosen.
pub struct Counted<T: ?Sized> {
    name: &'static str,
    /// Whether a sample of a large fleet serves it.
    takes_samples: bool,
    choices: AtomicU64,
    policy: Mutex<Box<T>>,
}

impl<T: ?Sized> Counted<T> {
    fn new(name: &'static str, takes_samples: bool, policy: Box<T>) -> Self {
        Self {
            name,
            takes_samples,
            choices: AtomicU64::new(0),
            policy: Mutex::new(policy),
        }
    }

    /// A policy that has panicked goes on with the state that it had.
    fn lock(&self) -> MutexGuard<'_, Box<T>> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn for_choice(&self) -> MutexGuard<'_, Box<T>> {
        self.choices.fetch_add(1, Ordering::Relaxed);
        self.lock()
    }
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
    /// How often each role's policy has chosen, with its name in settings.
    pub(super) fn choices(&self) -> Vec<(Role, &'static str, u64)> {
        let roles = [Role::Prefill, Role::Decode].into_iter();
        let counted = roles.filter_map(|role| {
            let (name, choices) = self.of(role).choices()?;
            Some((role, name, choices))
        });
        counted.collect()
    }

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
        Self::named("round_robin", false, RoundRobin::default())
    }

    /// The less loaded of two random candidates.
    pub fn power_of_two() -> Self {
        Self::named("power_of_two", true, PowerOfTwo)
    }

    /// The candidate with the fewest requests.
    pub fn least_requests() -> Self {
        Self::named("least_requests", true, Least::Requests)
    }

    /// The candidate whose requests have the shortest bodies together.
    pub fn least_bytes() -> Self {
        Self::named("least_tokens", true, Least::Bytes)
    }

    /// The same candidate for all requests of a session.
    pub fn session() -> Self {
        Self::named("session", false, Session)
    }

    /// The prefill worker from which the first token is expected first.
    pub fn expected_ttft() -> Self {
        let policy = Box::new(ExpectedTtft::default());
        Self::Learning(Counted::new(EXPECTED_TTFT, true, policy))
    }

    /// For decode beside [`Self::expected_ttft`]: the candidate whose requests have the fewest tokens still to come.
    pub fn least_to_come() -> Self {
        Self::named(EXPECTED_TTFT, true, Least::ToCome)
    }

    /// A policy that may keep state.
    pub fn stateful(policy: impl Policy + 'static) -> Self {
        Self::named("other", false, policy)
    }

    fn named(name: &'static str, takes_samples: bool, policy: impl Policy + 'static) -> Self {
        Self::Stateful(Counted::new(name, takes_samples, Box::new(policy)))
    }

    /// [`Learning::choose`] of this role's policy.
    pub fn choose(&self, asked: &Asked<'_>, candidates: &[Candidate]) -> Option<Choice> {
        let (request, draw) = (asked.request, asked.draw);
        let index = match self {
            Self::Random => Random.choose(request, candidates, draw),
            Self::Stateful(policy) => policy.for_choice().choose(request, candidates, draw),
            Self::Learning(policy) => return policy.for_choice().choose(asked, candidates),
        };
        index.map(|index| Choice {
            index,
            expected: None,
        })
    }

    /// What is expected of a request that begins again with this worker. It counts as sent there once more.
    pub(super) fn again(&self, asked: &Asked<'_>, chosen: Candidate) -> Option<Expected> {
        self.learning()?.choose(asked, &[chosen])?.expected
    }

    /// The policy, where it learns.
    pub fn learning(&self) -> Option<MutexGuard<'_, Box<dyn Learning>>> {
        match self {
            Self::Learning(policy) => Some(policy.lock()),
            Self::Random | Self::Stateful(_) => None,
        }
    }

    /// Whether the policy chooses among the data parallel ranks of prefill workers. Otherwise a rank of the chosen worker is
    /// drawn.
    pub(super) fn chooses_ranks(&self) -> bool {
        !matches!(self, Self::Random)
    }

    /// Whether a sample of a large fleet serves the policy as well as all of it: the best of many random workers is nearly
    /// the best of all.
    pub(super) fn takes_samples(&self) -> bool {
        match self {
            Self::Random => true,
            Self::Stateful(policy) => policy.takes_samples,
            Self::Learning(policy) => policy.takes_samples,
        }
    }

    /// The name in settings, and how often it has chosen; `None` for random choices, which are not counted.
    pub(super) fn choices(&self) -> Option<(&'static str, u64)> {
        let (name, choices) = match self {
            Self::Random => return None,
            Self::Stateful(policy) => (policy.name, &policy.choices),
            Self::Learning(policy) => (policy.name, &policy.choices),
        };
        Some((name, choices.load(Ordering::Relaxed)))
    }
}

const EXPECTED_TTFT: &str = "expected_ttft";

#[cfg(test)]
mod tests;
