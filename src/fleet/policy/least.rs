//! The least loaded worker: by requests, by the length of their prompts, or by the tokens that they may still generate.
//!
//! Requests are the right measure where they are alike. Prompts whose lengths differ a hundredfold keep a
//! prefill worker busy for times that differ as much, so that their lengths are the better measure there. Several
//! balancers in front of the same workers each count their own requests.

use super::weights::Share;
use super::{Candidate, Policy};
use crate::pd::RoutingKey;

/// What the load of a worker is counted in.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Least {
    /// Requests whose leg on the worker has not ended.
    Requests,
    /// The bytes of their bodies, nearly all of which are prompt: in proportion to the tokens.
    Bytes,
    /// The tokens that they may generate, as far as they say.
    ToCome,
}

impl Least {
    /// The load of this candidate with the new request.
    pub(super) fn share(self, request: &RoutingKey, candidate: &Candidate) -> Share {
        let load = match self {
            Self::Requests => candidate.in_flight + 1,
            Self::Bytes => candidate.body_bytes + request.body_bytes,
            Self::ToCome => candidate.to_come + request.to_come as usize,
        };
        Share::new(load as u64, candidate.weight)
    }
}

impl Policy for Least {
    /// Of equally loaded candidates each has the same probability, in a rough way: the search begins at a random one.
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        draw: u64,
    ) -> Option<usize> {
        let first = super::Random::index(candidates.len(), draw)?;
        let from_first = (first..candidates.len()).chain(0..first);
        from_first.min_by_key(|index| self.share(request, &candidates[*index]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidates, key};
    use super::*;

    #[test]
    fn the_candidate_with_the_fewest_requests_for_its_weight_is_chosen() {
        let mut candidates = candidates(3);
        for (candidate, (in_flight, weight)) in candidates.iter_mut().zip([(2, 1), (6, 3), (9, 4)])
        {
            (candidate.in_flight, candidate.weight) = (in_flight, weight);
        }
        // 3/1, 7/3 and 10/4 with the new request.
        assert_eq!(Least::Requests.choose(&key(), &candidates, 0), Some(1));
        candidates[0].in_flight = 1;
        assert_eq!(Least::Requests.choose(&key(), &candidates, 0), Some(0));
    }

    #[test]
    fn one_long_prompt_weighs_more_than_several_short_ones() {
        let mut candidates = candidates(2);
        (candidates[0].in_flight, candidates[0].body_bytes) = (1, 100_000);
        (candidates[1].in_flight, candidates[1].body_bytes) = (9, 9_000);
        assert_eq!(Least::Bytes.choose(&key(), &candidates, 0), Some(1));
        assert_eq!(Least::Requests.choose(&key(), &candidates, 0), Some(0));
    }

    #[test]
    fn a_request_that_may_generate_much_weighs_more_than_some_that_end_soon() {
        let mut candidates = candidates(2);
        (candidates[0].in_flight, candidates[0].to_come) = (1, 2000);
        (candidates[1].in_flight, candidates[1].to_come) = (3, 900);
        assert_eq!(Least::ToCome.choose(&key(), &candidates, 0), Some(1));
        assert_eq!(Least::Requests.choose(&key(), &candidates, 0), Some(0));
    }

    #[test]
    fn equally_loaded_candidates_share_the_draws() {
        let candidates = candidates(4);
        let draws = (0..4).map(|quarter| quarter * (u64::MAX / 4) + 8);
        let chosen: Vec<_> = draws
            .filter_map(|draw| Least::Requests.choose(&key(), &candidates, draw))
            .collect();
        assert_eq!(chosen, [0, 1, 2, 3]);
        assert_eq!(Least::Requests.choose(&key(), &[], 0), None);
    }
}
