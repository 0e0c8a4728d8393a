//! The blocks that a worker holds for others: which prompt is in which block, and until when.
//!
//! A block keeps its contents after its lease until another prompt gets it, as memory does: a late reader gets its own
//! prompt or another one. The journal tells.
//! Source: vLLM 0.32.0, `kv_connector/v1/nixl/pull_scheduler.py` (`request_finished`), `base_worker.py`.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::sim::chaos::ItemFault;
use crate::sim::journal::{Journal, LeaseState};
use crate::sim::model::Context;

/// How many ended leases are remembered, to tell a late reader from a stranger.
const REMEMBERED: usize = 4096;

/// A prompt in the blocks of this worker.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) prompt: Arc<[u32]>,
    /// A fingerprint of the whole prompt.
    pub(crate) fingerprint: u64,
    /// A scripted fault that meets its reader.
    pub(crate) fault: ItemFault,
}

/// How the blocks of a request stand for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// They are held.
    Held,
    /// Another request has read them.
    Read,
    /// Their lease is over.
    Expired,
    /// This worker has not named them, or forgotten it.
    Unknown,
}

/// What is in the blocks that a reader asks for.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// None where no prompt is in them.
    pub(crate) held: Option<Held>,
    pub(crate) standing: Standing,
    /// Whether the request's prompt has this fingerprint; true where it is not known.
    pub(crate) same_prompt: bool,
}

/// The leases of one worker.
pub(crate) struct Leases {
    journal: Journal,
    state: Mutex<State>,
    /// Blocks have become free.
    freed: Notify,
}

struct State {
    /// Number of blocks.
    pool: u64,
    /// The next block to be given, from 1: block 0 is vLLM's null block.
    next: u64,
    /// What is in each block, and whether it is held.
    blocks: HashMap<u64, (Held, bool)>,
    held: u64,
    /// Leases that have run out.
    expired: u64,
    live: HashMap<String, Lease>,
    ended: HashMap<String, Ended>,
    order: VecDeque<String>,
}

struct Lease {
    blocks: Vec<u64>,
    fingerprint: u64,
    /// None until the request has been answered.
    ends: Option<Instant>,
}

struct Ended {
    /// Who read the blocks; none when the lease ran out.
    by: Option<String>,
    fingerprint: u64,
}

impl Leases {
    pub(crate) fn new(journal: Journal, pool: usize) -> Leases {
        Leases {
            journal,
            state: Mutex::new(State {
                pool: (pool as u64).max(1),
                next: 0,
                blocks: HashMap::new(),
                held: 0,
                expired: 0,
                live: HashMap::new(),
                ended: HashMap::new(),
                order: VecDeque::new(),
            }),
            freed: Notify::new(),
        }
    }

    /// Puts a prompt into `count` blocks, which are this request's until it ends. Waits until so many are free.
    pub(crate) async fn take(&self, request: &str, count: usize, prompt: Held) -> Vec<u64> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before the look, so that blocks that become free between the two wake this task.
            freed.as_mut().enable();
            if let Some(blocks) = self.state().take(request, count as u64, &prompt) {
                return blocks;
            }
            freed.await;
        }
    }

    /// Begins the lease of a request that is answered.
    pub(crate) fn begin(&self, request: &str, time: Duration) {
        if let Some(lease) = self.state().live.get_mut(request) {
            lease.ends = Some(Instant::now() + time);
        }
        self.journal.lease_opened(request);
    }

    /// Completes when the lease has run out or is over otherwise.
    pub(crate) async fn run_out(&self, request: &str) {
        loop {
            let ends = match self.state().live.get(request) {
                Some(lease) => lease.ends,
                None => return,
            };
            match ends {
                Some(ends) if ends > Instant::now() => tokio::time::sleep_until(ends).await,
                _ => return self.end(request, None, LeaseState::Expired),
            }
        }
    }

    /// Makes a lease last at least so long from now.
    pub(crate) fn renew(&self, request: &str, time: Duration) {
        let mut state = self.state();
        let Some(lease) = state.live.get_mut(request) else {
            return;
        };
        let ends = Instant::now() + time;
        lease.ends = lease.ends.map(|before| before.max(ends));
        drop(state);
        self.journal.lease(request, LeaseState::Renewed);
    }

    /// A reader is done with the blocks of a request, with or without having read them.
    pub(crate) fn release(&self, request: &str, by: &str, state: LeaseState) {
        self.end(request, Some(by), state);
    }

    /// Frees the blocks of a request that ended without a lease.
    pub(crate) fn give_back(&self, request: &str) {
        let mut state = self.state();
        if let Some(lease) = state.live.remove(request) {
            state.free(&lease.blocks);
            self.freed.notify_waiters();
        }
    }

    /// What is in these blocks, for a reader `by` whose prompt has this fingerprint.
    pub(crate) fn look(&self, request: &str, blocks: &[u64], by: &str, fingerprint: u64) -> Found {
        let state = self.state();
        let (standing, known) = match (state.live.get(request), state.ended.get(request)) {
            (Some(lease), _) => (Standing::Held, Some(lease.fingerprint)),
            (None, None) => (Standing::Unknown, None),
            (None, Some(ended)) => (
                match &ended.by {
                    // The samples of one request read the same blocks, each for itself.
                    Some(reader) if reader == by => Standing::Held,
                    Some(_) => Standing::Read,
                    None => Standing::Expired,
                },
                Some(ended.fingerprint),
            ),
        };
        let named = state.live.get(request).map(|lease| &lease.blocks[..]);
        let last = match blocks {
            // With Mooncake they are known by the request alone.
            [] => named.unwrap_or_default().last(),
            named => named.last(),
        };
        let last = last.and_then(|block| state.blocks.get(block));
        Found {
            held: last.map(|(held, _)| held.clone()),
            standing,
            same_prompt: known.is_none_or(|known| known == fingerprint),
        }
    }

    /// The share of the blocks that is held.
    pub(crate) fn usage(&self) -> f64 {
        let state = self.state();
        state.held as f64 / state.pool as f64
    }

    /// Number of leases that have run out.
    pub(crate) fn expired(&self) -> u64 {
        self.state().expired
    }

    fn end(&self, request: &str, by: Option<&str>, how: LeaseState) {
        let mut state = self.state();
        let Some(lease) = state.live.remove(request) else {
            return;
        };
        state.free(&lease.blocks);
        state.expired += u64::from(by.is_none());
        state.remember(request, by, lease.fingerprint);
        drop(state);
        self.freed.notify_waiters();
        self.journal.lease_closed(request, how);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// None when so many blocks are not free. A prompt that is longer than the memory waits until nothing is held.
    fn take(&mut self, request: &str, count: u64, prompt: &Held) -> Option<Vec<u64>> {
        let count = match self.held {
            0 => count.min(self.pool),
            _ => count,
        };
        if self.pool - self.held < count {
            return None;
        }
        let mut blocks = Vec::new();
        while (blocks.len() as u64) < count {
            self.next = self.next % self.pool + 1;
            let is_held = self.blocks.get(&self.next).is_some_and(|(_, held)| *held);
            if !is_held {
                self.blocks.insert(self.next, (prompt.clone(), true));
                blocks.push(self.next);
            }
        }
        self.held += count;
        let lease = Lease {
            blocks: blocks.clone(),
            fingerprint: prompt.fingerprint,
            ends: None,
        };
        self.live.insert(request.to_owned(), lease);
        Some(blocks)
    }

    fn free(&mut self, blocks: &[u64]) {
        self.held -= blocks.len() as u64;
        for block in blocks {
            if let Some((_, held)) = self.blocks.get_mut(block) {
                *held = false;
            }
        }
    }

    fn remember(&mut self, request: &str, by: Option<&str>, fingerprint: u64) {
        if self.order.len() == REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        let by = by.map(str::to_owned);
        self.order.push_back(request.to_owned());
        self.ended
            .insert(request.to_owned(), Ended { by, fingerprint });
    }
}

impl Found {
    /// The state of the model after all but the last of `tokens` tokens of what the blocks hold: decode computes the last
    /// one itself. Where no prompt is in them it is that of no prompt.
    pub(crate) fn context(&self, seed: u64, tokens: usize) -> Context {
        let prompt = self.held.as_ref().map(|held| &*held.prompt);
        let prompt = prompt.unwrap_or_default();
        let before = prompt.len().min(tokens).saturating_sub(1);
        Context::start(seed).after_all(&prompt[..before])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn prompt(fingerprint: u64) -> Held {
        Held {
            prompt: vec![1, 2, 3].into(),
            fingerprint,
            fault: ItemFault::None,
        }
    }

    fn leases(pool: usize) -> Leases {
        Leases::new(Journal::new(16), pool)
    }

    #[tokio::test]
    async fn a_second_reader_and_a_late_one_are_told_from_the_first() {
        let leases = leases(8);
        let blocks = leases.take("a", 2, prompt(7)).await;
        assert_eq!(blocks, [1, 2]);
        leases.begin("a", Duration::from_secs(30));
        let standing = |request, by| leases.look(request, &blocks, by, 7).standing;
        assert_eq!(standing("a", "d1"), Standing::Held);
        leases.release("a", "d1", LeaseState::Read);
        assert_eq!(standing("a", "d1"), Standing::Held);
        assert_eq!(standing("a", "d2"), Standing::Read);
        assert_eq!(standing("b", "d1"), Standing::Unknown);
        assert!(!leases.look("a", &blocks, "d1", 8).same_prompt);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_unless_it_is_renewed() {
        let leases = leases(8);
        leases.take("a", 1, prompt(7)).await;
        leases.begin("a", Duration::from_secs(30));
        leases.renew("a", Duration::from_secs(50));
        let begun = Instant::now();
        leases.run_out("a").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(50));
        assert_eq!(leases.look("a", &[1], "d", 7).standing, Standing::Expired);
        assert_eq!(leases.usage(), 0.0);
    }

    #[tokio::test]
    async fn a_prompt_waits_for_blocks_that_are_held() {
        let leases = leases(2);
        leases.take("a", 2, prompt(7)).await;
        let waiting = leases.take("b", 1, prompt(8));
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        leases.give_back("a");
        assert_eq!(waiting.await, [1]);
    }
}
