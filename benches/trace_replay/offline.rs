//! A policy under a trace in virtual time: the code of the balancer that chooses, in front of workers that are a model. Takes
//! seconds, needs no quiet machine, and gives the same result each time.
//!
//! What it leaves out is what the real measurement is for: bytes, sockets, and a machine that is busy.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mini_lb::bench::{Endpoint, Trace, TracePrompt, Words};
use mini_lb::fleet::{
    Asked, BreakerLimits, Candidate, Ended, Fleet, Policies, Role, RolePolicy, WorkerParts,
};
use mini_lb::pd::{Prefix, Route, RoutingKey, Usage};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::engine::Engine;
use super::model::{Outcome, Workers};

/// Between the end of a pass and the policy that learns of it.
const RESPONSE: Duration = Duration::from_millis(3);

/// The workers, and what is done to them.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    pub workers: &'a Workers,
    /// Most tokens of a forward pass.
    pub chunk: usize,
    /// When all caches are emptied.
    pub flush: Option<Duration>,
}

/// What chooses.
pub enum Chooser<'a> {
    /// The least of what is to be computed, with perfect knowledge.
    Greedy,
    /// A policy of mini-lb, with the prompts of the trace.
    Policy(Box<Asking<'a>>),
}

/// A policy, and what it is told.
pub struct Asking<'a> {
    policy: RolePolicy,
    requests: &'a [RoutingKey],
    candidates: Vec<Candidate>,
    draws: SmallRng,
    begun: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Flush,
    EndOfPass {
        worker: usize,
    },
    Response {
        worker: usize,
        number: usize,
        cached: usize,
    },
    Arrival {
        number: usize,
    },
}

/// The policy with this name.
pub fn policy(name: &str) -> Option<RolePolicy> {
    Some(match name {
        "random" => RolePolicy::Random,
        "round_robin" => RolePolicy::round_robin(),
        "power_of_two" => RolePolicy::power_of_two(),
        "least_requests" => RolePolicy::least_requests(),
        "least_tokens" => RolePolicy::least_bytes(),
        "expected_ttft" => RolePolicy::expected_ttft(),
        _ => return None,
    })
}

/// The facts of each request as the balancer finds them in its body.
pub fn routing_keys(trace: &Trace, words: Words) -> Vec<RoutingKey> {
    let prompt = TracePrompt {
        endpoint: Endpoint::Generate,
        words,
        stream: true,
        ignore_eos: true,
        model: String::new(),
        extra: serde_json::Map::new(),
    };
    let key = |request| {
        let body = prompt.body(trace, request);
        RoutingKey {
            route: Route::Generate,
            body_bytes: body.len(),
            prompts: 1,
            session: None,
            prefix: Some(Arc::new(Prefix::of(Route::Generate, &body))),
            to_come: 0,
            rank: None,
        }
    };
    trace.requests.iter().map(key).collect()
}

/// Runs the trace.
pub fn replay(trace: &Trace, setting: Setting<'_>, mut chooser: Chooser<'_>) -> Outcome {
    let Setting { workers, chunk, .. } = setting;
    let new = |&speed: &f64| Engine::new(speed, chunk, workers.cache_tokens);
    let mut engines: Vec<Engine> = workers.speeds.iter().map(new).collect();
    let mut events: BinaryHeap<Reverse<(Duration, Event)>> = BinaryHeap::new();
    let arrivals = trace.requests.iter().enumerate();
    events
        .extend(arrivals.map(|(number, request)| Reverse((request.at, Event::Arrival { number }))));
    events.extend(setting.flush.map(|at| Reverse((at, Event::Flush))));
    let mut first_tokens = vec![0.0; trace.requests.len()];
    let mut ends = Vec::new();
    while let Some(Reverse((now, event))) = events.pop() {
        match event {
            Event::Flush => engines.iter_mut().for_each(Engine::flush),
            Event::Arrival { number } => {
                let worker = chooser.choose(trace, &engines, number, now);
                let end = engines[worker].add(trace, workers, number, now);
                events.extend(end.map(|end| Reverse((end, Event::EndOfPass { worker }))));
            }
            Event::EndOfPass { worker } => {
                let (computed, end) = engines[worker].end_pass(trace, workers, now);
                events.extend(end.map(|end| Reverse((end, Event::EndOfPass { worker }))));
                for computed in computed {
                    let number = computed.number;
                    let time = now - trace.requests[number].at;
                    first_tokens[number] = time.as_secs_f64();
                    ends.push((number, computed.cached));
                    let response = Event::Response {
                        worker,
                        number,
                        cached: computed.cached,
                    };
                    events.push(Reverse((now + RESPONSE, response)));
                }
            }
            Event::Response {
                worker,
                number,
                cached,
            } => chooser.ended(trace, worker, number, cached, now),
        }
    }
    outcome(trace, first_tokens, &ends)
}

fn outcome(trace: &Trace, first_token_seconds: Vec<f64>, ends: &[(usize, usize)]) -> Outcome {
    let cached = |ends: &[(usize, usize)]| ends.iter().map(|(_, cached)| cached).sum::<usize>();
    let percent = |ends: &[(usize, usize)]| {
        let tokens = |(number, _): &(usize, usize)| trace.requests[*number].input_tokens;
        let tokens: usize = ends.iter().map(tokens).sum();
        100.0 * cached(ends) as f64 / tokens.max(1) as f64
    };
    Outcome {
        first_token_seconds,
        cached_tokens: cached(ends),
        cached_by_hundred: ends.chunks_exact(100).map(percent).collect(),
        busy: 0.0,
    }
}

impl<'a> Asking<'a> {
    pub fn new(policy: RolePolicy, requests: &'a [RoutingKey], workers: &Workers) -> Asking<'a> {
        let fleet = Fleet::new(Policies::random(), BreakerLimits::default());
        let worker = |port| fleet.new_worker(WorkerParts::plain(Role::Prefill, "127.0.0.1", port));
        let cache_tokens = workers.cache_tokens as u64;
        let workers = (1..).zip(&workers.speeds).map(|(port, _)| worker(port));
        let candidates = workers.map(|worker| Candidate {
            cache_tokens,
            ..worker.candidate()
        });
        Asking {
            policy,
            requests,
            candidates: candidates.collect(),
            draws: SmallRng::seed_from_u64(1),
            begun: Instant::now(),
        }
    }
}

impl Chooser<'_> {
    fn choose(&mut self, trace: &Trace, engines: &[Engine], number: usize, now: Duration) -> usize {
        let asking = match self {
            Chooser::Greedy => {
                let request = &trace.requests[number];
                let costs = engines
                    .iter()
                    .map(|engine| engine.cost(trace, request, now))
                    .enumerate();
                let least = costs.min_by(|(_, a), (_, b)| a.total_cmp(b));
                return least.map_or(0, |(index, _)| index);
            }
            Chooser::Policy(asking) => asking,
        };
        let request = &asking.requests[number];
        let asked = Asked {
            request,
            draw: asking.draws.random(),
            now: asking.begun + now,
        };
        let choice = asking.policy.choose(&asked, &asking.candidates);
        let index = choice.map_or(0, |choice| choice.index);
        let candidate = &mut asking.candidates[index];
        candidate.in_flight += 1;
        candidate.body_bytes += request.body_bytes;
        index
    }

    fn ended(&mut self, trace: &Trace, worker: usize, number: usize, cached: usize, now: Duration) {
        let Chooser::Policy(asking) = self else {
            return;
        };
        let request = &asking.requests[number];
        let candidate = &mut asking.candidates[worker];
        candidate.in_flight -= 1;
        candidate.body_bytes -= request.body_bytes;
        let (Some(prefix), Some(mut policy)) = (&request.prefix, asking.policy.learning()) else {
            return;
        };
        policy.ended(&Ended {
            worker: candidate.id,
            spread: candidate.spread(1),
            prefix,
            served: true,
            usage: Some(Usage {
                prompt_tokens: trace.requests[number].input_tokens as u64,
                cached_tokens: Some(cached as u64),
            }),
            now: asking.begun + now,
        });
    }
}
