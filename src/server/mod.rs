//! The server: a configuration becomes a running balancer.
//!
//! Two ways lead in: [`run`], a whole process under Pingora's `Server` (signals, daemon, upgrade), and
//! [`MiniLoadBalancer`], a service inside the caller's runtime. Only this module sees all others.
//!
//! | file | holds |
//! |---|---|
//! | `build` | from a configuration to fleet, client, proxy and the applications of the listeners |
//! | `kubernetes` | the workers that Kubernetes has |
//! | `workers` | the fleet, and the registry of its workers |
//! | `listen` | the sockets, and Pingora's services on them |
//! | `limits` | how many requests and connections the open files allow |
//! | `tls` | certificates for the listeners and for connections to workers |
//! | `reach` | the workers and the way to them, for the command that examines them |
//! | `reload` | a configuration that takes effect while the process runs |
//! | `handle` | what a program does with a balancer in it |
//! | `notify` | what the service manager is told |
//! | `shutdown` | the end of the process: signals, draining |
//! | `upgrade` | the sockets of an old process |
//! | `dns` | names of DNS whose addresses are workers |
//! | `daemon` | the files of a process in the background |

mod bind;
mod build;
mod daemon;
mod dns;
mod handle;
mod kubernetes;
mod limits;
mod listen;
mod notify;
#[cfg(feature = "cli")]
mod reach;
mod reload;
mod shutdown;
mod tls;
mod upgrade;
mod workers;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::server::configuration::Opt;
use pingora::server::{RunArgs, Server};
use pingora::services::Service as PingoraService;
use tokio::sync::{Notify, mpsc, watch};

use crate::config::{Config, ConfigError, Effective, MiniLbConfig, Reloader, Running};
use build::build;
use daemon::{PidFile, WaitingParent};
use listen::{Bound, ListenAddresses, Listeners, Opening, Sockets, Takeover};
use reload::{ByProgram, Given, Reload, Reloads};
use shutdown::{HandlersInstalled, Signals};
use workers::restore;

pub use handle::{Applied, Handle, ReloadError};
#[cfg(feature = "cli")]
pub(crate) use limits::{affordable_requests, files_for, open_file_limit};
#[cfg(feature = "cli")]
pub(crate) use reach::reach;

/// Why the balancer did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be listened on.
    Listen {
        /// Host and port.
        address: String,
        /// The error of the system.
        why: io::Error,
    },
    /// A key or host name of a worker cannot be sent in a header.
    NotAHeader {
        /// The worker.
        url: String,
        /// "API key" or "host name".
        what: &'static str,
    },
    /// A defect: a module still holds Pingora's configuration, which its server must own.
    ConfInUse,
    /// No usable root certificates for `https://` workers; the reason.
    Roots(String),
    /// rustls refuses the certificate of the listeners; its message.
    Tls(String),
    /// A signal handler could not be installed.
    Signals(io::Error),
    /// A file of a process in the background cannot be written.
    File {
        /// Its key in the configuration.
        key: &'static str,
        /// The absolute path.
        path: PathBuf,
        /// The error of the system.
        why: io::Error,
    },
    /// The file of `workers_state_file` cannot be used.
    KeptWorkers {
        /// The absolute path.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// The old process did not hand over its sockets.
    Upgrade {
        /// The path of Pingora's upgrade socket.
        upgrade_sock: String,
        /// The reason.
        why: String,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { address, why } if why.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "cannot listen on {address}: another process listens there; stop it or choose another port"
                )
            }
            StartError::Listen { address, why } => write!(f, "cannot listen on {address}: {why}"),
            StartError::NotAHeader { url, what } => {
                write!(
                    f,
                    "the {what} of worker {url} has characters that an HTTP header cannot carry"
                )
            }
            StartError::ConfInUse => {
                f.write_str("internal error: Pingora's configuration is still in use")
            }
            StartError::Roots(why) => write!(
                f,
                "no root certificates for https:// workers: {why}; install the system's (ca-certificates) or set ca_cert_paths"
            ),
            StartError::Tls(why) => write!(f, "the certificate of the listeners is refused: {why}"),
            StartError::Signals(why) => write!(f, "cannot listen for signals: {why}"),
            StartError::File { key, path, why } => {
                write!(f, "cannot write {key} {}: {why}", path.display())
            }
            StartError::KeptWorkers { path, why } => {
                write!(f, "workers_state_file {} {why}", path.display())
            }
            StartError::Upgrade { upgrade_sock, why } => write!(
                f,
                "no old process handed over its sockets at upgrade_sock {upgrade_sock}: {why}"
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Listen { why, .. }
            | StartError::File { why, .. }
            | StartError::Signals(why) => Some(why),
            StartError::NotAHeader { .. }
            | StartError::ConfInUse
            | StartError::Roots(_)
            | StartError::Tls(_)
            | StartError::KeptWorkers { .. }
            | StartError::Upgrade { .. } => None,
        }
    }
}

/// Runs the process until a signal ends it: SIGTERM lets live requests finish, SIGINT does not, SIGQUIT hands the
/// listeners to a new process that was started with `-u`, and then lets live requests finish. SIGHUP reads the configuration
/// again by `reloader`. SIGUSR1 and SIGUSR2 are logged. With `daemon` the process forks, and the parent exits within this call.
///
/// # Errors
/// [`StartError`]: nothing was served then.
pub fn run(config: Config, options: Opt, reloader: Reloader) -> Result<(), StartError> {
    let listen = ListenAddresses::of(&config);
    let upgrade_wait = config.upgrade_wait;
    let watches = config.watch_config;
    // Bind first, so that a busy port fails fast. On an upgrade the sockets are the old process's, which keeps serving
    // until this one listens.
    let bound = (!options.upgrade)
        .then(|| Bound::new(&listen, None))
        .transpose()?;
    let built = build(config)?;
    let mut conf = Arc::try_unwrap(built.conf).map_err(|_| StartError::ConfInUse)?;
    conf.daemon |= options.daemon;
    let pid_file = PidFile::prepare(&mut conf, options.upgrade)?;
    let keeper = built.keeper;
    let sockets = match bound {
        Some(bound) => {
            restore(keeper.as_ref())?;
            Sockets::Bound(bound)
        }
        None => Sockets::Inherited(Takeover {
            listen,
            upgrade_sock: conf.upgrade_sock.clone(),
            wait: upgrade_wait,
            keeper: keeper.clone(),
            pid_file: pid_file.clone(),
        }),
    };
    let telemetry = built.telemetry;
    let shutdown = built.shutdown.clone();
    let hangup = Arc::<Notify>::default();
    let (signals, ready) = Signals::new(
        shutdown.clone(),
        conf.upgrade_sock.clone(),
        hangup.clone(),
        keeper.clone(),
    );
    let reload = Reload::new(built.live, reloader, hangup, watches);
    let options = Opt {
        conf: None,
        // The sockets are taken by `Takeover`.
        upgrade: false,
        ..options
    };
    let waiting_parent = match conf.daemon && conf.daemon_wait_for_ready {
        true => {
            let parent = WaitingParent::before_fork().map_err(StartError::Signals)?;
            Some(ready.installed(parent))
        }
        false => None,
    };
    let listeners = Listeners {
        opening: Some(Opening {
            sockets,
            apps: built.apps,
        }),
        shutdown: built.shutdown,
        engine: built.engine,
        probe: built.probe,
        loads: built.loads,
        names: built.names,
        registry: built.registry,
        examiner: built.examiner,
        dns: built.dns,
        reload: Some(Reloads::BySources(reload.into())),
        keeper: keeper.clone(),
        kubernetes: built.kubernetes,
        ready: Some(ready),
    };
    let server = Server::new_with_opt_and_conf(Some(options), conf);
    serve(server, listeners, signals, waiting_parent);
    if let Some(keeper) = keeper {
        keeper.keep_here();
    }
    telemetry.flush();
    if let Some(pid_file) = pid_file {
        pid_file.remove();
    }
    shutdown.failure().map_or(Ok(()), Err)
}

/// Runs Pingora's server until the signals end it. Where it is to run in the background it forks, and `waiting_parent`
/// says when the parent may exit.
fn serve(
    mut server: Server,
    listeners: Listeners,
    signals: Signals,
    waiting_parent: Option<HandlersInstalled>,
) {
    match waiting_parent {
        None => server.bootstrap(),
        // After the fork, and after the handlers are there: the next command of a shell may send a signal.
        Some(installed) => {
            let installed = server.add_service(installed);
            server.bootstrap_as_a_service().add_dependency(installed);
        }
    }
    server.add_service(listeners);
    server.run(RunArgs {
        shutdown_signal: Box::new(signals),
    });
}

/// A balancer inside the caller's tokio runtime. One process can have several.
///
/// It handles no signals and sets up no logger: [the crate's page](crate) has an example that does the former.
pub struct MiniLoadBalancer {
    config: Config,
    handle: Handle,
    /// `None` where no other configuration takes its place.
    settings: Option<Effective>,
    given: mpsc::Receiver<Given>,
    closed: watch::Receiver<bool>,
    bound: watch::Sender<Option<Addresses>>,
    /// How long the start waits for what the workers say of themselves; `None` is the default.
    start_timeout: Option<Duration>,
}

/// The addresses on which a balancer listens.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    clients: SocketAddr,
    admins: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
}

impl MiniLoadBalancer {
    /// Checks the configuration. No socket is opened yet.
    ///
    /// # Errors
    /// Every problem of the configuration, not only the first.
    pub fn new(config: MiniLbConfig) -> Result<Self, ConfigError> {
        let (config, settings) = config.resolve_with_settings()?;
        Ok(Self {
            settings: Some(settings),
            ..Self::from_config(config)
        })
    }

    /// A balancer from a resolved configuration, which it keeps.
    #[doc(hidden)]
    pub fn from_config(config: Config) -> Self {
        let (closing, closed) = watch::channel(false);
        let (bound, is_bound) = watch::channel(None);
        let (reloads, given) = mpsc::channel(1);
        Self {
            config,
            settings: None,
            given,
            handle: Handle {
                closing: Arc::new(closing),
                bound: is_bound,
                reloads,
            },
            closed,
            bound,
            start_timeout: None,
        }
    }

    /// The same balancer with a start that waits so long, at most, for what the workers say of themselves.
    #[cfg(feature = "cli")]
    pub(crate) fn waits(self, time: Duration) -> Self {
        Self {
            start_timeout: Some(time),
            ..self
        }
    }

    /// To stop it, and to learn its addresses.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Listens and serves until [`Handle::stop`], then until the live requests have ended.
    ///
    /// # Errors
    /// [`StartError`]: nothing was started then.
    pub async fn start(self) -> Result<(), StartError> {
        let bound = Bound::new(&ListenAddresses::of(&self.config), None)?;
        let addresses = bound.addresses();
        let running = self
            .settings
            .map(|settings| Running::new(&self.config, settings));
        let mut built = build(self.config)?;
        if let Some(time) = self.start_timeout {
            built.probe.start_timeout = time;
        }
        let keeper = built.keeper;
        restore(keeper.as_ref())?;
        let (live, given) = (built.live, self.given);
        let reload = running.map(|running| ByProgram::new(live, running, given));
        let proxy = built.apps.clients.app.clone();
        let mut listeners = Listeners {
            opening: Some(Opening {
                sockets: Sockets::Bound(bound),
                apps: built.apps,
            }),
            shutdown: built.shutdown.clone(),
            engine: built.engine,
            probe: built.probe,
            loads: built.loads,
            names: built.names,
            registry: built.registry,
            examiner: built.examiner,
            dns: built.dns,
            reload: reload.map(|reload| Reloads::ByProgram(reload.into())),
            keeper: keeper.clone(),
            kubernetes: built.kubernetes,
            ready: None,
        };
        self.bound.send_replace(addresses);
        let mut closed = self.closed;
        let left = async {
            // Never an error: `self.handle` holds the sender.
            let _ = closed.wait_for(|closed| *closed).await;
            built.shutdown.leave().await;
        };
        tokio::join!(
            listeners.start_service(None, watch::channel(false).1, 1),
            left
        );
        if let Some(keeper) = keeper {
            keeper.keep().await;
        }
        // Closes the idle connections, as Pingora's own server does when it ends.
        proxy.http_cleanup().await;
        // Not in this task: it blocks. An error is a panic, which the thread has reported.
        let telemetry = built.telemetry;
        let _ = tokio::task::spawn_blocking(move || telemetry.flush()).await;
        Ok(())
    }
}
