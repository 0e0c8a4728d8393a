//! Certificates that are made for one test, a terminator that puts TLS in front of a plain worker, and a TLS
//! client.
//!
//! It shares rustls with the proxy, but none of Pingora's code around it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A certificate authority, and the files that it has signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    place: TempDir,
    signed: AtomicUsize,
}

/// A certificate and its key, as files and as bytes.
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    key_der: PrivateKeyDer<'static>,
}

impl Signed {
    pub fn paths(&self) -> (&str, &str) {
        (
            self.certificate.to_str().unwrap(),
            self.key.to_str().unwrap(),
        )
    }
}

impl Authority {
    pub fn generate() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            place: TempDir::new().unwrap(),
            signed: AtomicUsize::new(0),
        }
    }

    /// The file with the authority's own certificate.
    pub fn path(&self) -> String {
        let path = self.place.path().join("authority.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        path.display().to_string()
    }

    /// Signs a certificate for these names or addresses.
    pub fn sign(&self, names: &[&str]) -> Signed {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let number = self.signed.fetch_add(1, Ordering::Relaxed);
        let file = |end: &str, text: String| {
            let path = self.place.path().join(format!("{number}.{end}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Signed {
            certificate: file("crt", certificate.pem()),
            key: file("key", key.serialize_pem()),
            chain: vec![certificate.der().clone()],
            key_der: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots.into()
    }

    /// A server configuration, which demands client certificates of `clients` if that is given.
    pub fn server(signed: &Signed, clients: Option<&Authority>) -> ServerConfig {
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match clients {
            None => config.with_no_client_auth(),
            Some(clients) => config.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(clients.roots(), provider())
                    .build()
                    .unwrap(),
            ),
        };
        config
            .with_single_cert(signed.chain.clone(), signed.key_der.clone_key())
            .unwrap()
    }

    /// A connection to the balancer by the name `localhost`, which offers these protocols by ALPN.
    pub async fn connect(
        &self,
        address: SocketAddr,
        alpn: &[&str],
    ) -> std::io::Result<client::TlsStream<TcpStream>> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(address).await?;
        TlsConnector::from(Arc::new(config))
            .connect(name, socket)
            .await
    }
}

/// TLS in front of a plain worker.
pub struct Terminator {
    pub url: String,
    handshakes: Arc<AtomicUsize>,
}

impl Terminator {
    /// Listens on `host`, which is also in the URL.
    pub async fn before(worker: SocketAddr, host: &str, config: ServerConfig) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let handshakes = Arc::new(AtomicUsize::new(0));
        let count = handshakes.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, count) = (acceptor.clone(), count.clone());
                tokio::spawn(async move {
                    // The other side reports a failed handshake.
                    let Ok(mut outside) = acceptor.accept(socket).await else {
                        return;
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut inside = TcpStream::connect(worker).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self {
            url: format!("https://{host}:{port}"),
            handshakes,
        }
    }

    /// How many handshakes have succeeded.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::SeqCst)
    }
}
