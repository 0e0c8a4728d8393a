//! TLS of the listeners and of connections to workers, from the certificates of the configuration.

use std::sync::Arc;

use pingora::listeners::tls::Acceptor;
use pingora::server::configuration::ServerConf;
use rustls::ServerConfig;

use super::StartError;
use crate::config::{Config, Identity};
use crate::net::{Trust, pool_roots};

/// The listeners' side of the handshake: the identity, HTTP/2 if `http2` and HTTP/1.1, no client certificates.
pub(super) fn acceptor(identity: &Identity, http2: bool) -> Result<Arc<Acceptor>, StartError> {
    let failed = |error: rustls::Error| StartError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_no_client_auth()
        .with_single_cert(identity.chain().to_vec(), identity.key().clone_key())
        .map_err(failed)?;
    let protocols: &[&[u8]] = match http2 {
        true => &[b"h2", b"http/1.1"],
        false => &[b"http/1.1"],
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(Acceptor::from_server_config(Arc::new(config))))
}

/// The trust of connections to workers. Also sets the roots that Pingora's pools load.
pub(super) fn trust(config: &Config, conf: &mut ServerConf) -> Result<Trust, StartError> {
    let by_pool = needs_pool_roots(config);
    conf.ca_file = pool_roots(conf.ca_file.take(), by_pool).map_err(StartError::Roots)?;
    let client = config.tls.client.as_ref();
    let identity = client.map(|identity| (identity.chain(), identity.key()));
    Ok(Trust::new(&config.tls.roots, identity))
}

/// Whether the certificate of a worker is verified with the system's roots, so that a start without them fails. They are
/// loaded later for a worker that comes later.
fn needs_pool_roots(config: &Config) -> bool {
    let mut workers = config.prefill.iter().chain(&config.decode);
    let is_tls = workers.any(|worker| worker.url.is_tls())
        || config.dns.iter().any(|name| name.url.is_tls());
    config.tls.roots.is_empty() && is_tls
}
