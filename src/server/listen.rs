//! Pingora's services on the sockets that `bind.rs` has bound.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::proxy::HttpProxy;
use pingora::server::{Fds, ListenFds, ShutdownWatch};
use pingora::services::Service as PingoraService;
use pingora::services::listening::Service;
use tokio::sync::watch;

use super::bind::{self, BoundSocket};
use super::daemon::PidFile;
use super::notify;
use super::reload::Reloads;
use super::shutdown::{Shutdown, SignalsReady};
use super::upgrade::OldProcess;
use super::workers::restore;
use super::{Addresses, StartError};
use crate::client::{Connections, Listener};
use crate::config::{Config, Listen};
use crate::discovery::{
    EngineQuestion, Examiner, Keeper, Kubernetes, LoadPoll, Names, Probe, Registry,
};
use crate::proxy::Proxy;

/// The connections of a listener, whose requests go to the proxy.
pub(super) type ProxyConnections = Connections<HttpProxy<Proxy>>;

/// Reads of a client go directly to the reader, without 64 KiB of buffer for each connection; a head and a short body
/// leave in one write.
const CLIENT_BUFFERS: L4BufferSettings = L4BufferSettings {
    read: Some(0),
    write: Some(4 << 10),
};

/// The configured addresses.
#[derive(Clone)]
pub(super) struct ListenAddresses {
    clients: Listen,
    admins: Option<Listen>,
    metrics: Option<Listen>,
}

impl ListenAddresses {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            clients: config.listen.clone(),
            admins: config.admin_listen.clone(),
            metrics: config.prometheus.clone(),
        }
    }
}

/// The application of each listener.
pub(super) struct Apps {
    pub(super) clients: ProxyConnections,
    /// `None` when the clients' listener accepts worker administration.
    pub(super) admins: Option<ProxyConnections>,
    /// `None` without a listener for metrics alone.
    pub(super) metrics: Option<ProxyConnections>,
}

/// The sockets of all listeners. None is without a socket.
pub(super) struct Bound {
    clients: Vec<BoundSocket>,
    admins: Option<Vec<BoundSocket>>,
    metrics: Option<Vec<BoundSocket>>,
}

impl Bound {
    /// Takes the sockets of the old process, if there is one, and binds those that it does not have.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub(super) fn new(
        listen: &ListenAddresses,
        mut old_process: Option<&mut OldProcess>,
    ) -> Result<Self, StartError> {
        let mut bound = |listen: &Listen| bind::sockets(listen, old_process.as_deref_mut());
        Ok(Self {
            clients: bound(&listen.clients)?,
            admins: listen.admins.as_ref().map(&mut bound).transpose()?,
            metrics: listen.metrics.as_ref().map(bound).transpose()?,
        })
    }

    /// The first address of each listener; `None` when the sockets are inherited.
    pub(super) fn addresses(&self) -> Option<Addresses> {
        let first = |sockets: &Vec<BoundSocket>| sockets.first()?.local_address();
        Some(Addresses {
            clients: first(&self.clients)?,
            admins: self.admins.as_ref().and_then(first),
            metrics: self.metrics.as_ref().and_then(first),
        })
    }

    /// One service for each listener.
    pub(super) fn services(self, apps: Apps, shutdown: &Shutdown) -> Vec<ListeningService> {
        let clients = Some((apps.clients, self.clients));
        let others = [apps.admins.zip(self.admins), apps.metrics.zip(self.metrics)];
        let all = std::iter::once(clients).chain(others).flatten();
        all.map(|(app, bound)| ListeningService::new(app, bound, shutdown))
            .collect()
    }
}

/// One of Pingora's listening services, on sockets that are bound already.
pub(super) struct ListeningService {
    listener: Listener,
    service: Service<ProxyConnections>,
    addresses: Vec<String>,
    /// Taken at the start.
    sockets: Vec<BoundSocket>,
    /// Resolves when the listener must close. Taken at the start.
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl ListeningService {
    fn new(app: ProxyConnections, bound: Vec<BoundSocket>, shutdown: &Shutdown) -> Self {
        let listener = app.listener;
        let mut service = Service::new("mini-lb".to_owned(), app);
        for socket in &bound {
            service.add_listener(ListenerConfig::tcp(&socket.address).l4_buffer(CLIENT_BUFFERS));
        }
        Self {
            listener,
            service,
            addresses: bound.iter().map(|socket| socket.address.clone()).collect(),
            sockets: bound,
            closed: Some(Box::pin(shutdown.closed(listener))),
        }
    }

    /// Gives the sockets to Pingora, which finds them by their addresses.
    fn register(&mut self, fds: &ListenFds) {
        for socket in self.sockets.drain(..) {
            fds.lock().add(socket.address.clone(), socket.into_raw());
        }
    }

    /// Accepts connections until the listener must close.
    async fn serve(&mut self, fds: ListenFds, listeners_per_fd: usize) {
        let (stop, stopped) = watch::channel(false);
        if let Some(closed) = self.closed.take() {
            // Ends with `closed`, which resolves when the shutdown gets there or its sender is dropped.
            tokio::spawn(async move {
                closed.await;
                stop.send_replace(true);
            });
        }
        for address in &self.addresses {
            match self.listener {
                Listener::Clients => log::info!("listening address={address}"),
                Listener::Admins => log::info!("listening for administration address={address}"),
                Listener::Metrics => log::info!("listening for metrics address={address}"),
            }
        }
        PingoraService::start_service(&mut self.service, Some(fds), stopped, listeners_per_fd)
            .await;
    }
}

/// Where the sockets come from when the services start.
pub(super) enum Sockets {
    /// Bound already.
    Bound(Bound),
    /// Those of an old process, which are waited for.
    Inherited(Takeover),
}

/// A process that takes over from an old one.
pub(super) struct Takeover {
    pub(super) listen: ListenAddresses,
    pub(super) upgrade_sock: String,
    pub(super) wait: Duration,
    /// Has the workers of the admin API, which the old process goes on changing until it hands over.
    pub(super) keeper: Option<Arc<Keeper>>,
    /// `None` in the foreground.
    pub(super) pid_file: Option<PidFile>,
}

impl Takeover {
    /// Waits for the sockets of the old process, and lets it leave once all addresses are listened on.
    ///
    /// # Errors
    /// [`StartError::Upgrade`], [`StartError::Listen`], [`StartError::KeptWorkers`]: the old process keeps serving.
    async fn bound(self) -> Result<Bound, StartError> {
        let upgrade_sock = self.upgrade_sock.clone();
        let taking = move || -> Result<Bound, StartError> {
            let mut old_process = OldProcess::await_sockets(&self.upgrade_sock, self.wait)?;
            let bound = Bound::new(&self.listen, Some(&mut old_process))?;
            restore(self.keeper.as_ref())?;
            if let Some(pid_file) = &self.pid_file {
                pid_file.take_over();
            }
            old_process.release();
            Ok(bound)
        };
        match tokio::task::spawn_blocking(taking).await {
            Ok(bound) => bound,
            Err(error) => Err(StartError::Upgrade {
                upgrade_sock,
                why: error.to_string(),
            }),
        }
    }
}

/// What the services are made of.
pub(super) struct Opening {
    pub(super) sockets: Sockets,
    pub(super) apps: Apps,
}

impl Opening {
    /// One service for each socket, once there are sockets.
    ///
    /// # Errors
    /// Those of [`Takeover::bound`].
    async fn services(self, shutdown: &Shutdown) -> Result<Vec<ListeningService>, StartError> {
        let bound = match self.sockets {
            Sockets::Bound(bound) => bound,
            Sockets::Inherited(takeover) => takeover.bound().await?,
        };
        Ok(bound.services(self.apps, shutdown))
    }
}

/// All listening services as one of Pingora's services, with the tasks that run for as long: health checks and DNS.
pub(super) struct Listeners {
    /// Taken at the start.
    pub(super) opening: Option<Opening>,
    pub(super) shutdown: Arc<Shutdown>,
    pub(super) engine: EngineQuestion,
    pub(super) probe: Probe,
    pub(super) loads: LoadPoll,
    pub(super) names: Names,
    pub(super) registry: Arc<Registry>,
    pub(super) examiner: Examiner,
    pub(super) dns: Arc<super::dns::Names>,
    /// `None` in a balancer whose configuration is not read again.
    pub(super) reload: Option<Reloads>,
    /// `None` where the workers of the admin API are not kept.
    pub(super) keeper: Option<Arc<Keeper>>,
    pub(super) kubernetes: Option<Kubernetes>,
    /// `None` in a balancer that handles no signals.
    pub(super) ready: Option<SignalsReady>,
}

#[async_trait]
impl PingoraService for Listeners {
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        let fds = fds.unwrap_or_else(|| ListenFds::new(Fds::new().into()));
        let Some(opening) = self.opening.take() else {
            return;
        };
        let mut services = match opening.services(&self.shutdown).await {
            Ok(services) => services,
            Err(error) => return self.shutdown.fail(error),
        };
        for service in &mut services {
            service.register(&fds);
        }
        let is_process = self.ready.is_some();
        if let Some(ready) = self.ready.take() {
            ready.wait(fds.clone()).await;
        }
        // Bounded in time. Connections meanwhile wait in the backlog of their socket.
        self.names.begin().await;
        self.engine.begin().await;
        self.probe.begin().await;
        if is_process {
            notify::serving();
        }
        let serving = services
            .iter_mut()
            .map(|service| service.serve(fds.clone(), listeners_per_fd));
        let reloading = async {
            match &mut self.reload {
                Some(reload) => reload.run().await,
                None => std::future::pending().await,
            }
        };
        let keeping = async {
            match &self.keeper {
                Some(keeper) => keeper.run().await,
                None => std::future::pending().await,
            }
        };
        let watching = async {
            match &self.kubernetes {
                Some(kubernetes) => kubernetes.run(&self.registry).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = join_all(serving) => {}
            () = reloading => {}
            () = keeping => {}
            () = self.dns.run() => {}
            () = self.engine.run() => {}
            () = self.probe.run() => {}
            () = self.loads.run() => {}
            () = watching => {}
            () = self.names.watch() => {}
            () = self.registry.run(&self.examiner) => {}
        }
    }

    fn name(&self) -> &str {
        "mini-lb"
    }
}
