//! How many requests (or connections) are live, the moment when none is, and how far the process is with leaving.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// How far the process is with leaving. The stages come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Stage {
    /// It is not.
    #[default]
    Serving,
    /// Every answer asks its client to take another connection.
    Leaving,
    /// No new connections; live requests go on.
    Closed,
    /// Live requests end now.
    CutOff,
}

/// The stage as the corridor sees it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ShutdownWatcher(watch::Receiver<Stage>);

impl ShutdownWatcher {
    /// Follows this stage.
    pub(crate) fn new(stage: watch::Receiver<Stage>) -> Self {
        Self(stage)
    }

    /// Whether the process is about to go.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow() >= Stage::Leaving
    }

    /// Resolves when live requests must end, and never otherwise.
    pub(crate) fn over(&self) -> CutOff {
        let mut stage = self.0.clone();
        let over = Box::pin(async move {
            if stage
                .wait_for(|stage| *stage == Stage::CutOff)
                .await
                .is_err()
            {
                std::future::pending::<()>().await;
            }
        });
        CutOff {
            stage: self.0.clone(),
            over,
            waker: None,
        }
    }
}

/// See [`ShutdownWatcher::over`]. Every piece of every answer asks: where nothing has changed it takes no lock.
pub(crate) struct CutOff {
    stage: watch::Receiver<Stage>,
    over: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// Who is told already.
    waker: Option<Waker>,
}

impl Future for CutOff {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let is_told = |waker: &Waker| waker.will_wake(cx.waker());
        if self.waker.as_ref().is_some_and(is_told) && matches!(self.stage.has_changed(), Ok(false))
        {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.over.as_mut().poll(cx)
    }
}

/// The number of live requests, or connections, of one listener.
#[derive(Default)]
pub(crate) struct Inflight {
    live: AtomicUsize,
    changed: Notify,
}

/// One live request or connection. Counted until it is dropped.
pub(crate) struct Admitted(Arc<Inflight>);

impl Inflight {
    /// Counts one more.
    pub(crate) fn enter(self: &Arc<Self>) -> Admitted {
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
            if tokio::time::timeout(pause, self.some()).await.is_err() {
                return;
            }
        }
    }

    /// Resolves when one is live, or was since the call.
    async fn some(&self) {
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
    async fn none_is_awaited_until_the_last_one_is_dropped() {
        let inflight = Arc::new(Inflight::default());
        let (one, two) = (inflight.enter(), inflight.enter());
        let none = inflight.none();
        tokio::pin!(none);
        drop(one);
        assert!(futures_util::poll!(&mut none).is_pending());
        drop(two);
        none.await;
    }

    #[tokio::test]
    async fn a_pause_begins_anew_with_each_one_that_comes() {
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

    #[tokio::test]
    async fn what_is_over_was_begun_before() {
        let (stage, seen) = watch::channel(Stage::Serving);
        let departure = ShutdownWatcher::new(seen);
        let over = departure.over();
        tokio::pin!(over);
        assert!(!departure.has_begun());
        for next in [Stage::Leaving, Stage::Closed] {
            stage.send_replace(next);
            assert!(departure.has_begun());
            assert!(futures_util::poll!(&mut over).is_pending());
        }
        stage.send_replace(Stage::CutOff);
        over.await;
    }
}
