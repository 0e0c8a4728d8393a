//! The finished requests that are remembered: the last ones, and the slowest ones of the last minutes.
//!
//! Both are bounded twice, by their number and by the bytes of their rows, so that neither many requests nor large rows take
//! more than [`MAX_BYTES`].

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::row::Row;

/// The most requests that are remembered, the slowest ones included.
const MAX_REQUESTS: usize = 10_000;

/// The most memory of all rows together, in bytes.
const MAX_BYTES: usize = 8_000_000;

/// The slowest requests that one list has.
const SLOWEST: usize = 125;

/// The lists of the slowest: by two times, in two periods.
const LISTS: usize = 4;

/// The most of the last requests that can be asked for.
pub(super) const MAX_CAPACITY: usize = MAX_REQUESTS - LISTS * SLOWEST;

/// The memory of one list of the slowest, in bytes. The last requests have the rest.
const SLOWEST_BYTES: usize = MAX_BYTES / 5 / LISTS;

/// How long the slowest are collected. They are remembered for one more period, so that those of the last ten minutes are
/// always there.
const PERIOD: Duration = Duration::from_secs(600);

/// The finished requests that are remembered.
pub(super) struct Finished {
    capacity: usize,
    remembered: Mutex<Remembered>,
}

struct Remembered {
    /// The oldest first.
    last: VecDeque<Arc<Row>>,
    /// The memory of these.
    bytes: usize,
    total: u64,
    slowest: Period,
    /// The slowest of the period before.
    earlier: Period,
    begun: Instant,
}

#[derive(Default)]
struct Period {
    by_ttft: SlowList,
    by_e2e: SlowList,
}

/// The slowest first.
#[derive(Default)]
struct SlowList {
    rows: Vec<(Duration, Arc<Row>)>,
    bytes: usize,
}

/// The slowest requests, the slowest first.
pub(crate) struct Slowest {
    /// By the time to the first byte of a stream.
    pub(crate) by_ttft: Vec<Arc<Row>>,
    /// By the time to the end.
    pub(crate) by_e2e: Vec<Arc<Row>>,
}

impl Finished {
    /// Remembers so many of the last ones.
    pub(super) fn new(capacity: usize, now: Instant) -> Self {
        Self {
            capacity,
            remembered: Mutex::new(Remembered {
                last: VecDeque::new(),
                bytes: 0,
                total: 0,
                slowest: Period::default(),
                earlier: Period::default(),
                begun: now,
            }),
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Remembers this request, and forgets others where they become too many.
    pub(super) fn push(&self, row: Row) {
        let row = Arc::new(row);
        // Dropped outside of the lock.
        let mut forgotten = None;
        let mut remembered = self.lock();
        remembered.total += 1;
        remembered.note_slow(&row);
        remembered.bytes += row.bytes();
        remembered.last.push_back(row);
        while remembered.last.len() > self.capacity
            || remembered.bytes > MAX_BYTES - LISTS * SLOWEST_BYTES
        {
            forgotten = remembered.last.pop_front();
            remembered.bytes -= forgotten.as_ref().map_or(0, |row| row.bytes());
        }
        drop(remembered);
        drop(forgotten);
    }

    /// The last ones, the newest first; the slowest ones; and how many there were since the start.
    pub(super) fn rows(&self) -> (Vec<Arc<Row>>, Slowest, u64) {
        let remembered = self.lock();
        let last = remembered.last.iter().rev().cloned().collect();
        let periods = [&remembered.slowest, &remembered.earlier];
        let slowest = Slowest {
            by_ttft: merged(periods.map(|period| &period.by_ttft)),
            by_e2e: merged(periods.map(|period| &period.by_e2e)),
        };
        (last, slowest, remembered.total)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Remembered> {
        // Nothing panics while the lock is held.
        let locked = self.remembered.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remembered {
    fn note_slow(&mut self, row: &Arc<Row>) {
        let ended = row.ended_at();
        if ended.saturating_duration_since(self.begun) >= PERIOD {
            self.earlier = std::mem::take(&mut self.slowest);
            self.begun = ended;
        }
        self.slowest.by_e2e.offer(row.e2e(), row);
        if let Some(ttft) = row.ttft() {
            self.slowest.by_ttft.offer(ttft, row);
        }
    }
}

impl SlowList {
    fn offer(&mut self, time: Duration, row: &Arc<Row>) {
        let is_full = self.rows.len() >= SLOWEST;
        if is_full && self.rows.last().is_some_and(|(last, _)| *last >= time) {
            return;
        }
        let place = self.rows.partition_point(|(slower, _)| *slower >= time);
        self.bytes += row.bytes();
        self.rows.insert(place, (time, row.clone()));
        while self.rows.len() > SLOWEST || self.bytes > SLOWEST_BYTES {
            let forgotten = self.rows.pop();
            self.bytes -= forgotten.map_or(0, |(_, row)| row.bytes());
        }
    }
}

fn merged(lists: [&SlowList; 2]) -> Vec<Arc<Row>> {
    let mut rows: Vec<_> = lists.iter().flat_map(|list| &list.rows).collect();
    rows.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    rows.into_iter().map(|(_, row)| row.clone()).collect()
}

#[cfg(test)]
mod tests;
