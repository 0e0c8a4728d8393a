//! How many requests, or connections, are live, and the moment at which none is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// The live requests, or connections, of one listener.
#[derive(Default)]
pub(crate) struct Inflight {
    live: AtomicUsize,
    /// Notified when `live` leaves 0 and when it returns to it.
    changed: Notify,
}

/// One live request or connection, counted until it is dropped.
pub(crate) struct Admitted(Arc<Inflight>);

impl Inflight {
    /// Counts one more.
    pub(crate) fn enter(self: &Arc<Self>) -> Admitted {
        // AcqRel, with the Acquire of `live`: a task that reads 0 sees all that the last request wrote before its end.
        if self.live.fetch_add(1, Ordering::AcqRel) == 0 {
            self.changed.notify_waiters();
        }
        Admitted(self.clone())
    }

    /// How many are live.
    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::Acquire)
    }

    /// Resolves when none is live.
    pub(crate) async fn none(&self) {
        loop {
            // Before the count is read: a notification in between is not lost.
            let changed = self.changed.notified();
            if self.live() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when none has been live for this long.
    pub(crate) async fn none_for(&self, pause: Duration) {
        loop {
            self.none().await;
            if tokio::time::timeout(pause, self.any()).await.is_err() {
                return;
            }
        }
    }

    /// Resolves when one is live, or has been since the call.
    async fn any(&self) {
        let changed = self.changed.notified();
        if self.live() == 0 {
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

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn none_resolves_when_the_last_one_is_dropped() {
        let inflight = Arc::new(Inflight::default());
        let (one, two) = (inflight.enter(), inflight.enter());
        assert_eq!(inflight.live(), 2);
        let none = inflight.none();
        tokio::pin!(none);
        drop(one);
        assert!(futures_util::poll!(&mut none).is_pending());
        drop(two);
        none.await;
        assert_eq!(inflight.live(), 0);
    }

    #[tokio::test]
    async fn a_pause_starts_again_with_each_new_request() {
        tokio::time::pause();
        let inflight = Arc::new(Inflight::default());
        let pause = inflight.none_for(PAUSE);
        tokio::pin!(pause);
        assert!(futures_util::poll!(&mut pause).is_pending());
        tokio::time::advance(PAUSE / 2).await;
        drop(inflight.enter());
        assert!(futures_util::poll!(&mut pause).is_pending());
        tokio::time::advance(PAUSE * 3 / 4).await;
        assert!(futures_util::poll!(&mut pause).is_pending());
        tokio::time::advance(PAUSE / 4).await;
        pause.await;
    }
}
