//! The data parallel ranks of a prefill worker: each has a queue and a prefix cache of its own, so that a policy chooses a
//! rank, and load is counted for each.
//!
//! The bootstrap room of a prompt decides the rank: it is the room modulo the number of ranks. Decode finds the rank in the
//! same way. A worker that does not say how many ranks it has is one rank.
//!
//! Ranks that are replicas must also be named by the request, once for all its prompts, so that those are on one rank.
//!
//! Source: SGLang 0.5.23, `srt/managers/data_parallel_controller.py` (`follow_bootstrap_room`, the default of prefill),
//! `srt/disaggregation/decode.py` (`_resolve_prefill_dp_rank`) and `srt/disaggregation/common/conn.py` (`CommonKVSender`, which
//! compares the room with `attn_dp_rank`, 0 on every replica, unless the request has `disagg_prefill_dp_rank`).

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::WorkerId;

/// The most ranks of a worker. One that says that it has more is taken for one rank.
pub const MAX_RANKS: u32 = 1024;

/// One rank of a worker, as policies remember it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// The worker.
    pub worker: WorkerId,
    /// From 0.
    pub rank: u32,
}

/// The ranks of one worker that the prompts of a request are on: the first prompt on the first of them, each further one on
/// the next, so that the prompts of a batch are computed side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spread {
    first: u32,
    /// How many ranks the worker has; at least 1.
    of: u32,
    /// How many of them have a prompt.
    used: u32,
    are_replicas: bool,
}

impl Default for Spread {
    /// The one rank of a worker.
    fn default() -> Self {
        Self::new(0, 1, 1)
    }
}

impl Spread {
    /// So many prompts, from this rank on.
    pub fn new(first: u32, of: u32, prompts: usize) -> Self {
        let of = of.max(1);
        let used = u32::try_from(prompts).unwrap_or(of).clamp(1, of);
        Self {
            first: first % of,
            of,
            used,
            are_replicas: false,
        }
    }

    /// All prompts on this one of so many replicas.
    pub fn on_replica(rank: u32, of: u32) -> Self {
        Self {
            are_replicas: true,
            ..Self::new(rank, of, 1)
        }
    }

    /// The rank that the request must name to both workers; `None` where the rooms say it all.
    pub fn named(self) -> Option<u32> {
        self.are_replicas.then_some(self.first)
    }

    /// The rank of the first prompt; `None` where the worker is one rank.
    pub fn rank(self) -> Option<u32> {
        (self.of > 1).then_some(self.first)
    }

    /// The rank of the first prompt; 0 where the worker is one rank.
    pub(super) fn first(self) -> u32 {
        self.first
    }

    /// How many ranks the worker has; at least 1.
    pub(super) fn of(self) -> u32 {
        self.of
    }

    /// How many ranks have a prompt; at least 1.
    pub fn used(self) -> u32 {
        self.used
    }

    /// Those ranks.
    pub fn ranks(self) -> impl Iterator<Item = u32> {
        (0..self.used).map(move |step| (self.first + step) % self.of)
    }

    /// The room nearest below `draw` that puts this prompt on its rank; `None` where there is none. A room is a positive signed
    /// integer of 64 bits.
    pub(super) fn room(self, prompt: usize, draw: u64) -> Option<u64> {
        let of = u64::from(self.of);
        let step = prompt as u64 % u64::from(self.used);
        let rank = (u64::from(self.first) + step) % of;
        let room = draw - draw % of + rank;
        (room <= i64::MAX as u64).then_some(room)
    }
}

/// What a worker says about itself that policies read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Data parallel ranks that the room chooses among; at least 1.
    pub ranks: u32,
    /// Whether they are replicas of the model, and not groups of its attention.
    pub are_replicas: bool,
    /// Tokens that the prefix cache of a rank holds at most; `None` where it does not tell, or holds more elsewhere.
    pub cache_tokens: Option<u64>,
}

impl Default for Layout {
    /// Of a worker that tells nothing.
    fn default() -> Self {
        Self {
            ranks: 1,
            are_replicas: false,
            cache_tokens: None,
        }
    }
}

/// The ranks of a worker, and the load of each.
#[derive(Debug)]
pub(super) struct Ranks {
    /// Whether the worker has told its layout since it was made, or came back.
    told: AtomicBool,
    count: AtomicU32,
    are_replicas: AtomicBool,
    /// 0 where it is not known.
    cache_tokens: AtomicU64,
    /// Empty where there is one rank.
    loads: Mutex<Arc<[RankLoad]>>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self {
            told: AtomicBool::new(false),
            count: AtomicU32::new(1),
            are_replicas: AtomicBool::new(false),
            cache_tokens: AtomicU64::new(0),
            loads: Mutex::new(Arc::new([])),
        }
    }
}

/// The load of one rank.
#[derive(Debug, Default)]
pub(super) struct RankLoad {
    in_flight: AtomicUsize,
    body_bytes: AtomicUsize,
}

impl RankLoad {
    /// Requests, and the bytes of their bodies.
    pub(super) fn now(&self) -> (usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (read(&self.in_flight), read(&self.body_bytes))
    }
}

/// A request on some ranks of a worker, until this is dropped.
pub(super) struct RankShare {
    loads: Arc<[RankLoad]>,
    spread: Spread,
    body_bytes: usize,
}

impl Ranks {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there are several, which are replicas.
    pub(super) fn are_replicas(&self) -> bool {
        self.are_replicas.load(Ordering::Relaxed)
    }

    /// Tokens that the cache of one holds at most; 0 where it is not known.
    pub(super) fn cache_tokens(&self) -> u64 {
        self.cache_tokens.load(Ordering::Relaxed)
    }

    /// Whether the worker has told its layout, or that it does not tell it.
    pub(super) fn are_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Whatever the worker has told may have changed.
    pub(super) fn ask_again(&self) {
        self.told.store(false, Ordering::Relaxed);
    }

    /// Notes what the worker tells. True when the number of ranks is another one. Requests on the old ranks stay with those.
    pub(super) fn note(&self, layout: Layout) -> bool {
        let mut loads = self.lock();
        let count = match layout.ranks {
            1..=MAX_RANKS => layout.ranks,
            _ => 1,
        };
        self.are_replicas
            .store(layout.are_replicas && count > 1, Ordering::Relaxed);
        let tokens = layout.cache_tokens.unwrap_or(0);
        self.cache_tokens.store(tokens, Ordering::Relaxed);
        self.told.store(true, Ordering::Relaxed);
        let changed = self.count.swap(count, Ordering::Relaxed) != count;
        if changed {
            let listed = if count > 1 { count } else { 0 };
            *loads = (0..listed).map(|_| RankLoad::default()).collect();
        }
        changed
    }

    /// The load of each rank; empty where there is one.
    pub(super) fn loads(&self) -> Arc<[RankLoad]> {
        self.lock().clone()
    }

    /// Counts a request on these ranks. `None` where the worker has other ones by now.
    pub(super) fn share(&self, spread: Spread, body_bytes: usize) -> Option<RankShare> {
        let loads = self.loads();
        if loads.len() != spread.of as usize {
            return None;
        }
        let share = RankShare {
            loads,
            spread,
            body_bytes: body_bytes / spread.used as usize,
        };
        share.each(|load| {
            load.in_flight.fetch_add(1, Ordering::Relaxed);
            load.body_bytes
                .fetch_add(share.body_bytes, Ordering::Relaxed);
        });
        Some(share)
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[RankLoad]>> {
        // Nothing panics while the lock is held.
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RankShare {
    fn each(&self, change: impl Fn(&RankLoad)) {
        for rank in self.spread.ranks() {
            change(&self.loads[rank as usize]);
        }
    }
}

impl Drop for RankShare {
    fn drop(&mut self) {
        self.each(|load| {
            load.in_flight.fetch_sub(1, Ordering::Relaxed);
            load.body_bytes
                .fetch_sub(self.body_bytes, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_each_prompt_is_on_its_rank() {
        for (first, of, prompts) in [(0, 1, 1), (2, 4, 1), (3, 4, 6), (6, 7, 20), (9, 4, 2)] {
            let spread = Spread::new(first, of, prompts);
            for draw in [0, 1, 5, 1 << 40, i64::MAX as u64 - 2000] {
                for prompt in 0..prompts {
                    let room = spread.room(prompt, draw).expect("there is one");
                    let expected = (u64::from(first) + prompt as u64) % u64::from(of);
                    assert_eq!(room % u64::from(of), expected, "{spread:?} {draw}");
                    assert!(room.abs_diff(draw) < u64::from(of));
                }
            }
        }
        let last = i64::MAX as u64;
        assert_eq!(
            Spread::new(3, 5, 1).room(0, last),
            None,
            "{last} is 2 modulo 5"
        );
    }

    #[test]
    fn the_prompts_of_a_batch_are_on_ranks_in_turn() {
        let ranks = |first, of, prompts| {
            let spread = Spread::new(first, of, prompts);
            (spread.rank(), spread.ranks().collect::<Vec<_>>())
        };
        assert_eq!(ranks(0, 1, 9), (None, vec![0]));
        assert_eq!(ranks(2, 4, 1), (Some(2), vec![2]));
        assert_eq!(ranks(3, 4, 3), (Some(3), vec![3, 0, 1]));
        assert_eq!(ranks(1, 4, 100), (Some(1), vec![1, 2, 3, 0]));
    }

    #[test]
    fn all_prompts_of_a_request_are_on_the_replica_that_it_names() {
        let spread = Spread::on_replica(6, 4);
        assert_eq!((spread.named(), spread.rank()), (Some(2), Some(2)));
        assert_eq!(spread.ranks().collect::<Vec<_>>(), [2]);
        let rooms = (0..5).map(|prompt| spread.room(prompt, 1000).unwrap_or_default());
        assert!(rooms.into_iter().all(|room| room % 4 == 2));
        assert_eq!(Spread::new(2, 4, 1).named(), None);
    }

    #[test]
    fn load_is_counted_on_the_ranks_of_a_request_until_it_ends() {
        let ranks = Ranks::default();
        assert!(ranks.share(Spread::new(1, 4, 1), 100).is_none());
        let layout = |ranks| Layout {
            ranks,
            are_replicas: true,
            cache_tokens: Some(7),
        };
        assert!(ranks.note(layout(4)) && !ranks.note(layout(4)));
        let loads = || ranks.loads().iter().map(RankLoad::now).collect::<Vec<_>>();
        let one = ranks.share(Spread::new(1, 4, 1), 100);
        let batch = ranks.share(Spread::new(3, 4, 2), 100);
        assert_eq!(loads(), [(1, 50), (1, 100), (0, 0), (1, 50)]);
        drop(one);
        // The worker comes back with other ranks; what it had ends on the old ones.
        assert!(ranks.note(layout(2)));
        drop(batch);
        assert_eq!(loads(), [(0, 0), (0, 0)]);
        assert!(ranks.note(layout(MAX_RANKS + 1)));
        assert_eq!((ranks.count(), ranks.cache_tokens()), (1, 7));
        assert!(!ranks.are_replicas());
    }
}
