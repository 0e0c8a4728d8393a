//! How workers are connected to ([`Dialling`]), and the receiver of a request ([`Target`]).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use pingora::upstreams::peer::HttpPeer;

use super::tls::Trust;
use crate::addresses::Addresses;

/// How long a connection stays in a pool without a request.
///
/// Below uvicorn's 5 s, so that this side closes first: a request that meets a close by the worker has to be sent
/// again. Source: SGLang 0.5.23 `environ.py`, `SGLANG_TIMEOUT_KEEP_ALIVE`.
pub(super) const POOL_IDLE: Duration = Duration::from_secs(3);

/// The Pingora peer of one address. It speaks HTTP/1.1, over TLS when `tls` has the trust settings and the name
/// that the certificate must show.
///
/// `connect_timeout` includes the TLS handshake. Deadlines of a request are the caller's: a connected worker may
/// take as long as the caller waits.
pub(super) fn peer(
    address: SocketAddr,
    connect_timeout: Duration,
    tls: Option<(&Trust, &str)>,
) -> HttpPeer {
    let name = tls.map_or("", |(_, name)| name);
    let mut peer = HttpPeer::new(address, tls.is_some(), name.to_owned());
    if let Some((trust, _)) = tls {
        trust.apply(&mut peer);
    }
    peer.options.connection_timeout = Some(connect_timeout);
    peer.options.total_connection_timeout = Some(connect_timeout);
    peer.options.idle_timeout = Some(POOL_IDLE);
    peer
}

/// How connections to workers are opened. A client has one for all workers.
pub(crate) struct Dialling {
    /// The longest time until a connection is open, including the TLS handshake.
    pub(crate) connect_timeout: Duration,
    /// For workers that use TLS.
    pub(crate) trust: Trust,
}

impl Dialling {
    pub(super) fn peer(&self, address: SocketAddr, server_name: Option<&str>) -> HttpPeer {
        let tls = server_name.map(|name| (&self.trust, name));
        peer(address, self.connect_timeout, tls)
    }
}

/// Whether an exchange may take a connection that has served another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// From the pool when there is one.
    Pooled,
    /// A new one.
    Never,
}

/// The pool's key of a connection: connections of one client with the same key are interchangeable.
pub(super) fn reuse_key(address: SocketAddr, server_name: Option<&str>) -> u64 {
    // All else that distinguishes Pingora's peers (timeouts, trust) is the same for all workers of a client.
    let mut hasher = DefaultHasher::new();
    (address, server_name).hash(&mut hasher);
    hasher.finish()
}

/// The receiver of a request: its connection, and the header values that only this worker gets.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Where it is dialled.
    pub(crate) addresses: &'a Addresses,
    /// The name that the worker's certificate must have; `None` for a worker without TLS.
    pub(crate) server_name: Option<&'a str>,
    /// The value of `Host`.
    pub(crate) host: &'a HeaderValue,
    /// Replaces the `Authorization` of the request head when present.
    pub(crate) authorization: Option<&'a HeaderValue>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use pingora::upstreams::peer::Peer;

    use super::*;

    #[test]
    fn a_certificate_must_have_the_server_name_wherever_the_worker_is() {
        let dialling = Dialling {
            connect_timeout: Duration::from_secs(1),
            trust: Trust::new(&[], None),
        };
        let address = ([10, 0, 0, 1], 1).into();
        let peer = dialling.peer(address, Some("decode"));
        assert!(peer.is_tls());
        assert_eq!(peer.sni(), "decode");
        assert!(!dialling.peer(address, None).is_tls());
    }

    #[test]
    fn a_connection_is_reused_for_the_same_address_and_server_name_only() {
        let key = |port, name| reuse_key(([10, 0, 0, 1], port).into(), name);
        let keys = [
            key(1, None),
            key(2, None),
            key(1, Some("a")),
            key(1, Some("b")),
        ];
        let distinct: HashSet<_> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(key(1, Some("a")), key(1, Some("a")));
    }

    #[test]
    fn an_idle_connection_is_closed_before_uvicorn_closes_it() {
        let peer = peer(([127, 0, 0, 1], 1).into(), Duration::from_secs(1), None);
        assert!(
            peer.options
                .idle_timeout
                .is_some_and(|idle| idle < Duration::from_secs(5))
        );
    }
}
