//! Idle connections to workers without TLS, kept by the thread that opened them.
//!
//! Pingora's own pool watches every idle connection with a task of its own, which costs a spawn, a timer and
//! two wake-ups for each request, and with `work_stealing: false` on another thread than the request's
//! (Source: pingora-core 0.9.1 `connectors/mod.rs`, `release_stream`; pingora-runtime 0.9.1,
//! `current_handle`). Here a connection is looked at when it is taken, and once a second one task for each
//! thread closes those that nobody wants.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pingora_core::{Error, ErrorType, OrErr, Result};
use tokio::net::{TcpSocket, TcpStream};

use super::POOL_IDLE;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// More of them only share a shard.
const OTHER_THREADS: usize = 8;

/// The connections that wait for a request.
pub(super) struct Lender {
    shards: Box<[Mutex<Shard>]>,
    /// The most that one shard keeps.
    capacity: usize,
    /// Local addresses to connect from; any where there is none of the worker's family.
    sources: Vec<SocketAddr>,
}

#[derive(Default)]
struct Shard {
    idle: HashMap<SocketAddr, Vec<Idle>>,
    count: usize,
    swept: bool,
}

struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Lender {
    /// A shard for each of `threads` and some for the threads that ask workers about themselves; each keeps
    /// `capacity` connections.
    pub(super) fn new(threads: usize, capacity: usize, sources: Vec<SocketAddr>) -> Self {
        Self {
            shards: (0..threads + OTHER_THREADS).map(|_| Mutex::default()).collect(),
            capacity,
            sources,
        }
    }

    /// A connection that this thread has kept, or a new one. The second value says which.
    ///
    /// # Errors
    /// `ConnectRefused`, `ConnectTimedout`, `ConnectNoRoute` or `ConnectError`, with the system's reason.
    pub(super) async fn lend(
        &self,
        worker: SocketAddr,
        patience: Duration,
    ) -> Result<(TcpStream, bool)> {
        match self.kept(worker) {
            Some(stream) => Ok((stream, true)),
            None => Ok((self.dial(worker, patience).await?, false)),
        }
    }

    /// Keeps a connection whose exchange has ended well.
    pub(super) fn keep(self: &Arc<Self>, worker: SocketAddr, stream: TcpStream) {
        let index = self.index();
        let mut shard = self.shard(index);
        if shard.count >= self.capacity {
            return;
        }
        shard.count += 1;
        let since = Instant::now();
        let kept = Idle { stream, since };
        shard.idle.entry(worker).or_default().push(kept);
        // Outside a runtime nobody could sweep; then the next one to keep something does.
        if !shard.swept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            shard.swept = true;
            drop(shard);
            // Ends when nothing is left to sweep, or with its runtime.
            runtime.spawn(self.clone().sweep(index));
        }
    }

    /// The connection that was used last: the others may then grow old.
    fn kept(&self, worker: SocketAddr) -> Option<TcpStream> {
        let mut shard = self.shard(self.index());
        let shard = &mut *shard;
        let idle = shard.idle.get_mut(&worker)?;
        while let Some(kept) = idle.pop() {
            shard.count -= 1;
            if kept.is_fit() {
                return Some(kept.stream);
            }
        }
        None
    }

    async fn dial(&self, worker: SocketAddr, patience: Duration) -> Result<TcpStream> {
        let connected = tokio::time::timeout(patience, async {
            let socket = match worker {
                SocketAddr::V4(_) => TcpSocket::new_v4(),
                SocketAddr::V6(_) => TcpSocket::new_v6(),
            }
            .or_err(ErrorType::SocketError, "no socket")?;
            let sources = self.sources.iter().copied();
            let mut sources = sources.filter(|source| source.is_ipv4() == worker.is_ipv4());
            if let Some(source) = sources.next() {
                socket.bind(source).or_err(ErrorType::BindError, "bind")?;
            }
            let stream = socket.connect(worker).await.map_err(refused)?;
            stream
                .set_nodelay(true)
                .or_err(ErrorType::ConnectError, "nodelay")?;
            Ok(stream)
        });
        match connected.await {
            Ok(connected) => connected,
            Err(_) => Error::e_explain(ErrorType::ConnectTimedout, "no connection in time"),
        }
    }

    async fn sweep(self: Arc<Self>, index: usize) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let mut shard = self.shard(index);
            shard.idle.retain(|_, idle| {
                idle.retain(Idle::is_fit);
                !idle.is_empty()
            });
            shard.count = shard.idle.values().map(Vec::len).sum();
            if shard.count == 0 {
                shard.swept = false;
                return;
            }
        }
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        // Nothing panics while the lock is held.
        let shard = &self.shards[index % self.shards.len()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which shard is this thread's.
    fn index(&self) -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
        }
        THREAD.with(|thread| {
            let index = thread
                .get()
                .unwrap_or_else(|| THREADS.fetch_add(1, Ordering::Relaxed));
            thread.set(Some(index));
            index
        }) % self.shards.len()
    }
}

impl Idle {
    /// Young enough, still open, and nothing has come that nobody asked for.
    fn is_fit(&self) -> bool {
        self.since.elapsed() < POOL_IDLE && is_quiet(&self.stream)
    }
}

/// Whether a connection is open with nothing to read. Costs no system call while the runtime has heard nothing.
pub(super) fn is_quiet(stream: &TcpStream) -> bool {
    let mut byte = [0];
    matches!(stream.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

fn refused(error: std::io::Error) -> Box<Error> {
    use std::io::ErrorKind;
    let etype = match error.kind() {
        ErrorKind::ConnectionRefused => ErrorType::ConnectRefused,
        ErrorKind::TimedOut => ErrorType::ConnectTimedout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => ErrorType::ConnectNoRoute,
        _ => ErrorType::ConnectError,
    };
    Error::because(etype, "no connection", error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn lender(capacity: usize) -> Arc<Lender> {
        Arc::new(Lender::new(1, capacity, Vec::new()))
    }

    async fn worker() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn a_kept_connection_is_lent_again_and_the_last_one_first() {
        let (_listener, worker) = worker().await;
        let lender = lender(8);
        let (one, reused) = lender.lend(worker, PATIENCE).await.unwrap();
        assert!(!reused);
        let (two, _) = lender.lend(worker, PATIENCE).await.unwrap();
        let last = two.local_addr().unwrap();
        lender.keep(worker, one);
        lender.keep(worker, two);
        let (again, reused) = lender.lend(worker, PATIENCE).await.unwrap();
        assert!(reused);
        assert_eq!(again.local_addr().unwrap(), last);
    }

    #[tokio::test]
    async fn a_connection_that_the_worker_closed_or_wrote_to_is_not_lent_again() {
        let (listener, worker) = worker().await;
        for word in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            let lender = lender(8);
            let (stream, _) = lender.lend(worker, PATIENCE).await.unwrap();
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(word).await.unwrap();
            drop(peer);
            stream.readable().await.unwrap();
            lender.keep(worker, stream);
            let (_, reused) = lender.lend(worker, PATIENCE).await.unwrap();
            assert!(!reused);
            listener.accept().await.unwrap();
        }
    }

    #[tokio::test]
    async fn no_more_than_the_capacity_are_kept() {
        let (_listener, worker) = worker().await;
        let lender = lender(1);
        let (one, _) = lender.lend(worker, PATIENCE).await.unwrap();
        let (two, _) = lender.lend(worker, PATIENCE).await.unwrap();
        lender.keep(worker, one);
        lender.keep(worker, two);
        assert!(lender.kept(worker).is_some());
        assert!(lender.kept(worker).is_none());
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_without_anybody_asking_for_it() {
        let (listener, worker) = worker().await;
        let lender = lender(8);
        let (stream, _) = lender.lend(worker, PATIENCE).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        // The age of what is kept is real time, so that it is made old here.
        {
            let mut shard = lender.shard(0);
            let since = Instant::now() - POOL_IDLE;
            shard.count = 1;
            shard.swept = true;
            shard
                .idle
                .insert(worker, vec![Idle { stream, since }]);
        }
        lender.clone().sweep(0).await;
        peer.readable().await.unwrap();
        assert_eq!(peer.try_read(&mut [0]).unwrap(), 0);
        assert!(!lender.shard(0).swept);
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_refused() {
        let (listener, worker) = worker().await;
        drop(listener);
        let error = lender(1).lend(worker, PATIENCE).await.unwrap_err();
        assert_eq!(*error.etype(), ErrorType::ConnectRefused);
    }
}
