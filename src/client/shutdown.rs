//! The stage of the shutdown, as requests see it. `server/shutdown.rs` decides when a stage begins.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

/// The stages of a shutdown, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Stage {
    /// No shutdown.
    #[default]
    Serving,
    /// Connections are still accepted; every response says `Connection: close`.
    Settling,
    /// No new connections; live requests go on.
    Draining,
    /// Live requests end now.
    CutOff,
}

/// Follows the stage. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ShutdownWatcher(watch::Receiver<Stage>);

impl ShutdownWatcher {
    pub(crate) fn new(stage: watch::Receiver<Stage>) -> Self {
        Self(stage)
    }

    /// Whether the shutdown has begun, in any stage.
    pub(crate) fn has_begun(&self) -> bool {
        *self.0.borrow() >= Stage::Settling
    }

    /// Resolves when the shutdown has begun; pending for ever when there is none.
    pub(crate) async fn begun(&self) {
        let mut stage = self.0.clone();
        let has_begun = |stage: &Stage| *stage >= Stage::Settling;
        if stage.wait_for(has_begun).await.is_err() {
            // The sender is gone: there will be none.
            std::future::pending::<()>().await;
        }
    }

    /// Resolves when live requests must end; pending for ever when that stage is never reached.
    pub(crate) fn cut_off(&self) -> CutOff {
        let mut stage = self.0.clone();
        let reached = Box::pin(async move {
            let is_reached = |stage: &Stage| *stage == Stage::CutOff;
            if stage.wait_for(is_reached).await.is_err() {
                // The sender is gone without a cut-off: there will be none.
                std::future::pending::<()>().await;
            }
        });
        CutOff {
            stage: self.0.clone(),
            reached,
            waker: None,
        }
    }
}

/// The future of [`ShutdownWatcher::cut_off`].
pub(crate) struct CutOff {
    stage: watch::Receiver<Stage>,
    reached: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// The waker that `reached` has registered.
    waker: Option<Waker>,
}

impl Future for CutOff {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // Polled with each piece of each response. `reached` would lock the channel every time; with an unchanged
        // stage and the same waker there is nothing to register.
        let is_registered = |waker: &Waker| waker.will_wake(cx.waker());
        if self.waker.as_ref().is_some_and(is_registered)
            && matches!(self.stage.has_changed(), Ok(false))
        {
            return Poll::Pending;
        }
        self.waker = Some(cx.waker().clone());
        self.reached.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cut_off_comes_after_the_other_stages() {
        let (stage, receiver) = watch::channel(Stage::Serving);
        let shutdown = ShutdownWatcher::new(receiver);
        let cut_off = shutdown.cut_off();
        tokio::pin!(cut_off);
        assert!(!shutdown.has_begun());
        for next in [Stage::Settling, Stage::Draining] {
            stage.send_replace(next);
            assert!(shutdown.has_begun());
            assert!(futures_util::poll!(&mut cut_off).is_pending());
        }
        stage.send_replace(Stage::CutOff);
        cut_off.await;
    }

    #[tokio::test]
    async fn a_shutdown_that_is_never_decided_cuts_nothing_off() {
        let (stage, receiver) = watch::channel(Stage::Serving);
        let cut_off = ShutdownWatcher::new(receiver).cut_off();
        tokio::pin!(cut_off);
        assert!(futures_util::poll!(&mut cut_off).is_pending());
        drop(stage);
        assert!(futures_util::poll!(&mut cut_off).is_pending());
    }

    #[tokio::test]
    async fn a_cut_off_wakes_the_task_that_polled_last() {
        let (stage, receiver) = watch::channel(Stage::Serving);
        let mut cut_off = ShutdownWatcher::new(receiver).cut_off();
        assert!(futures_util::poll!(&mut cut_off).is_pending());
        let (polled, is_polled) = tokio::sync::oneshot::channel();
        let other = tokio::spawn(async move {
            assert!(futures_util::poll!(&mut cut_off).is_pending());
            assert!(polled.send(()).is_ok());
            cut_off.await;
        });
        assert!(is_polled.await.is_ok());
        stage.send_replace(Stage::CutOff);
        assert!(other.await.is_ok());
    }
}
