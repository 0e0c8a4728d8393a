//! A worker that is being drained: it gets no new request, and ends those that it has.
//!
//! It stays a member meanwhile, so that it is seen. Which workers are drained, and for how long, is not decided here.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::Worker;

/// Whether a worker is held out of all choices, and the signal that it has no request any more.
#[derive(Default)]
pub(super) struct Drain {
    held: AtomicBool,
    idle: Notify,
}

impl Drain {
    pub(super) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// The last request of the worker has ended.
    pub(super) fn note_idle(&self) {
        if self.held.load(Ordering::SeqCst) {
            self.idle.notify_waiters();
        }
    }
}

impl Worker {
    /// Whether it gets no new request, because it is to end those that it has.
    pub fn is_draining(&self) -> bool {
        self.drain.held.load(Ordering::Relaxed)
    }

    /// Resolves when no request is on this worker, which must be draining already.
    pub async fn drained(&self) {
        loop {
            let mut idle = std::pin::pin!(self.drain.idle.notified());
            // Before the look at the count: a request that ends after the look is heard of.
            idle.as_mut().enable();
            if !self.is_busy() {
                return;
            }
            idle.await;
        }
    }
}
