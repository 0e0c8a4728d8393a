//! A queueing model of prefill workers: what a trace costs under a choice, from the trace alone.
//!
//! A worker computes one prompt at a time, first come, first served; its time is linear in the tokens that its cache does not
//! hold, with a part for attention. A prompt's blocks are in the cache of its worker from its choice on, because what comes
//! later to the same worker is computed later. The greedy choice knows all of this and has no delay: it is the bound that a
//! policy, which must estimate caches, queues and lengths, is measured with. The random one says how busy a fleet would be.
//! Pure: no clock and no process.

use std::collections::VecDeque;
use std::time::Duration;

use mini_lb::bench::Trace;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::cache::Cache;

/// The workers of a measurement, all of one kind but for their speed.
#[derive(Debug, Clone, PartialEq)]
pub struct Workers {
    /// Factor on the speed of each worker.
    pub speeds: Vec<f64>,
    /// Tokens that fit into the cache of each.
    pub cache_tokens: usize,
    /// Seconds for a prompt token.
    pub token_seconds: f64,
    /// The same for a prompt token and a token before it.
    pub attention_seconds: f64,
}

/// How a worker is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// With this seed.
    Random(u64),
    /// The worker with the least of (tokens that wait or run + tokens of the prompt that are not cached) / speed.
    Greedy,
}

/// What came of a choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Seconds from each request to the end of its prompt's computation, in the order of the trace.
    pub first_token_seconds: Vec<f64>,
    /// Prompt tokens that were cached.
    pub cached_tokens: usize,
    /// Percent of the prompt tokens that were cached, of each hundred requests.
    pub cached_by_hundred: Vec<f64>,
    /// Part of the time of the trace in which a worker computes, on average. Above 1 work is left at its end.
    pub busy: f64,
}

impl Outcome {
    /// The value that this part of the requests does not exceed, in milliseconds.
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let mut sorted = self.first_token_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        let place = (part * sorted.len() as f64).ceil() as usize;
        let value = sorted.get(place.saturating_sub(1).min(last));
        value.copied().unwrap_or(0.0) * 1e3
    }
}

/// Runs the trace through the model. At `flush` all caches are emptied.
pub fn replay(
    trace: &Trace,
    workers: &Workers,
    choice: Choice,
    mut flush: Option<Duration>,
) -> Outcome {
    let mut draws = SmallRng::seed_from_u64(match choice {
        Choice::Random(seed) => seed,
        Choice::Greedy => 0,
    });
    let new = |&speed: &f64| Worker::new(speed, workers.cache_tokens);
    let mut fleet: Vec<Worker> = workers.speeds.iter().map(new).collect();
    let mut outcome = Outcome::default();
    let (mut work, mut tokens, mut cached_before) = (0.0, 0, 0);
    for request in &trace.requests {
        let now = request.at.as_secs_f64();
        if flush.take_if(|flush| *flush <= request.at).is_some() {
            fleet.iter_mut().for_each(|worker| worker.cache.flush());
        }
        let chosen = match choice {
            Choice::Random(_) => draws.random_range(0..fleet.len()),
            Choice::Greedy => {
                let cost = |worker: &mut Worker| {
                    let new = request.input_tokens - worker.cache.cached(trace, request);
                    (worker.queued_tokens(now) + new as f64) / worker.speed
                };
                let costs = fleet.iter_mut().map(cost).enumerate();
                let least = costs.min_by(|(_, a), (_, b)| a.total_cmp(b));
                least.map_or(0, |(index, _)| index)
            }
        };
        let worker = &mut fleet[chosen];
        let cached = worker.cache.cached(trace, request);
        worker.cache.keep(trace, request, request.input_tokens);
        let seconds = workers.service_seconds(cached, request.input_tokens) / worker.speed;
        work += seconds;
        let end = worker.run(now, seconds, request.input_tokens - cached);
        outcome.first_token_seconds.push(end - now);
        outcome.cached_tokens += cached;
        tokens += request.input_tokens;
        if outcome.first_token_seconds.len().is_multiple_of(100) {
            let part = (outcome.cached_tokens - cached_before) as f64 / tokens as f64;
            outcome.cached_by_hundred.push(100.0 * part);
            (tokens, cached_before) = (0, outcome.cached_tokens);
        }
    }
    outcome.busy = work / (fleet.len() as f64 * trace.span().as_secs_f64().max(1e-9));
    outcome
}

/// The time of a prompt token with which the workers are so busy under random choices. `attention` is the number of tokens
/// before a token whose attention takes as long as the rest of it.
pub fn calibrated(trace: &Trace, workers: &Workers, attention: f64, busy: f64) -> Workers {
    let unit = Workers {
        token_seconds: 1.0,
        attention_seconds: 1.0 / attention,
        ..workers.clone()
    };
    // What is cached depends on the choices, and not on how long anything takes.
    let seeds = 1..=5;
    let count = seeds.clone().count() as f64;
    let at_unit: f64 = seeds
        .map(|seed| replay(trace, &unit, Choice::Random(seed), None).busy)
        .sum();
    let token_seconds = busy / (at_unit / count);
    Workers {
        token_seconds,
        attention_seconds: token_seconds / attention,
        ..workers.clone()
    }
}

impl Workers {
    /// The time for a prompt of `input` tokens of which `cached` need not be computed, on a worker of speed 1.
    pub fn service_seconds(&self, cached: usize, input: usize) -> f64 {
        let (cached, new) = (cached as f64, (input - cached) as f64);
        new * self.token_seconds + (new * cached + new * new / 2.0) * self.attention_seconds
    }
}

struct Worker {
    speed: f64,
    free_at: f64,
    /// Begin, end and tokens of the prompts that are not computed yet.
    queue: VecDeque<(f64, f64, usize)>,
    cache: Cache,
}

impl Worker {
    fn new(speed: f64, capacity: usize) -> Worker {
        Worker {
            speed,
            free_at: 0.0,
            queue: VecDeque::new(),
            cache: Cache::new(capacity),
        }
    }

    fn queued_tokens(&mut self, now: f64) -> f64 {
        while self.queue.front().is_some_and(|(_, end, _)| *end <= now) {
            self.queue.pop_front();
        }
        let left = |&(begin, end, tokens): &(f64, f64, usize)| {
            let done = ((now - begin) / (end - begin)).clamp(0.0, 1.0);
            tokens as f64 * (1.0 - done)
        };
        self.queue.iter().map(left).sum()
    }

    /// Puts a prompt into the queue; gives when it will have been computed.
    fn run(&mut self, now: f64, seconds: f64, tokens: usize) -> f64 {
        let begin = self.free_at.max(now);
        self.free_at = begin + seconds;
        self.queue.push_back((begin, self.free_at, tokens));
        self.free_at
    }
}
