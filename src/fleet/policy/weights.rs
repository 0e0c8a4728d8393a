//! Arithmetic with weights, exact and without floating point.

use std::cmp::Ordering;

use super::Candidate;

/// A load per unit of weight, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    load: u64,
    weight: u32,
}

impl Share {
    /// The load of a worker of this weight.
    pub(super) fn new(load: u64, weight: u32) -> Self {
        Self { load, weight }
    }
}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        let scaled = |load: u64, by: u32| u128::from(load) * u128::from(by);
        scaled(self.load, other.weight).cmp(&scaled(other.load, self.weight))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The sum of the weights of these candidates.
pub(super) fn total(candidates: &[Candidate]) -> u64 {
    let weights = candidates.iter().map(|candidate| candidate.weight);
    weights.map(u64::from).sum()
}

/// The index of a candidate, with a probability in proportion to its weight; `None` when there are none.
pub(super) fn draw(candidates: &[Candidate], draw: u64) -> Option<usize> {
    let mut at = (u128::from(draw) * u128::from(total(candidates))) >> 64;
    candidates.iter().position(|candidate| {
        let weight = u128::from(candidate.weight);
        let hit = at < weight;
        at = at.saturating_sub(weight);
        hit
    })
}
