//! TLS to the workers: which certificates are trusted, and the client certificate that is presented.
//!
//! The name in the certificate must be the host of the worker's URL, a name or an address, always: there is no way
//! to switch that off for a worker. Reads no file but Pingora's own roots, to check them before Pingora loads them.
//!
//! Source: pingora-core 0.9.1, `connectors/tls/rustls/mod.rs`, `upstreams/peer.rs` (`reuse_hash`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use pingora::{Error, ErrorType, Result};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::OnceCell;

/// A file without certificates. Pingora gets it where the system's roots are not needed at the start: without a file it
/// would load them for each pool, even when no worker uses TLS.
const NO_ROOTS: &str = "/dev/null";

/// The TLS settings that all workers share.
pub(crate) struct Trust {
    /// `None` for the roots of the pool.
    roots: Option<Arc<CaType>>,
    identity: Option<Arc<CertKey>>,
    /// Whether certificates are verified.
    verified: bool,
    /// A hash of the first two fields. Pingora's key of a connection leaves the roots out; with this in it, peers
    /// that differ only in their roots do not share a connection.
    group: u64,
}

impl Trust {
    /// Trusts `roots`, or the roots of the pool when there are none, and presents `identity` (a certificate chain
    /// and its key) to a worker that asks for a client certificate.
    pub(crate) fn new(
        roots: &[CertificateDer<'static>],
        identity: Option<(&[CertificateDer<'static>], &PrivateKeyDer<'static>)>,
    ) -> Self {
        let mut group = DefaultHasher::new();
        roots.hash(&mut group);
        let identity = identity.map(|(chain, key)| {
            chain.hash(&mut group);
            let chain = chain.iter().map(|certificate| certificate.to_vec());
            Arc::new(CertKey::new(chain.collect(), key.secret_der().to_vec()))
        });
        let wrapped = |root: &CertificateDer<'_>| WrappedX509::new(root.to_vec(), parse_x509);
        Self {
            roots: (!roots.is_empty()).then(|| roots.iter().map(wrapped).collect()),
            identity,
            verified: true,
            group: group.finish(),
        }
    }

    /// Takes every certificate: for the listener of this machine, which shows `own` or, by now, a newer one. Nothing secret
    /// may be sent there.
    #[cfg(feature = "cli")]
    pub(crate) fn of_this_machine(own: &[CertificateDer<'static>]) -> Self {
        Self {
            verified: false,
            // Pingora needs some roots, also where it looks at none.
            ..Self::new(own, None)
        }
    }

    pub(super) fn apply(&self, peer: &mut HttpPeer) {
        peer.options.ca = self.roots.clone();
        peer.client_cert_key = self.identity.clone();
        peer.group_key = self.group;
        peer.options.verify_cert = self.verified;
    }
}

/// The file of root certificates for Pingora's pools; `None` for the system's roots. `ca_file` is the user's file,
/// `needed` is whether any worker's certificate is verified with the pool's roots.
///
/// # Errors
/// A text for the user: the roots cannot be loaded, or some are needed and there are none.
pub(crate) fn pool_roots(ca_file: Option<String>, needed: bool) -> Result<Option<String>, String> {
    let mut roots = RootCertStore::empty();
    let ca_file = ca_file.or_else(|| (!needed).then(|| NO_ROOTS.to_owned()));
    // Pingora reads the file as well, and panics where it cannot.
    match &ca_file {
        Some(file) => pingora::tls::load_ca_file_into_store(file, &mut roots)
            .map_err(|error| format!("cannot use {file}: {error}"))?,
        None => pingora::tls::load_platform_certs_incl_env_into_store(&mut roots)
            .map_err(|error| error.to_string())?,
    }
    if needed && roots.is_empty() {
        return Err("none were found".to_owned());
    }
    Ok(ca_file)
}

/// Connections to workers whose certificates are verified with the system's roots, in a process that had no such worker when
/// it started. The roots are loaded for the first connection, and until that succeeds for each.
pub(super) struct SystemRoots {
    options: ConnectorOptions,
    transport: OnceCell<TransportConnector>,
}

impl SystemRoots {
    /// `None` where the pool has its roots since the start.
    pub(super) fn of(options: &ConnectorOptions) -> Option<Self> {
        (options.ca_file.as_deref() == Some(NO_ROOTS)).then(|| Self {
            options: ConnectorOptions {
                ca_file: None,
                ..options.clone()
            },
            transport: OnceCell::new(),
        })
    }

    /// What opens the connections.
    ///
    /// # Errors
    /// Pingora's `InvalidCert`: there are no roots. The text is for the user.
    pub(super) async fn transport(&self) -> Result<&TransportConnector> {
        let load = || async {
            let options = self.options.clone();
            // Reads files.
            let loaded = tokio::task::spawn_blocking(move || {
                // Checked first: Pingora panics without them.
                pool_roots(None, true)?;
                Ok::<_, String>(TransportConnector::new(Some(options)))
            });
            let why = match loaded.await {
                Ok(Ok(transport)) => return Ok(transport),
                Ok(Err(why)) => why,
                Err(error) => error.to_string(),
            };
            let advice =
                "install the system's (ca-certificates), or start again with ca_cert_paths";
            Error::e_explain(
                ErrorType::InvalidCert,
                format!("no root certificates for https:// workers: {why}; {advice}"),
            )
        };
        self.transport.get_or_try_init(load).await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use pingora::upstreams::peer::Peer;

    use super::super::peer::peer;
    use super::*;

    /// A certificate and its key.
    fn identity() -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        (vec![made.cert.der().clone()], key)
    }

    #[test]
    fn peers_that_differ_in_trust_certificate_or_name_share_no_connection() {
        let ((one, one_key), (two, two_key)) = (identity(), identity());
        let trusts = [
            Trust::new(&[], None),
            Trust::new(&one, None),
            Trust::new(&two, None),
            Trust::new(&one, Some((&one, &one_key))),
            Trust::new(&one, Some((&two, &two_key))),
        ];
        let address = ([127, 0, 0, 1], 1).into();
        let key = |tls| peer(address, Duration::from_secs(1), tls).reuse_hash();
        let mut keys: HashSet<_> = trusts.iter().map(|trust| key(Some((trust, "a")))).collect();
        keys.insert(key(Some((&trusts[0], "b"))));
        keys.insert(key(None));
        assert_eq!(keys.len(), trusts.len() + 2);
        let again = Trust::new(&one, Some((&one, &one_key)));
        assert!(keys.contains(&key(Some((&again, "a")))));
    }

    #[test]
    fn the_systems_roots_are_read_only_where_workers_are_verified_with_them() {
        assert_eq!(pool_roots(None, false).unwrap().unwrap(), NO_ROOTS);
        let missing = pool_roots(Some("none.pem".into()), false).unwrap_err();
        assert!(missing.starts_with("cannot use none.pem: "), "{missing}");
        assert!(pool_roots(Some(NO_ROOTS.into()), true).is_err());
    }
}
