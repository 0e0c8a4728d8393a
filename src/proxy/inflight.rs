//! How many requests are live, and the moment when none is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The number of live requests of one listener.
#[derive(Default)]
pub(crate) struct Inflight {
    live: AtomicUsize,
    changed: Notify,
}

/// One live request. Counted until it is dropped.
pub(crate) struct Admitted(Arc<Inflight>);

impl Inflight {
    /// Counts one more.
    pub(crate) fn enter(self: &Arc<Self>) -> Admitted {
        self.live.fetch_add(1, Ordering::AcqRel);
        Admitted(self.clone())
    }

    /// How many there are.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Resolves when no request is live.
    pub(crate) async fn none(&self) {
        loop {
            let changed = self.changed.notified();
            if self.live.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.0.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}
