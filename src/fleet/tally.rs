//! What the legs of one worker came to, counted while it is known: a worker that is removed takes its counts along.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::histogram::{Bounds, Histogram};

/// Upper bounds of the time of a leg: 1, 2 and 5 of each decade from 1 ms on, then minutes up to an hour.
const BOUNDS: &Bounds = &[
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
    20_000_000_000,
    60_000_000_000,
    120_000_000_000,
    300_000_000_000,
    600_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
];

/// What one leg came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker's response was complete.
    Ok,
    /// The worker responded with an error of its own.
    Rejected,
    /// No response, half of one, none in time, or one that cannot be used.
    Failed,
    /// The leg was ended before the worker had responded: the client has left, or the other leg failed.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Outcome; 4] = [
        Outcome::Ok,
        Outcome::Rejected,
        Outcome::Failed,
        Outcome::Cancelled,
    ];

    /// The word for labels.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Rejected => "rejected",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
        }
    }
}

/// The counts of one worker.
#[derive(Debug)]
pub struct Tally {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    times: Histogram,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            outcomes: Default::default(),
            times: Histogram::new(BOUNDS),
        }
    }
}

impl Tally {
    /// Adds a leg; its time counts where the worker has served it.
    pub fn note(&self, outcome: Outcome, time: Option<Duration>) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if let (Outcome::Ok, Some(time)) = (outcome, time) {
            self.times.observe(time);
        }
    }

    /// How many legs came to this.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    /// The times of the legs that were served.
    pub(crate) fn times(&self) -> &Histogram {
        &self.times
    }
}
