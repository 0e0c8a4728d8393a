//! The less loaded of two random workers.
//!
//! Nearly as even as the least loaded of all, without herding: several balancers in front of the same workers do not all
//! send their next request to the same one. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing".

use super::least::Least;
use super::{Candidate, Policy, Random};
use crate::pd::RoutingKey;

/// Two candidates are drawn, and the one with fewer requests for its weight is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        draw: u64,
    ) -> Option<usize> {
        // Each half of the draw is uniform, and both are independent of each other.
        let first = Random::index(candidates.len(), draw)?;
        let others = candidates.len() - 1;
        let Some(step) = Random::index(others, draw << 32) else {
            return Some(first);
        };
        let second = (first + 1 + step) % candidates.len();
        let share = |index: &usize| Least::Requests.share(request, &candidates[*index]);
        [first, second].into_iter().min_by_key(share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidates, key};
    use super::*;

    /// Draws whose halves are spread evenly.
    fn draws() -> impl Iterator<Item = u64> {
        let halves = || (0..50u64).map(|step| step * (u64::from(u32::MAX) / 50) + 1);
        halves().flat_map(move |high| halves().map(move |low| high << 32 | low))
    }

    #[test]
    fn the_most_loaded_candidate_is_never_chosen_and_the_others_are() {
        let mut candidates = candidates(4);
        candidates[2].in_flight = 1;
        let mut counts = [0; 4];
        for draw in draws() {
            let chosen = PowerOfTwo.choose(&key(), &candidates, draw);
            counts[chosen.expect("there are candidates")] += 1;
        }
        assert_eq!(counts[2], 0);
        assert!(
            counts.iter().filter(|count| **count > 500).count() == 3,
            "{counts:?}"
        );
    }

    #[test]
    fn a_single_candidate_is_chosen_and_none_of_none() {
        for draw in draws().take(100) {
            assert_eq!(PowerOfTwo.choose(&key(), &candidates(1), draw), Some(0));
            assert_eq!(PowerOfTwo.choose(&key(), &[], draw), None);
        }
    }
}
