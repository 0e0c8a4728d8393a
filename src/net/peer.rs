//! How a worker is connected to ([`peer`]), and what of a request head belongs to one worker ([`Target`]).

use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderValue;
use pingora_core::upstreams::peer::HttpPeer;

use super::tls::Trust;

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
pub(crate) fn peer(
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

/// The receiver of a request: its connection, and the header values that only this worker gets.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// `None` while the worker's name has not been resolved.
    pub(crate) peer: Option<&'a HttpPeer>,
    /// The value of `Host`.
    pub(crate) host: &'a HeaderValue,
    /// Replaces the `Authorization` of the request head when present.
    pub(crate) authorization: Option<&'a HeaderValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

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
