//! The prefix cache of one rank: a radix tree of token pages, bounded, of which the least recently used leaf goes first.
//!
//! Prompts that begin alike share the nodes of their common pages. A node that a request holds stays, and so do the nodes
//! above it. Pure: the clock is a count of look-ups, and `rank` has the lock.
//!
//! Source: SGLang 0.5.23, `srt/mem_cache/radix_cache.py` (`match_prefix`, `insert`, `evict`, `inc_lock_ref`).

use std::collections::{BTreeSet, HashMap};

/// The node without tokens, above all others.
const ROOT: usize = 0;

/// The tokens whose KV a rank has.
#[derive(Debug)]
pub(super) struct Radix {
    page: usize,
    capacity: usize,
    /// Removed nodes are reused: `free` has their places.
    nodes: Vec<Node>,
    free: Vec<usize>,
    /// The leaves that may go, by their last use.
    leaves: BTreeSet<(u64, usize)>,
    tokens: usize,
    held: usize,
    clock: u64,
    flushes: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// Whole pages. A page occurs once among the first pages of siblings.
    tokens: Vec<u32>,
    parent: usize,
    /// By the digest of their first page.
    children: HashMap<u64, usize>,
    holders: usize,
    used: u64,
}

/// The tokens that a request needs: they stay until [`Radix::release`].
#[derive(Debug)]
pub(super) struct Held {
    node: usize,
    flushes: u64,
}

impl Radix {
    /// An empty cache for `capacity` tokens in pages of `page` tokens.
    pub(super) fn new(page: usize, capacity: usize) -> Radix {
        Radix {
            page: page.max(1),
            capacity,
            nodes: vec![Node::default()],
            free: Vec::new(),
            leaves: BTreeSet::new(),
            tokens: 0,
            held: 0,
            clock: 0,
            flushes: 0,
        }
    }

    /// Holds the longest beginning that is cached, and gives its length.
    pub(super) fn hold(&mut self, tokens: &[u32]) -> (Held, usize) {
        let (node, length) = self.walk(tokens);
        (self.held(node), length)
    }

    /// Adds the whole pages of `tokens`, as far as they fit, and holds them in place of `held`.
    pub(super) fn extend(&mut self, held: Held, tokens: &[u32]) -> Held {
        let (above, at) = self.walk(tokens);
        let path = self.held(above);
        let missing = tokens.len() / self.page * self.page - at;
        let fits = self.make_room(missing) / self.page * self.page;
        let new = match missing.min(fits) {
            0 => path,
            length => {
                let added = self.add(above, tokens[at..at + length].to_vec());
                let new = self.held(added);
                self.release(path);
                new
            }
        };
        self.release(held);
        new
    }

    /// Lets the tokens go when room is needed. Without effect after a flush.
    pub(super) fn release(&mut self, held: Held) {
        if held.flushes == self.flushes {
            self.count_holders(held.node, |holders| holders.saturating_sub(1));
        }
    }

    /// Whether so many tokens fit beside those that are held.
    pub(super) fn fits(&self, tokens: usize) -> bool {
        self.held.saturating_add(tokens) <= self.capacity
    }

    /// Tokens that requests hold.
    pub(super) fn held_tokens(&self) -> usize {
        self.held
    }

    /// Drops everything.
    pub(super) fn flush(&mut self) {
        *self = Radix {
            flushes: self.flushes + 1,
            ..Radix::new(self.page, self.capacity)
        };
    }

    /// The deepest node on the way of these tokens, and how many of them it has with those above it.
    fn walk(&mut self, tokens: &[u32]) -> (usize, usize) {
        self.clock += 1;
        let now = self.clock;
        let whole = tokens.len() / self.page * self.page;
        let (mut node, mut at) = (ROOT, 0);
        while at < whole {
            let first = digest(&tokens[at..at + self.page]);
            let Some(&child) = self.nodes[node].children.get(&first) else {
                break;
            };
            let common = self.common(child, &tokens[at..whole]);
            if common == 0 {
                // Another page has the same digest: this one cannot be cached.
                break;
            }
            node = match common < self.nodes[child].tokens.len() {
                true => self.split(child, common),
                false => child,
            };
            at += common;
            self.change(node, |node| node.used = now);
        }
        (node, at)
    }

    /// The length of the pages that a node has in common with these tokens.
    fn common(&self, node: usize, tokens: &[u32]) -> usize {
        let own = &self.nodes[node].tokens;
        if tokens.starts_with(own) {
            return own.len();
        }
        let equal = own.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        equal / self.page * self.page
    }

    /// Divides a node, and gives the upper part. Those that hold the node hold both.
    fn split(&mut self, node: usize, at: usize) -> usize {
        let lower = self.nodes[node].tokens.split_off(at);
        let upper_tokens = std::mem::replace(&mut self.nodes[node].tokens, lower);
        let Node {
            parent,
            holders,
            used,
            ..
        } = self.nodes[node];
        let first = digest(&upper_tokens[..self.page]);
        let rest = digest(&self.nodes[node].tokens[..self.page]);
        let upper = self.place(Node {
            tokens: upper_tokens,
            parent,
            children: HashMap::from([(rest, node)]),
            holders,
            used,
        });
        self.nodes[node].parent = upper;
        self.nodes[parent].children.insert(first, upper);
        upper
    }

    /// A new leaf. The tree has none with the same first page there, except where digests collide.
    fn add(&mut self, parent: usize, tokens: Vec<u32>) -> usize {
        let first = digest(&tokens[..self.page]);
        if self.nodes[parent].children.contains_key(&first) {
            return parent;
        }
        self.tokens += tokens.len();
        let used = self.clock;
        let leaf = self.place(Node {
            tokens,
            parent,
            used,
            ..Node::default()
        });
        self.change(parent, |parent| {
            parent.children.insert(first, leaf);
        });
        leaf
    }

    /// Removes leaves until so many tokens fit, and gives how many do.
    fn make_room(&mut self, tokens: usize) -> usize {
        while self.capacity.saturating_sub(self.tokens) < tokens {
            let Some((_, leaf)) = self.leaves.pop_first() else {
                break;
            };
            let removed = std::mem::take(&mut self.nodes[leaf]);
            self.free.push(leaf);
            self.tokens -= removed.tokens.len();
            let first = digest(&removed.tokens[..self.page]);
            self.change(removed.parent, |parent| {
                parent.children.remove(&first);
            });
        }
        self.capacity.saturating_sub(self.tokens)
    }

    fn place(&mut self, node: Node) -> usize {
        match self.free.pop() {
            Some(free) => {
                self.nodes[free] = node;
                free
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    fn held(&mut self, node: usize) -> Held {
        self.count_holders(node, |holders| holders + 1);
        Held {
            node,
            flushes: self.flushes,
        }
    }

    /// Changes the number of holders of a node and of those above it.
    fn count_holders(&mut self, mut node: usize, count: impl Fn(usize) -> usize) {
        while node != ROOT {
            let before = self.nodes[node].holders > 0;
            self.change(node, |node| node.holders = count(node.holders));
            let after = self.nodes[node].holders > 0;
            let tokens = self.nodes[node].tokens.len();
            match (before, after) {
                (false, true) => self.held += tokens,
                (true, false) => self.held -= tokens,
                _ => {}
            }
            node = self.nodes[node].parent;
        }
    }

    /// Changes a node and its place among the leaves that may go.
    fn change(&mut self, id: usize, how: impl FnOnce(&mut Node)) {
        let node = &mut self.nodes[id];
        self.leaves.remove(&(node.used, id));
        how(node);
        if id != ROOT && node.holders == 0 && node.children.is_empty() {
            self.leaves.insert((node.used, id));
        }
    }
}

/// A hash of one page. It need not withstand attacks: a collision costs one look-up its hit.
fn digest(page: &[u32]) -> u64 {
    page.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &token| {
        let mixed = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes a prompt and lets it go.
    fn compute(cache: &mut Radix, tokens: &[u32]) {
        let (held, _) = cache.hold(tokens);
        let held = cache.extend(held, tokens);
        cache.release(held);
    }

    fn cached(cache: &mut Radix, tokens: &[u32]) -> usize {
        let (held, length) = cache.hold(tokens);
        cache.release(held);
        length
    }

    #[test]
    fn a_prompt_is_found_up_to_where_it_differs_in_whole_pages() {
        let mut cache = Radix::new(1, 100);
        assert_eq!(cached(&mut cache, &[1, 2, 3]), 0);
        compute(&mut cache, &[1, 2, 3]);
        compute(&mut cache, &[1, 2, 9, 4]);
        for (prompt, length) in [
            (&[1, 2, 3][..], 3),
            (&[1, 2, 3, 4], 3),
            (&[1, 2, 9], 3),
            (&[1, 5], 1),
            (&[9], 0),
            (&[], 0),
        ] {
            assert_eq!(cached(&mut cache, prompt), length, "{prompt:?}");
        }
        let mut cache = Radix::new(4, 100);
        compute(&mut cache, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), 8);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4, 5, 6, 7, 0]), 4);
        assert_eq!(cached(&mut cache, &[1, 2, 3]), 0);
        assert_eq!(cache.tokens, 8);
    }

    #[test]
    fn the_least_recently_used_leaf_goes_first_and_what_is_shared_last() {
        let mut cache = Radix::new(1, 8);
        compute(&mut cache, &[1, 2, 3, 4]);
        compute(&mut cache, &[1, 2, 5, 6]);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4]), 4);
        compute(&mut cache, &[7, 8, 9]);
        assert_eq!(cached(&mut cache, &[1, 2, 5, 6]), 2);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4]), 4);
        assert_eq!(cached(&mut cache, &[7, 8, 9]), 3);
        assert!(cache.tokens <= 8);
    }

    #[test]
    fn what_a_request_holds_stays_and_what_does_not_fit_is_not_kept() {
        let mut cache = Radix::new(1, 6);
        let (held, _) = cache.hold(&[1, 2, 3, 4]);
        let held = cache.extend(held, &[1, 2, 3, 4]);
        assert!(cache.fits(2) && !cache.fits(3));
        compute(&mut cache, &[9, 8, 7]);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4]), 4);
        assert_eq!(cached(&mut cache, &[9, 8, 7]), 2);
        // The node that is held is divided, and both parts stay.
        assert_eq!(cached(&mut cache, &[1, 2, 0]), 2);
        compute(&mut cache, &[5, 5, 5, 5, 5, 5]);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4]), 4);
        cache.release(held);
        assert_eq!(cache.held_tokens(), 0);
        compute(&mut cache, &[6, 6, 6, 6, 6, 6]);
        assert_eq!(cached(&mut cache, &[1, 2, 3, 4]), 0);
    }

    #[test]
    fn a_flush_drops_everything_and_ends_what_was_held() {
        let mut cache = Radix::new(1, 6);
        let (held, _) = cache.hold(&[1, 2]);
        let held = cache.extend(held, &[1, 2]);
        cache.flush();
        assert_eq!(cached(&mut cache, &[1, 2]), 0);
        cache.release(held);
        compute(&mut cache, &[3, 4]);
        assert_eq!((cache.tokens, cache.held_tokens()), (2, 0));
    }

    #[test]
    fn counts_hold_under_many_prompts_that_share_beginnings() {
        let mut cache = Radix::new(2, 40);
        let mut draw = 1_u32;
        let mut live = Vec::new();
        for round in 0..2_000 {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let length = 2 + draw as usize % 17;
            let prompt: Vec<u32> = (0..length)
                .map(|at| (draw >> (8 + at % 3)) % 2 + at as u32)
                .collect();
            let (held, _) = cache.hold(&prompt);
            live.push(cache.extend(held, &prompt));
            if live.len() > 3 || round % 7 == 0 {
                cache.release(live.swap_remove(draw as usize % live.len()));
            }
            let in_tree: usize = cache.nodes.iter().map(|node| node.tokens.len()).sum();
            let held: usize = cache
                .nodes
                .iter()
                .filter(|node| node.holders > 0)
                .map(|node| node.tokens.len())
                .sum();
            assert_eq!((cache.tokens, cache.held), (in_tree, held));
            assert!(in_tree <= 40, "{in_tree}");
        }
        for held in live {
            cache.release(held);
        }
        assert_eq!(cache.held, 0);
    }
}
