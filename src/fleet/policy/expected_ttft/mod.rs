//! The prefill worker from which the first token is expected first.
//!
//! A worker computes prompts one after the other. The time until it has computed a new one is the time for those that it
//! has got and not answered, and for the part of the new one that is not in its prefix cache. Both are known well enough
//! without a setting: this balancer has sent the prompts ([`mirror`]), and each response of prefill tells how long a prompt
//! took ([`cost`]), how many tokens it had, and how many were cached. Each data parallel rank of a worker is a worker here.
//!
//! | file | what it holds |
//! |---|---|
//! | `mirror.rs` | what each worker's prefix cache holds |
//! | `slots.rs` | which workers hold a block |
//! | `cost.rs` | how long a prompt takes |
//! | `line.rs` | the prompts that a worker has got and not answered |

mod cost;
mod line;
mod mirror;
mod slots;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

use self::cost::{Cost, Work};
use self::line::{Line, Prompt};
use self::mirror::Mirrors;
use super::{Asked, Candidate, Choice, Ended, Expected, Learning, Report, WorkerReport};
use crate::fleet::{Place, WorkerId};
use crate::histogram::{Bounds, Histogram};
use crate::pd::{BLOCK_BYTES, Prefix, RoutingKey, Usage};

/// The bytes of a token before the first response, as in English text.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The weight of the prompts so far in the bytes per token, with each response.
const RATIO_DECAY: f64 = 0.99;

/// Expectations that differ by less than this factor are alike: the worker is then chosen at random among them, so that a
/// fleet without load is used evenly.
const ALIKE: f64 = 1.005;

/// How many blocks more must have been cached than were, so that the worker has lost its whole cache.
const LOST_BLOCKS: f64 = 4.0;

/// Upper bounds of the time that came as a part of the time that was expected, in billionths.
const RATIOS: &Bounds = &[
    100_000_000,
    200_000_000,
    500_000_000,
    800_000_000,
    900_000_000,
    1_000_000_000,
    1_100_000_000,
    1_250_000_000,
    1_500_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Learns what it needs from the responses.
pub(in super::super) struct ExpectedTtft {
    mirrors: Mirrors,
    cost: Cost,
    lines: HashMap<Place, Line, RandomState>,
    /// Decayed sums of the bytes and of the tokens of prompts.
    bytes: f64,
    tokens: f64,
    /// The counts of each worker.
    counts: HashMap<WorkerId, WorkerReport>,
    ratios: Histogram,
}

impl Default for ExpectedTtft {
    fn default() -> Self {
        Self {
            mirrors: Mirrors::default(),
            cost: Cost::default(),
            lines: HashMap::default(),
            bytes: BYTES_PER_TOKEN,
            tokens: 1.0,
            counts: HashMap::new(),
            ratios: Histogram::new(RATIOS),
        }
    }
}

impl ExpectedTtft {
    fn bytes_per_token(&self) -> f64 {
        self.bytes / self.tokens
    }

    fn tokens_in(&self, blocks: usize) -> f64 {
        (blocks * BLOCK_BYTES) as f64 / self.bytes_per_token()
    }

    /// The blocks of a cache of so many tokens; `None` where it is not known how many there are.
    fn blocks_in(&self, tokens: u64) -> Option<usize> {
        let bytes = tokens as f64 * self.bytes_per_token();
        (tokens > 0).then_some(bytes as usize / BLOCK_BYTES)
    }

    /// The prompt as a worker would see it that holds so many blocks of it. Its last token is always computed.
    fn work(&self, prompt: &Prefix, held: usize) -> Work {
        let tokens = (prompt.bytes() as f64 / self.bytes_per_token()).max(1.0);
        let cached = self.tokens_in(held);
        let cached = cached.min(tokens - 1.0);
        Work {
            cached,
            computed: tokens - cached,
        }
    }

    /// The seconds until this worker has computed the prompt.
    fn expected(&self, work: Work, place: Place, now: Instant) -> f64 {
        let own = self.cost.seconds(work);
        match self.lines.get(&place) {
            None => own,
            Some(line) => line.wait(now) + own * line.speed.factor(),
        }
    }

    /// The request is on its way to this candidate.
    fn sent(&mut self, asked: &Asked<'_>, to: &Candidate, work: Work, expected: f64) {
        let Some(prefix) = &asked.request.prefix else {
            return;
        };
        let spread = to.spread(asked.request.spread());
        let (blocks, told) = (prefix.blocks(), self.blocks_in(to.cache_tokens));
        self.mirrors.add(to.place(), blocks, told);
        // Side by side on several ranks where they are a batch.
        let ranks = f64::from(spread.used());
        let work = Work {
            cached: work.cached / ranks,
            computed: work.computed / ranks,
        };
        let seconds = self.cost.seconds(work);
        for rank in spread.ranks() {
            let prompt = Prompt {
                prefix: prefix.clone(),
                work,
                seconds,
                sent: asked.now,
                expected,
            };
            let worker = to.id;
            let line = self.lines.entry(Place { worker, rank }).or_default();
            line.add(prompt, asked.now);
        }
    }

    /// Learns from the response to one prompt, or to several on one rank.
    fn learn(&mut self, place: Place, prompt: &Prompt, seconds: f64, usage: Option<Usage>) {
        let Some(line) = self.lines.get_mut(&place) else {
            return;
        };
        let Some(usage) = usage else {
            return self.cost.learn(prompt.work, seconds, &mut line.speed);
        };
        let tokens = usage.prompt_tokens as f64;
        let mut work = prompt.work;
        if let Some(cached) = usage.cached_tokens {
            let cached = (cached as f64).min(tokens);
            work = Work {
                cached,
                computed: (tokens - cached).max(1.0),
            };
        }
        self.cost.learn(work, seconds, &mut line.speed);
        if let Some(cached) = usage.cached_tokens {
            let counts = self.counts.entry(place.worker).or_default();
            counts.prompt_tokens += usage.prompt_tokens;
            counts.expected_cached_tokens += prompt.work.cached as u64;
            counts.cached_tokens += cached;
            self.note_cached(place, prompt.work, work.cached);
        }
    }

    /// Compares the cached tokens that a worker reports with those that were expected.
    fn note_cached(&mut self, place: Place, work: Work, cached: f64) {
        let block = self.tokens_in(1);
        let lacks = work.cached - cached;
        let is_lost = lacks > LOST_BLOCKS * block && cached < work.cached / 4.0;
        let Some(line) = self.lines.get_mut(&place) else {
            return;
        };
        line.losses = if is_lost { line.losses + 1 } else { 0 };
        let is_flushed = line.losses >= 2;
        // A cache that is too small for what it is asked for looks like one that is flushed again and again.
        if lacks.abs() > 2.0 * block {
            self.mirrors.correct(place, lacks < 0.0);
        }
        if is_flushed {
            line.losses = 0;
            let waiting = line.prefixes();
            line.lose_cache(|work| self.cost.seconds(work));
            self.mirrors.forget(place);
            for prompt in waiting {
                self.mirrors.add(place, prompt.blocks(), None);
            }
            self.counts.entry(place.worker).or_default().flushes += 1;
        }
    }

    fn note_time(&self, prompt: &Prompt, now: Instant) {
        let came = now.saturating_duration_since(prompt.sent).as_secs_f64();
        let ratio = came / prompt.expected.max(1e-6);
        let ratio = Duration::try_from_secs_f64(ratio.min(1e6));
        self.ratios.observe(ratio.unwrap_or_default());
    }
}

impl Learning for ExpectedTtft {
    fn choose(&mut self, asked: &Asked<'_>, candidates: &[Candidate]) -> Option<Choice> {
        let first = super::Random::index(candidates.len(), asked.draw)?;
        let none = Prefix::default();
        let prompt = asked.request.prefix.as_deref().unwrap_or(&none);
        let slots: Vec<_> = candidates
            .iter()
            .map(|candidate| self.mirrors.slot(candidate.place()))
            .collect();
        let held = self.mirrors.held(prompt.blocks(), &slots);
        let expected = |index: usize| {
            let work = self.work(prompt, held.depth(slots[index]));
            let place = candidates[index].place();
            (work, self.expected(work, place, asked.now))
        };
        let scored = candidates.iter().enumerate().map(|(index, candidate)| {
            let (_, seconds) = expected(index);
            seconds / f64::from(candidate.weight)
        });
        let scores: Vec<f64> = scored.collect();
        let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let mut from_first = (first..scores.len()).chain(0..first);
        let index = from_first.find(|index| scores[*index] <= least * ALIKE)?;
        let (work, seconds) = expected(index);
        self.sent(asked, &candidates[index], work, seconds);
        Some(Choice {
            index,
            expected: Some(Expected {
                prefill_seconds: seconds,
                cached_tokens: work.cached as u64,
            }),
        })
    }

    fn favourites(&self, request: &RoutingKey, limit: usize) -> Vec<WorkerId> {
        let Some(prompt) = &request.prefix else {
            return Vec::new();
        };
        self.mirrors.deepest(prompt.blocks(), limit)
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let worker = ended.worker;
        let mut taken = None;
        for rank in ended.spread.ranks() {
            let place = Place { worker, rank };
            let line = self.lines.get_mut(&place);
            if let Some(prompt) = line.and_then(|line| line.take(ended)) {
                taken.get_or_insert((place, prompt));
            }
        }
        let Some((place, (prompt, seconds))) = taken else {
            return;
        };
        if !ended.served {
            return;
        }
        self.note_time(&prompt, ended.now);
        if let Some(usage) = ended.usage {
            self.bytes = self.bytes * RATIO_DECAY + prompt.prefix.bytes() as f64;
            self.tokens = self.tokens * RATIO_DECAY + (usage.prompt_tokens as f64).max(1.0);
        }
        // Of a batch on several ranks it is not known which rank took how long.
        if ended.spread.used() == 1 {
            self.learn(place, &prompt, seconds, ended.usage);
        }
    }

    fn flushed(&mut self, worker: WorkerId) {
        if self.mirrors.forget_worker(worker) {
            self.counts.entry(worker).or_default().flushes += 1;
        }
    }

    fn retain(&mut self, is_member: &dyn Fn(WorkerId) -> bool) {
        self.mirrors.retain(is_member);
        self.lines.retain(|place, _| is_member(place.worker));
        self.counts.retain(|worker, _| is_member(*worker));
    }

    fn report(&self, now: Instant) -> Report {
        let mut workers = self.counts.clone();
        for (worker, blocks) in self.mirrors.blocks() {
            workers.entry(worker).or_default().blocks += blocks;
        }
        let mut lines: HashMap<WorkerId, (f64, u32)> = HashMap::new();
        for (place, line) in &self.lines {
            let (wait, ranks) = lines.entry(place.worker).or_default();
            (*wait, *ranks) = (*wait + line.wait(now), *ranks + 1);
        }
        for (worker, (wait, ranks)) in lines {
            workers.entry(worker).or_default().wait_seconds = wait / f64::from(ranks);
        }
        Report {
            workers: workers.into_iter().collect(),
            mirror_bytes: self.mirrors.bytes(),
            time_ratio: self.ratios.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests;
