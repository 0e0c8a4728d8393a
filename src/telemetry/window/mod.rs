//! The last 15 minutes in bounded memory: what the dashboard shows of requests that have finished.
//!
//! Each finished request with legs is added to its period of the whole, of its pair and of its workers. Nothing is kept of
//! a single request. One lock is held for the additions, and while a reader copies sums; a request takes it once.
//!
//! | file | what it holds |
//! |---|---|
//! | `ring.rs` | a value for each of the last periods |
//! | `counts.rs`, `histogram.rs` | what is added up in one period |
//! | `view.rs` | what a reader gets |

mod counts;
mod histogram;
mod ring;
mod view;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Record;
use crate::fleet::{Role, WorkerId};
pub(crate) use counts::Counts;
pub(crate) use histogram::Histogram;
use ring::Ring;
pub(crate) use view::{Filter, Summary, View};

/// The workers that have sums of their own. Beyond them a request counts for the whole only.
const MAX_WORKERS: usize = 4096;
/// The same for pairs. One takes 5 kB, all of them 5 MB.
const MAX_PAIRS: usize = 1024;
/// The same for errors of pairs, by code.
const MAX_ERRORS: usize = 1024;

/// The sums of the last 15 minutes.
pub(crate) struct Window {
    began: Instant,
    state: Mutex<State>,
}

struct State {
    all: Series<90, 10>,
    workers: HashMap<WorkerId, Minute>,
    pairs: HashMap<PairId, Series<15, 60>>,
    errors: HashMap<ErrorOf, Ring<u32, 15>>,
}

/// A prefill worker and a decode worker.
type PairId = (WorkerId, WorkerId);

/// An error by its code, with the pair of its last attempt.
#[derive(PartialEq, Eq, Hash)]
struct ErrorOf {
    code: Cow<'static, str>,
    pair: Option<PairId>,
}

/// The last minute: six periods of 10 s.
type Minute = Ring<(Counts, Histogram), 6>;

/// One pair, or the whole: the last minute, and the last 15 minutes in periods of `STEP` seconds.
struct Series<const PERIODS: usize, const STEP: u64> {
    minute: Minute,
    quarter: Ring<Counts, PERIODS>,
    /// Five periods of three minutes.
    quarter_ttft: Ring<Histogram, 5>,
}

/// The workers to blame for a request that failed, where it is not the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    One(Role),
    /// Both, or the balancer.
    Unknown,
}

impl Default for Window {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl Window {
    /// A window without a request, which begins now.
    pub(crate) fn new(began: Instant) -> Self {
        Self {
            began,
            state: Mutex::new(State {
                all: Series::new(),
                workers: HashMap::new(),
                pairs: HashMap::new(),
                errors: HashMap::new(),
            }),
        }
    }

    /// Adds a finished request. Requests without legs are left out. The samples of a request are added apart.
    pub(super) fn add(&self, record: &Record, now: Instant) {
        if record.route.is_none() {
            return;
        }
        let (second, blame) = (self.second(now), blame(&record.ended));
        let mut state = self.lock();
        state.all.add(record, blame, second);
        if record.samples == 0 {
            state.add_pair(record, blame, second);
        }
        if blame.is_some() || !matches!(&*record.ended, "ok" | "client_left") {
            state.add_error(record, second);
        }
    }

    /// Adds a sample of a request to its pair and its workers.
    pub(super) fn add_sample(&self, record: &Record, now: Instant) {
        let second = self.second(now);
        let mut state = self.lock();
        state.add_pair(record, blame(&record.ended), second);
    }

    /// The sums now, of all requests or of those that a filter leaves.
    pub(crate) fn view(&self, filter: Filter, now: Instant) -> View {
        View::of(&self.lock(), filter, self.elapsed(now))
    }

    fn second(&self, now: Instant) -> u64 {
        self.elapsed(now).as_secs()
    }

    fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Adds a request to its last pair, and to each worker that one of its attempts failed at.
    fn add_pair(&mut self, record: &Record, blame: Option<Blame>, second: u64) {
        for failed in &record.failed {
            if let Some(minute) = self.worker(failed.worker.id(), second) {
                let (counts, _) = minute.at(second);
                counts.requests += 1;
                counts.failures += 1;
            }
        }
        let Some(pair) = &record.pair else { return };
        let id = (pair.prefill.id(), pair.decode.id());
        let is_unused = |pair: &Series<15, 60>| pair.quarter.recent(second).next().is_none();
        let make_room = is_full(&self.pairs, &id, MAX_PAIRS);
        if make_room {
            self.pairs.retain(|_, pair| !is_unused(pair));
        }
        if !is_full(&self.pairs, &id, MAX_PAIRS) {
            let pair = self.pairs.entry(id).or_insert_with(Series::new);
            pair.add(record, blame, second);
        }
        for (role, worker) in [(Role::Prefill, id.0), (Role::Decode, id.1)] {
            if let Some(minute) = self.worker(worker, second) {
                let own = blame.filter(|blame| *blame == Blame::One(role));
                add_to(minute, record, own, second);
            }
        }
    }

    fn add_error(&mut self, record: &Record, second: u64) {
        let pair = record.pair.as_ref();
        let mut error = ErrorOf {
            code: record.ended.clone(),
            pair: pair.map(|pair| (pair.prefill.id(), pair.decode.id())),
        };
        if is_full(&self.errors, &error, MAX_ERRORS) {
            let errors = &mut self.errors;
            errors.retain(|_, ring| ring.recent(second).next().is_some());
            error.pair = error.pair.filter(|_| errors.len() < MAX_ERRORS);
        }
        let ring = self.errors.entry(error).or_insert_with(|| Ring::new(60));
        *ring.at(second) += 1;
    }

    /// The sums of a worker; `None` where too many have some already.
    fn worker(&mut self, id: WorkerId, second: u64) -> Option<&mut Minute> {
        if is_full(&self.workers, &id, MAX_WORKERS) {
            self.workers
                .retain(|_, minute| minute.recent(second).next().is_some());
        }
        let is_full = is_full(&self.workers, &id, MAX_WORKERS);
        (!is_full).then(|| self.workers.entry(id).or_insert_with(|| Ring::new(10)))
    }
}

impl<const PERIODS: usize, const STEP: u64> Series<PERIODS, STEP> {
    fn new() -> Self {
        Self {
            minute: Ring::new(10),
            quarter: Ring::new(STEP),
            quarter_ttft: Ring::new(180),
        }
    }

    fn add(&mut self, record: &Record, blame: Option<Blame>, second: u64) {
        add_to(&mut self.minute, record, blame, second);
        self.quarter.at(second).add(record, blame);
        if let Some(ttft) = ttft(record) {
            self.quarter_ttft.at(second).add(ttft);
        }
    }
}

fn add_to(minute: &mut Minute, record: &Record, blame: Option<Blame>, second: u64) {
    let (counts, times) = minute.at(second);
    counts.add(record, blame);
    if let Some(ttft) = ttft(record) {
        times.add(ttft);
    }
}

fn ttft(record: &Record) -> Option<Duration> {
    record.times.first_byte().filter(|_| record.streamed)
}

/// Whether there is no place for this key.
fn is_full<K: Hash + Eq, V>(map: &HashMap<K, V>, key: &K, most: usize) -> bool {
    map.len() >= most && !map.contains_key(key)
}

/// The side to blame, by the word for how a request ended; `None` where it did not fail, or for a reason of the client.
fn blame(ended: &str) -> Option<Blame> {
    match ended {
        "first_token_timeout" | "stream_idle_timeout" | "request_timeout" => {
            Some(Blame::One(Role::Decode))
        }
        "internal" | "no_worker" | "shutting_down" | "overloaded" | "queue_full"
        | "queue_timeout" | "worker_auth" | "merge_failed" | "no_prefill" | "no_decode" => {
            Some(Blame::Unknown)
        }
        _ if ended.starts_with("prefill_") => Some(Blame::One(Role::Prefill)),
        _ if ended.starts_with("decode_") => Some(Blame::One(Role::Decode)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
