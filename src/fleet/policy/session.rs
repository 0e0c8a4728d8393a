//! The same worker for the requests of one session, on every balancer in front of the same workers, without a table.
//!
//! Each worker has a score for each session, made of the digests of both, and the highest score wins. A worker that comes
//! or goes moves only the sessions that it wins or had. Requests without a session go to the least loaded worker.
//!
//! Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates" (rendezvous hashing); the weights as
//! in Schindelhauer and Schomaker, "Weighted Distributed Hash Tables": -weight / ln(hash).

use super::least::Least;
use super::{Candidate, Policy};
use crate::pd::RoutingKey;

/// The candidate with the highest score for the session.
#[derive(Debug, Clone, Copy, Default)]
pub(in super::super) struct Session;

impl Policy for Session {
    fn choose(
        &mut self,
        request: &RoutingKey,
        candidates: &[Candidate],
        draw: u64,
    ) -> Option<usize> {
        let Some(session) = request.session else {
            return Least::Requests.choose(request, candidates, draw);
        };
        let score = |index: &usize| score(session, &candidates[*index]);
        (0..candidates.len()).max_by(|one, other| score(one).total_cmp(&score(other)))
    }
}

fn score(session: u64, candidate: &Candidate) -> f64 {
    let hash = mixed(session ^ mixed(candidate.digest));
    // Uniform in 0 to 1, both excluded: 53 bits fit into the number exactly.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(candidate.weight) / uniform.ln()
}

/// A bijection whose every output bit depends on every input bit.
///
/// Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (the finalizer of SplitMix64).
fn mixed(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidates, key};
    use super::*;

    const SESSIONS: u64 = 4000;

    fn chosen(candidates: &[Candidate]) -> Vec<usize> {
        let of = |session| RoutingKey {
            session: Some(session),
            ..key()
        };
        let choose = |session| Session.choose(&of(session), candidates, session);
        (0..SESSIONS).filter_map(choose).collect()
    }

    fn counts(chosen: &[usize], candidates: usize) -> Vec<usize> {
        let of = |index| chosen.iter().filter(|one| **one == index).count();
        (0..candidates).map(of).collect()
    }

    #[test]
    fn sessions_spread_over_the_workers_in_proportion_to_their_weights() {
        let mut candidates = candidates(4);
        candidates[3].weight = 2;
        let counts = counts(&chosen(&candidates), 4);
        for (count, expected) in counts.iter().zip([800, 800, 800, 1600]) {
            // Six standard deviations of a binomial distribution.
            assert!(count.abs_diff(expected) < 190, "{counts:?}");
        }
    }

    #[test]
    fn a_worker_that_goes_moves_only_its_own_sessions() {
        let all = candidates(5);
        let before = chosen(&all);
        let after = chosen(&all[..4]);
        let moved = before
            .iter()
            .zip(&after)
            .filter(|(one, other)| one != other);
        assert!(moved.clone().all(|(before, _)| *before == 4));
        assert_eq!(moved.count(), counts(&before, 5)[4]);
    }

    #[test]
    fn the_choice_depends_neither_on_ids_nor_on_loads_nor_on_the_order() {
        let all = candidates(5);
        let mut other = all.clone();
        other.reverse();
        for (index, candidate) in other.iter_mut().enumerate() {
            candidate.id = crate::fleet::WorkerId(100 + index as u64);
            candidate.in_flight = index;
        }
        let reversed: Vec<_> = chosen(&other).iter().map(|index| 4 - index).collect();
        assert_eq!(chosen(&all), reversed);
    }

    #[test]
    fn a_request_without_a_session_goes_to_the_least_loaded_worker() {
        let mut candidates = candidates(3);
        candidates[0].in_flight = 1;
        candidates[2].in_flight = 1;
        assert_eq!(Session.choose(&key(), &candidates, 0), Some(1));
    }
}
