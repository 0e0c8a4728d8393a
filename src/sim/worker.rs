//! A worker from start to stop: its listeners and connections. Requests are `api`'s.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::api::Api;
use super::chaos::{ChaosIo, ConnectionFaults};
use super::engine::{DEFAULT_BOOTSTRAP_PORT, Engine, Phase};
use super::journal::{ClosedBy, Journal};
use super::management::Ports;
use super::registry::Registry;
use super::rendezvous::serve_rank;
use super::vllm::nixl;
use super::{Connector, Role, SimOptions};

/// Pause after a failed accept: without one, a process out of descriptors would retry in a tight loop.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A running simulated worker, on tasks of the runtime that started it. It stops when dropped.
pub struct Worker {
    engine: Arc<Engine>,
    address: SocketAddr,
    bootstrap_port: Option<u16>,
    /// Closed when the last task has ended.
    alive: mpsc::Receiver<()>,
}

/// # Errors
/// The port cannot be bound. It is named.
async fn listen(host: IpAddr, port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((host, port)).await.map_err(|error| {
        let address = SocketAddr::new(host, port);
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

impl Worker {
    /// Binds the ports of the role and serves: the API, and on prefill the registry and the rank port, or with
    /// [`SimOptions::vllm`] the side channel of prefill and decode.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start(role: Role, options: SimOptions) -> io::Result<Worker> {
        let host = options.host;
        let listener = listen(host, options.port).await?;
        let address = listener.local_addr()?;
        let (alive, all_ended) = mpsc::channel(1);
        let wanted_bootstrap_port = options.bootstrap_port;
        let side_channel = match options.vllm.is_some() && role != Role::Ordinary {
            true => Some(listen(host, wanted_bootstrap_port).await?),
            false => None,
        };
        let side_channel_address = side_channel.as_ref().map(TcpListener::local_addr);
        let side_channel_address = side_channel_address.transpose()?;
        let is_vllm = options.vllm.is_some();
        let engine = Engine::new(role, options, side_channel_address, alive);
        let mut ports = Ports {
            api: address.port(),
            bootstrap: match wanted_bootstrap_port {
                0 => DEFAULT_BOOTSTRAP_PORT,
                port => port,
            },
        };
        let mut bootstrap_port = side_channel_address.map(|address| address.port());
        if let Some(listener) = side_channel {
            engine.spawn_tracked(serve_side_channel(engine.clone(), listener));
        }
        // A decode worker that may become a prefill worker has its registry from the beginning. The port of its option is
        // the one that it asks elsewhere.
        let may_prefill = role == Role::Decode && engine.options.role_switch;
        if !is_vllm && (role == Role::Prefill || may_prefill) {
            let port = if may_prefill {
                0
            } else {
                wanted_bootstrap_port
            };
            let registry = listen(host, port).await?;
            let rank = listen(host, 0).await?;
            ports.bootstrap = registry.local_addr()?.port();
            bootstrap_port = Some(ports.bootstrap);
            let known = Registry::new(rank.local_addr()?, ports.api, engine.options.ranks());
            engine.spawn_tracked(serve_registry(engine.clone(), registry, known));
            engine.spawn_tracked(serve_ranks(engine.clone(), rank));
        }
        engine.start();
        let api = Arc::new(Api::new(engine.clone(), ports));
        engine.spawn_tracked(serve_api(api, listener));
        Ok(Worker {
            engine,
            address,
            bootstrap_port,
            alive: all_ended,
        })
    }

    /// [`Worker::start`] with [`Role::Prefill`].
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start_prefill(options: SimOptions) -> io::Result<Worker> {
        Worker::start(Role::Prefill, options).await
    }

    /// [`Worker::start`] with [`Role::Decode`].
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start_decode(options: SimOptions) -> io::Result<Worker> {
        Worker::start(Role::Decode, options).await
    }

    /// [`Worker::start`] with [`Role::Ordinary`].
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start_ordinary(options: SimOptions) -> io::Result<Worker> {
        Worker::start(Role::Ordinary, options).await
    }

    /// `http://host:port`, with brackets for IPv6.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Address of the API.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Prefill, decode or ordinary.
    #[must_use]
    pub fn role(&self) -> Role {
        self.engine.role()
    }

    /// Whether it is a vLLM worker.
    #[must_use]
    pub fn is_vllm(&self) -> bool {
        self.engine.is_vllm()
    }

    /// The connector of a vLLM worker.
    #[must_use]
    pub fn connector(&self) -> Option<Connector> {
        self.engine.options.vllm.as_ref().map(|vllm| vllm.connector)
    }

    /// Port of the bootstrap registry, which only prefill has, and what may become prefill; on a vLLM worker that of its
    /// side channel.
    #[must_use]
    pub fn bootstrap_port(&self) -> Option<u16> {
        self.bootstrap_port
    }

    /// The events of this worker so far.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.engine.journal
    }

    /// Whether a scripted fault has taken the worker down.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.engine.phase() == Phase::Crashed
    }

    /// Closes all connections and ports, and returns when every task has ended.
    pub async fn stop(mut self) {
        self.engine.stop();
        while self.alive.recv().await.is_some() {}
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.engine.stop();
    }
}

async fn serve_api(api: Arc<Api>, mut listener: TcpListener) {
    let stopped = api.engine.stopped();
    let mut refusals = api.engine.chaos.refusals();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            biased;
            Ok(()) = refusals.changed() => {
                let time = refusals.borrow_and_update().unwrap_or_default();
                listener = tokio::select! {
                    biased;
                    () = &mut stopped => return,
                    listener = listen_again(listener, time) => listener,
                };
                continue;
            }
            accepted = accept(&listener, &mut stopped) => accepted,
        };
        let Some((stream, peer)) = accepted else {
            return;
        };
        let connection = api.engine.journal.connection_opened(|| peer.to_string());
        let served = serve_connection(api.clone(), stream, connection);
        api.engine.spawn_tracked(served);
    }
}

/// The next connection; none when the worker stops.
async fn accept(
    listener: &TcpListener,
    stopped: &mut (impl Future<Output = ()> + Unpin),
) -> Option<(TcpStream, SocketAddr)> {
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut *stopped => return None,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true); // only latency
                return Some((stream, peer));
            }
            Err(_) => tokio::time::sleep(ACCEPT_RETRY).await,
        }
    }
}

/// Closes the listener for a time, so that the system refuses connections.
async fn listen_again(listener: TcpListener, time: Duration) -> TcpListener {
    let address = match listener.local_addr() {
        Ok(address) => address,
        // A bound socket has an address.
        Err(_) => return listener,
    };
    drop(listener);
    loop {
        tokio::time::sleep(time).await;
        // An error means that another process has the port: connections stay refused.
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
    }
}

/// One client connection. It is closed when no request comes for the keep-alive time after a response, as by uvicorn.
async fn serve_connection(api: Arc<Api>, stream: TcpStream, connection: u64) {
    let engine = api.engine.clone();
    // Busy from the start: uvicorn's timer begins with the first response.
    let (busy, idle) = watch::channel(true);
    let phase_ends = engine.phase_ends();
    let faults = ConnectionFaults::default();
    let stream = ChaosIo::new(stream, faults.clone());
    let of_request = faults.clone();
    let service = service_fn(move |request| {
        let (api, busy, faults) = (api.clone(), busy.clone(), of_request.clone());
        async move { api.serve(connection, busy, faults, request).await }
    });
    // HTTP/2 where the client begins with it, as Granian does for SGLang's --enable-http2.
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    let idle_too_long = idle_for(idle, engine.options.keep_alive);
    tokio::pin!(serving, phase_ends, idle_too_long);
    let by = tokio::select! {
        biased;
        () = &mut phase_ends => ClosedBy::Worker,
        _ = serving.as_mut() => ClosedBy::Client,
        () = &mut idle_too_long => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.as_mut().await;
            ClosedBy::KeepAlive
        }
    };
    engine.journal.connection_closed(connection, by);
    if faults.crashes_on_close() {
        engine.crash();
    }
}

/// Completes when the connection has had no request for `time`. Never when it is closed first.
async fn idle_for(mut busy: watch::Receiver<bool>, time: Duration) {
    while busy.wait_for(|busy| !busy).await.is_ok() {
        let next = busy.wait_for(|busy| *busy);
        if tokio::time::timeout(time, next).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

async fn serve_registry(engine: Arc<Engine>, listener: TcpListener, registry: Arc<Registry>) {
    let stopped = engine.stopped();
    tokio::pin!(stopped);
    while let Some((stream, _)) = accept(&listener, &mut stopped).await {
        let (registry, owner) = (registry.clone(), engine.clone());
        let service = service_fn(move |request| {
            let (registry, alive) = (registry.clone(), owner.phase() == Phase::Serving);
            async move { Ok::<_, std::convert::Infallible>(registry.respond(request, alive).await) }
        });
        engine.spawn(async move {
            // An error concerns this client only.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn serve_side_channel(engine: Arc<Engine>, listener: TcpListener) {
    let ended = engine.phase_ends();
    tokio::pin!(ended);
    while let Some((stream, _)) = accept(&listener, &mut ended).await {
        engine.spawn(nixl::serve(stream, engine.clone()));
    }
}

async fn serve_ranks(engine: Arc<Engine>, listener: TcpListener) {
    let stopped = engine.stopped();
    tokio::pin!(stopped);
    let mut connection = 0;
    while let Some((stream, _)) = accept(&listener, &mut stopped).await {
        connection += 1;
        engine.spawn(serve_rank(stream, connection, engine.rooms.clone()));
    }
}
