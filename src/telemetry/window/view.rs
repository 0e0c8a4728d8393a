//! What a reader of the window gets: sums of one moment, without a lock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Counts, Histogram, Minute, PairId, Series, State};
use crate::fleet::WorkerId;

/// Which requests are looked at: those of a prefill worker, of a decode worker, of a pair, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Filter {
    pub(crate) prefill: Option<WorkerId>,
    pub(crate) decode: Option<WorkerId>,
}

/// The sums of some requests over a time.
#[derive(Clone, Default)]
pub(crate) struct Summary {
    pub(crate) counts: Counts,
    pub(crate) ttft: Histogram,
}

/// The window at one moment.
pub(crate) struct View {
    /// The last minute, as far as the filter leaves it.
    pub(crate) minute: Summary,
    /// The last 10 to 20 s, and their exact length in seconds.
    pub(crate) now: (Counts, f64),
    /// Since the beginning of the window, in seconds.
    pub(crate) elapsed: f64,
    /// The last 15 minutes.
    pub(crate) quarter: Summary,
    /// The same by periods of `step` seconds, the newest last. Those without a request are left out; a period has its
    /// age, counted in periods.
    pub(crate) periods: Vec<(usize, Counts)>,
    /// The length of a period in seconds.
    pub(crate) step: u64,
    /// The last minute of each worker, whatever the filter is.
    pub(crate) workers: Vec<(WorkerId, Summary)>,
    /// Each pair that served a request, whatever the filter is: the last minute, and the last 15.
    pub(crate) pairs: Vec<(PairId, Summary, Summary)>,
    /// The errors of the last 15 minutes by code, as far as the filter leaves them.
    pub(crate) errors: BTreeMap<Cow<'static, str>, u64>,
}

impl Filter {
    /// Whether it leaves everything.
    pub(crate) fn is_all(self) -> bool {
        self == Self::default()
    }

    fn leaves(self, (prefill, decode): PairId) -> bool {
        self.prefill.is_none_or(|wanted| wanted == prefill)
            && self.decode.is_none_or(|wanted| wanted == decode)
    }
}

impl View {
    pub(super) fn of(state: &State, filter: Filter, elapsed: Duration) -> Self {
        let (second, elapsed) = (elapsed.as_secs(), elapsed.as_secs_f64());
        let mut view = Self {
            minute: Summary::default(),
            now: (Counts::default(), elapsed.min(10.0 + elapsed % 10.0)),
            elapsed,
            quarter: Summary::default(),
            periods: Vec::new(),
            step: 0,
            workers: Vec::new(),
            pairs: Vec::new(),
            errors: BTreeMap::new(),
        };
        if filter.is_all() {
            view.take(&state.all, second);
        } else {
            let left = state.pairs.iter().filter(|(id, _)| filter.leaves(**id));
            view.step = 60;
            for (_, pair) in left {
                view.take(pair, second);
            }
        }
        view.periods
            .sort_unstable_by_key(|(age, _)| usize::MAX - age);
        for (id, pair) in &state.pairs {
            let quarter = quarter(pair, second);
            if quarter.counts.requests > 0 {
                view.pairs
                    .push((*id, last_minute(&pair.minute, second), quarter));
            }
        }
        let workers = state.workers.iter();
        view.workers = workers
            .map(|(id, minute)| (*id, last_minute(minute, second)))
            .filter(|(_, sum)| sum.counts.requests > 0)
            .collect();
        for (error, ring) in &state.errors {
            let count: u64 = ring.recent(second).map(|(_, n)| u64::from(*n)).sum();
            let is_left = error
                .pair
                .map_or(filter.is_all(), |pair| filter.leaves(pair));
            if is_left && count > 0 {
                *view.errors.entry(error.code.clone()).or_default() += count;
            }
        }
        view
    }

    fn take<const PERIODS: usize, const STEP: u64>(
        &mut self,
        series: &Series<PERIODS, STEP>,
        second: u64,
    ) {
        self.minute.merge(&last_minute(&series.minute, second));
        for (age, (counts, _)) in series.minute.recent(second) {
            if age < 2 {
                self.now.0.merge(counts);
            }
        }
        self.quarter.merge(&quarter(series, second));
        self.step = series.quarter.step();
        for (age, counts) in series.quarter.recent(second) {
            match self.periods.iter_mut().find(|(known, _)| *known == age) {
                Some((_, sum)) => sum.merge(counts),
                None => self.periods.push((age, counts.clone())),
            }
        }
    }
}

impl Summary {
    fn merge(&mut self, other: &Self) {
        self.counts.merge(&other.counts);
        self.ttft.merge(&other.ttft);
    }
}

fn last_minute(minute: &Minute, second: u64) -> Summary {
    let mut sum = Summary::default();
    for (_, (counts, ttft)) in minute.recent(second) {
        sum.counts.merge(counts);
        sum.ttft.merge(ttft);
    }
    sum
}

fn quarter<const PERIODS: usize, const STEP: u64>(
    series: &Series<PERIODS, STEP>,
    second: u64,
) -> Summary {
    let mut sum = Summary::default();
    for (_, counts) in series.quarter.recent(second) {
        sum.counts.merge(counts);
    }
    for (_, ttft) in series.quarter_ttft.recent(second) {
        sum.ttft.merge(ttft);
    }
    sum
}
