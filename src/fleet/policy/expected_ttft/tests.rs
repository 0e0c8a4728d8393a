//! The policy beside workers that compute prompts as it supposes: one after the other, from a cache of the last ones.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::super::tests::{candidates, key};
use super::*;
use crate::pd::{RoutingKey, Usage};

/// Tokens of a block, as the workers below count them.
const BLOCK_TOKENS: usize = 100;

/// A worker that computes a token in this time, with a cache of so many blocks.
struct Model {
    seconds_per_token: f64,
    capacity: usize,
    cache: VecDeque<u64>,
    free_at: f64,
}

impl Model {
    fn new(seconds_per_token: f64) -> Self {
        Self {
            seconds_per_token,
            capacity: usize::MAX,
            cache: VecDeque::new(),
            free_at: 0.0,
        }
    }

    /// Computes a prompt that comes at this second: when it has been computed, and the tokens that were cached.
    fn compute(&mut self, at: f64, prompt: &Prefix) -> (f64, usize) {
        let blocks = prompt.blocks();
        let held = blocks
            .iter()
            .take_while(|block| self.cache.contains(block))
            .count();
        let computed = (blocks.len() - held) * BLOCK_TOKENS + 1;
        let begins = self.free_at.max(at);
        self.free_at = begins + 0.01 + computed as f64 * self.seconds_per_token;
        for block in blocks.iter().rev() {
            self.cache.retain(|other| other != block);
            self.cache.push_back(*block);
        }
        while self.cache.len() > self.capacity {
            self.cache.pop_front();
        }
        (self.free_at, held * BLOCK_TOKENS)
    }
}

/// The policy, the workers, and the responses that have not come yet.
struct Cluster {
    policy: ExpectedTtft,
    workers: Vec<Model>,
    candidates: Vec<Candidate>,
    begun: Instant,
    open: Vec<(f64, usize, Arc<Prefix>, Usage)>,
    draws: u64,
}

/// One request: the worker that it was sent to, its TTFT in seconds, and its cached tokens.
#[derive(Debug, Clone, Copy)]
struct Sent {
    worker: usize,
    ttft: f64,
    cached: usize,
}

impl Cluster {
    fn new(workers: Vec<Model>) -> Self {
        Self {
            policy: ExpectedTtft::default(),
            candidates: candidates(workers.len() as u64),
            workers,
            begun: Instant::now(),
            open: Vec::new(),
            draws: 1,
        }
    }

    fn alike(workers: usize) -> Self {
        Self::new((0..workers).map(|_| Model::new(1e-4)).collect())
    }

    fn instant(&self, at: f64) -> Instant {
        self.begun + Duration::from_secs_f64(at)
    }

    /// A prompt of these blocks comes at this second.
    fn send(&mut self, at: f64, blocks: &[u64]) -> Sent {
        self.respond(at);
        let prefix = Arc::new(Prefix::for_tests(
            blocks.iter().copied(),
            blocks.len() * BLOCK_BYTES,
        ));
        let request = RoutingKey {
            prefix: Some(prefix.clone()),
            ..key()
        };
        self.draws = self
            .draws
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let asked = Asked {
            request: &request,
            draw: self.draws,
            now: self.instant(at),
        };
        let worker = self.policy.choose(&asked, &self.candidates).unwrap().index;
        let (ends, cached) = self.workers[worker].compute(at, &prefix);
        let usage = Usage {
            prompt_tokens: (blocks.len() * BLOCK_TOKENS + 1) as u64,
            cached_tokens: Some(cached as u64),
        };
        self.open.push((ends, worker, prefix, usage));
        Sent {
            worker,
            ttft: ends - at,
            cached,
        }
    }

    /// The responses that have come by this second.
    fn respond(&mut self, at: f64) {
        self.open.sort_by(|one, other| one.0.total_cmp(&other.0));
        let come = self.open.iter().take_while(|open| open.0 <= at).count();
        for (ends, worker, prefix, usage) in self.open.drain(..come).collect::<Vec<_>>() {
            self.policy.ended(&Ended {
                worker: self.candidates[worker].id,
                spread: self.candidates[worker].spread(1),
                prefix: &prefix,
                served: true,
                usage: Some(usage),
                now: self.begun + Duration::from_secs_f64(ends),
            });
        }
    }
}

/// A prompt of its own with this many blocks.
fn own(prompt: u64, blocks: u64) -> Vec<u64> {
    (0..blocks)
        .map(|block| 1_000_000 + prompt * 1000 + block)
        .collect()
}

/// A prompt that begins with the blocks of this group.
fn of_group(group: u64, prompt: u64) -> Vec<u64> {
    let shared = (0..40).map(|block| group * 1000 + block);
    shared.chain(own(prompt, 4)).collect()
}

#[test]
fn prompts_that_begin_alike_go_to_the_worker_that_has_computed_the_beginning() {
    let mut cluster = Cluster::alike(4);
    let mut workers = [None; 8];
    for prompt in 0..160 {
        let group = prompt % 8;
        let sent = cluster.send(prompt as f64 * 0.2, &of_group(group, prompt));
        let first = *workers[group as usize].get_or_insert(sent.worker);
        assert_eq!(sent.worker, first, "{prompt}");
    }
    let mut used: Vec<_> = workers.into_iter().flatten().collect();
    used.sort_unstable();
    used.dedup();
    assert!(used.len() >= 3, "{workers:?}");
}

#[test]
fn a_prefix_that_many_ask_for_is_computed_again_where_waiting_would_take_longer() {
    let mut cluster = Cluster::alike(4);
    cluster.send(0.0, &of_group(0, 0));
    cluster.respond(10.0);
    let sent: Vec<_> = (1..60)
        .map(|prompt| cluster.send(10.0, &of_group(0, prompt)))
        .collect();
    let mut used: Vec<_> = sent.iter().map(|sent| sent.worker).collect();
    used.sort_unstable();
    used.dedup();
    assert_eq!(
        used.len(),
        4,
        "all at once: one worker would be busy for long"
    );
}

#[test]
fn lengths_count_and_not_numbers() {
    let mut cluster = Cluster::alike(2);
    for prompt in 0..20 {
        cluster.send(prompt as f64, &own(prompt, 10));
    }
    cluster.respond(100.0);
    let long = cluster.send(100.0, &own(100, 400)).worker;
    for prompt in 101..111 {
        assert_ne!(cluster.send(100.0, &own(prompt, 10)).worker, long);
    }
}

#[test]
fn a_worker_of_half_the_speed_gets_half_the_work() {
    let mut workers: Vec<_> = (0..4).map(|_| Model::new(1e-4)).collect();
    workers[0].seconds_per_token = 2e-4;
    let mut cluster = Cluster::new(workers);
    let mut blocks = [0; 4];
    for prompt in 0..600 {
        let length = 5 + prompt * 7 % 40;
        let sent = cluster.send(prompt as f64 * 0.075, &own(prompt, length));
        if prompt > 100 {
            blocks[sent.worker] += length;
        }
    }
    let others = (blocks[1] + blocks[2] + blocks[3]) / 3;
    let part = blocks[0] as f64 / others as f64;
    assert!((0.3..0.75).contains(&part), "{blocks:?}");
}

#[test]
fn a_flushed_cache_is_noticed_from_the_responses() {
    let mut cluster = Cluster::alike(4);
    let send = |cluster: &mut Cluster, prompt: u64| {
        cluster.send(prompt as f64 * 0.2, &of_group(prompt % 8, prompt))
    };
    for prompt in 0..200 {
        send(&mut cluster, prompt);
    }
    for worker in &mut cluster.workers {
        worker.cache.clear();
    }
    let again: Vec<_> = (200..400)
        .map(|prompt| send(&mut cluster, prompt))
        .collect();
    let missed = again.iter().filter(|sent| sent.cached == 0).count();
    assert!(
        missed <= 8 + 4,
        "each group is computed once, or nearly: {missed}"
    );
    let late = again[100..]
        .iter()
        .map(|sent| sent.ttft)
        .fold(0.0, f64::max);
    assert!(late < 0.2, "{late}");
}

#[test]
fn a_worker_that_can_hold_less_than_was_thought_is_believed_to_hold_less() {
    let mut cluster = Cluster::alike(1);
    cluster.workers[0].capacity = 100;
    let mut wrong = 0;
    for prompt in 0..400 {
        // Ten conversations of 20 blocks in turn: 200 blocks, of which a cache of 100 in order of use has none.
        let conversation = own(prompt % 10, 20);
        let mirrors = &cluster.policy.mirrors;
        let slot = mirrors.slot(cluster.candidates[0].place());
        let expected = mirrors.held(&conversation, &[slot]).depth(slot);
        let sent = cluster.send(prompt as f64, &conversation);
        wrong += usize::from(prompt >= 200 && expected > 0 && sent.cached == 0);
    }
    assert!(wrong < 40, "{wrong} of 200");
}

#[test]
fn nothing_is_left_of_requests_that_have_ended_and_of_workers_that_are_gone() {
    let mut cluster = Cluster::alike(3);
    for prompt in 0..30 {
        cluster.send(0.0, &own(prompt, 5));
    }
    cluster.respond(1e6);
    for line in cluster.policy.lines.values() {
        assert!(line.is_empty());
        assert_eq!(line.wait(cluster.begun), 0.0);
    }
    cluster.policy.retain(&|id| id == cluster.candidates[1].id);
    assert_eq!(cluster.policy.lines.len(), 1);
}

#[test]
fn a_request_that_was_not_served_waits_no_more_and_teaches_nothing() {
    let mut cluster = Cluster::alike(1);
    let bytes = cluster.policy.bytes;
    cluster.send(0.0, &own(0, 100));
    let (_, worker, prefix, _) = cluster.open.pop().unwrap();
    let wait = |cluster: &Cluster| {
        cluster.policy.lines[&cluster.candidates[0].place()].wait(cluster.begun)
    };
    assert!(wait(&cluster) > 0.0);
    cluster.policy.ended(&Ended {
        worker: cluster.candidates[worker].id,
        spread: cluster.candidates[worker].spread(1),
        prefix: &prefix,
        served: false,
        usage: None,
        now: cluster.begun,
    });
    assert_eq!((wait(&cluster), cluster.policy.bytes), (0.0, bytes));
}

#[test]
fn a_worker_that_says_how_much_it_holds_is_believed_from_the_beginning() {
    let mut wrong = [0; 2];
    for (wrong, told) in wrong.iter_mut().zip([0, 100 * BLOCK_TOKENS as u64]) {
        let mut cluster = Cluster::alike(1);
        cluster.workers[0].capacity = 100;
        cluster.candidates[0].cache_tokens = told;
        // Each conversation has a turn after nine others, of 20 blocks each: the worker has always let go of it.
        for prompt in 0..60 {
            let conversation = own(prompt % 10, 20);
            let mirrors = &cluster.policy.mirrors;
            let slot = mirrors.slot(cluster.candidates[0].place());
            let expected = mirrors.held(&conversation, &[slot]).depth(slot);
            let sent = cluster.send(prompt as f64, &conversation);
            *wrong += usize::from(expected > 0 && sent.cached == 0);
        }
    }
    assert!(wrong[0] > 0 && wrong[1] == 0, "{wrong:?}");
}

#[test]
fn each_rank_of_a_worker_has_a_line_and_a_cache_of_its_own() {
    let mut cluster = Cluster::alike(4);
    for (rank, candidate) in (0..).zip(&mut cluster.candidates) {
        (candidate.id, candidate.rank, candidate.ranks) = (WorkerId(7), rank, 4);
    }
    let mut ranks = [None; 8];
    for prompt in 0..160 {
        let group = prompt % 8;
        let sent = cluster.send(prompt as f64 * 0.2, &of_group(group, prompt));
        let first = *ranks[group as usize].get_or_insert(sent.worker);
        assert_eq!(sent.worker, first, "{prompt}");
    }
    cluster.respond(1e6);
    let report = cluster.policy.report(cluster.begun);
    let (worker, of_worker) = report.workers[0];
    assert_eq!((report.workers.len(), worker), (1, WorkerId(7)));
    assert!(of_worker.blocks > 300 && of_worker.cached_tokens > 0);
    assert_eq!(of_worker.flushes, 0);
    cluster.policy.flushed(WorkerId(7));
    let (_, of_worker) = cluster.policy.report(cluster.begun).workers[0];
    assert_eq!((of_worker.blocks, of_worker.flushes), (0, 1));
}

#[test]
fn a_batch_waits_on_each_rank_that_has_a_prompt_of_it() {
    let mut cluster = Cluster::alike(1);
    let prefix = Arc::new(Prefix::for_tests(0..400, 400 * BLOCK_BYTES));
    let candidate = Candidate {
        ranks: 4,
        rank: 3,
        ..cluster.candidates[0]
    };
    let request = RoutingKey {
        prompts: 2,
        prefix: Some(prefix.clone()),
        ..key()
    };
    let asked = Asked {
        request: &request,
        draw: 0,
        now: cluster.begun,
    };
    cluster.policy.choose(&asked, &[candidate]);
    let worker = candidate.id;
    let wait = |cluster: &Cluster, rank| {
        let line = cluster.policy.lines.get(&Place { worker, rank });
        line.map_or(0.0, |line| line.wait(cluster.begun))
    };
    let waits = [0, 1, 2, 3].map(|rank| wait(&cluster, rank) > 0.0);
    assert_eq!(waits, [true, false, false, true]);
    cluster.policy.ended(&Ended {
        worker,
        spread: candidate.spread(2),
        prefix: &prefix,
        served: true,
        usage: None,
        now: cluster.begun,
    });
    assert_eq!([0, 3].map(|rank| wait(&cluster, rank)), [0.0, 0.0]);
}

#[test]
fn what_came_is_reported_beside_what_was_expected() {
    let mut cluster = Cluster::alike(2);
    for prompt in 0..200 {
        cluster.send(prompt as f64 * 0.2, &of_group(prompt % 4, prompt));
    }
    cluster.respond(1e6);
    let report = cluster.policy.report(cluster.begun);
    let sum = |of: fn(&WorkerReport) -> u64| -> u64 {
        report.workers.iter().map(|(_, worker)| of(worker)).sum()
    };
    assert_eq!(sum(|worker| worker.prompt_tokens), 200 * 4401);
    let (expected, came) = (
        sum(|worker| worker.expected_cached_tokens),
        sum(|worker| worker.cached_tokens),
    );
    assert_eq!(came, 196 * 4000);
    assert!(expected.abs_diff(came) < came / 20, "{expected} {came}");
    let ratios = report.time_ratio;
    let near = ratios
        .buckets
        .iter()
        .filter(|(bound, _)| (0.8..=1.25).contains(bound));
    let near: u64 = near.map(|(_, count)| count).sum();
    assert!(ratios.count == 200 && near > 120, "{:?}", ratios.buckets);
    assert!(report.mirror_bytes > 0);
}
