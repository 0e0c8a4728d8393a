//! How the process ends: after SIGTERM, after an upgrade, or when the program that embeds it stops it.
//!
//! | step | clients see | ends |
//! |---|---|---|
//! | settle | `/readiness` is 503, responses say `Connection: close`, new connections are accepted | after `drain_settle_secs` |
//! | drain | new connections are refused, live requests go on | when no client is connected, when the remaining ones are idle, or after `shutdown_grace_period_secs` |
//! | cut off | streams end with an error event | when all have ended, or after [`CUT_OFF_TIME`] |
//!
//! The admin listener stays open until the end, so that readiness can be asked there, and its connections do not delay
//! the shutdown. An upgrade skips the settling: the new process accepts from the same sockets and is ready. SIGINT
//! skips everything. Pingora's own shutdown is not used: it always sleeps for the whole grace period, and on SIGQUIT
//! stops listening even without a new process.
//!
//! Source: pingora-core 0.9.1, `server/mod.rs`, `transfer_fd/mod.rs`.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::server::{ListenFds, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::{ServiceReadyNotifier, ServiceWithDependents};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::StartError;
use super::daemon::WaitingParent;
use super::notify;
use super::upgrade::marker;
use crate::client::{Inflight, Listener, Stage};
use crate::config::ShutdownConfig;
use crate::discovery::Keeper;

/// If no request arrives for this long, close the remaining idle connections. Until then they stay open, because an
/// idle client may be about to send its next request: it gets a response with `Connection: close` instead of a reset.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// Error events reach the sockets' buffers in less; longer only for a client that does not read.
const CUT_OFF_TIME: Duration = Duration::from_secs(1);

/// How long the new process may take for the sockets. It looks for them once a second.
/// Source: pingora-core 0.9.1 `transfer_fd/mod.rs`, `RETRY_INTERVAL`.
const TAKEOVER_TIME: Duration = Duration::from_secs(10);

/// Between two checks whether the new process has taken them.
const TAKEOVER_POLL: Duration = Duration::from_millis(20);

/// The state of the shutdown, and the counts of the requests and connections that it waits for.
pub(super) struct Shutdown {
    config: ArcSwap<ShutdownConfig>,
    unready: watch::Sender<bool>,
    stage: watch::Sender<Stage>,
    /// True when the admin listener must close: at the end, or when a new process listens.
    admin_closed: watch::Sender<bool>,
    pub(super) requests: Arc<Inflight>,
    pub(super) connections: Arc<Inflight>,
    /// Those of them that speak HTTP/2, and those of the other listeners that do.
    pub(super) http2_connections: Arc<Inflight>,
    /// Why the process ends although no signal came.
    failure: Mutex<Option<StartError>>,
    failed: Notify,
}

impl Shutdown {
    pub(super) fn new(config: ShutdownConfig) -> Self {
        Self {
            config: ArcSwap::from_pointee(config),
            unready: watch::Sender::new(false),
            stage: watch::Sender::new(Stage::Serving),
            admin_closed: watch::Sender::new(false),
            requests: Arc::default(),
            connections: Arc::default(),
            http2_connections: Arc::default(),
            failure: Mutex::default(),
            failed: Notify::new(),
        }
    }

    /// Other times from now on. A shutdown that has begun keeps its own.
    pub(super) fn set(&self, config: ShutdownConfig) {
        self.config.store(Arc::new(config));
    }

    /// Ends the process: it cannot listen.
    pub(super) fn fail(&self, why: StartError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.failed.notify_one();
    }

    /// The reason that [`Shutdown::fail`] got.
    pub(super) fn failure(&self) -> Option<StartError> {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.take()
    }

    /// The stage of the shutdown.
    pub(super) fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// True as soon as no new requests should be sent to this process.
    pub(super) fn unready(&self) -> watch::Receiver<bool> {
        self.unready.subscribe()
    }

    /// Resolves when this listener must close.
    pub(super) fn closed(&self, listener: Listener) -> impl Future<Output = ()> + Send + use<> {
        let (mut stage, mut admin_closed) = (self.stage.subscribe(), self.admin_closed.subscribe());
        async move {
            // An error means that the sender is gone, and the server with it.
            match listener {
                Listener::Clients => {
                    let _ = stage.wait_for(|stage| *stage >= Stage::Draining).await;
                }
                Listener::Admins | Listener::Metrics => {
                    let _ = admin_closed.wait_for(|closed| *closed).await;
                }
            }
        }
    }

    /// Settles and drains. Until the end, the admin listener reports that the process is not ready.
    pub(super) async fn leave(&self) {
        let config = self.config.load_full();
        self.unready.send_replace(true);
        self.stage.send_replace(Stage::Settling);
        // Logged after the state has changed, because a reader of the log may act on it.
        log::info!(
            "leaving settle_secs={} grace_secs={} requests={} connections={}",
            config.settle.as_secs_f64(),
            config.grace.as_secs_f64(),
            self.requests.live(),
            self.connections.live(),
        );
        tokio::time::sleep(config.settle).await;
        self.drain(config.grace).await;
        self.admin_closed.send_replace(true);
    }

    /// How long [`Self::leave`] takes at most.
    fn longest(&self) -> Duration {
        let config = self.config.load();
        config.settle + config.grace + CUT_OFF_TIME
    }

    /// Drains. The new process has the sockets and is ready.
    async fn hand_over_and_drain(&self) {
        let grace = self.config.load().grace;
        log::info!(
            "successor listens, leaving grace_secs={} requests={} connections={}",
            grace.as_secs_f64(),
            self.requests.live(),
            self.connections.live(),
        );
        self.admin_closed.send_replace(true);
        self.drain(grace).await;
    }

    /// Resolves when no client is connected and no request of an administrator is live.
    async fn idle(&self) {
        self.connections.none().await;
        self.requests.none().await;
    }

    /// Closes the clients' listener, and resolves when the live requests have ended or have been cut off.
    async fn drain(&self, grace: Duration) {
        self.stage.send_replace(Stage::Draining);
        let ended = async {
            tokio::select! {
                () = self.idle() => {}
                () = self.requests.none_for(IDLE_TIME) => {}
            }
        };
        if tokio::time::timeout(grace, ended).await.is_ok() {
            return;
        }
        log::warn!(
            "grace period over, cutting off live requests requests={}",
            self.requests.live()
        );
        self.stage.send_replace(Stage::CutOff);
        // A request that does not end in time ends with the process. The last event of one of HTTP/2 is written by the task
        // of its connection, which ends behind it.
        let ended = async {
            self.requests.none().await;
            self.http2_connections.none().await;
        };
        let _ = tokio::time::timeout(CUT_OFF_TIME, ended).await;
    }
}

/// The signal handlers of the process: SIGTERM, SIGINT, SIGQUIT and SIGHUP, and those that are ignored.
pub(super) struct Signals {
    shutdown: Arc<Shutdown>,
    upgrade_sock: String,
    /// Notified by SIGHUP.
    hangup: Arc<Notify>,
    /// Has the file that a new process reads when it gets the sockets.
    keeper: Option<Arc<Keeper>>,
    installed: watch::Sender<bool>,
    sockets: watch::Receiver<Option<ListenFds>>,
}

/// The end of [`Signals`] that the listeners hold.
pub(super) struct SignalsReady {
    installed: watch::Receiver<bool>,
    sockets: watch::Sender<Option<ListenFds>>,
}

/// One of Pingora's services, which is ready when the signal handlers are installed.
pub(super) struct HandlersInstalled {
    installed: watch::Receiver<bool>,
    parent: WaitingParent,
}

#[async_trait]
impl ServiceWithDependents for HandlersInstalled {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
        ready: ServiceReadyNotifier,
    ) {
        let _ = self.installed.wait_for(|installed| *installed).await;
        self.parent.after_fork();
        ready.notify_ready();
    }

    fn name(&self) -> &str {
        "signal handlers"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

impl SignalsReady {
    /// A service on which others can depend, in the process that `parent` waits for.
    pub(super) fn installed(&self, parent: WaitingParent) -> HandlersInstalled {
        HandlersInstalled {
            installed: self.installed.clone(),
            parent,
        }
    }

    /// Hands over the sockets that a new process would get, and waits until the handlers are installed, so that no
    /// signal kills a process that has logged that it listens.
    pub(super) async fn wait(mut self, sockets: ListenFds) {
        self.sockets.send_replace(Some(sockets));
        // An error means that the process ends already.
        let _ = self.installed.wait_for(|installed| *installed).await;
    }
}

impl Signals {
    pub(super) fn new(
        shutdown: Arc<Shutdown>,
        upgrade_sock: String,
        hangup: Arc<Notify>,
        keeper: Option<Arc<Keeper>>,
    ) -> (Self, SignalsReady) {
        let (installed, is_installed) = watch::channel(false);
        let (give, sockets) = watch::channel(None);
        let signals = Self {
            shutdown,
            upgrade_sock,
            hangup,
            keeper,
            installed,
            sockets,
        };
        let ready = SignalsReady {
            installed: is_installed,
            sockets: give,
        };
        (signals, ready)
    }

    /// Installs the handlers, and returns when a signal has ended the process.
    async fn handle(&self) -> io::Result<()> {
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut ignored = Ignored::new()?;
        self.installed.send_replace(true);
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
                () = upgraded => self.shutdown.hand_over_and_drain().await,
                _ = terminate.recv() => {
                    notify::leaving(self.shutdown.longest());
                    self.shutdown.leave().await;
                }
            }
        };
        let hung_up = async {
            loop {
                hangup.recv().await;
                self.hangup.notify_one();
            }
        };
        tokio::select! {
            () = left => {}
            () = hung_up => {}
            () = ignored.log() => {}
            () = self.shutdown.failed.notified() => {}
            _ = interrupt.recv() => log::info!("interrupted"),
        }
        Ok(())
    }

    /// Whether a new process has taken the sockets. Otherwise this one goes on serving.
    async fn hand_over(&self) -> bool {
        let Some(sockets) = self.sockets.borrow().clone() else {
            return false;
        };
        if let Some(keeper) = &self.keeper {
            keeper.keep().await;
        }
        let path = self.upgrade_sock.clone();
        // Blocks for some seconds when there is no new process, which may be about to start.
        let sent =
            tokio::task::spawn_blocking(move || sockets.lock().send_to_sock(path.as_str())).await;
        let why = match sent {
            Ok(Ok(_)) if self.are_taken().await => {
                if let Some(keeper) = &self.keeper {
                    keeper.hand_over();
                }
                return true;
            }
            Ok(Ok(_)) => "the new process did not take the sockets".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        log::error!(
            "upgrade failed, this process keeps serving upgrade_sock={} error={why:?}",
            self.upgrade_sock
        );
        false
    }

    /// Whether the new process removes its files, which it does when it listens on all its addresses.
    async fn are_taken(&self) -> bool {
        let marker = marker(&self.upgrade_sock);
        let taken = async {
            while Path::new(&self.upgrade_sock).exists() || marker.exists() {
                tokio::time::sleep(TAKEOVER_POLL).await;
            }
        };
        let taken = tokio::time::timeout(TAKEOVER_TIME, taken).await.is_ok();
        if !taken {
            // May be gone by now; the next new process makes another one.
            let _ = std::fs::remove_file(marker);
        }
        taken
    }
}

/// Signals that would end the process if it had no handler for them, and that mean nothing here.
struct Ignored {
    user_1: Signal,
    user_2: Signal,
}

impl Ignored {
    fn new() -> io::Result<Self> {
        Ok(Self {
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Logs each of them, for ever.
    async fn log(&mut self) {
        loop {
            let name = tokio::select! {
                _ = self.user_1.recv() => "SIGUSR1",
                _ = self.user_2.recv() => "SIGUSR2",
            };
            log::warn!("signal ignored signal={name}");
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    /// Always the fast shutdown: the wait for live requests is over by now.
    async fn recv(&self) -> ShutdownSignal {
        if let Err(error) = self.handle().await {
            log::error!("{}", StartError::Signals(error));
        }
        ShutdownSignal::FastShutdown
    }
}
