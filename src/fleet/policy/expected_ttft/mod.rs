//! The prefill worker from which the first token is expected first.
//!
//! A worker computes prompts one after the other. The time until it has computed a new one is the time for those that it
//! has got and not answered, and for the part of the new one that is not in its prefix cache. Both are known well enough
//! without a setting: this balancer has sent the prompts ([`mirror`]), and each response of prefill tells how long a prompt
//! took ([`cost`]), how many tokens it had, and how many were cached.
//!
//! | file | what it holds |
//! |---|---|
//! | `mirror.rs` | what each worker's prefix cache holds |
//! | `cost.rs` | how long a prompt takes |

mod cost;
mod mirror;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use self::cost::{Cost, Work};
use self::mirror::{Held, Mirrors};
use super::{Asked, Candidate, Choice, Ended, Expected, Learning};
use crate::fleet::WorkerId;
use crate::pd::{BLOCK_BYTES, Prefix};

/// The bytes of a token before the first response, as in English text.
const BYTES_PER_TOKEN: f64 = 4.0;

/// The weight of the prompts so far in the bytes per token, with each response.
const RATIO_DECAY: f64 = 0.99;

/// Expectations that differ by less than this factor are alike: the worker is then chosen at random among them, so that a
/// fleet without load is used evenly.
const ALIKE: f64 = 1.02;

/// How many blocks more must have been cached than were, so that the worker has lost its whole cache.
const LOST_BLOCKS: f64 = 4.0;

/// Learns what it needs from the responses.
pub(in super::super) struct ExpectedTtft {
    mirrors: Mirrors,
    cost: Cost,
    lines: HashMap<WorkerId, Line>,
    /// Decayed sums of the bytes and of the tokens of prompts.
    bytes: f64,
    tokens: f64,
}

/// The prompts that a worker has got and not answered, in their order, and how fast it is.
struct Line {
    prompts: VecDeque<Prompt>,
    /// The seconds that all of them take on a worker whose factor is 1.
    seconds: f64,
    /// Since when the worker computes the first of them.
    since: Option<Instant>,
    factor: f64,
    /// Responses in a row with far fewer cached tokens than were expected.
    losses: u32,
}

struct Prompt {
    prefix: Arc<Prefix>,
    work: Work,
    seconds: f64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            prompts: VecDeque::new(),
            seconds: 0.0,
            since: None,
            factor: 1.0,
            losses: 0,
        }
    }
}

impl Default for ExpectedTtft {
    fn default() -> Self {
        Self {
            mirrors: Mirrors::default(),
            cost: Cost::default(),
            lines: HashMap::new(),
            bytes: BYTES_PER_TOKEN,
            tokens: 1.0,
        }
    }
}

impl Line {
    /// The seconds until the worker has computed all that it has.
    fn wait(&self, now: Instant) -> f64 {
        let Some(first) = self.prompts.front() else {
            return 0.0;
        };
        let since = self.since.unwrap_or(now);
        let done = now.saturating_duration_since(since).as_secs_f64();
        (self.seconds * self.factor) - done.min(first.seconds * self.factor)
    }

    fn add(&mut self, prompt: Prompt, now: Instant) {
        if self.prompts.is_empty() {
            (self.seconds, self.since) = (0.0, Some(now));
        }
        self.seconds += prompt.seconds;
        self.prompts.push_back(prompt);
    }

    /// Takes a prompt out, with the seconds that it took since the last response. Prompts that the worker computes in one
    /// step end together: the first of them took the time of all.
    fn take(&mut self, ended: &Ended<'_>) -> Option<(Prompt, f64)> {
        let is_it = |prompt: &Prompt| Arc::ptr_eq(&prompt.prefix, ended.prefix);
        let place = self.prompts.iter().position(is_it)?;
        let prompt = self.prompts.remove(place)?;
        let since = self.since.unwrap_or(ended.now);
        self.seconds = (self.seconds - prompt.seconds).max(0.0);
        if ended.served || place == 0 {
            self.since = Some(ended.now);
        }
        let took = ended.now.saturating_duration_since(since);
        Some((prompt, took.as_secs_f64()))
    }
}

impl ExpectedTtft {
    fn bytes_per_token(&self) -> f64 {
        self.bytes / self.tokens
    }

    fn tokens_in(&self, blocks: usize) -> f64 {
        (blocks * BLOCK_BYTES) as f64 / self.bytes_per_token()
    }

    /// The prompt as this worker would see it. Its last token is always computed.
    fn work(&self, prompt: &Prefix, held: &Held, worker: WorkerId) -> Work {
        let tokens = (prompt.bytes() as f64 / self.bytes_per_token()).max(1.0);
        let cached = self.tokens_in(self.mirrors.depth(held, worker));
        let cached = cached.min(tokens - 1.0);
        Work {
            cached,
            computed: tokens - cached,
        }
    }

    /// The seconds until this worker has computed the prompt.
    fn expected(&self, work: Work, worker: WorkerId, now: Instant) -> f64 {
        let own = self.cost.seconds(work);
        match self.lines.get(&worker) {
            None => own,
            Some(line) => line.wait(now) + own * line.factor,
        }
    }

    /// Compares the cached tokens that a worker reports with those that were expected.
    fn note_cached(&mut self, worker: WorkerId, work: Work, cached: f64) {
        let block = self.tokens_in(1);
        let lacks = work.cached - cached;
        let is_lost = lacks > LOST_BLOCKS * block && cached < work.cached / 4.0;
        let Some(line) = self.lines.get_mut(&worker) else {
            return;
        };
        line.losses = if is_lost { line.losses + 1 } else { 0 };
        let is_flushed = line.losses >= 2;
        // A cache that is too small for what it is asked for looks like one that is flushed again and again.
        if work.cached > block {
            self.mirrors.correct(worker, lacks <= 2.0 * block);
        }
        if is_flushed {
            line.losses = 0;
            let waiting: Vec<_> = line
                .prompts
                .iter()
                .map(|prompt| prompt.prefix.clone())
                .collect();
            self.mirrors.forget(worker);
            for prompt in waiting {
                self.mirrors.add(worker, prompt.blocks());
            }
        }
    }
}

impl Learning for ExpectedTtft {
    fn choose(&mut self, asked: &Asked<'_>, candidates: &[Candidate]) -> Option<Choice> {
        let first = super::Random::index(candidates.len(), asked.draw)?;
        let none = Prefix::default();
        let prompt = asked.request.prefix.as_deref().unwrap_or(&none);
        let held = self.mirrors.held(prompt.blocks());
        let expected = |candidate: &Candidate| {
            let work = self.work(prompt, &held, candidate.id);
            (work, self.expected(work, candidate.id, asked.now))
        };
        let scored = candidates.iter().map(|candidate| {
            let (_, seconds) = expected(candidate);
            seconds / f64::from(candidate.weight)
        });
        let scores: Vec<f64> = scored.collect();
        let least = scores.iter().copied().fold(f64::INFINITY, f64::min);
        let mut from_first = (first..scores.len()).chain(0..first);
        let index = from_first.find(|index| scores[*index] <= least * ALIKE)?;
        let (work, seconds) = expected(&candidates[index]);
        let worker = candidates[index].id;
        if let Some(prefix) = asked.request.prefix.clone() {
            self.mirrors.add(worker, prefix.blocks());
            let prompt = Prompt {
                prefix,
                work,
                seconds: self.cost.seconds(work),
            };
            self.lines.entry(worker).or_default().add(prompt, asked.now);
        }
        Some(Choice {
            index,
            expected: Some(Expected {
                prefill_seconds: seconds,
                cached_tokens: work.cached as u64,
            }),
        })
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let line = self.lines.get_mut(&ended.worker);
        let Some((line, (prompt, seconds))) = line.and_then(|line| {
            let taken = line.take(ended)?;
            Some((line, taken))
        }) else {
            return;
        };
        let Some(usage) = ended.usage else {
            if ended.served {
                self.cost.learn(prompt.work, seconds, &mut line.factor);
            }
            return;
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
        self.cost.learn(work, seconds, &mut line.factor);
        self.bytes = self.bytes * RATIO_DECAY + prompt.prefix.bytes() as f64;
        self.tokens = self.tokens * RATIO_DECAY + tokens.max(1.0);
        if usage.cached_tokens.is_some() {
            self.note_cached(ended.worker, prompt.work, work.cached);
        }
    }

    fn flushed(&mut self, worker: WorkerId) {
        self.mirrors.forget(worker);
    }

    fn retain(&mut self, is_member: &dyn Fn(WorkerId) -> bool) {
        self.mirrors.retain(is_member);
        self.lines.retain(|worker, _| is_member(*worker));
    }
}

#[cfg(test)]
mod tests;
