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
//! | `line.rs` | the prompts that a worker has got and not answered |

mod cost;
mod line;
mod mirror;

use std::collections::HashMap;
use std::time::Instant;

use self::cost::{Cost, Work};
use self::line::{Line, Prompt};
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
const ALIKE: f64 = 1.005;

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
            Some(line) => line.wait(now) + own * line.speed.factor(),
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
        if lacks.abs() > 2.0 * block {
            self.mirrors.correct(worker, lacks < 0.0);
        }
        if is_flushed {
            line.losses = 0;
            let waiting = line.prefixes();
            line.lose_cache(|work| self.cost.seconds(work));
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
                self.cost.learn(prompt.work, seconds, &mut line.speed);
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
        self.cost.learn(work, seconds, &mut line.speed);
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
