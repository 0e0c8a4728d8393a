//! Certificates and private keys, from PEM files.
//!
//! A file that rustls or Pingora does not take is refused here, with its name. Nothing is sent and no certificate is
//! judged: whether it is trusted, or out of date, is the other side's to say.
//!
//! Source: pingora-core 0.9.1, `utils/tls/rustls.rs` (certificates are read with x509-parser),
//! `connectors/tls/rustls/mod.rs` (the roots).

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Fault;
use super::text::read_bytes;

/// The certificates of both sides of the balancer.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Tls {
    /// The identity of the listeners; `None` is plain HTTP.
    pub listener: Option<Identity>,
    /// The identity for workers that ask for a client certificate.
    pub client: Option<Identity>,
    /// The authorities that sign the certificates of workers. Empty is the system's.
    pub roots: Vec<CertificateDer<'static>>,
}

/// A certificate chain and the private key of its first certificate, which match.
#[derive(Clone)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
}

impl Identity {
    /// The certificates in DER, the holder's first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key of the first certificate.
    pub fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.secret_der() == other.key.secret_der()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

/// The file of an identity that a problem is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    Certificate,
    Key,
}

/// Reads a certificate with its chain, and its key.
pub(super) fn read_identity(certificate: &Path, key: &Path) -> Result<Identity, (Half, Fault)> {
    let chain = read_certificates(certificate).map_err(|fault| (Half::Certificate, fault))?;
    let of_key = |fault| (Half::Key, fault);
    let bytes = read_bytes(key).map_err(of_key)?;
    let key_der = PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        let why = "no private key in PEM (keys with a passphrase are not supported)";
        of_key(bad(key, why))
    })?;
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain.clone(), key_der.clone_key(), &provider).map_err(|error| {
        let why = match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("the key does not match {}", certificate.display())
            }
            error => error.to_string(),
        };
        of_key(bad(key, &why))
    })?;
    Ok(Identity {
        chain,
        key: Arc::new(key_der),
    })
}

/// Reads the certificates of authorities, at least one.
pub(crate) fn read_roots(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let roots = read_certificates(path)?;
    for root in &roots {
        RootCertStore::empty()
            .add(root.clone())
            .map_err(|error| bad(path, &error.to_string()))?;
    }
    Ok(roots)
}

/// Reads the certificates in a PEM file, at least one.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let bytes = read_bytes(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(path, &format!("not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(bad(path, "no certificate in PEM"));
    }
    match certificates
        .iter()
        .position(|certificate| X509Certificate::from_der(certificate).is_err())
    {
        None => Ok(certificates),
        Some(index) => {
            let why = format!("certificate {} is not X.509", index + 1);
            Err(bad(path, &why))
        }
    }
}

fn bad(path: &Path, why: &str) -> Fault {
    Fault::Tls {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}
