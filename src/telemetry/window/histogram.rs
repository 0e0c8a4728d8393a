//! Times to the first byte in steps of half an octave, for a quantile from fixed memory.

use std::time::Duration;

/// The number of steps: the last one begins at 524 s.
const STEPS: usize = 40;
/// The upper bound of the first step, in milliseconds.
const FIRST: f64 = 1.0;
/// Steps in which a time doubles.
const PER_OCTAVE: f64 = 2.0;

/// How many times lie in each step.
#[derive(Clone)]
pub(crate) struct Histogram([u32; STEPS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([0; STEPS])
    }
}

impl Histogram {
    pub(super) fn add(&mut self, time: Duration) {
        let millis = time.as_secs_f64() * 1e3;
        // A negative float becomes 0.
        let step = ((millis / FIRST).log2() * PER_OCTAVE).ceil() as usize;
        let count = &mut self.0[step.min(STEPS - 1)];
        *count = count.saturating_add(1);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count = count.saturating_add(more);
        }
    }

    /// The time in milliseconds that this part of all times does not exceed; `None` without any. It is interpolated
    /// between the bounds of its step, and never off by more than that step.
    pub(crate) fn quantile(&self, part: f64) -> Option<f64> {
        let total: u64 = self.0.iter().copied().map(u64::from).sum();
        if total == 0 {
            return None;
        }
        let wanted = part * total as f64;
        let mut below = 0.0;
        for (step, count) in self.0.iter().copied().map(f64::from).enumerate() {
            if count > 0.0 && below + count >= wanted {
                let inside = ((wanted - below) / count).clamp(0.0, 1.0);
                return Some(FIRST * ((step as f64 - 1.0 + inside) / PER_OCTAVE).exp2());
            }
            below += count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_in_the_step_of_the_true_one() {
        for millis in [1.0, 2.5, 17.0, 180.0, 2_345.0, 61_000.0, 400_000.0] {
            let mut times = Histogram::default();
            for nth in 0..1000 {
                times.add(Duration::from_secs_f64(millis * f64::from(nth) / 1e6));
            }
            for part in [0.5, 0.9, 0.99] {
                let found = times.quantile(part).unwrap_or_default();
                let off = (found / (millis * part)).max(millis * part / found);
                assert!(
                    off < 2.0_f64.sqrt() || found <= 1.0,
                    "{part} of {millis} ms is {found}"
                );
            }
        }
    }

    #[test]
    fn times_outside_the_steps_are_in_the_first_and_in_the_last() {
        let mut times = Histogram::default();
        assert_eq!(times.quantile(0.9), None);
        times.add(Duration::ZERO);
        assert!(times.quantile(0.9).is_some_and(|millis| millis <= 1.0));
        times.add(Duration::MAX);
        assert!(times.quantile(1.0).is_some_and(|millis| millis > 600_000.0));
    }
}
