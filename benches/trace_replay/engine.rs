//! A prefill worker in virtual time, as the simulator has it: one forward pass at a time, of a bounded number of tokens,
//! first come, first served. The last prompt of a pass may be cut, and goes on first in the next. A prompt is looked up
//! in the prefix cache when its first pass begins, and found by others when a pass has ended.
//!
//! The queueing model has no passes. What they add to the time of a prompt, whatever is chosen, is the difference of the two.

use std::collections::VecDeque;
use std::time::Duration;

use mini_lb::bench::{Trace, TraceRequest};

use super::cache::Cache;
use super::model::Workers;

/// One worker.
pub struct Engine {
    speed: f64,
    /// Most tokens of a pass.
    chunk: usize,
    cache: Cache,
    /// What the cache will hold when all that was sent is computed.
    promised: Cache,
    waiting: VecDeque<Prompt>,
    pass: Option<Pass>,
}

/// A prompt that is not computed yet.
struct Prompt {
    /// Its place in the trace.
    number: usize,
    /// What the promised cache held of it; from its first pass on, what was cached.
    cached: usize,
    /// Tokens that are computed or cached; `None` before the first pass.
    done: Option<usize>,
}

struct Pass {
    begin: Duration,
    end: Duration,
    /// With their tokens in the pass.
    prompts: Vec<(Prompt, usize)>,
}

/// A prompt that has been computed, with its tokens that were cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Computed {
    pub number: usize,
    pub cached: usize,
}

impl Engine {
    pub fn new(speed: f64, chunk: usize, cache_tokens: usize) -> Engine {
        Engine {
            speed,
            chunk,
            cache: Cache::new(cache_tokens),
            promised: Cache::new(cache_tokens),
            waiting: VecDeque::new(),
            pass: None,
        }
    }

    pub fn flush(&mut self) {
        self.cache.flush();
        self.promised.flush();
    }

    /// What a choice with perfect knowledge goes by: the tokens that are to be computed until this prompt has been, divided
    /// by the speed.
    pub fn cost(&self, trace: &Trace, request: &TraceRequest, now: Duration) -> f64 {
        let own = request.input_tokens - self.promised.cached(trace, request);
        let left = |prompt: &Prompt| {
            let tokens = trace.requests[prompt.number].input_tokens;
            tokens - prompt.done.unwrap_or(prompt.cached)
        };
        let waiting: usize = self.waiting.iter().map(left).sum();
        let running = self.pass.as_ref().map_or(0.0, |pass| {
            let all: usize = pass.prompts.iter().map(|(prompt, _)| left(prompt)).sum();
            let in_pass: usize = pass.prompts.iter().map(|(_, tokens)| tokens).sum();
            let length = (pass.end - pass.begin).as_secs_f64();
            let done = (now - pass.begin).as_secs_f64() / length.max(1e-9);
            all as f64 - in_pass as f64 * done
        });
        (own as f64 + waiting as f64 + running) / self.speed
    }

    /// Puts a prompt of the trace into the queue. The end of the pass that begins with it, if one does.
    pub fn add(
        &mut self,
        trace: &Trace,
        workers: &Workers,
        number: usize,
        now: Duration,
    ) -> Option<Duration> {
        let request = &trace.requests[number];
        let cached = self.promised.cached(trace, request);
        self.promised.keep(trace, request, request.input_tokens);
        self.waiting.push_back(Prompt {
            number,
            cached,
            done: None,
        });
        match self.pass {
            Some(_) => None,
            None => self.begin(trace, workers, now),
        }
    }

    /// Ends the pass. The prompts that it has completed, and the end of the next one.
    pub fn end_pass(
        &mut self,
        trace: &Trace,
        workers: &Workers,
        now: Duration,
    ) -> (Vec<Computed>, Option<Duration>) {
        let mut computed = Vec::new();
        for (mut prompt, tokens) in self.pass.take().into_iter().flat_map(|pass| pass.prompts) {
            let request = &trace.requests[prompt.number];
            let done = prompt.done.unwrap_or(0) + tokens;
            self.cache.keep(trace, request, done);
            if done < request.input_tokens {
                prompt.done = Some(done);
                self.waiting.push_front(prompt);
            } else {
                computed.push(Computed {
                    number: prompt.number,
                    cached: prompt.cached,
                });
            }
        }
        (computed, self.begin(trace, workers, now))
    }

    fn begin(&mut self, trace: &Trace, workers: &Workers, now: Duration) -> Option<Duration> {
        let (mut left, mut seconds) = (self.chunk, 0.0);
        let mut prompts = Vec::new();
        while left > 0
            && let Some(mut prompt) = self.waiting.pop_front()
        {
            let request = &trace.requests[prompt.number];
            let done = prompt.done.unwrap_or_else(|| {
                prompt.cached = self.cache.cached(trace, request);
                prompt.cached
            });
            let tokens = left.min(request.input_tokens - done);
            left -= tokens;
            seconds += workers.service_seconds(done, done + tokens) / self.speed;
            prompt.done = Some(done);
            prompts.push((prompt, tokens));
        }
        if prompts.is_empty() {
            return None;
        }
        let end = now + Duration::from_secs_f64(seconds);
        self.pass = Some(Pass {
            begin: now,
            end,
            prompts,
        });
        Some(end)
    }
}
