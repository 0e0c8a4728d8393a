//! A plain Pingora proxy with one leg and no code of mini-lb: the cost of the library itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use async_trait::async_trait;
use pingora::Result;
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;

/// Forwards to its workers in turn.
pub struct Plain {
    workers: Vec<SocketAddr>,
    next: AtomicUsize,
}

impl Plain {
    pub fn new(workers: Vec<SocketAddr>) -> Self {
        let next = AtomicUsize::new(0);
        Self { workers, next }
    }
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        let peer = HttpPeer::new(self.workers[next], false, String::new());
        Ok(Box::new(peer))
    }
}

/// Serves until it is killed, with threads and connections as mini-lb has them by default.
pub fn serve(listen: SocketAddr, workers: Vec<SocketAddr>) -> ! {
    let conf = ServerConf {
        threads: available_parallelism().map_or(1, usize::from),
        upstream_keepalive_pool_size: 4096,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, Plain::new(workers));
    proxy.add_tcp(&listen.to_string());
    server.add_service(proxy);
    server.run_forever()
}
