//! The prefix cache of a worker of the models: blocks of a trace, of which the least recently used one goes first.
//!
//! Of one prompt the last block goes first, so that what is left of it is a beginning.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use mini_lb::bench::{Trace, TraceRequest};

/// Blocks with their tokens.
pub struct Cache {
    /// In tokens.
    capacity: usize,
    held: usize,
    /// The last use of each block, its place in its prompt, and its tokens.
    blocks: HashMap<u64, (u64, usize, usize)>,
    by_use: BTreeSet<(u64, Reverse<usize>, u64)>,
    uses: u64,
}

impl Cache {
    pub fn new(capacity: usize) -> Cache {
        Cache {
            capacity,
            held: 0,
            blocks: HashMap::new(),
            by_use: BTreeSet::new(),
            uses: 0,
        }
    }

    pub fn flush(&mut self) {
        *self = Cache::new(self.capacity);
    }

    /// Tokens of the prompt that are there; the last one is always computed.
    pub fn cached(&self, trace: &Trace, request: &TraceRequest) -> usize {
        let found = request
            .blocks
            .iter()
            .take_while(|block| self.blocks.contains_key(block))
            .count();
        trace.block_start(found).min(request.input_tokens - 1)
    }

    /// Adds the whole blocks of the first `tokens` of the prompt.
    pub fn keep(&mut self, trace: &Trace, request: &TraceRequest, tokens: usize) {
        self.uses += 1;
        for (place, &block) in request.blocks.iter().enumerate() {
            let start = trace.block_start(place);
            let end = trace.block_start(place + 1).min(request.input_tokens);
            if end > tokens {
                break;
            }
            let held = (self.uses, place, end.saturating_sub(start));
            match self.blocks.insert(block, held) {
                Some((used, place, _)) => drop(self.by_use.remove(&(used, Reverse(place), block))),
                None => self.held += held.2,
            }
            self.by_use.insert((self.uses, Reverse(place), block));
        }
        while self.held > self.capacity {
            let Some((.., block)) = self.by_use.pop_first() else {
                return;
            };
            let removed = self.blocks.remove(&block);
            self.held -= removed.map_or(0, |(.., tokens)| tokens);
        }
    }
}
