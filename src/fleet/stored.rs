//! Which pair has a stored response, so that what asks for it goes there.
//!
//! A bounded memory: the oldest id is forgotten first. It holds ids of responses and of workers, nothing else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::WorkerId;

/// The ids that are remembered: with theirs, about 10 MB.
const CAPACITY: usize = 1 << 16;

/// The pair that has made a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredAt {
    /// The prefill worker, which knows the conversation.
    pub prefill: WorkerId,
    /// The decode worker, which has the response.
    pub decode: WorkerId,
}

/// The memory of one fleet.
#[derive(Debug)]
pub struct StoredResponses {
    memory: Mutex<Memory>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Memory {
    by_id: HashMap<Arc<str>, StoredAt>,
    /// Oldest first.
    order: VecDeque<Arc<str>>,
}

impl Default for StoredResponses {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl StoredResponses {
    fn with_capacity(capacity: usize) -> Self {
        Self {
            memory: Mutex::default(),
            capacity,
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while the lock is held.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which pair has made the response with this id.
    pub fn note(&self, id: &str, at: StoredAt) {
        let id: Arc<str> = id.into();
        let mut memory = self.memory();
        if memory.by_id.insert(id.clone(), at).is_some() {
            return;
        }
        memory.order.push_back(id);
        if memory.order.len() > self.capacity
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.by_id.remove(&oldest);
        }
    }

    /// The pair that has made it; `None` where that is not known, or not any more.
    pub fn find(&self, id: &str) -> Option<StoredAt> {
        self.memory().by_id.get(id).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> StoredAt {
        StoredAt {
            prefill: WorkerId(number),
            decode: WorkerId(number + 1),
        }
    }

    #[test]
    fn the_oldest_response_is_forgotten_first_and_one_noted_twice_counts_once() {
        let stored = StoredResponses::with_capacity(2);
        stored.note("a", at(1));
        stored.note("a", at(3));
        stored.note("b", at(5));
        assert_eq!(stored.find("a"), Some(at(3)));
        stored.note("c", at(7));
        assert_eq!(stored.find("a"), None);
        assert_eq!(
            (stored.find("b"), stored.find("c")),
            (Some(at(5)), Some(at(7)))
        );
    }
}
