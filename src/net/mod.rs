//! One HTTP/1.1 exchange with one worker over Pingora's pooled connections.
//!
//! Knows no role, no policy and no protocol of SGLang: a request goes out, an answer comes in, the
//! connection goes back to the pool or is closed. Dropping a [`Reply`] before its end closes the
//! connection, which is how a leg is cancelled.

mod chunks;
mod http1;
mod pool;
mod pooled;
mod tls;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, ImmutStr};
use pingora_http::RequestHeader;

use crate::endpoint::{WholeResponse, connection_headers, is_hop_by_hop};

pub(crate) use chunks::Chunks;
pub(crate) use http1::Head;
use http1::Http1Connection;
use pool::Pool;
use pooled::PooledConnect;
pub(crate) use pooled::PooledHandle;

pub(crate) use tls::{Trust, pool_roots};

/// An idle connection is closed before the worker does: uvicorn closes after 5 s.
/// Source: SGLang 0.5.23 `environ.py`, `SGLANG_TIMEOUT_KEEP_ALIVE`.
pub(crate) const POOL_IDLE: Duration = Duration::from_secs(3);

/// Each attempt takes one more connection out of the pool that the worker may have closed meanwhile.
/// The pool watches its connections, so that more than one or two at once is already unusual.
pub(crate) const STALE_ATTEMPTS: usize = 8;

/// The longest head of an answer, in bytes. SGLang sends 200 bytes in 5.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// The most fields of one.
const MAX_HEAD_FIELDS: usize = 128;

/// Why an exchange gave no whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The worker refuses connections, its host cannot be reached, or the two do not agree on TLS. No byte of a
    /// request was sent.
    Unreachable(String),
    /// This process, or this machine, has no socket left for a connection. The worker knows nothing of it.
    NoSocket(String),
    /// The connection was not established in time.
    ConnectTimeout,
    /// The connection ended before the answer did.
    Lost(String),
    /// What the worker sent is not HTTP.
    NotHttp(String),
    /// The answer is longer than the caller takes, in bytes.
    TooLong(usize),
    /// The answer has a status that answers nothing here.
    Unusable(StatusCode),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreachable(why) => write!(f, "cannot be reached ({why})"),
            Failure::NoSocket(why) => write!(f, "could not be asked, for want of a socket ({why})"),
            Failure::ConnectTimeout => f.write_str("did not accept a connection in time"),
            Failure::Lost(why) => {
                write!(f, "closed the connection before its answer ended ({why})")
            }
            Failure::NotHttp(why) => write!(f, "sent an answer that is not HTTP ({why})"),
            Failure::TooLong(limit) => write!(f, "sent more than {limit} bytes"),
            Failure::Unusable(status) => write!(f, "answered {status}, which is no answer"),
        }
    }
}

impl std::error::Error for Failure {}

impl Failure {
    /// What a Pingora error on the way to or from a worker means.
    pub(crate) fn from_pingora(error: &Error) -> Self {
        let why = reason(error);
        if is_out_of_sockets(error) {
            return Failure::NoSocket(why);
        }
        match error.etype() {
            ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Failure::ConnectTimeout,
            ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::InvalidCert
            | ErrorType::HandshakeError
            | ErrorType::BindError => Failure::Unreachable(why),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed => {
                Failure::Lost(why)
            }
            _ => Failure::NotHttp(safe_reason(error)),
        }
    }
}

/// Whether descriptors (of the process, of the machine) or ports are used up. Source: errno(3) of Linux: ENFILE,
/// EMFILE, EADDRNOTAVAIL; pingora-core 0.9.1 `connectors/l4.rs`, to which it is an internal error.
fn is_out_of_sockets(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    matches!(
        cause.and_then(std::io::Error::raw_os_error),
        Some(23 | 24 | 99)
    )
}

/// The system's word for it, or else Pingora's.
fn reason(error: &Error) -> String {
    match error.root_cause().downcast_ref::<std::io::Error>() {
        Some(cause) => cause.to_string(),
        None => match &error.context {
            // A chain of errors in one text: the first cause says it.
            Some(context) => {
                let text = context.as_str();
                let cause = text.rsplit_once(" cause: ");
                cause.map_or(text, |(_, cause)| cause).to_owned()
            }
            None => error.etype().as_str().to_owned(),
        },
    }
}

/// What is wrong with the form of an answer. Not a byte of it: Pingora's words may repeat what the worker sent, and
/// this goes to the log and to the client. What it puts together is owned, what it knows by heart is not.
fn safe_reason(error: &Error) -> String {
    let cause = error.root_cause();
    if let Some(cause) = cause.downcast_ref::<httparse::Error>() {
        return cause.to_string();
    }
    if let Some(cause) = cause.downcast_ref::<std::io::Error>() {
        return cause.to_string();
    }
    match &error.context {
        Some(ImmutStr::Static(words)) => (*words).to_owned(),
        Some(ImmutStr::Owned(_)) | None => error.etype().as_str().to_owned(),
    }
}

/// What is wrong with an answer whose head is this; `None` when it may be read on.
///
/// A redirect is never followed, and not passed on either: a worker could send whoever follows it anywhere, with
/// the key that goes along. Nobody asks a worker for another protocol.
pub(crate) fn reject_head(status: StatusCode, headers: &HeaderMap) -> Option<Failure> {
    if status.is_redirection() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Some(Failure::Unusable(status));
    }
    let bytes: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    (bytes > MAX_HEAD_BYTES || headers.len() > MAX_HEAD_FIELDS).then(|| {
        Failure::NotHttp(format!(
            "a head of more than {MAX_HEAD_BYTES} bytes or {MAX_HEAD_FIELDS} fields"
        ))
    })
}

/// A peer for Pingora: one address that speaks HTTP/1.1, over TLS with this name if there is one. How long a
/// connected worker may take is its caller's to say; the handshake is a part of connecting.
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

/// How workers are connected to, wherever they are.
pub(crate) struct Dialling {
    /// The longest time until a connection is open, with the TLS handshake.
    pub(crate) connect_timeout: Duration,
    /// For workers that speak TLS.
    pub(crate) trust: Trust,
}

impl Dialling {
    fn peer(&self, address: SocketAddr, server_name: Option<&str>) -> HttpPeer {
        let tls = server_name.map(|name| (&self.trust, name));
        peer(address, self.connect_timeout, tls)
    }
}

/// Connections with the same key can stand in for one another: a client has one [`Dialling`] for all.
fn reuse_key(address: SocketAddr, server_name: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (address, server_name).hash(&mut hasher);
    hasher.finish()
}

/// Where a request goes, and what of its head is this worker's own.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    /// Where the worker is dialled; `None` until its name has been looked up.
    pub(crate) address: Option<SocketAddr>,
    /// The name that the worker's certificate must have; `None` for a worker without TLS.
    pub(crate) server_name: Option<&'a str>,
    /// The value of `Host`.
    pub(crate) host: &'a HeaderValue,
    /// What takes the place of the `Authorization` of the head, if it is there.
    pub(crate) authorization: Option<&'a HeaderValue>,
}

/// The client side: a pool of connections to any number of workers.
pub(crate) struct Client {
    pool: Arc<Pool>,
    dialling: Dialling,
}

impl Client {
    /// A client whose pool has the size that the server configuration says.
    pub(crate) fn new(conf: &ServerConf, dialling: Dialling) -> Self {
        Self {
            pool: Arc::new(Pool::new(conf)),
            dialling,
        }
    }

    /// The peer for an exchange that Pingora makes. Where the worker takes plain connections it is one of this
    /// client's, else one of Pingora's own pool.
    pub(crate) fn lend(
        &self,
        address: SocketAddr,
        server_name: Option<&str>,
        chunks: Chunks,
    ) -> (HttpPeer, PooledHandle) {
        let mut peer = self.dialling.peer(address, server_name);
        let handle = PooledHandle::default();
        if server_name.is_none() {
            let options = &mut peer.options;
            options.total_connection_timeout = None;
            options.connection_timeout = None;
            options.custom_l4 = Some(Arc::new(PooledConnect {
                pool: self.pool.clone(),
                handle: handle.clone(),
                chunks,
                key: reuse_key(address, server_name),
                patience: self.dialling.connect_timeout,
            }));
        }
        (peer, handle)
    }

    /// Sends a request and waits for the head of the answer. `Host` and `Content-Length` are added here.
    ///
    /// A connection that the worker closed while it lay in the pool is replaced, as long as no byte of an
    /// answer has come: such a worker has not begun with the request.
    ///
    /// # Errors
    /// [`Failure`]: no connection, or no head of an answer that can be used. Without an address there is none.
    pub(crate) async fn send(
        &self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &Bytes,
    ) -> Result<Reply, Failure> {
        let nowhere = || Failure::Unreachable("its name has no address".into());
        let address = to.address.ok_or_else(nowhere)?;
        let key = reuse_key(address, to.server_name);
        let mut attempt = 1;
        loop {
            let kept = self.pool.kept(key);
            let stale = kept.is_some();
            let stream = match kept {
                Some(stream) => Ok(stream),
                // Boxed, because the peer is large and this is rare: every exchange would carry it.
                None => Box::pin(self.dial(address, to.server_name)).await,
            };
            let mut wire =
                Http1Connection::new(stream.map_err(|error| Failure::from_pingora(&error))?);
            match exchange_heads(&mut wire, to, head, body).await {
                Ok(head) => {
                    let reply = Reply {
                        pool: self.pool.clone(),
                        key,
                        head,
                        wire: Some(wire),
                    };
                    let head = reply.head();
                    return reject_head(head.status, &head.headers).map_or(Ok(reply), Err);
                }
                Err(Failure::Lost(_)) if stale && attempt < STALE_ATTEMPTS => attempt += 1,
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn dial(
        &self,
        address: SocketAddr,
        server_name: Option<&str>,
    ) -> pingora_core::Result<Stream> {
        let peer = self.dialling.peer(address, server_name);
        self.pool.dial(&peer).await
    }

    /// Sends a request and reads the whole answer, at most `limit` bytes of body.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn fetch(
        &self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &Bytes,
        limit: usize,
    ) -> Result<WholeResponse, Failure> {
        let mut reply = self.send(to, head, body).await?;
        let head = reply.head();
        let status = head.status;
        let listed = connection_headers(&head.headers);
        let headers = head
            .headers
            .iter()
            .filter(|(name, _)| !is_hop_by_hop(name, &listed))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let body = reply.collect(limit).await?;
        Ok(WholeResponse {
            status,
            headers,
            body,
        })
    }
}

/// An answer whose head has come and whose body can be read.
pub(crate) struct Reply {
    pool: Arc<Pool>,
    key: u64,
    head: Head,
    /// `None` once the body has ended and the connection went back to the pool.
    wire: Option<Http1Connection>,
}

impl Reply {
    /// The head of the answer.
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The next piece of the body as it arrives; `None` at its end, when the connection has gone back.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(wire) = self.wire.as_mut() else {
            return Ok(None);
        };
        let chunk = wire.body().await;
        let chunk = chunk.map_err(|error| Failure::from_pingora(&error))?;
        if chunk.is_none()
            && let Some(stream) = self.wire.take().and_then(Http1Connection::into_kept)
        {
            self.pool.keep(self.key, stream);
        }
        Ok(chunk)
    }

    /// The rest of the body, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn collect(&mut self, limit: usize) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        let mut only = None;
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > limit {
                return Err(Failure::TooLong(limit));
            }
            match only.take() {
                None if whole.is_empty() => only = Some(chunk),
                None => whole.extend_from_slice(&chunk),
                Some(first) => {
                    whole.extend_from_slice(&first);
                    whole.extend_from_slice(&chunk);
                }
            }
        }
        Ok(only.unwrap_or_else(|| whole.freeze()))
    }
}

async fn exchange_heads(
    wire: &mut Http1Connection,
    to: Target<'_>,
    head: &RequestHeader,
    body: &Bytes,
) -> Result<Head, Failure> {
    let written = wire.send(to, head, body).await;
    // A worker that refuses early answers and closes before it has read everything: the answer counts, not the
    // write that failed.
    let answered = wire.head(&head.method).await;
    match (written, answered) {
        (_, Ok(head)) => Ok(head),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(Failure::from_pingora(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pingora_core::upstreams::peer::Peer;

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
        let distinct: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(key(1, Some("a")), key(1, Some("a")));
    }

    #[test]
    fn what_is_wrong_with_an_answer_is_said_without_its_bytes() {
        let header = ErrorType::InvalidHTTPHeader;
        let parser = Error::because(
            header.clone(),
            "buf: sk-1".to_owned(),
            httparse::Error::HeaderName,
        );
        let chunk = Error::explain(
            ErrorType::InvalidHTTPHeader,
            format!("Invalid chunk: {}", "sk-1"),
        );
        let ours = Error::explain(header, "two Content-Lengths");
        for (error, why) in [
            (parser, "invalid header name"),
            (chunk, "InvalidHTTPHeader"),
            (ours, "two Content-Lengths"),
        ] {
            assert_eq!(
                Failure::from_pingora(&error),
                Failure::NotHttp(why.to_owned())
            );
        }
    }

    #[test]
    fn a_want_of_descriptors_is_not_the_workers_fault() {
        let cause = std::io::Error::from_raw_os_error(24);
        let error = Error::because(ErrorType::InternalError, "dialling", cause);
        assert!(matches!(
            Failure::from_pingora(&error),
            Failure::NoSocket(_)
        ));
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
