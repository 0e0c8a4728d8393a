//! How long prefill takes, learned from the responses: for each request a constant part, one for each token to compute, and
//! one for each pair of a token to compute and a token that it attends to.
//!
//! All workers share the three parts, because they run the same model, and each has a factor of its own. Both follow the
//! last hundred requests, so that a wrong beginning is forgotten.

/// The prompt of a request as a worker sees it, in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Work {
    /// In the worker's cache.
    pub(super) cached: f64,
    /// To be computed.
    pub(super) computed: f64,
}

impl Work {
    /// What the time is proportional to: a request, its tokens, and the pairs of tokens of attention, in units that make
    /// the three alike for a prompt of some thousand tokens.
    fn features(self) -> [f64; 3] {
        let computed = self.computed / 1e3;
        let context = (self.cached + self.computed / 2.0) / 1e3;
        [1.0, computed, computed * context / 10.0]
    }
}

/// Weights of what was learned before, with each request: after 100 of them it counts a third.
const DECAY: f64 = 0.99;

/// How far one request moves the factor of its worker.
const STEP: f64 = 0.2;

/// The seconds that requests take.
pub(super) struct Cost {
    /// The decayed sums of the products of features, and of features and times.
    products: [[f64; 3]; 3],
    times: [f64; 3],
    parts: [f64; 3],
    /// How many requests it has learned from.
    learned: u32,
}

/// From how many requests on a difference is the worker's. Before, it is that of the parts, which are not known yet.
const KNOWN: u32 = 50;

impl Default for Cost {
    /// As if some requests had taken 0.1 ms for each token.
    fn default() -> Self {
        let parts = [0.005, 0.1, 0.0];
        let weights = [0.1, 0.1, 0.01];
        let mut products = [[0.0; 3]; 3];
        for (index, weight) in weights.into_iter().enumerate() {
            products[index][index] = weight;
        }
        let times = std::array::from_fn(|index| weights[index] * parts[index]);
        Self {
            products,
            times,
            parts,
            learned: 0,
        }
    }
}

impl Cost {
    /// The seconds for this work on a worker whose factor is 1. Positive.
    pub(super) fn seconds(&self, work: Work) -> f64 {
        dot(self.parts, work.features()).max(1e-6)
    }

    /// Learns that this work took so many seconds on a worker with this factor.
    pub(super) fn learn(&mut self, work: Work, seconds: f64, factor: &mut f64) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        let expected = self.seconds(work);
        let step = STEP * f64::from(self.learned.min(KNOWN)) / f64::from(KNOWN);
        self.learned = self.learned.saturating_add(1);
        // A request that ended with others in one step of the engine took no time of its own, which says nothing about the
        // worker.
        if seconds > expected / 50.0 {
            let ratio = (seconds / (expected * *factor)).clamp(0.1, 10.0);
            *factor = (*factor * ratio.powf(step)).clamp(0.02, 50.0);
        }
        let features = work.features();
        let seconds = seconds / *factor;
        for (row, feature) in features.into_iter().enumerate() {
            for (column, other) in features.into_iter().enumerate() {
                let product = &mut self.products[row][column];
                *product = *product * DECAY + feature * other;
            }
            self.times[row] = self.times[row] * DECAY + feature * seconds;
        }
        self.parts = solved(self.products, self.times, self.parts);
    }
}

fn dot(one: [f64; 3], other: [f64; 3]) -> f64 {
    one.into_iter()
        .zip(other)
        .map(|(one, other)| one * other)
        .sum()
}

/// The parts of least squares, none of which is negative: by coordinate descent from the last ones, which are near.
fn solved(products: [[f64; 3]; 3], times: [f64; 3], last: [f64; 3]) -> [f64; 3] {
    const ROUNDS: usize = 8;
    let mut parts = last;
    for _ in 0..ROUNDS {
        for index in 0..3 {
            let own = products[index][index];
            if own > 1e-12 {
                let others = dot(products[index], parts) - own * parts[index];
                parts[index] = ((times[index] - others) / own).max(0.0);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(cached: f64, computed: f64) -> Work {
        Work { cached, computed }
    }

    /// Prompts of lengths that differ a hundredfold.
    fn works() -> impl Iterator<Item = Work> {
        (0..400).map(|step| {
            let computed = 100.0 * 1.5f64.powi(step * 7 % 12);
            work(f64::from(step * 13 % 5) * computed, computed)
        })
    }

    fn real(work: Work) -> f64 {
        let context = work.cached + work.computed / 2.0;
        0.012 + 40e-6 * work.computed + 2e-9 * work.computed * context
    }

    #[test]
    fn the_parts_are_found_from_the_times() {
        let (mut cost, mut factor) = (Cost::default(), 1.0);
        for work in works() {
            cost.learn(work, real(work), &mut factor);
        }
        for work in works() {
            let ratio = cost.seconds(work) * factor / real(work);
            assert!((0.85..1.15).contains(&ratio), "{ratio} {work:?}");
        }
    }

    #[test]
    fn a_slow_worker_has_a_larger_factor_within_a_few_requests() {
        let (mut cost, mut factors) = (Cost::default(), [1.0, 1.0]);
        for work in works() {
            cost.learn(work, real(work), &mut factors[0]);
        }
        for work in works().take(12) {
            cost.learn(work, real(work), &mut factors[0]);
            cost.learn(work, 2.0 * real(work), &mut factors[1]);
        }
        let ratio = factors[1] / factors[0];
        assert!((1.7..2.4).contains(&ratio), "{factors:?}");
    }

    #[test]
    fn times_that_are_no_times_change_nothing_and_no_cost_is_negative() {
        let (mut cost, mut factor) = (Cost::default(), 1.0);
        let before = cost.parts;
        for seconds in [f64::NAN, f64::INFINITY, -1.0] {
            cost.learn(work(0.0, 100.0), seconds, &mut factor);
        }
        assert_eq!((cost.parts, factor), (before, 1.0));
        for work in works() {
            cost.learn(work, 0.0, &mut factor);
            assert!(cost.seconds(work) > 0.0);
        }
    }
}
