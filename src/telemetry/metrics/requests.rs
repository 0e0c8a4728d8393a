//! Counts of requests by route, status and end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::labels::{ENDS, ROUTES};

/// The status of most requests.
const OK: u16 = 200;

/// Requests that have ended. Those that ended well are counted without a lock.
#[derive(Debug, Default)]
pub(super) struct Requests {
    well: [AtomicU64; ROUTES.len()],
    /// By route, status and end. Workers choose the status of some, but only among those of HTTP.
    others: Mutex<BTreeMap<Key, u64>>,
}

/// The number of the route, the status, and the number of the end.
type Key = (usize, u16, usize);

impl Requests {
    pub(super) fn note(&self, route: usize, status: u16, end: usize) {
        if (status, end) == (OK, 0) {
            self.well[route].fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        *others.entry((route, status, end)).or_default() += 1;
    }

    /// Each count. Those that ended well are there from the first moment on, so that their rate is known from the first
    /// request on.
    pub(super) fn counts(&self) -> Vec<(Key, u64)> {
        let well = self.well.iter().enumerate();
        let well = well.map(|(route, count)| ((route, OK, 0), count.load(Ordering::Relaxed)));
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        well.chain(others.iter().map(|(key, count)| (*key, *count)))
            .collect()
    }
}

/// Counts by the number of an end.
#[derive(Debug)]
pub(super) struct ByEnd([AtomicU64; ENDS]);

impl Default for ByEnd {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; ENDS])
    }
}

impl ByEnd {
    pub(super) fn note(&self, end: usize) {
        self.0[end].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts that are not zero, and those that are `expected` to become so.
    pub(super) fn counts(
        &self,
        expected: impl Fn(usize) -> bool,
    ) -> impl Iterator<Item = (usize, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        counts
            .enumerate()
            .filter(move |(end, count)| *count > 0 || expected(*end))
    }
}
