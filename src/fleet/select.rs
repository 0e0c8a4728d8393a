//! SELECT: which pair serves a request. Filter first, then choose.
//!
//! The filter leaves the workers that may take the request; then the policy of each role is asked, once, and only
//! when a pair will come of it. Where both roles choose at random, all weights are equal and the request names no worker,
//! there is a way round the lists: a worker is drawn and then tested, which in a healthy fleet succeeds at once however
//! large the fleet is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::Guard;

use super::pairs::{Aside, Pairs};
use super::policy::{Asked, Candidate, Expected, InUse, Random};
use super::{Members, NoWorker, Siblings, Spread, Worker, WorkerId};
use crate::pd::{Role, RoutingKey};

/// How often a worker that may not be taken is drawn anew before the lists are made.
const REDRAWS: usize = 4;

/// A request that wants a pair.
#[derive(Clone, Copy)]
pub struct Selection<'a> {
    /// What the policies may know of the request.
    pub request: &'a RoutingKey,
    /// The workers that failed the request in earlier attempts: they are chosen only where there is no other. Empty
    /// for a request that was not tried before.
    pub avoid: &'a [WorkerId],
    /// The requests that this one belongs to: it prefers their prefill worker, and other decode workers.
    pub siblings: Option<&'a Arc<Siblings>>,
    /// The workers that the request names.
    pub targets: Targets,
    /// The time of the choice.
    pub now: Instant,
}

/// The workers that a request names: no other is chosen. None is named by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Targets {
    /// The prefill worker.
    pub prefill: Option<WorkerId>,
    /// The decode worker.
    pub decode: Option<WorkerId>,
}

impl Targets {
    /// Whether this worker may be chosen.
    pub fn admit(self, worker: &Worker) -> bool {
        let named = match worker.role() {
            Role::Prefill => self.prefill,
            Role::Decode => self.decode,
        };
        named.is_none_or(|named| named == worker.id())
    }

    /// Whether any worker is named.
    pub fn are_named(self) -> bool {
        self != Self::default()
    }
}

/// A prefill worker and a decode worker that go together.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) prefill: &'a Arc<Worker>,
    pub(super) decode: &'a Arc<Worker>,
    /// The ranks of the prefill worker for the prompts; `None` where no rank was chosen.
    pub(super) spread: Option<Spread>,
    /// What the policy expects of the prefill worker.
    pub(super) expected: Option<Expected>,
}

/// All that decides which workers may be chosen at one moment.
pub(super) struct Filter<'a> {
    pub(super) members: &'a Members,
    pub(super) policies: Guard<Arc<InUse>>,
    pub(super) pairs: &'a Pairs,
    pub(super) slow_start: Duration,
    pub(super) avoid: &'a [WorkerId],
    pub(super) siblings: Option<&'a Arc<Siblings>>,
    pub(super) targets: Targets,
    pub(super) now: Instant,
    /// How many requests a worker may have in flight with the new one.
    pub(super) capacity: usize,
    /// Stands in for a prefill worker where none is usable; `None` where decode may not go alone.
    pub(super) absent: Option<&'a Arc<Worker>>,
}

/// The workers of which a pair can be made.
pub(super) struct Sides<'a> {
    pub(super) prefill: Vec<&'a Arc<Worker>>,
    pub(super) decode: Vec<&'a Arc<Worker>>,
    /// Pairs that are set aside. Each prefill worker above has at least one decode worker that it is not set aside with.
    pub(super) aside: Option<Aside<'a>>,
}

/// The choice of a policy.
struct Chosen<'a> {
    worker: &'a Arc<Worker>,
    spread: Option<Spread>,
    expected: Option<Expected>,
}

impl<'a> Filter<'a> {
    /// The same filter for a request that belongs to these others and names these workers.
    pub(super) fn among(self, siblings: Option<&'a Arc<Siblings>>, targets: Targets) -> Self {
        Self {
            siblings,
            targets,
            ..self
        }
    }

    /// The pair that serves this request now; `None` when the workers that may be chosen have no capacity. A worker
    /// that is set aside and has capacity does not stand in for one that is well and full.
    ///
    /// # Errors
    /// The role that has no usable worker.
    pub(super) fn pair(
        &self,
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Result<Option<Pair<'a>>, NoWorker> {
        let pair = match self.siblings {
            None => self.any_pair(request, draw),
            Some(_) => self.listed_pair(request, draw),
        }?;
        if let (Some(siblings), Some(pair)) = (self.siblings, pair) {
            siblings.note(pair);
        }
        Ok(pair)
    }

    fn any_pair(
        &self,
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Result<Option<Pair<'a>>, NoWorker> {
        match self.drawn_pair(draw) {
            Some(pair) => Ok(Some(Pair {
                spread: self.drawn_spread(pair.prefill, request, draw),
                ..pair
            })),
            None => self.listed_pair(request, draw),
        }
    }

    /// A pair by lists of all workers that may be chosen.
    fn listed_pair(
        &self,
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Result<Option<Pair<'a>>, NoWorker> {
        let sides = match self.sampled_sides(request, draw) {
            Some(sampled) => Some(sampled),
            None => self.sides()?,
        };
        let Some(mut sides) = sides else {
            return Ok(None);
        };
        if let Some(siblings) = self.siblings {
            siblings.narrow_prefill(&mut sides.prefill);
        }
        let chosen = self.choose(Role::Prefill, &sides.prefill, request, draw);
        let Some(Chosen {
            worker: prefill,
            spread,
            expected,
        }) = chosen
        else {
            return Ok(None);
        };
        let mut decode = sides.decode;
        if let Some(aside) = &sides.aside {
            decode.retain(|decode| aside.admits((prefill.id(), decode.id())));
        }
        if let Some(siblings) = self.siblings {
            siblings.narrow_decode(&mut decode);
        }
        let decode = self.choose(Role::Decode, &decode, request, draw);
        Ok(decode.map(|decode| Pair {
            prefill,
            decode: decode.worker,
            spread,
            expected,
        }))
    }

    /// Whether [`Filter::pair`] would find one now. No policy is asked.
    ///
    /// # Errors
    /// The role that has no usable worker.
    pub(super) fn has_pair(&self, draw: &mut impl FnMut() -> u64) -> Result<bool, NoWorker> {
        Ok(self.drawn_pair(draw).is_some() || self.sides()?.is_some())
    }

    /// A pair without a look at all workers. `None` says nothing about the fleet.
    fn drawn_pair(&self, draw: &mut impl FnMut() -> u64) -> Option<Pair<'a>> {
        if !self.policies.are_random() || self.members.has_weights() || self.targets.are_named() {
            return None;
        }
        let prefill = self.drawn(Role::Prefill, draw, |_| true)?;
        let decode = self.drawn(Role::Decode, draw, |decode| {
            self.pairs.admits((prefill.id(), decode.id()), self.now)
        })?;
        Some(Pair {
            prefill,
            decode,
            spread: None,
            expected: None,
        })
    }

    fn drawn(
        &self,
        role: Role,
        draw: &mut impl FnMut() -> u64,
        suits: impl Fn(&Worker) -> bool,
    ) -> Option<&'a Arc<Worker>> {
        let workers = self.members.of(role);
        (0..REDRAWS).find_map(|_| {
            let worker = &workers[Random::index(workers.len(), draw())?];
            let may_be_taken = self.is_preferred(worker)
                && self.has_capacity(worker)
                && suits(worker)
                && self.accepts_share(worker, draw);
            may_be_taken.then_some(worker)
        })
    }

    /// All workers that a policy may choose now; `None` when there is no pair among them.
    fn sides(&self) -> Result<Option<Sides<'a>>, NoWorker> {
        let prefill = self.prefills(self.capacity)?;
        if prefill.is_empty() {
            return Ok(None);
        }
        let decode = self.available(Role::Decode, self.capacity)?;
        if decode.is_empty() {
            return Ok(None);
        }
        let Some(aside) = self.pairs.aside(self.now) else {
            return Ok(Some(Sides {
                prefill,
                decode,
                aside: None,
            }));
        };
        let paired = with_peers(&prefill, &decode, &aside);
        if !paired.is_empty() {
            return Ok(Some(Sides {
                prefill: paired,
                decode,
                aside: Some(aside),
            }));
        }
        // A pair that is well and full is waited for. Where every pair is set aside they are tried.
        let all = self.prefills(usize::MAX)?;
        let all_decode = self.available(Role::Decode, usize::MAX)?;
        if !with_peers(&all, &all_decode, &aside).is_empty() {
            return Ok(None);
        }
        Ok(Some(Sides {
            prefill,
            decode,
            aside: None,
        }))
    }

    /// The workers that fit, are not silent and have capacity; of a fleet in which there is none, the silent ones,
    /// those that have not failed the request, or all. Empty when those have no capacity.
    pub(super) fn available(
        &self,
        role: Role,
        capacity: usize,
    ) -> Result<Vec<&'a Arc<Worker>>, NoWorker> {
        let workers = self.members.of(role);
        let last_resorts: [&dyn Fn(&Worker) -> bool; 4] = [
            &|worker| self.is_preferred(worker),
            &|worker| self.is_fit(worker),
            &|worker| worker.is_usable() && !self.avoid.contains(&worker.id()),
            &|worker| worker.is_usable(),
        ];
        for suits in last_resorts {
            let mut suit_at_all = false;
            let mut available = Vec::new();
            let named = workers.iter().filter(|worker| self.targets.admit(worker));
            for worker in named.filter(|worker| suits(worker)) {
                suit_at_all = true;
                if worker.in_flight() < capacity {
                    available.push(worker);
                }
            }
            if suit_at_all {
                return Ok(available);
            }
        }
        Err(NoWorker(role))
    }

    /// Asks the policy of the role. Slow start is a filter too, but not where it would leave no worker.
    fn choose(
        &self,
        role: Role,
        workers: &[&'a Arc<Worker>],
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<Chosen<'a>> {
        if let [worker] = workers
            && worker.id().is_absent()
        {
            return Some(Chosen {
                worker,
                spread: None,
                expected: None,
            });
        }
        let sharing: Vec<_> = workers
            .iter()
            .copied()
            .filter(|worker| self.accepts_share(worker, draw))
            .collect();
        let workers = if sharing.is_empty() {
            workers
        } else {
            &sharing
        };
        let policy = self.policies.of(role);
        let has_ranks = role == Role::Prefill && policy.chooses_ranks();
        let mut candidates = Vec::with_capacity(workers.len());
        for worker in workers {
            match has_ranks {
                true => worker.add_ranks(&mut candidates),
                false => candidates.push(worker.candidate()),
            }
        }
        if has_ranks {
            self.narrow_ranks(&mut candidates, request);
        }
        let asked = Asked {
            request,
            draw: draw(),
            now: self.now,
        };
        let choice = policy.choose(&asked, &candidates)?;
        let chosen: &Candidate = candidates.get(choice.index)?;
        let at_its_place = workers.get(choice.index).copied();
        let worker = at_its_place
            .filter(|worker| worker.id() == chosen.id)
            .or_else(|| workers.iter().copied().find(|one| one.id() == chosen.id))?;
        Some(Chosen {
            worker,
            spread: match (has_ranks, role) {
                (true, _) => Some(chosen.spread(request.spread())),
                (false, Role::Prefill) => self.drawn_spread(worker, request, draw),
                (false, Role::Decode) => None,
            },
            expected: choice.expected,
        })
    }

    /// The ranks of a prefill worker that was chosen as a whole; `None` where it is one rank.
    fn drawn_spread(
        &self,
        worker: &Worker,
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<Spread> {
        if worker.ranks().count() == 1 {
            return None;
        }
        let mut ranks = Vec::new();
        worker.add_ranks(&mut ranks);
        self.narrow_ranks(&mut ranks, request);
        let index = Random::index(ranks.len(), draw())?;
        Some(ranks[index].spread(request.spread()))
    }

    /// Leaves the rank that the request names, or else the one that its siblings have; a worker of one rank stays. A rank that
    /// there is not is left to the worker to refuse.
    fn narrow_ranks(&self, candidates: &mut Vec<Candidate>, request: &RoutingKey) {
        match (request.rank, self.siblings) {
            (Some(rank), _) => {
                let suits = |one: &Candidate| one.ranks == 1 || one.rank == rank;
                if candidates.iter().any(suits) {
                    candidates.retain(suits);
                }
            }
            (None, Some(siblings)) => siblings.narrow_ranks(candidates),
            (None, None) => {}
        }
    }

    pub(super) fn is_preferred(&self, worker: &Worker) -> bool {
        self.is_fit(worker) && !worker.is_silent()
    }

    fn is_fit(&self, worker: &Worker) -> bool {
        worker.admits(self.now) && !self.avoid.contains(&worker.id())
    }

    pub(super) fn has_capacity(&self, worker: &Worker) -> bool {
        worker.in_flight() < self.capacity
    }

    fn accepts_share(&self, worker: &Worker, draw: &mut impl FnMut() -> u64) -> bool {
        worker.accepts_share(draw, self.now, self.slow_start)
    }
}

/// The prefill workers that are not set aside with all of these decode workers. The first one that a worker is not set aside
/// with ends the search for it, so that all searches together look at no more pairs than are set aside, and one for each
/// worker.
pub(super) fn with_peers<'a>(
    prefill: &[&'a Arc<Worker>],
    decode: &[&Arc<Worker>],
    aside: &Aside<'_>,
) -> Vec<&'a Arc<Worker>> {
    let has_peer = |prefill: &Arc<Worker>| {
        let mut peers = decode.iter();
        peers.any(|decode| aside.admits((prefill.id(), decode.id())))
    };
    let prefill = prefill.iter().copied();
    prefill.filter(|prefill| has_peer(prefill)).collect()
}
