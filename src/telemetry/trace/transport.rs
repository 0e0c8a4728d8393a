//! One request to the collector. The SDK writes the message; here it goes out as OTLP over HTTP, or, with five more bytes in front of
//! it, over gRPC.
//!
//! Runs in the thread of the queue, on a connection and a runtime of its own for each batch: batches are seconds apart, and nothing of
//! the proxy's runtime is used, which may be full, or ending.
//!
//! Source: opentelemetry-proto, `docs/specification.md`; gRPC, `doc/PROTOCOL-HTTP2.md`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, HeaderMap, TE};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_http::{HttpClient, HttpError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::variables::Variables;

/// The longest response that is read, in bytes. A collector says that it has the spans, or why not.
const RESPONSE_LIMIT: usize = 64 << 10;

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Transport {
    is_grpc: bool,
    /// For one export, from the first packet to the end of the response.
    timeout: Duration,
    /// `Some` for an `https://` endpoint.
    tls: Option<Arc<ClientConfig>>,
}

impl Transport {
    /// The way to the endpoint of these variables.
    ///
    /// # Errors
    /// Its certificates cannot be used; the reason.
    pub(super) fn new(variables: &Variables) -> Result<Self, String> {
        let is_grpc = variables.endpoint.is_grpc;
        let tls = variables.endpoint.uri.starts_with("https://");
        Ok(Self {
            is_grpc,
            timeout: variables.timeout,
            tls: tls
                .then(|| client_config(variables.roots.as_deref(), is_grpc))
                .transpose()?,
        })
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let uri = request.uri();
        let host = uri.host().ok_or("an endpoint without a host")?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16();
        let port = port.unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => self.send(stream, request).await,
            Some(config) => {
                let name = ServerName::try_from(host.to_owned())?;
                let connector = TlsConnector::from(config.clone());
                self.send(connector.connect(name, stream).await?, request)
                    .await
            }
        }
    }

    async fn send<S>(
        &self,
        stream: S,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, HttpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let stream = TokioIo::new(stream);
        if !self.is_grpc {
            let (mut sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            let response = sender.send_request(over_http(request)?).await?;
            return Ok(read(response).await?.0);
        }
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let response = sender.send_request(over_grpc(request)).await?;
        let (response, trailers) = read(response).await?;
        // In the head of a response without a message.
        let field = |name| trailers.get(name).or_else(|| response.headers().get(name));
        match field("grpc-status") {
            Some(status) if status == "0" => Ok(response),
            status => {
                let message = field("grpc-message");
                Err(format!("grpc-status {status:?} {message:?}").into())
            }
        }
    }
}

#[async_trait]
impl HttpClient for Transport {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let exchange = async { tokio::time::timeout(self.timeout, self.exchange(request)).await };
        let sent = runtime.block_on(exchange);
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        sent.map_err(|_| format!("no response within {:?}", self.timeout))?
    }
}

fn over_http(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, HttpError> {
    let (mut head, body) = request.into_parts();
    let authority = head
        .uri
        .authority()
        .map_or("", |authority| authority.as_str());
    head.headers.insert(HOST, HeaderValue::from_str(authority)?);
    let path = head.uri.path_and_query().cloned();
    head.uri = path.map_or_else(Uri::default, Uri::from);
    Ok(Request::from_parts(head, Full::new(body)))
}

/// The message, behind its length.
fn over_grpc(request: Request<Bytes>) -> Request<Full<Bytes>> {
    let (mut head, message) = request.into_parts();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0); // not compressed
    body.put_u32(message.len() as u32);
    body.put(message);
    head.headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    head.headers
        .insert(TE, HeaderValue::from_static("trailers"));
    Request::from_parts(head, Full::new(body.freeze()))
}

/// The whole response, and its trailers.
async fn read(response: Response<Incoming>) -> Result<(Response<Bytes>, HeaderMap), HttpError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, RESPONSE_LIMIT).collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((Response::from_parts(head, body.to_bytes()), trailers))
}

fn client_config(roots: Option<&str>, is_grpc: bool) -> Result<Arc<ClientConfig>, String> {
    let mut store = RootCertStore::empty();
    let found = match roots {
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|why| format!("OTEL_EXPORTER_OTLP_CERTIFICATE {path}: {why}"))?,
        None => rustls_native_certs::load_native_certs().map_err(|why| why.to_string())?,
    };
    store.add_parsable_certificates(found);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|why| why.to_string())?;
    let mut config = config.with_root_certificates(store).with_no_client_auth();
    let protocol: &[u8] = if is_grpc { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
