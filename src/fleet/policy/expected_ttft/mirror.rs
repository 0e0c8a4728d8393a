//! What the prefix caches of the workers hold, as far as this balancer knows: the blocks of the prompts that it sent.
//!
//! Each worker has its blocks in the order of their last use, and the least recently used one goes first, as in the engine.
//! A prompt is used from its end to its beginning, so that the end of a prompt goes before its beginning and the blocks of
//! a worker are always whole beginnings. One index over all workers answers how much of a prompt each of them holds, in one
//! walk over its blocks.
//!
//! Source: SGLang 0.5.23, `srt/mem_cache/radix_cache.py` (eviction by last use, leaves first).

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;

use super::slots::{Bits, Slot, SlotSet};
use crate::fleet::{Place, WorkerId};

/// The most blocks of all workers together. One takes about 100 bytes.
const MAX_BLOCKS: usize = 600_000;

/// Factors on what a worker is thought to hold, with each prompt of which it holds more than that, or less.
const MORE: f64 = 1.05;
const LESS: f64 = 0.9;

/// The keys are hashes already, and 2,000 of them are looked up for a long prompt.
type Map<K, V> = HashMap<K, V, RandomState>;

/// The caches of all workers. Each data parallel rank is a worker here.
pub(super) struct Mirrors {
    /// The most blocks of all workers together.
    max_blocks: usize,
    caches: Map<Place, Cache>,
    /// The workers that hold each block.
    holders: Map<u64, SlotSet>,
    /// The worker of each slot, also of those that are free.
    places: Vec<Place>,
    /// Slots of workers that are gone.
    free: Vec<Slot>,
}

/// The blocks of one worker, in a list from the most to the least recently used one.
struct Cache {
    slot: Slot,
    /// How many blocks fit, as far as is known.
    capacity: f64,
    places: Map<u64, u32>,
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
            caches: Map::default(),
            holders: Map::default(),
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The slot of a worker of which anything is known.
    pub(super) fn slot(&self, place: Place) -> Option<Slot> {
        self.caches.get(&place).map(|cache| cache.slot)
    }

    /// How many blocks of a prompt each of these workers holds, from its beginning.
    pub(super) fn held(&self, prompt: &[u64], among: &[Option<Slot>]) -> Held {
        let mut held = Held(vec![0; self.places.len()]);
        let first = prompt.first().and_then(|block| self.holders.get(block));
        let Some(first) = first else {
            return held;
        };
        let mut alive = first.bits();
        alive.keep(&SlotSet::of(among.iter().flatten().copied()));
        self.walk(prompt, alive, |slots, depth| {
            slots.each(|slot| held.note(slot, depth));
        });
        held
    }

    /// The workers that hold most of a prompt, at most so many.
    pub(super) fn deepest(&self, prompt: &[u64], limit: usize) -> Vec<WorkerId> {
        let Some(first) = prompt.first().and_then(|block| self.holders.get(block)) else {
            return Vec::new();
        };
        // Each step has one of them at least, and those that hold most come last.
        let mut steps = VecDeque::new();
        self.walk(prompt, first.bits(), |slots, _| {
            if steps.len() == limit {
                steps.pop_front();
            }
            steps.push_back(slots.clone());
        });
        let mut deepest = Vec::with_capacity(limit);
        for slots in steps.iter().rev() {
            slots.each_until(|slot| {
                let place = self.places.get(slot as usize);
                deepest.extend(place.map(|place| place.worker));
                deepest.len() < limit
            });
            if deepest.len() >= limit {
                break;
            }
        }
        deepest
    }

    /// Follows a prompt from block to block, and shows these holders of its first block, those that hold least first, with the
    /// number of blocks that they hold.
    fn walk(&self, prompt: &[u64], mut alive: Bits, mut end: impl FnMut(&Bits, u32)) {
        let none = SlotSet::default();
        let mut depth = 1;
        for block in prompt.iter().skip(1) {
            if alive.is_empty() {
                return;
            }
            let holders = self.holders.get(block).unwrap_or(&none);
            if let Some(gone) = alive.keep(holders) {
                end(&gone, depth);
            }
            depth += 1;
        }
        if !alive.is_empty() {
            end(&alive, depth);
        }
    }

    /// The worker computes this prompt: its blocks are the most recently used ones. `told` is the number of blocks that fit, as
    /// the worker tells.
    pub(super) fn add(&mut self, place: Place, prompt: &[u64], told: Option<usize>) {
        let share = self.share_with(place);
        if !self.caches.contains_key(&place) {
            self.make_room(share);
        }
        let (places, free, max) = (&mut self.places, &mut self.free, self.max_blocks);
        let cache = self.caches.entry(place).or_insert_with(|| {
            let slot = free.pop().unwrap_or_else(|| {
                places.push(place);
                places.len() as Slot - 1
            });
            places[slot as usize] = place;
            Cache::new(slot, max)
        });
        // What a worker tells is right. Prompts that lack something say more about a flush then, or about prompts that were
        // computed at the same time.
        let capacity = share.min(told.unwrap_or(cache.capacity as usize));
        // Of a prompt that is longer than the cache its end does not fit.
        let prompt = &prompt[..prompt.len().min(capacity)];
        for block in prompt.iter().rev() {
            if cache.touch(*block) {
                self.holders.entry(*block).or_default().insert(cache.slot);
                cache.shrink(capacity, &mut self.holders);
            }
        }
        cache.shrink(capacity, &mut self.holders);
    }

    /// The worker holds more of a prompt than was expected, or less: it has more room than was thought, or less.
    pub(super) fn correct(&mut self, place: Place, holds_more: bool) {
        if let Some(cache) = self.caches.get_mut(&place) {
            cache.capacity = match holds_more {
                true => (cache.capacity * MORE).min(self.max_blocks as f64),
                // From what is there now: a bound above it says nothing.
                false => cache.capacity.min(cache.len() as f64) * LESS,
            };
        }
    }

    /// The worker has lost its cache.
    pub(super) fn forget(&mut self, place: Place) {
        if let Some(cache) = self.caches.get_mut(&place) {
            for block in cache.empty() {
                let_go(&mut self.holders, block, cache.slot);
            }
        }
    }

    /// The same of all ranks of a worker. Whether anything was known of them.
    pub(super) fn forget_worker(&mut self, worker: WorkerId) -> bool {
        let of_worker: Vec<_> = self.places_where(|id| id == worker);
        of_worker.iter().for_each(|place| self.forget(*place));
        !of_worker.is_empty()
    }

    /// Forgets the workers that are no members any more.
    pub(super) fn retain(&mut self, is_member: impl Fn(WorkerId) -> bool) {
        for place in self.places_where(|id| !is_member(id)) {
            self.forget(place);
            self.free
                .extend(self.caches.remove(&place).map(|cache| cache.slot));
        }
    }

    /// The blocks of each worker.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (WorkerId, usize)> {
        let caches = self.caches.iter();
        caches.map(|(place, cache)| (place.worker, cache.len()))
    }

    /// The memory of all of it, in bytes, as far as it grows with the blocks.
    pub(super) fn bytes(&self) -> usize {
        let sets = self.holders.values().map(SlotSet::allocated);
        let caches = self.caches.values().map(Cache::bytes);
        table_bytes(&self.holders) + sets.sum::<usize>() + caches.sum::<usize>()
    }

    fn places_where(&self, suits: impl Fn(WorkerId) -> bool) -> Vec<Place> {
        let places = self.caches.keys().copied();
        places.filter(|place| suits(place.worker)).collect()
    }

    /// There is one worker more, so that each of the others may have fewer blocks.
    fn make_room(&mut self, share: usize) {
        let mut has_shrunk = false;
        for cache in self.caches.values_mut() {
            has_shrunk |= cache.len() > share;
            cache.shrink(share, &mut self.holders);
            cache.compact(share);
        }
        if has_shrunk {
            self.holders.shrink_to_fit();
        }
    }

    /// The blocks that each worker may have, so that all of them together stay in bounds.
    fn share_with(&self, place: Place) -> usize {
        let others = usize::from(!self.caches.contains_key(&place));
        self.max_blocks / (self.caches.len() + others).max(1)
    }
}

fn let_go(holders: &mut Map<u64, SlotSet>, block: u64, slot: Slot) {
    if let Some(set) = holders.get_mut(&block) {
        set.remove(slot);
        if set.is_empty() {
            holders.remove(&block);
        }
    }
}

/// How many blocks of one prompt each worker holds, by slot.
pub(super) struct Held(Vec<u32>);

impl Held {
    /// The blocks that the worker of this slot holds.
    pub(super) fn depth(&self, slot: Option<Slot>) -> usize {
        let depth = slot.and_then(|slot| self.0.get(slot as usize));
        depth.copied().unwrap_or(0) as usize
    }

    fn note(&mut self, slot: Slot, depth: u32) {
        if let Some(of_slot) = self.0.get_mut(slot as usize) {
            *of_slot = depth;
        }
    }
}

/// The memory of a hash table, in bytes: a power of two of entries with a byte each, of which 7/8 are used at most.
fn table_bytes<K, V>(table: &Map<K, V>) -> usize {
    let entries = table.capacity().saturating_mul(8) / 7;
    entries * (size_of::<(K, V)>() + 1)
}

impl Cache {
    fn new(slot: Slot, capacity: usize) -> Self {
        Self {
            slot,
            capacity: capacity as f64,
            places: Map::default(),
            blocks: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    fn bytes(&self) -> usize {
        let blocks = self.blocks.capacity() * size_of::<Block>();
        table_bytes(&self.places) + blocks + self.free.capacity() * size_of::<u32>()
    }

    /// Lets the least recently used blocks go that are too many.
    fn shrink(&mut self, capacity: usize, holders: &mut Map<u64, SlotSet>) {
        while self.len() > capacity
            && let Some(block) = self.evict()
        {
            let_go(holders, block, self.slot);
        }
    }

    /// Gives memory back that was taken for far more blocks than there may be from now on.
    fn compact(&mut self, share: usize) {
        if self.places.capacity() <= 2 * share && 2 * self.blocks.capacity() <= 3 * share {
            return;
        }
        let mut compact = Self::new(self.slot, 0);
        compact.capacity = self.capacity;
        compact.places.reserve(self.len());
        let mut place = self.oldest;
        while let Some(block) = self.blocks.get(place as usize) {
            compact.touch(block.hash);
            place = block.newer;
        }
        *self = compact;
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
                if self.blocks.len() == self.blocks.capacity() {
                    // A vector would double, and all of them together have a bound.
                    self.blocks.reserve_exact(self.blocks.len() / 4 + 16);
                }
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

#[cfg(test)]
mod tests;
