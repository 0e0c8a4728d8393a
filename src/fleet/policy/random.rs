//! Uniform choice: no state, no coordination between several balancers in front of the same workers.
//!
//! The default, as in the Python mini_lb. Choose another when prompts differ much in length.

use std::sync::Arc;

use super::{Policy, Worker};

/// Every candidate with the same probability.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random;

impl Policy for Random {
    fn pick(&self, candidates: &[Arc<Worker>], draw: u64) -> Option<usize> {
        // The high half of draw * len is uniform over 0..len up to a bias of len / 2^64.
        let scaled = (u128::from(draw) * candidates.len() as u128) >> 64;
        (!candidates.is_empty()).then_some(scaled as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Role;
    use super::*;

    #[test]
    fn every_candidate_gets_its_share_of_evenly_spread_draws() {
        let workers: Vec<_> = (0..5)
            .map(|i| Arc::new(Worker::for_tests(Role::Decode, i)))
            .collect();
        let mut counts = [0; 5];
        for step in 0..1000u64 {
            let draw = (u64::MAX / 1000) * step + u64::MAX / 2000;
            counts[Random.pick(&workers, draw).unwrap_or(usize::MAX)] += 1;
        }
        assert_eq!(counts, [200; 5]);
    }

    #[test]
    fn no_candidate_means_no_choice() {
        assert_eq!(Random.pick(&[], u64::MAX), None);
    }
}
