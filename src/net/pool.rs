//! The pool: idle connections to workers. Threads that take work from each other share them, others keep their own.
//!
//! Pingora's own pool watches each idle connection with a task, which costs a spawn, a timer and two wake-ups per
//! request, and with `work_stealing: false` the task runs on another thread than the request. Here a connection is
//! checked when it is taken, and once a second one task per shard closes the expired ones.
//!
//! Source: pingora-core 0.9.1 `connectors/mod.rs` (`release_stream`); pingora-runtime 0.9.1 (`current_handle`).

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use pingora::Result;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::Stream;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::{HttpPeer, Peer};
use tokio::io::AsyncReadExt;

use super::http2::Http2Connections;
use super::peer::POOL_IDLE;
use super::tls::SystemRoots;

/// How often expired connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Shards for threads besides those of the listener's runtime. More threads than shards share one.
const OTHER_THREADS: usize = 8;

/// Idle connections, in one shard where the threads share one runtime, else in one per thread: a connection belongs to the
/// runtime that opened it, and a request that has changed threads would find nothing in the shard of the new one. Connections with the same key ([`super::peer::reuse_key`]) are interchangeable.
pub(super) struct Pool {
    transport: TransportConnector,
    /// `None` where `transport` has the roots of all workers.
    system_roots: Option<SystemRoots>,
    /// Those that carry many exchanges at once. What is in the shards of such a worker is the near end of a stream.
    pub(super) http2: Arc<Http2Connections>,
    shards: Box<[Mutex<Shard>]>,
    /// The most connections in one shard.
    capacity: usize,
}

#[derive(Default)]
struct Shard {
    idle: HashMap<u64, Vec<Idle>>,
    /// The connections under all keys.
    count: usize,
    /// Whether the sweeping task of this shard is running.
    sweeping: bool,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Pool {
    /// An empty pool; `upstream_keepalive_pool_size` of `conf` is the capacity of a shard.
    pub(super) fn new(conf: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(conf);
        let shards = match conf.work_stealing {
            true => 1,
            false => conf.threads + OTHER_THREADS,
        };
        Self {
            system_roots: SystemRoots::of(&options),
            transport: TransportConnector::new(Some(options)),
            http2: Arc::default(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            capacity: conf.upstream_keepalive_pool_size,
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// Pingora's, of the types that [`super::Failure::from_pingora`] knows.
    pub(super) async fn dial(&self, peer: &HttpPeer) -> Result<Stream> {
        let transport = match &self.system_roots {
            Some(roots) if peer.is_tls() && peer.get_ca().is_none() => roots.transport().await?,
            _ => &self.transport,
        };
        // Boxed because this future is large and rarely needed: inline, every exchange would carry its size.
        Box::pin(transport.new_stream(peer)).await
    }

    /// Takes a connection of this thread's shard out of the pool.
    pub(super) fn take(&self, key: u64) -> Option<Stream> {
        let mut shard = self.shard(self.index());
        let shard = &mut *shard;
        let idle = shard.idle.get_mut(&key)?;
        // Most recently used first, so that surplus connections expire.
        while let Some(mut candidate) = idle.pop() {
            shard.count -= 1;
            if candidate.is_reusable() {
                return Some(candidate.stream);
            }
        }
        None
    }

    /// Puts a connection whose exchange is complete into this thread's shard, or closes it when that is full.
    pub(super) fn put(self: &Arc<Self>, key: u64, stream: Stream) {
        let index = self.index();
        let mut shard = self.shard(index);
        if shard.count >= self.capacity {
            return;
        }
        shard.count += 1;
        let since = Instant::now();
        let connection = Idle { stream, since };
        shard.idle.entry(key).or_default().push(connection);
        // Outside a runtime the task cannot be spawned; the next `put` tries again.
        if !shard.sweeping
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            shard.sweeping = true;
            drop(shard);
            // Not joined: it ends when its shard is empty, or with the runtime.
            runtime.spawn(self.clone().sweep(index));
        }
    }

    /// How many connections under this key are idle.
    pub(super) fn idle(&self, key: u64) -> usize {
        let of_shard = |index| self.shard(index).idle.get(&key).map_or(0, Vec::len);
        (0..self.shards.len()).map(of_shard).sum()
    }

    async fn sweep(self: Arc<Self>, index: usize) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let mut shard = self.shard(index);
            shard.idle.retain(|_, idle| {
                idle.retain_mut(Idle::is_reusable);
                !idle.is_empty()
            });
            shard.count = shard.idle.values().map(Vec::len).sum();
            if shard.count == 0 {
                shard.sweeping = false;
                return;
            }
        }
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Shard> {
        // Nothing panics while the lock is held, so that a poisoned lock holds valid data.
        let shard = self.shards[index].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    /// The index of this thread's shard.
    fn index(&self) -> usize {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local! {
            static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
        }
        THREAD.with(|thread| {
            // Relaxed: only the uniqueness of the number counts, and `fetch_add` gives that by itself.
            let index = thread
                .get()
                .unwrap_or_else(|| THREADS.fetch_add(1, Ordering::Relaxed));
            thread.set(Some(index));
            index
        }) % self.shards.len()
    }
}

impl Idle {
    /// Whether the connection is young enough and still open, without unsolicited bytes.
    fn is_reusable(&mut self) -> bool {
        self.since.elapsed() < POOL_IDLE && is_quiet(&mut self.stream)
    }
}

/// Whether a connection is open and has nothing to read. Makes a system call only when the runtime has seen the
/// socket become readable.
pub(super) fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    // Unconstrained: a task that has used up its cooperative budget would get `Pending`, and a closed connection
    // would look quiet.
    let read = tokio::task::unconstrained(stream.read(&mut byte));
    read.now_or_never().is_none()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    fn pool(capacity: usize) -> Arc<Pool> {
        Arc::new(Pool::new(&ServerConf {
            upstream_keepalive_pool_size: capacity,
            ..ServerConf::default()
        }))
    }

    async fn worker() -> (TcpListener, HttpPeer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (
            listener,
            super::super::peer::peer(address, Duration::from_secs(5), None),
        )
    }

    async fn connection(
        listener: &TcpListener,
        pool: &Pool,
        peer: &HttpPeer,
    ) -> (Stream, TcpStream) {
        let (ours, theirs) = tokio::join!(pool.dial(peer), listener.accept());
        (ours.unwrap(), theirs.unwrap().0)
    }

    #[tokio::test]
    async fn the_connection_that_was_put_last_is_taken_first() {
        let (listener, peer) = worker().await;
        let pool = pool(8);
        let (one, _one) = connection(&listener, &pool, &peer).await;
        let (two, mut theirs) = connection(&listener, &pool, &peer).await;
        pool.put(1, one);
        pool.put(1, two);
        assert!(pool.take(2).is_none());
        let mut taken = pool.take(1).unwrap();
        taken.write_all(b"x").await.unwrap();
        taken.flush().await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'x');
        assert!(pool.take(1).is_some());
        assert!(pool.take(1).is_none());
    }

    #[tokio::test]
    async fn a_connection_that_the_worker_closed_or_wrote_to_is_not_reused() {
        for bytes in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            let (listener, peer) = worker().await;
            let pool = pool(8);
            let (mut ours, mut theirs) = connection(&listener, &pool, &peer).await;
            theirs.write_all(bytes).await.unwrap();
            drop(theirs);
            while is_quiet(&mut ours) {
                tokio::task::yield_now().await;
            }
            pool.put(1, ours);
            assert!(pool.take(1).is_none());
        }
    }

    #[tokio::test]
    async fn a_pool_holds_no_more_than_its_capacity() {
        let (listener, peer) = worker().await;
        let pool = pool(1);
        let (one, _one) = connection(&listener, &pool, &peer).await;
        let (two, _two) = connection(&listener, &pool, &peer).await;
        pool.put(1, one);
        pool.put(2, two);
        assert!(pool.take(1).is_some());
        assert!(pool.take(2).is_none());
    }

    #[test]
    fn threads_share_connections_where_they_share_work() {
        for work_stealing in [true, false] {
            let pool = Pool::new(&ServerConf {
                work_stealing,
                threads: 2,
                ..ServerConf::default()
            });
            assert_eq!(pool.shards.len() == 1, work_stealing);
        }
    }

    #[tokio::test]
    async fn an_expired_connection_is_closed_by_the_sweep() {
        let (listener, peer) = worker().await;
        let pool = pool(8);
        let (stream, mut theirs) = connection(&listener, &pool, &peer).await;
        // The age of a connection is real time, which a test cannot turn: this one is entered as expired.
        let index = pool.index();
        {
            let mut shard = pool.shard(index);
            let since = Instant::now() - POOL_IDLE;
            shard.count = 1;
            shard.sweeping = true;
            shard.idle.insert(1, vec![Idle { stream, since }]);
        }
        pool.clone().sweep(index).await;
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        assert!(!pool.shard(index).sweeping);
    }
}
