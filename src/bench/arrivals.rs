//! When requests start. Pure: the caller passes draws in and has the clock.

use std::sync::Arc;
use std::time::Duration;

/// When a user sends its next request.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// When its last one is complete: a closed loop, in which a slow server gets fewer requests.
    WhenFree,
    /// On schedule: an open loop, in which a slow server builds up a queue, as with independent users.
    AtRate {
        /// Requests per second, on average; above 0.
        per_second: f64,
        /// How they are spread over time.
        spacing: Spacing,
    },
    /// At these times, in order: an open loop too.
    AtTimes(Arc<[Duration]>),
}

/// How the arrivals of an open loop are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Spacing {
    /// Independent of each other, like those of many users: exponential gaps.
    Poisson,
    /// With equal gaps.
    Constant,
}

/// The scheduled start of each request in turn.
///
/// A latency counts from the scheduled start, not from when a user was free to send. Otherwise a server that stalls
/// would get fewer requests in that time, and its stall would show in one latency instead of in those of all requests
/// that it delayed ("coordinated omission").
#[derive(Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    count: u64,
    seconds: f64,
}

impl Schedule {
    /// A schedule before its first request.
    #[must_use]
    pub fn new(arrivals: Arrivals) -> Schedule {
        Schedule {
            arrivals,
            count: 0,
            seconds: 0.0,
        }
    }

    /// Start of the next request, from the beginning of the load; `None` means immediately. `draw` is uniform in
    /// `0.0..1.0`.
    pub fn next(&mut self, draw: impl FnOnce() -> f64) -> Option<Duration> {
        let (per_second, spacing) = match &self.arrivals {
            Arrivals::WhenFree => return None,
            Arrivals::AtRate {
                per_second,
                spacing,
            } => (*per_second, *spacing),
            Arrivals::AtTimes(times) => {
                let at = usize::try_from(self.count)
                    .ok()
                    .and_then(|at| times.get(at));
                self.count += 1;
                return Some(at.copied().unwrap_or(Duration::MAX));
            }
        };
        self.seconds = match spacing {
            // A product and not a sum, in which rounding errors would add up.
            Spacing::Constant => self.count as f64 / per_second,
            Spacing::Poisson => self.seconds - (1.0 - draw()).ln() / per_second,
        };
        self.count += 1;
        Some(Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rate(per_second: f64, spacing: Spacing) -> Schedule {
        Schedule::new(Arrivals::AtRate {
            per_second,
            spacing,
        })
    }

    #[test]
    fn a_closed_loop_has_no_times() {
        assert_eq!(Schedule::new(Arrivals::WhenFree).next(|| 0.5), None);
    }

    #[test]
    fn times_are_taken_in_order_and_end_the_load() {
        let times = [1, 1, 4].map(Duration::from_secs);
        let mut schedule = Schedule::new(Arrivals::AtTimes(times.into()));
        for time in times {
            assert_eq!(schedule.next(|| 0.5), Some(time));
        }
        assert_eq!(schedule.next(|| 0.5), Some(Duration::MAX));
    }

    #[test]
    fn constant_arrivals_are_a_multiple_of_the_gap_however_many_there_were() {
        let mut schedule = at_rate(3.0, Spacing::Constant);
        let times: Vec<_> = (0..=3_000_000)
            .filter_map(|_| schedule.next(|| 0.9))
            .collect();
        assert_eq!(times[0], Duration::ZERO);
        assert_eq!(times[3], Duration::from_secs(1));
        assert_eq!(times[3_000_000], Duration::from_secs(1_000_000));
    }

    #[test]
    fn poisson_gaps_are_the_logarithm_of_the_draw() {
        let mut schedule = at_rate(2.0, Spacing::Poisson);
        let first = schedule.next(|| 0.0);
        assert_eq!(first, Some(Duration::ZERO));
        let second = schedule.next(|| 1.0 - (-1.0_f64).exp());
        assert_eq!(second.map(|at| at.as_millis()), Some(500));
        let third = schedule.next(|| 1.0 - (-3.0_f64).exp());
        assert_eq!(third.map(|at| at.as_millis()), Some(2000));
    }

    #[test]
    fn poisson_arrivals_come_at_the_rate_on_average() {
        let mut schedule = at_rate(100.0, Spacing::Poisson);
        let mut last = Duration::ZERO;
        // The middles of a thousand equal parts as draws: their mean is that of the distribution.
        for part in 0..1000 {
            last = schedule
                .next(|| (f64::from(part) + 0.5) / 1000.0)
                .unwrap_or_default();
        }
        let rate = 1000.0 / last.as_secs_f64();
        assert!((rate - 100.0).abs() < 0.1, "{rate}");
    }
}
