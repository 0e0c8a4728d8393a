//! Random choice: no state, no coordination between several balancers in front of the same workers.
//!
//! The default, as in the Python mini_lb. Choose another when prompts differ much in length.

use super::{Candidate, Policy, weights};
use crate::pd::RoutingKey;

/// Every candidate with a probability in proportion to its weight.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Random;

impl Random {
    /// A uniformly distributed index of a list of this length; `None` when the list is empty.
    pub(in super::super) fn index(len: usize, draw: u64) -> Option<usize> {
        // The high half of draw * len is uniform over 0..len up to a bias of len / 2^64.
        let scaled = (u128::from(draw) * len as u128) >> 64;
        (len > 0).then_some(scaled as usize)
    }
}

impl Policy for Random {
    fn choose(&mut self, _: &RoutingKey, candidates: &[Candidate], draw: u64) -> Option<usize> {
        weights::draw(candidates, draw)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::{candidates, key};
    use super::*;

    const DRAWS: u64 = 1000;

    fn evenly_spread() -> impl Iterator<Item = u64> {
        (0..DRAWS).map(|step| (u64::MAX / DRAWS) * step + u64::MAX / (2 * DRAWS))
    }

    #[test]
    fn every_index_gets_its_share_of_evenly_spread_draws() {
        let mut counts = [0; 5];
        for draw in evenly_spread() {
            counts[Random::index(counts.len(), draw).unwrap()] += 1;
        }
        assert_eq!(counts, [200; 5]);
    }

    #[test]
    fn candidates_get_shares_in_proportion_to_their_weights() {
        let mut candidates = candidates(3);
        candidates[1].weight = 3;
        let mut counts = [0; 3];
        for draw in evenly_spread() {
            counts[Random.choose(&key(), &candidates, draw).unwrap()] += 1;
        }
        assert_eq!(counts, [200, 600, 200]);
    }

    #[test]
    fn no_candidate_means_no_choice() {
        assert_eq!(Random::index(0, u64::MAX), None);
        assert_eq!(Random.choose(&key(), &[], u64::MAX), None);
    }
}
