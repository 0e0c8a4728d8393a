//! Pairs that fail although both workers are well: a broken link between them, another page size.
//!
//! Only pairs in trouble are remembered. The clock is an argument.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::worker::WorkerId;

/// Failures in a row after which a pair is not picked.
const FAILURES: u32 = 3;

/// How long it is not picked then. One more failure afterwards and it is set aside again.
const PAUSE: Duration = Duration::from_secs(30);

/// A prefill worker and a decode worker.
type Pair = (WorkerId, WorkerId);

/// What is known of pairs in trouble.
#[derive(Default)]
pub(super) struct Pairs {
    /// How many records there are, so that a healthy fleet accepts_share no lock.
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
    /// Whether the pair may be picked.
    pub(super) fn admits(&self, pair: Pair) -> bool {
        let until = self.records.get(&pair).and_then(|record| record.until);
        until.is_none_or(|until| self.now >= until)
    }
}

impl Pairs {
    fn has_records(&self) -> bool {
        self.known.load(Ordering::Relaxed) > 0
    }

    /// Whether the pair may be picked now.
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

    /// The pair has served a request.
    pub(super) fn good(&self, pair: Pair) {
        if self.has_records() {
            let mut records = self.lock();
            records.remove(&pair);
            self.known.store(records.len(), Ordering::Relaxed);
        }
    }

    /// The pair has failed together. Whether it is set aside now.
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

    /// Forgets the pairs of workers that are not to be kept.
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
