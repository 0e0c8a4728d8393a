//! How the process leaves: after SIGTERM, after an upgrade, or when its program stops it.
//!
//! | step | what clients see | ends |
//! |---|---|---|
//! | settle | `/readiness` is 503, answers say `Connection: close`, new connections are served | after `drain_settle_secs` |
//! | drain | new connections are refused, live requests go on | when idle is connected, or only idle clients |
//! | last words | streams end in an error event | when all are written |
//!
//! The listener for administration stays until the end: whoever asks there whether the process is ready is told that
//! it is not, and does not keep it. An upgrade skips the settling: the successor accepts from the same sockets, and is
//! ready. Only SIGINT does not wait. Nothing of this may depend on Pingora's own shutdown, which sleeps for the whole grace period
//! whether or not somebody is left, and stops listening without a successor as well.
//! Source: pingora-core 0.9.1, `server/mod.rs`, `transfer_fd/mod.rs`.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::StartError;
use super::upgrade::mark;
use crate::client::{Inflight, Listener, Stage};
use crate::config::Leaving;

/// An idle client may be about to send its next request: it is answered, with `Connection: close`, and not
/// reset. Nobody was heard of for this long before all are given up.
const IDLE_PATIENCE: Duration = Duration::from_secs(1);

/// Error events are in the sockets' buffers long before; a client that does not read does not matter any more.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A successor looks for the sockets once a second. Source: pingora-core 0.9.1 `transfer_fd/mod.rs`,
/// `RETRY_INTERVAL`.
const TAKING: Duration = Duration::from_secs(10);

/// How often it is looked whether the successor has taken them.
const LOOK: Duration = Duration::from_millis(20);

/// The way out: the switches of leaving, and who is still there.
pub(super) struct Shutdown {
    limits: Leaving,
    unready: watch::Sender<bool>,
    stage: watch::Sender<Stage>,
    /// True when idle listens for administration any more: after everything else, or when a successor does.
    admin_closed: watch::Sender<bool>,
    pub(super) requests: Arc<Inflight>,
    pub(super) connections: Arc<Inflight>,
}

impl Shutdown {
    pub(super) fn new(limits: Leaving) -> Self {
        Self {
            limits,
            unready: watch::Sender::new(false),
            stage: watch::Sender::new(Stage::Serving),
            admin_closed: watch::Sender::new(false),
            requests: Arc::default(),
            connections: Arc::default(),
        }
    }

    /// How far it is.
    pub(super) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// True from the moment on at which idle should be sent here any more.
    pub(super) fn unready(&self) -> watch::Receiver<bool> {
        self.unready.subscribe()
    }

    /// Resolves when this listener takes idle any more.
    pub(super) fn closed(&self, listener: Listener) -> impl Future<Output = ()> + Send + use<> {
        let (mut stage, mut admin_closed) = (self.stage.subscribe(), self.admin_closed.subscribe());
        async move {
            // When idle can end it any more, it has ended.
            match listener {
                Listener::Clients => {
                    let _ = stage.wait_for(|stage| *stage >= Stage::Draining).await;
                }
                Listener::Admins => {
                    let _ = admin_closed.wait_for(|admin_closed| *admin_closed).await;
                }
            }
        }
    }

    /// Settles, and drains. The listener for administration tells until the end that nothing is ready.
    pub(super) async fn leave(&self) {
        self.unready.send_replace(true);
        self.stage.send_replace(Stage::Settling);
        // Said when it is so: whoever reads it may act on it.
        log::info!(
            "leaving settle_secs={} grace_secs={} requests={} connections={}",
            self.limits.settle.as_secs_f64(),
            self.limits.grace.as_secs_f64(),
            self.requests.live(),
            self.connections.live(),
        );
        tokio::time::sleep(self.limits.settle).await;
        self.drain().await;
        self.admin_closed.send_replace(true);
    }

    /// Drains: the successor has the sockets, and is as ready as this process was.
    async fn hand_over_and_drain(&self) {
        log::info!(
            "successor listens, leaving grace_secs={} requests={} connections={}",
            self.limits.grace.as_secs_f64(),
            self.requests.live(),
            self.connections.live(),
        );
        self.admin_closed.send_replace(true);
        self.drain().await;
    }

    /// Resolves when no client is connected, and nothing is done for who administers the workers.
    async fn idle(&self) {
        self.connections.none().await;
        self.requests.none().await;
    }

    /// Accepts no client, and resolves when the live requests have ended, one way or the other.
    async fn drain(&self) {
        self.stage.send_replace(Stage::Draining);
        let ended = async {
            tokio::select! {
                () = self.idle() => {}
                () = self.requests.none_for(IDLE_PATIENCE) => {}
            }
        };
        if tokio::time::timeout(self.limits.grace, ended).await.is_ok() {
            return;
        }
        log::warn!(
            "grace period over, live requests are cut requests={}",
            self.requests.live()
        );
        self.stage.send_replace(Stage::CutOff);
        // Whoever does not end now is cut with the process.
        let _ = tokio::time::timeout(LAST_WORDS, self.requests.none()).await;
    }
}

/// The signals of a process: SIGTERM, SIGINT, SIGQUIT.
pub(super) struct Signals {
    exit: Arc<Shutdown>,
    upgrade_sock: String,
    watched: watch::Sender<bool>,
    sockets: watch::Receiver<Option<ListenFds>>,
}

/// The listeners's end of [`Signals`].
pub(super) struct Opening {
    watched: watch::Receiver<bool>,
    sockets: watch::Sender<Option<ListenFds>>,
}

impl Opening {
    /// Gives the sockets that a successor gets, and resolves when the signals are watched: none of them kills a
    /// process that has said that it listens.
    pub(super) async fn open(mut self, sockets: ListenFds) {
        self.sockets.send_replace(Some(sockets));
        // An error is a process that ends already.
        let _ = self.watched.wait_for(|watched| *watched).await;
    }
}

impl Signals {
    pub(super) fn new(exit: Arc<Shutdown>, upgrade_sock: String) -> (Self, Opening) {
        let (watched, is_watched) = watch::channel(false);
        let (give, sockets) = watch::channel(None);
        let signals = Self {
            exit,
            upgrade_sock,
            watched,
            sockets,
        };
        let opening = Opening {
            watched: is_watched,
            sockets: give,
        };
        (signals, opening)
    }

    async fn obey(&self) -> io::Result<()> {
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        self.watched.send_replace(true);
        let upgraded = async {
            loop {
                quit.recv().await;
                if self.hand_over().await {
                    return;
                }
            }
        };
        let left = async {
            tokio::select! {
                () = upgraded => self.exit.hand_over_and_drain().await,
                _ = terminate.recv() => self.exit.leave().await,
            }
        };
        tokio::select! {
            () = left => {}
            _ = interrupt.recv() => log::info!("interrupted"),
        }
        Ok(())
    }

    /// Whether a successor has taken the sockets. Without one everything stays as it is.
    async fn hand_over(&self) -> bool {
        let Some(sockets) = self.sockets.borrow().clone() else {
            return false;
        };
        let path = self.upgrade_sock.clone();
        // Blocks for some seconds when idle is there: a successor may be about to start.
        let sent =
            tokio::task::spawn_blocking(move || sockets.lock().send_to_sock(path.as_str())).await;
        let why = match sent {
            Ok(Ok(_)) if self.are_taken().await => return true,
            Ok(Ok(_)) => "it did not take the sockets".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        log::error!(
            "no successor for an upgrade, serving goes on upgrade_sock={} error={why:?}",
            self.upgrade_sock
        );
        false
    }

    /// Whether the successor removes its files, which it does when it listens at all of its addresses.
    async fn are_taken(&self) -> bool {
        let mark = mark(&self.upgrade_sock);
        let taken = async {
            while Path::new(&self.upgrade_sock).exists() || mark.exists() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let taken = tokio::time::timeout(TAKING, taken).await.is_ok();
        if !taken {
            // That it is there is what counted, and another successor makes another.
            let _ = std::fs::remove_file(mark);
        }
        taken
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    /// Always the fast one: what there was to wait for has been waited for.
    async fn recv(&self) -> ShutdownSignal {
        if let Err(error) = self.obey().await {
            log::error!("{}", StartError::Signals(error));
        }
        ShutdownSignal::FastShutdown
    }
}
