//! Data that all open pages share, so that a hundred of them cost hardly more than one.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::telemetry::Filter;

/// How long data is given to the next page that asks. Pages ask once a second.
const FRESH: Duration = Duration::from_millis(500);
/// Filters whose data is kept. Data of more of them at once is made for each request.
const MOST: usize = 16;

/// The data of the filters that were asked for last.
#[derive(Default)]
pub(super) struct Shared(Mutex<Vec<(Filter, Instant, Bytes)>>);

impl Shared {
    /// The data of this filter: that of a moment ago, or else made now. It is made under the lock, so that pages that ask
    /// at the same time wait for the first one.
    pub(super) fn get(&self, filter: Filter, now: Instant, make: impl FnOnce() -> Bytes) -> Bytes {
        // Where making it panicked, what was kept before is as good as ever.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(_, made, _)| now.saturating_duration_since(*made) < FRESH);
        if let Some((_, _, data)) = kept.iter().find(|(known, _, _)| *known == filter) {
            return data.clone();
        }
        let data = make();
        if kept.len() < MOST {
            kept.push((filter, now, data.clone()));
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_ask_within_a_moment_get_the_same_data() {
        let shared = Shared::default();
        let now = Instant::now();
        let mut made = 0;
        for millis in [0, 1, 499, 500, 600, 1_001] {
            let at = now + Duration::from_millis(millis);
            shared.get(Filter::default(), at, || {
                made += 1;
                Bytes::new()
            });
        }
        assert_eq!(made, 3, "at 0, 500 and 1001 ms");
    }
}
