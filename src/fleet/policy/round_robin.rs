//! Workers in turn: each gets requests in proportion to its weight, evenly spread.
//!
//! Fair in numbers, not in work: choose another when prompts differ much in length. Each balancer in front of the same
//! workers has a turn of its own.
//!
//! A candidate's credit grows by its weight with each request, and the one with the most pays the weights of all for
//! being chosen. Source: nginx 1.29, `ngx_http_upstream_round_robin.c` ("smooth weighted round-robin").

use std::collections::HashMap;

use super::{Candidate, Policy, weights};
use crate::fleet::Place;
use crate::pd::RoutingKey;

/// Workers that are no candidates any more are forgotten above this number.
const REMEMBERED: usize = 64;

/// Candidates in turn.
#[derive(Debug, Default)]
pub(in super::super) struct RoundRobin {
    credits: HashMap<Place, i64>,
}

impl Policy for RoundRobin {
    fn choose(&mut self, _: &RoutingKey, candidates: &[Candidate], _: u64) -> Option<usize> {
        if self.credits.len() > candidates.len() + REMEMBERED {
            let is_candidate = |place: &Place| candidates.iter().any(|one| one.place() == *place);
            self.credits.retain(|place, _| is_candidate(place));
        }
        let mut best: Option<(i64, usize)> = None;
        for (index, candidate) in candidates.iter().enumerate() {
            let credit = self.credits.entry(candidate.place()).or_default();
            *credit += i64::from(candidate.weight);
            if best.is_none_or(|(most, _)| *credit > most) {
                best = Some((*credit, index));
            }
        }
        let (_, chosen) = best?;
        let price = weights::total(candidates) as i64;
        if let Some(credit) = self.credits.get_mut(&candidates[chosen].place()) {
            *credit -= price;
        }
        Some(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidates, key};
    use super::*;

    fn chosen(policy: &mut RoundRobin, candidates: &[Candidate], times: usize) -> Vec<usize> {
        let choose = |_| policy.choose(&key(), candidates, 0);
        (0..times).filter_map(choose).collect()
    }

    #[test]
    fn equal_candidates_are_chosen_in_turn() {
        let mut policy = RoundRobin::default();
        assert_eq!(chosen(&mut policy, &candidates(3), 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_heavier_candidate_has_more_turns_spread_over_the_round() {
        let mut policy = RoundRobin::default();
        let mut candidates = candidates(3);
        candidates[0].weight = 5;
        assert_eq!(chosen(&mut policy, &candidates, 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn a_candidate_that_is_away_takes_part_again_when_it_is_back() {
        let mut policy = RoundRobin::default();
        let all = candidates(3);
        chosen(&mut policy, &all, 3);
        assert_eq!(chosen(&mut policy, &all[..2], 4), [0, 1, 0, 1]);
        let mut round = chosen(&mut policy, &all, 3);
        round.sort_unstable();
        assert_eq!(round, [0, 1, 2]);
    }

    #[test]
    fn candidates_that_are_gone_are_forgotten() {
        let mut policy = RoundRobin::default();
        for first in 0..10 * REMEMBERED as u64 {
            let mut candidates = candidates(2);
            for (index, candidate) in candidates.iter_mut().enumerate() {
                candidate.id = crate::fleet::WorkerId(2 * first + index as u64);
            }
            chosen(&mut policy, &candidates, 1);
        }
        assert!(policy.credits.len() <= 2 + REMEMBERED + 2);
        assert_eq!(policy.choose(&key(), &[], 0), None);
    }
}
