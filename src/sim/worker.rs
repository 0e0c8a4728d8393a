//! A worker's life: listeners, the connection loop, stop. What a request gets is `routes`' business.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::chaos::{ChaosIo, Orders};
use super::engine::{Engine, Phase};
use super::journal::{ClosedBy, Journal};
use super::management::Ports;
use super::registry::Registry;
use super::rendezvous::serve_rank;
use super::routes::Door;
use super::{Role, SimOptions};

/// Before the next try to accept a connection. Who is out of descriptors would try without a pause.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A simulated worker that serves, on tasks of the runtime that started it. Dropped, it stops.
pub struct Worker {
    engine: Arc<Engine>,
    address: SocketAddr,
    bootstrap_port: Option<u16>,
    /// Closed when the last task has ended.
    alive: mpsc::Receiver<()>,
}

impl Worker {
    /// Binds the ports of the role, and serves.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub async fn start(role: Role, options: SimOptions) -> io::Result<Worker> {
        let host = options.host;
        let api = TcpListener::bind((host, options.port)).await?;
        let address = api.local_addr()?;
        let (alive, all_ended) = mpsc::channel(1);
        let wanted_bootstrap_port = options.bootstrap_port;
        let engine = Engine::new(role, options, alive);
        let mut ports = Ports {
            api: address.port(),
            bootstrap: wanted_bootstrap_port,
        };
        let mut bootstrap_port = None;
        if role == Role::Prefill {
            let registry = TcpListener::bind((host, wanted_bootstrap_port)).await?;
            let rank = TcpListener::bind((host, 0)).await?;
            ports.bootstrap = registry.local_addr()?.port();
            bootstrap_port = Some(ports.bootstrap);
            let known = Registry::new(rank.local_addr()?, ports.api);
            engine.spawn_watchful(serve_registry(engine.clone(), registry, known));
            engine.spawn_watchful(serve_ranks(engine.clone(), rank));
        }
        let door = Arc::new(Door::new(engine.clone(), ports));
        engine.spawn_watchful(serve_api(door, api));
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

    /// Where the API listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the worker does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.engine.role
    }

    /// Where prefill's registry listens; none on the other roles.
    #[must_use]
    pub fn bootstrap_port(&self) -> Option<u16> {
        self.bootstrap_port
    }

    /// What happened on this worker.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.engine.journal
    }

    /// Whether a scripted fault has taken the worker down.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        self.engine.phase() == Phase::Crashed
    }

    /// Cuts all connections, frees the ports, and returns when every task has ended.
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

async fn serve_api(door: Arc<Door>, mut listener: TcpListener) {
    let stopped = door.engine.stopped();
    let mut refusals = door.engine.chaos.refusals();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            Ok(()) = refusals.changed() => {
                let time = refusals.borrow_and_update().unwrap_or_default();
                listener = tokio::select! {
                    biased;
                    () = &mut stopped => return,
                    listener = listen_again(listener, time) => listener,
                };
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, peer)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let connection = door.engine.journal.connection_opened(|| peer.to_string());
        let served = serve_connection(door.clone(), stream, connection);
        door.engine.spawn_watchful(served);
    }
}

/// Closes the listener for a time: the system refuses who connects.
async fn listen_again(listener: TcpListener, time: Duration) -> TcpListener {
    let address = match listener.local_addr() {
        Ok(address) => address,
        // A bound socket has an address.
        Err(_) => return listener,
    };
    drop(listener);
    loop {
        tokio::time::sleep(time).await;
        // Somebody else has the port: what was to be refused for a time is refused for longer.
        if let Ok(listener) = TcpListener::bind(address).await {
            return listener;
        }
    }
}

/// One client connection, with uvicorn's keep-alive: it is closed when nothing came for a while after an answer.
async fn serve_connection(door: Arc<Door>, stream: TcpStream, connection: u64) {
    let _ = stream.set_nodelay(true); // only latency
    let engine = door.engine.clone();
    // Busy from the start: uvicorn's timer begins with the first answer.
    let (busy, mut idle) = watch::channel(true);
    let phase_ends = engine.phase_ends();
    let orders = Orders::default();
    let stream = ChaosIo::new(stream, orders.clone());
    let given = orders.clone();
    let service = service_fn(move |request| {
        let (door, busy, orders) = (door.clone(), busy.clone(), orders.clone());
        async move { door.serve(connection, busy, orders, request).await }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let keep_alive = engine.options.keep_alive;
    let idle_too_long = async move {
        while idle.wait_for(|busy| !busy).await.is_ok() {
            let next = idle.wait_for(|busy| *busy);
            if tokio::time::timeout(keep_alive, next).await.is_err() {
                return;
            }
        }
        // The connection is gone, and tells so itself.
        std::future::pending().await
    };
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
    if given.is_deadly() {
        engine.crash();
    }
}

async fn serve_registry(engine: Arc<Engine>, listener: TcpListener, registry: Arc<Registry>) {
    let stopped = engine.stopped();
    tokio::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let (registry, asked) = (registry.clone(), engine.clone());
        let service = service_fn(move |request| {
            let (registry, alive) = (registry.clone(), asked.phase() == Phase::Serving);
            async move { Ok::<_, std::convert::Infallible>(registry.answer(request, alive).await) }
        });
        engine.spawn(async move {
            // A broken connection is its client's trouble.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn serve_ranks(engine: Arc<Engine>, listener: TcpListener) {
    let stopped = engine.stopped();
    tokio::pin!(stopped);
    let mut connection = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_AGAIN).await;
            continue;
        };
        let _ = stream.set_nodelay(true); // only latency
        connection += 1;
        engine.spawn(serve_rank(stream, connection, engine.rooms.clone()));
    }
}
