//! The requests with two legs, one by one: those that are live, the last ones that have finished, and the slowest of those.
//!
//! | file | what it holds |
//! |---|---|
//! | `live.rs` | the live ones: a slot for each, which its request writes to |
//! | `finished.rs` | the finished ones: so many, in so many bytes |
//! | `row.rs` | one request in the form in which it is remembered and shown |
//!
//! No prompt, no query and no header's value but the request id is here. What a client may choose is cut to a length when
//! it is remembered.

mod finished;
mod live;
mod row;

use std::sync::Arc;
use std::time::Instant;

use finished::{Finished, MAX_CAPACITY, Slowest};
use live::Live;
pub(crate) use live::{LiveRequest, Progress};
pub(crate) use row::{Row, Shown};

use super::Record;

/// The live and the finished requests of one balancer.
pub(crate) struct Requests {
    live: Arc<Live>,
    finished: Finished,
}

/// All of them at one moment.
pub(crate) struct Snapshot {
    pub(crate) now: Instant,
    /// The oldest first. A request for samples has them.
    pub(crate) live: Vec<Arc<Row>>,
    /// The newest first.
    pub(crate) last: Vec<Arc<Row>>,
    pub(crate) slowest: Slowest,
    /// How many have finished since the start.
    pub(crate) finished_total: u64,
}

impl Snapshot {
    /// Every request. One may be in several lists.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Arc<Row>> {
        let slowest = self.slowest.by_ttft.iter().chain(&self.slowest.by_e2e);
        self.live.iter().chain(&self.last).chain(slowest)
    }
}

impl Requests {
    /// Remembers so many of the last finished ones, at most [`MAX_CAPACITY`], and the slowest besides. With 0 no request
    /// is followed at all.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            live: Arc::default(),
            finished: Finished::new(capacity.min(MAX_CAPACITY), Instant::now()),
        }
    }

    /// How many of the last finished requests are remembered.
    pub(crate) fn capacity(&self) -> usize {
        self.finished.capacity()
    }

    /// Follows a request that has begun, or a sample of one that is followed; `None` where it has no legs, or where none
    /// is followed.
    pub(crate) fn begin(&self, record: &mut Record) -> Option<LiveRequest> {
        let follows = self.capacity() > 0 && record.route.is_some();
        follows.then(|| self.live.begin(record))
    }

    /// Remembers a request that has finished.
    pub(super) fn finish(&self, record: &Record) {
        if self.capacity() > 0 && record.route.is_some() {
            self.finished.push(Row::of(record));
        }
    }

    /// The requests of this moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        // In this order, so that a request that ends meanwhile is there at least once.
        let live = self.live.rows();
        let (last, slowest, finished_total) = self.finished.rows();
        Snapshot {
            now: Instant::now(),
            live,
            last,
            slowest,
            finished_total,
        }
    }
}
