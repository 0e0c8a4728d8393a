//! What the prefix caches of the workers hold, as far as this balancer knows: the blocks of the prompts that it sent.
//!
//! Each worker has its blocks in the order of their last use, and the least recently used one goes first, as in the engine.
//! A prompt is used from its end to its beginning, so that the end of a prompt goes before its beginning and the blocks of
//! a worker are always whole beginnings. One index over all workers answers how much of a prompt each of them holds, in one
//! walk over its blocks.
//!
//! Source: SGLang 0.5.23, `srt/mem_cache/radix_cache.py` (eviction by last use, leaves first).

use std::collections::HashMap;

use crate::fleet::WorkerId;

/// The most blocks of all workers together. One takes up to 110 bytes.
const MAX_BLOCKS: usize = 600_000;

/// Factors on what a worker is thought to hold, with each prompt of which it holds more than that, or less.
const MORE: f64 = 1.05;
const LESS: f64 = 0.9;

/// The place of a worker in the sets of the index.
type Slot = usize;

/// The caches of all workers.
pub(super) struct Mirrors {
    /// The most blocks of all workers together.
    max_blocks: usize,
    caches: HashMap<WorkerId, Cache>,
    /// The workers that hold each block.
    holders: HashMap<u64, SlotSet>,
    /// Slots of workers that are gone.
    free: Vec<Slot>,
    slots: usize,
}

/// The blocks of one worker, in a list from the most to the least recently used one.
struct Cache {
    slot: Slot,
    /// How many blocks fit, as far as is known.
    capacity: f64,
    places: HashMap<u64, u32>,
    blocks: Vec<Block>,
    /// Places of blocks that are gone.
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

struct Block {
    hash: u64,
    newer: u32,
    older: u32,
}

/// The end of a list.
const NONE: u32 = u32::MAX;

impl Default for Mirrors {
    fn default() -> Self {
        Self::new(MAX_BLOCKS)
    }
}

impl Mirrors {
    fn new(max_blocks: usize) -> Self {
        Self {
            max_blocks,
            caches: HashMap::new(),
            holders: HashMap::new(),
            free: Vec::new(),
            slots: 0,
        }
    }

    /// How many blocks of a prompt each worker holds, from its beginning: `held(worker)`, for workers of which anything is
    /// known.
    pub(super) fn held(&self, prompt: &[u64]) -> Held {
        let mut held = Held {
            depths: vec![0; self.slots],
        };
        let mut alive = SlotSet::default();
        for (index, block) in prompt.iter().enumerate() {
            let Some(holders) = self.holders.get(block) else {
                break;
            };
            if index == 0 {
                alive = holders.clone();
            } else {
                alive.keep(holders);
            }
            if alive.is_empty() {
                break;
            }
            alive.each(|slot| held.depths[slot] = index + 1);
        }
        held
    }

    /// How many blocks this worker holds of the prompt that `held` was made for.
    pub(super) fn depth(&self, held: &Held, worker: WorkerId) -> usize {
        let slot = self.caches.get(&worker).map(|cache| cache.slot);
        slot.and_then(|slot| held.depths.get(slot))
            .copied()
            .unwrap_or(0)
    }

    /// The worker computes this prompt: its blocks are the most recently used ones.
    pub(super) fn add(&mut self, worker: WorkerId, prompt: &[u64]) {
        let share = self.share_with(worker);
        let (slots, free, max) = (&mut self.slots, &mut self.free, self.max_blocks);
        let cache = self.caches.entry(worker).or_insert_with(|| {
            let slot = free.pop().unwrap_or_else(|| {
                *slots += 1;
                *slots - 1
            });
            Cache::new(slot, max)
        });
        for block in prompt.iter().rev() {
            if cache.touch(*block) {
                self.holders.entry(*block).or_default().insert(cache.slot);
            }
        }
        let capacity = share.min(cache.capacity as usize);
        while cache.len() > capacity
            && let Some(block) = cache.evict()
        {
            Self::let_go(&mut self.holders, block, cache.slot);
        }
    }

    /// The worker holds more of a prompt than was expected, or less: it has more room than was thought, or less.
    pub(super) fn correct(&mut self, worker: WorkerId, holds_more: bool) {
        if let Some(cache) = self.caches.get_mut(&worker) {
            cache.capacity = match holds_more {
                true => (cache.capacity * MORE).min(self.max_blocks as f64),
                // From what is there now: a bound above it says nothing.
                false => cache.capacity.min(cache.len() as f64) * LESS,
            };
        }
    }

    /// The worker has lost its cache.
    pub(super) fn forget(&mut self, worker: WorkerId) {
        if let Some(cache) = self.caches.get_mut(&worker) {
            for block in cache.empty() {
                Self::let_go(&mut self.holders, block, cache.slot);
            }
        }
    }

    /// Forgets the workers that are no members any more.
    pub(super) fn retain(&mut self, is_member: impl Fn(WorkerId) -> bool) {
        let gone: Vec<_> = self
            .caches
            .keys()
            .copied()
            .filter(|id| !is_member(*id))
            .collect();
        for worker in gone {
            self.forget(worker);
            self.free
                .extend(self.caches.remove(&worker).map(|cache| cache.slot));
        }
    }

    /// The blocks that each worker may have, so that all of them together stay in bounds.
    fn share_with(&self, worker: WorkerId) -> usize {
        let others = usize::from(!self.caches.contains_key(&worker));
        self.max_blocks / (self.caches.len() + others).max(1)
    }

    fn let_go(holders: &mut HashMap<u64, SlotSet>, block: u64, slot: Slot) {
        if let Some(set) = holders.get_mut(&block) {
            set.remove(slot);
            if set.is_empty() {
                holders.remove(&block);
            }
        }
    }
}

/// How many blocks of one prompt each worker holds.
pub(super) struct Held {
    depths: Vec<usize>,
}

impl Cache {
    fn new(slot: Slot, capacity: usize) -> Self {
        Self {
            slot,
            capacity: capacity as f64,
            places: HashMap::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    /// Takes all blocks out.
    fn empty(&mut self) -> impl Iterator<Item = u64> + use<> {
        self.blocks.clear();
        self.free.clear();
        (self.newest, self.oldest) = (NONE, NONE);
        std::mem::take(&mut self.places).into_keys()
    }

    /// Makes this block the most recently used one. True when it is new.
    fn touch(&mut self, hash: u64) -> bool {
        if let Some(place) = self.places.get(&hash).copied() {
            self.unlink(place);
            self.link_newest(place);
            return false;
        }
        let block = Block {
            hash,
            newer: NONE,
            older: NONE,
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.blocks[place as usize] = block;
                place
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        };
        self.places.insert(hash, place);
        self.link_newest(place);
        true
    }

    /// Removes the least recently used block.
    fn evict(&mut self) -> Option<u64> {
        if self.oldest == NONE {
            return None;
        }
        let place = self.oldest;
        self.unlink(place);
        let hash = self.blocks[place as usize].hash;
        self.places.remove(&hash);
        self.free.push(place);
        Some(hash)
    }

    fn link_newest(&mut self, place: u32) {
        let older = self.newest;
        let block = &mut self.blocks[place as usize];
        (block.newer, block.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.blocks[older as usize].newer = place,
        }
        self.newest = place;
    }

    fn unlink(&mut self, place: u32) {
        let (newer, older) = {
            let block = &self.blocks[place as usize];
            (block.newer, block.older)
        };
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
    }
}

/// A set of slots. The first 64 need no allocation.
#[derive(Clone, Default)]
struct SlotSet {
    first: u64,
    more: Vec<u64>,
}

impl SlotSet {
    fn word(&mut self, slot: Slot) -> &mut u64 {
        let Some(index) = (slot / 64).checked_sub(1) else {
            return &mut self.first;
        };
        if self.more.len() <= index {
            self.more.resize(index + 1, 0);
        }
        &mut self.more[index]
    }

    fn insert(&mut self, slot: Slot) {
        *self.word(slot) |= 1 << (slot % 64);
    }

    fn remove(&mut self, slot: Slot) {
        *self.word(slot) &= !(1 << (slot % 64));
    }

    fn is_empty(&self) -> bool {
        self.first == 0 && self.more.iter().all(|word| *word == 0)
    }

    /// Keeps those that are in the other set as well.
    fn keep(&mut self, other: &SlotSet) {
        self.first &= other.first;
        self.more.truncate(other.more.len());
        for (word, other) in self.more.iter_mut().zip(&other.more) {
            *word &= other;
        }
    }

    fn each(&self, mut visit: impl FnMut(Slot)) {
        let words = std::iter::once(&self.first).chain(&self.more);
        for (index, word) in words.enumerate() {
            let mut rest = *word;
            while rest != 0 {
                visit(index * 64 + rest.trailing_zeros() as usize);
                rest &= rest - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(mirrors: &Mirrors, worker: u64, prompt: &[u64]) -> usize {
        mirrors.depth(&mirrors.held(prompt), WorkerId(worker))
    }

    /// The mirrors agree with themselves: the index and the lists name the same blocks.
    fn check(mirrors: &Mirrors) {
        let mut listed = 0;
        for cache in mirrors.caches.values() {
            let mut place = cache.newest;
            let mut count = 0;
            while place != NONE {
                let block = &cache.blocks[place as usize];
                assert_eq!(cache.places[&block.hash], place);
                let mut holds = false;
                mirrors.holders[&block.hash].each(|slot| holds |= slot == cache.slot);
                assert!(holds);
                count += 1;
                place = block.older;
            }
            assert_eq!(count, cache.len());
            listed += count;
        }
        let mut held = 0;
        for holders in mirrors.holders.values() {
            holders.each(|_| held += 1);
        }
        assert_eq!(held, listed);
    }

    #[test]
    fn a_worker_holds_the_common_beginning_of_what_it_computed() {
        let mut mirrors = Mirrors::default();
        mirrors.add(WorkerId(1), &[1, 2, 3]);
        mirrors.add(WorkerId(2), &[1, 2, 4, 5]);
        for (prompt, first, second) in [
            (&[1, 2, 3, 9][..], 3, 2),
            (&[1, 2, 4, 5], 2, 4),
            (&[1], 1, 1),
            (&[], 0, 0),
        ] {
            assert_eq!(depth(&mirrors, 1, prompt), first, "{prompt:?}");
            assert_eq!(depth(&mirrors, 2, prompt), second, "{prompt:?}");
        }
        assert_eq!(depth(&mirrors, 3, &[1]), 0);
        check(&mirrors);
    }

    #[test]
    fn the_end_of_the_prompt_that_was_not_used_for_longest_goes_first() {
        let mut mirrors = Mirrors::default();
        let worker = WorkerId(1);
        mirrors.add(worker, &[1, 2, 3, 4]);
        mirrors.add(worker, &[5, 6]);
        mirrors.add(worker, &[1, 2]);
        mirrors
            .caches
            .get_mut(&worker)
            .expect("it was added")
            .capacity = 4.0;
        mirrors.add(worker, &[5]);
        assert_eq!(depth(&mirrors, 1, &[1, 2, 3, 4]), 2);
        assert_eq!(depth(&mirrors, 1, &[5, 6]), 2);
        check(&mirrors);
    }

    #[test]
    fn a_worker_that_lost_its_cache_or_left_holds_nothing_and_the_others_keep_theirs() {
        let mut mirrors = Mirrors::default();
        for worker in 0..200 {
            mirrors.add(WorkerId(worker), &[1, 2, 100 + worker]);
        }
        mirrors.forget(WorkerId(70));
        assert_eq!(depth(&mirrors, 70, &[1, 2]), 0);
        mirrors.add(WorkerId(70), &[1]);
        mirrors.retain(|WorkerId(id)| id % 2 == 0);
        for worker in 0..200 {
            let expected = match worker {
                70 => 1,
                worker if worker % 2 == 0 => 3,
                _ => 0,
            };
            assert_eq!(depth(&mirrors, worker, &[1, 2, 100 + worker]), expected);
        }
        check(&mirrors);
        let slots = mirrors.slots;
        (1000..1100).for_each(|worker| mirrors.add(WorkerId(worker), &[1]));
        assert_eq!(
            mirrors.slots, slots,
            "slots of workers that are gone are used again"
        );
    }

    #[test]
    fn memory_is_bounded_and_a_worker_that_lacks_blocks_is_given_less() {
        const MAX: usize = 6000;
        let mut mirrors = Mirrors::new(MAX);
        for prompt in 0..2 * MAX as u64 / 100 {
            let blocks: Vec<_> = (0..100).map(|block| prompt * 100 + block).collect();
            mirrors.add(WorkerId(prompt % 3), &blocks);
        }
        let holders = mirrors.holders.len();
        assert!((MAX / 2..=MAX).contains(&holders), "{holders}");
        let before = mirrors.caches[&WorkerId(0)].len();
        (0..10).for_each(|_| mirrors.correct(WorkerId(0), false));
        mirrors.add(WorkerId(0), &[1]);
        let after = mirrors.caches[&WorkerId(0)].len();
        assert!(after < before * 2 / 3, "{before} {after}");
        check(&mirrors);
    }
}
