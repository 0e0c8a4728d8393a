//! Pairs that fail although both of their workers are well: the link between them is broken, or their page sizes differ.
//!
//! Only pairs that have failed have a record. The time is an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::worker::WorkerId;

/// The failures in a row that set a pair aside.
pub(super) const FAILURES: u32 = 3;

/// How long a pair is set aside. After that one failure is enough to set it aside again.
const PAUSE: Duration = Duration::from_secs(30);

/// A prefill worker and a decode worker, in this order.
type Pair = (WorkerId, WorkerId);

/// The records of the pairs that have failed.
#[derive(Default)]
pub(super) struct Pairs {
    /// The number of records. As long as it is 0 no lock is taken.
    known: AtomicUsize,
    records: Mutex<HashMap<Pair, Record>>,
}

#[derive(Default)]
struct Record {
    failures: u32,
    until: Option<Instant>,
}

/// The pairs that are set aside at one moment. Their records are locked meanwhile.
pub(super) struct Aside<'a> {
    records: MutexGuard<'a, HashMap<Pair, Record>>,
    now: Instant,
}

impl Aside<'_> {
    /// Whether the pair may be chosen.
    pub(super) fn admits(&self, pair: Pair) -> bool {
        let until = self.records.get(&pair).and_then(|record| record.until);
        until.is_none_or(|until| self.now >= until)
    }
}

impl Pairs {
    fn has_records(&self) -> bool {
        self.known.load(Ordering::Relaxed) > 0
    }

    /// Whether the pair may be chosen now.
    pub(super) fn admits(&self, pair: Pair, now: Instant) -> bool {
        self.aside(now).is_none_or(|aside| aside.admits(pair))
    }

    /// The pairs that are set aside now, for many questions under one lock; `None` when there is no record at all.
    pub(super) fn aside(&self, now: Instant) -> Option<Aside<'_>> {
        self.has_records().then(|| Aside {
            records: self.lock(),
            now,
        })
    }

    /// Notes that the pair has served a request.
    pub(super) fn good(&self, pair: Pair) {
        if self.has_records() {
            let mut records = self.lock();
            records.remove(&pair);
            self.known.store(records.len(), Ordering::Relaxed);
        }
    }

    /// Notes that the pair has failed. True when it is set aside now.
    pub(super) fn bad(&self, pair: Pair, now: Instant) -> bool {
        let mut records = self.lock();
        let record = records.entry(pair).or_default();
        record.failures += 1;
        let aside = record.failures >= FAILURES;
        if aside {
            record.until = Some(now + PAUSE);
        }
        self.known.store(records.len(), Ordering::Relaxed);
        aside
    }

    /// Forgets the pairs with a worker that is not to be kept.
    pub(super) fn retain(&self, keep: impl Fn(WorkerId) -> bool) {
        if self.has_records() {
            let mut records = self.lock();
            records.retain(|(prefill, decode), _| keep(*prefill) && keep(*decode));
            self.known.store(records.len(), Ordering::Relaxed);
        }
    }

    #[cfg(test)]
    pub(super) fn recorded(&self) -> Vec<Pair> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, Record>> {
        // Nothing panics while the lock is held.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_fails_together_is_set_aside_alone_and_comes_back() {
        let pairs = Pairs::default();
        let (broken, sound) = ((WorkerId(0), WorkerId(1)), (WorkerId(0), WorkerId(2)));
        let now = Instant::now();
        assert!(!pairs.bad(broken, now));
        pairs.good(broken);
        assert!(!pairs.bad(broken, now) && !pairs.bad(broken, now));
        assert!(pairs.admits(broken, now));
        assert!(pairs.bad(broken, now));
        assert!(!pairs.admits(broken, now) && pairs.admits(sound, now));
        let later = now + PAUSE;
        assert!(pairs.admits(broken, later));
        assert!(pairs.bad(broken, later), "one more is enough");
        pairs.good(broken);
        assert!(pairs.admits(broken, later));
    }
}
