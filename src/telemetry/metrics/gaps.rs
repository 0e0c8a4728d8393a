//! The gaps between the events of one stream, counted beside it: an event costs no atomic, no lock and no allocation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bounds::GAP;
use crate::histogram::{Histogram, bucket, nanos};

/// How long the gaps of a stream may stay beside it, so that a long stream is seen before it ends.
const INTERVAL: Duration = Duration::from_secs(1);

/// The gaps of one stream. Dropping it hands them over.
#[derive(Debug)]
pub(crate) struct Gaps {
    shared: Arc<Histogram>,
    counts: [u32; GAP.len() + 1],
    sum_nanos: u64,
    /// Events that have left.
    events: u64,
    /// When the last of them left; `None` before the first.
    last: Option<Instant>,
    handed_over: Option<Instant>,
}

impl Gaps {
    /// Of a stream that has not begun.
    pub(super) fn new(shared: Arc<Histogram>) -> Self {
        Self {
            shared,
            counts: [0; GAP.len() + 1],
            sum_nanos: 0,
            events: 0,
            last: None,
            handed_over: None,
        }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self::new(Arc::new(Histogram::new(GAP)))
    }

    /// Notes that so many events of the stream have left by this moment. Several that leave together share the time since
    /// the last one equally, as the tokens of one step do.
    #[inline]
    pub(crate) fn note(&mut self, events: u64, at: Instant) {
        let more = events.saturating_sub(self.events);
        if more == 0 {
            return;
        }
        self.events = events;
        let Some(last) = self.last.replace(at) else {
            // Those that leave with the first one come after no time.
            self.counts[0] += u32::try_from(more - 1).unwrap_or(u32::MAX);
            self.handed_over = Some(at);
            return;
        };
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let since = at.saturating_duration_since(last);
        // Most events leave alone, and a division of durations is slow.
        let each = if more == 1 { since } else { since / more };
        self.counts[bucket(GAP, each)] += more;
        self.sum_nanos += nanos(since);
        if self.handed_over.is_none_or(|then| at >= then + INTERVAL) {
            self.hand_over();
            self.handed_over = Some(at);
        }
    }

    fn hand_over(&mut self) {
        self.shared.add(&self.counts, self.sum_nanos);
        self.counts = [0; GAP.len() + 1];
        self.sum_nanos = 0;
    }
}

impl Drop for Gaps {
    fn drop(&mut self) {
        if self.last.is_some() {
            self.hand_over();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_one_gap_less_than_events_and_their_sum_is_its_time() {
        let shared = Arc::new(Histogram::new(GAP));
        let mut gaps = Gaps::new(shared.clone());
        let begin = Instant::now();
        for (events, millis) in [(0, 0), (2, 1), (2, 2), (3, 11), (5, 51)] {
            gaps.note(events, begin + Duration::from_millis(millis));
        }
        assert_eq!(shared.snapshot().count, 0);
        drop(gaps);
        let snapshot = shared.snapshot();
        assert_eq!((snapshot.count, snapshot.sum), (4, 0.05));
        let filled = snapshot.buckets.into_iter().filter(|(_, count)| *count > 0);
        assert_eq!(
            filled.collect::<Vec<_>>(),
            [(0.001, 1), (0.01, 1), (0.02, 2)]
        );
    }

    #[test]
    fn a_long_stream_is_seen_before_it_ends() {
        let shared = Arc::new(Histogram::new(GAP));
        let mut gaps = Gaps::new(shared.clone());
        let begin = Instant::now();
        for event in 1..=100 {
            gaps.note(event, begin + Duration::from_millis(25 * event));
        }
        let seen = shared.snapshot().count;
        assert!((80..99).contains(&seen), "{seen}");
        drop(gaps);
        assert_eq!(shared.snapshot().count, 99);
        drop(Gaps::new(shared.clone()));
        assert_eq!(shared.snapshot().count, 99);
    }
}
