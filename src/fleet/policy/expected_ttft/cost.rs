//! How long prefill takes, learned from the responses: for each request a constant part, one for each token to compute, and
//! one for each pair of a token to compute and a token that it attends to.
//!
//! All workers share the three parts, because they run the same model, and each has a factor of its own. Both follow the
//! last requests, so that a wrong beginning is forgotten. Prompts that a worker computes in one pass are learned from as one.

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

/// Weights of what was learned before, with each sample: after 100 of them it counts a third.
const DECAY: f64 = 0.99;

/// The same for the factor of a worker, with each of its responses.
const FACTOR_DECAY: f64 = 0.97;

/// As many responses of a worker at the speed of all others are taken for granted.
const ORDINARY: f64 = 3.0;

/// A response that took less than this part of what was expected has come together with the one before.
const TOGETHER: f64 = 0.1;

/// How long a worker takes beside the others, and its responses that are not learned from yet.
pub(super) struct Speed {
    factor: f64,
    /// Decayed sums of the times of its responses, of what was expected of them with factor 1, and their number.
    took: f64,
    expected: f64,
    responses: f64,
    /// The responses that came together: the sum of their features, and their time.
    features: [f64; 3],
    seconds: f64,
}

impl Default for Speed {
    fn default() -> Self {
        Self {
            factor: 1.0,
            took: 0.0,
            expected: 0.0,
            responses: 0.0,
            features: [0.0; 3],
            seconds: 0.0,
        }
    }
}

impl Speed {
    /// How many times as long as on the others a prompt takes here.
    pub(super) fn factor(&self) -> f64 {
        self.factor
    }

    /// A worker computes several prompts in one pass, and the first of them gets the time of all, so that single ratios say
    /// little. Sums lose nothing.
    fn note(&mut self, seconds: f64, expected: f64) {
        self.took = self.took * FACTOR_DECAY + seconds;
        self.expected = self.expected * FACTOR_DECAY + expected;
        self.responses = self.responses * FACTOR_DECAY + 1.0;
        let ratio = self.took / self.expected.max(1e-9);
        let factor = (ratio * self.responses + ORDINARY) / (self.responses + ORDINARY);
        self.factor = factor.clamp(0.02, 50.0);
    }
}

/// The seconds that requests take.
pub(super) struct Cost {
    /// The decayed sums of the products of features, and of features and times.
    products: [[f64; 3]; 3],
    times: [f64; 3],
    parts: [f64; 3],
    /// How many responses it has seen.
    learned: u32,
}

/// From how many responses on a difference is the worker's. Before, it is that of the parts, which are not known yet.
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

    /// Learns that this work took so many seconds since the response before, on the worker of this speed.
    pub(super) fn learn(&mut self, work: Work, seconds: f64, speed: &mut Speed) {
        if !seconds.is_finite() || seconds < 0.0 {
            return;
        }
        let expected = self.seconds(work);
        if self.learned >= KNOWN {
            speed.note(seconds, expected);
        }
        self.learned = self.learned.saturating_add(1);
        let features = work.features();
        // A response that came together with the one before took no time of its own, and the other one took that of both:
        // they are one sample.
        if seconds < TOGETHER * expected * speed.factor {
            for (sum, feature) in speed.features.iter_mut().zip(features) {
                *sum += feature;
            }
            speed.seconds += seconds;
            return;
        }
        let features = std::mem::replace(&mut speed.features, features);
        let seconds = std::mem::replace(&mut speed.seconds, seconds);
        if seconds > 0.0 {
            self.fit(features, seconds / speed.factor);
        }
    }

    fn fit(&mut self, features: [f64; 3], seconds: f64) {
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
        let (mut cost, mut speed) = (Cost::default(), Speed::default());
        for work in works() {
            cost.learn(work, real(work), &mut speed);
        }
        for work in works() {
            let ratio = cost.seconds(work) * speed.factor() / real(work);
            assert!((0.85..1.15).contains(&ratio), "{ratio} {work:?}");
        }
    }

    #[test]
    fn prompts_that_are_computed_in_one_pass_do_not_hide_what_each_of_them_takes() {
        let (mut cost, mut speed) = (Cost::default(), Speed::default());
        let works: Vec<_> = works().collect();
        for (index, pass) in works.chunks(3).enumerate() {
            // One of them or three: the first has the time of all.
            let pass = &pass[..1 + index % 2 * (pass.len() - 1)];
            let mut seconds: f64 = pass.iter().map(|work| real(*work)).sum();
            for work in pass {
                cost.learn(*work, std::mem::take(&mut seconds), &mut speed);
            }
        }
        for work in works.into_iter().filter(|work| work.computed > 500.0) {
            let ratio = cost.seconds(work) * speed.factor() / real(work);
            assert!((0.85..1.15).contains(&ratio), "{ratio} {work:?}");
        }
    }

    #[test]
    fn a_slow_worker_has_a_larger_factor_within_a_few_requests() {
        let (mut cost, mut speeds) = (Cost::default(), [Speed::default(), Speed::default()]);
        for work in works() {
            cost.learn(work, real(work), &mut speeds[0]);
        }
        for work in works().take(12) {
            cost.learn(work, real(work), &mut speeds[0]);
            cost.learn(work, 2.0 * real(work), &mut speeds[1]);
        }
        let ratio = speeds[1].factor() / speeds[0].factor();
        assert!((1.7..2.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn times_that_are_no_times_change_nothing_and_no_cost_is_negative() {
        let (mut cost, mut speed) = (Cost::default(), Speed::default());
        let before = cost.parts;
        for seconds in [f64::NAN, f64::INFINITY, -1.0] {
            cost.learn(work(0.0, 100.0), seconds, &mut speed);
        }
        assert_eq!((cost.parts, speed.factor()), (before, 1.0));
        for work in works() {
            cost.learn(work, 0.0, &mut speed);
            assert!(cost.seconds(work) > 0.0);
        }
    }
}
