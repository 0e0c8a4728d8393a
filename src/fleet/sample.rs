//! A large fleet is not looked at worker by worker for each request: a sample of it is, with the workers that the policy
//! knows to hold the beginning of the prompt.
//!
//! The sample begins at a random worker and takes every n-th one, so that each worker is in it with the same
//! probability. Policies that compare all candidates choose nearly as well among [`SAMPLE`] of them: the share of a fleet
//! that is less loaded than the best of these is about one in [`SAMPLE`]. Where nothing of a sample may be chosen, all workers
//! are looked at.

use std::sync::Arc;

use super::policy::Random;
use super::select::{Filter, Sides, with_peers};
use super::{Role, Worker};
use crate::pd::RoutingKey;

/// The workers of a role in a sample.
const SAMPLE: usize = 32;

/// A fleet without a role of more workers is looked at as a whole.
const SMALL: usize = 128;

/// The workers that a policy may add.
const FAVOURITES: usize = 8;

impl<'a> Filter<'a> {
    /// Workers that a policy may choose now; `None` where the fleet is small, or all of it is to be looked at.
    pub(super) fn sampled_sides(
        &self,
        request: &RoutingKey,
        draw: &mut impl FnMut() -> u64,
    ) -> Option<Sides<'a>> {
        let is_large = |role| self.members.of(role).len() > SMALL;
        let roles = [Role::Prefill, Role::Decode];
        let samples = |role| self.policies.of(role).takes_samples();
        if self.siblings.is_some()
            || self.targets.are_named()
            || !roles.into_iter().any(is_large)
            || !roles.into_iter().all(samples)
            || self.policies.are_random()
        {
            return None;
        }
        let mut prefill = self.sample(Role::Prefill, draw());
        if let Some(policy) = self.policies.prefill.learning() {
            for id in policy.favourites(request, FAVOURITES) {
                let known = self.members.find(Role::Prefill, id);
                let known = known.filter(|worker| self.may_be_chosen(worker));
                if let Some(worker) =
                    known.filter(|worker| prefill.iter().all(|one| one.id() != worker.id()))
                {
                    prefill.push(worker);
                }
            }
        }
        let decode = self.sample(Role::Decode, draw());
        let aside = self.pairs.aside(self.now);
        if let Some(aside) = &aside {
            prefill = with_peers(&prefill, &decode, aside);
        }
        (!prefill.is_empty() && !decode.is_empty()).then_some(Sides {
            prefill,
            decode,
            aside,
        })
    }

    fn sample(&self, role: Role, draw: u64) -> Vec<&'a Arc<Worker>> {
        let workers = self.members.of(role);
        let step = (workers.len() / SAMPLE).max(1);
        let first = Random::index(workers.len(), draw).unwrap_or(0);
        let from_first = workers[first..].iter().chain(&workers[..first]);
        let taken = from_first.step_by(step);
        taken.filter(|worker| self.may_be_chosen(worker)).collect()
    }

    fn may_be_chosen(&self, worker: &Worker) -> bool {
        self.is_preferred(worker) && self.has_capacity(worker)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;
    use std::time::Instant;

    use super::super::tests::{empty, populated, unrelated_draws};
    use super::super::{Evidence, Policies, RolePolicy, Selection, Targets};
    use super::*;
    use crate::pd::{BLOCK_BYTES, Prefix, Route};

    fn request(first_block: u64) -> RoutingKey {
        let blocks = first_block..first_block + 40;
        RoutingKey {
            route: Route::ChatCompletions,
            body_bytes: 40 * BLOCK_BYTES,
            prompts: 1,
            session: None,
            prefix: Some(Arc::new(Prefix::for_tests(blocks, 40 * BLOCK_BYTES))),
            to_come: 100,
            rank: None,
        }
    }

    fn wanted(request: &RoutingKey, now: Instant) -> Selection<'_> {
        Selection {
            request,
            avoid: &[],
            siblings: None,
            targets: Targets::default(),
            now,
        }
    }

    #[test]
    fn a_large_fleet_is_used_evenly_and_a_prompt_goes_where_its_beginning_is() {
        let policies = Policies {
            prefill: RolePolicy::expected_ttft(),
            decode: RolePolicy::least_to_come(),
        };
        let fleet = populated(empty(policies), 1000, 1000);
        let (now, mut draw) = (Instant::now(), unrelated_draws());
        let gone = fleet.member(Role::Prefill, 7);
        fleet.note(&gone, Evidence::Absent, now);
        let mut leases = Vec::new();
        for prompt in 0..500 {
            let request = request(1000 * prompt);
            leases.push(fleet.select(wanted(&request, now), &mut draw).unwrap());
        }
        let used: HashSet<_> = leases.iter().map(|lease| lease.prefill.id()).collect();
        let decode: HashSet<_> = leases.iter().map(|lease| lease.decode.id()).collect();
        assert!(
            used.len() > 450 && !used.contains(&gone.id()),
            "{}",
            used.len()
        );
        assert!(decode.len() > 450, "{}", decode.len());
        let computed: Vec<_> = leases.iter().map(|lease| lease.prefill.id()).collect();
        drop(leases);
        for (prompt, computed) in (0..).zip(computed) {
            let lease = fleet.select(wanted(&request(1000 * prompt), now), &mut draw);
            assert_eq!(lease.unwrap().prefill.id(), computed, "{prompt}");
        }
    }

    #[test]
    fn where_no_worker_of_a_sample_may_be_chosen_all_are_looked_at() {
        let policies = Policies {
            prefill: RolePolicy::expected_ttft(),
            decode: RolePolicy::Random,
        };
        let fleet = populated(empty(policies), 500, 1);
        let (now, mut draw) = (Instant::now(), unrelated_draws());
        for worker in &fleet.members().of(Role::Prefill)[1..] {
            fleet.note(worker, Evidence::Absent, now);
        }
        for _ in 0..20 {
            let lease = fleet.select(wanted(&request(0), now), &mut draw).unwrap();
            assert_eq!(lease.prefill.id(), fleet.member(Role::Prefill, 0).id());
        }
    }
}
