//! Histograms of durations that many threads write without a lock.
//!
//! Atomics and the search for a bucket alone: what is measured, and how it is shown, is the owner's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets, ascending, in nanoseconds. What is longer than the last one has a bucket of its own.
pub(crate) type Bounds = [u64];

/// The bucket of a duration among those with these bounds.
#[inline]
pub(crate) fn bucket(bounds: &Bounds, duration: Duration) -> usize {
    let nanos = nanos(duration);
    bounds.partition_point(|bound| *bound < nanos)
}

/// A duration in nanoseconds, at most 584 years.
#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs() * 1_000_000_000 + u64::from(duration.subsec_nanos())
}

/// How many durations fell into each bucket, and their sum.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static Bounds,
    /// One more than `bounds`.
    counts: Box<[AtomicU64]>,
    sum: Sum,
}

/// The content of a histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    /// The sum of all durations, in seconds.
    pub(crate) sum: f64,
    /// How many there are.
    pub(crate) count: u64,
    /// The upper bound of each bucket, in seconds, and how many it has by itself. The last bound is infinite.
    pub(crate) buckets: Vec<(f64, u64)>,
}

impl Histogram {
    /// Empty.
    pub(crate) fn new(bounds: &'static Bounds) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: Sum::default(),
        }
    }

    /// Adds one duration.
    #[inline]
    pub(crate) fn observe(&self, duration: Duration) {
        self.counts[bucket(self.bounds, duration)].fetch_add(1, Ordering::Relaxed);
        self.sum.add(nanos(duration));
    }

    /// Adds what another place has counted: so many in each bucket, and their sum in nanoseconds.
    pub(crate) fn add(&self, counts: &[u32], sum_nanos: u64) {
        for (shared, count) in self.counts.iter().zip(counts) {
            if *count > 0 {
                shared.fetch_add(u64::from(*count), Ordering::Relaxed);
            }
        }
        self.sum.add(sum_nanos);
    }

    /// The content now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let bounds = self.bounds.iter().map(|bound| *bound as f64 / 1e9);
        let counts = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        Snapshot {
            sum: self.sum.seconds(),
            // The count of the same look at the buckets, so that the two agree.
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

/// A sum of nanoseconds. 10,000 streams at once add up to more than 64 bits hold within three weeks.
#[derive(Debug, Default)]
struct Sum {
    low: AtomicU64,
    /// How often `low` has overflowed.
    high: AtomicU64,
}

impl Sum {
    #[inline]
    fn add(&self, nanos: u64) {
        let before = self.low.fetch_add(nanos, Ordering::Relaxed);
        if before.checked_add(nanos).is_none() {
            self.high.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn seconds(&self) -> f64 {
        let high = self.high.load(Ordering::Relaxed) as f64;
        let low = self.low.load(Ordering::Relaxed) as f64;
        (high * 2f64.powi(64) + low) / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: &Bounds = &[1_000_000, 1_000_000_000];

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::new(BOUNDS);
        for micros in [0, 1000, 1001, 1_000_000, 1_000_001, u64::MAX / 1000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let buckets = [(0.001, 2), (1.0, 2), (f64::INFINITY, 2)];
        assert_eq!(histogram.snapshot().buckets, buckets);
        assert_eq!(histogram.snapshot().count, 6);
    }

    #[test]
    fn what_was_counted_elsewhere_is_added() {
        let histogram = Histogram::new(BOUNDS);
        histogram.observe(Duration::from_secs(1));
        histogram.add(&[0, 2, 1], 5_500_000_000);
        let Snapshot { sum, count, .. } = histogram.snapshot();
        assert_eq!((sum, count), (6.5, 4));
    }

    #[test]
    fn a_sum_outgrows_its_word() {
        let sum = Sum::default();
        for _ in 0..4 {
            sum.add(1 << 62);
        }
        sum.add(1_000_000_000);
        assert_eq!(sum.seconds(), (2f64.powi(64) + 1e9) / 1e9);
    }
}
