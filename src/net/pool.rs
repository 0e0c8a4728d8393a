//! Idle connections to workers, kept by the thread that opened them.
//!
//! Pingora's own pool watches every idle connection with a task of its own, which costs a spawn, a timer and
//! two wake-ups for each request, and with `work_stealing: false` on another thread than the request's
//! (Source: pingora-core 0.9.1 `connectors/mod.rs`, `release_stream`; pingora-runtime 0.9.1,
//! `current_handle`). Here a connection is looked at when it is taken, and once a second one task for each
//! thread closes those that nobody wants.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use pingora_core::Result;
use pingora_core::connectors::{ConnectorOptions, TransportConnector};
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use tokio::io::AsyncReadExt;

use super::POOL_IDLE;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Threads besides those of the listener that ask workers: more of them only share a shard.
const OTHER_THREADS: usize = 8;

/// The connections that wait for a request. What may share a connection has the same key: Pingora's
/// `reuse_hash` of the peer.
pub(super) struct Pool {
    transport: TransportConnector,
    shards: Box<[Mutex<Shard>]>,
    /// The most that one shard keeps.
    capacity: usize,
}

#[derive(Default)]
struct Shard {
    idle: HashMap<u64, Vec<Idle>>,
    count: usize,
    swept: bool,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Pool {
    /// Keeps as many connections for each thread as the server configuration says.
    pub(super) fn new(conf: &ServerConf) -> Self {
        let options = ConnectorOptions::from_server_conf(conf);
        let shards = 0..conf.threads + OTHER_THREADS;
        Self {
            transport: TransportConnector::new(Some(options)),
            shards: shards.map(|_| Mutex::default()).collect(),
            capacity: conf.upstream_keepalive_pool_size,
        }
    }

    /// A new connection.
    ///
    /// # Errors
    /// Pingora's, of the types that [`super::Failure::from_pingora`] knows.
    pub(super) async fn dial(&self, peer: &HttpPeer) -> Result<Stream> {
        // Boxed, because it is large and rare: every exchange would carry it.
        Box::pin(self.transport.new_stream(peer)).await
    }

    /// The connection that this thread used last: the others may then grow old.
    pub(super) fn kept(&self, key: u64) -> Option<Stream> {
        let mut shard = self.shard(self.index());
        let shard = &mut *shard;
        let idle = shard.idle.get_mut(&key)?;
        while let Some(mut kept) = idle.pop() {
            shard.count -= 1;
            if kept.is_fit() {
                return Some(kept.stream);
            }
        }
        None
    }

    /// Keeps a connection whose exchange has ended well.
    pub(super) fn keep(self: &Arc<Self>, key: u64, stream: Stream) {
        let index = self.index();
        let mut shard = self.shard(index);
        if shard.count >= self.capacity {
            return;
        }
        shard.count += 1;
        let since = Instant::now();
        let kept = Idle { stream, since };
        shard.idle.entry(key).or_default().push(kept);
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

    async fn sweep(self: Arc<Self>, index: usize) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let mut shard = self.shard(index);
            shard.idle.retain(|_, idle| {
                idle.retain_mut(Idle::is_fit);
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
        let shard = self.shards[index].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
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
    fn is_fit(&mut self) -> bool {
        self.since.elapsed() < POOL_IDLE && is_quiet(&mut self.stream)
    }
}

/// Whether a connection is open with nothing to read. Costs no system call while the runtime has heard nothing.
pub(super) fn is_quiet(stream: &mut Stream) -> bool {
    let mut byte = [0];
    // Unconstrained: at the end of its budget a task would hear nothing of what has come.
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
            super::super::peer(address, Duration::from_secs(5), None),
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
    async fn the_connection_that_was_kept_last_is_lent_first() {
        let (listener, peer) = worker().await;
        let pool = pool(8);
        let (one, _one) = connection(&listener, &pool, &peer).await;
        let (two, mut theirs) = connection(&listener, &pool, &peer).await;
        pool.keep(1, one);
        pool.keep(1, two);
        assert!(pool.kept(2).is_none());
        let mut lent = pool.kept(1).unwrap();
        lent.write_all(b"x").await.unwrap();
        lent.flush().await.unwrap();
        assert_eq!(theirs.read_u8().await.unwrap(), b'x');
        assert!(pool.kept(1).is_some());
        assert!(pool.kept(1).is_none());
    }

    #[tokio::test]
    async fn a_connection_that_the_worker_closed_or_wrote_to_is_not_lent_again() {
        for word in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n"] {
            let (listener, peer) = worker().await;
            let pool = pool(8);
            let (mut ours, mut theirs) = connection(&listener, &pool, &peer).await;
            theirs.write_all(word).await.unwrap();
            drop(theirs);
            while is_quiet(&mut ours) {
                tokio::task::yield_now().await;
            }
            pool.keep(1, ours);
            assert!(pool.kept(1).is_none());
        }
    }

    #[tokio::test]
    async fn no_more_than_the_capacity_are_kept() {
        let (listener, peer) = worker().await;
        let pool = pool(1);
        let (one, _one) = connection(&listener, &pool, &peer).await;
        let (two, _two) = connection(&listener, &pool, &peer).await;
        pool.keep(1, one);
        pool.keep(2, two);
        assert!(pool.kept(1).is_some());
        assert!(pool.kept(2).is_none());
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_without_anybody_asking_for_it() {
        let (listener, peer) = worker().await;
        let pool = pool(8);
        let (stream, mut theirs) = connection(&listener, &pool, &peer).await;
        // The age of what is kept is real time, so that it is made old here.
        let index = pool.index();
        {
            let mut shard = pool.shard(index);
            let since = Instant::now() - POOL_IDLE;
            shard.count = 1;
            shard.swept = true;
            shard.idle.insert(1, vec![Idle { stream, since }]);
        }
        pool.clone().sweep(index).await;
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        assert!(!pool.shard(index).swept);
    }
}
