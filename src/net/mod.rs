//! HTTP to the workers: connections, their pool, and the exchanges that this crate makes itself.
//!
//! Knows no role, no policy and nothing of SGLang's protocol. Dropping a [`Reply`] before the end of its body closes
//! the connection, which is how a leg is cancelled.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | [`Client`], which sends a request, and [`Reply`], which reads the response |
//! | `peer.rs`, `tls.rs` | how a worker is connected to, and which certificates are trusted |
//! | `dial.rs` | which of its addresses is connected to |
//! | `pool.rs` | the idle connections |
//! | `pooled.rs`, `chunks.rs` | a pooled connection for the exchanges that Pingora makes (decode), and its chunks |
//! | `lent.rs`, `forward.rs` | the same connection while a relay forwards its stream, and the chunks of that |
//! | `http1.rs` | a connection for all other exchanges |
//! | `http2.rs` | the same stream of bytes for workers of HTTP/2 |
//! | `response_head.rs`, `framing.rs` | which responses are accepted, and where their bodies end |
//! | `trailers.rs` | which fields behind a body are passed on |
//! | `coding.rs` | bodies that are compressed |
//! | `failure.rs` | why an exchange failed |

mod chunks;
mod coding;
mod dial;
mod failure;
mod forward;
mod framing;
mod http1;
mod http2;
mod lent;
mod peer;
mod pool;
mod pooled;
mod response_head;
mod tls;
mod trailers;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method};
use pingora::http::RequestHeader;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use tokio::net::lookup_host;

use crate::addresses::Addresses;
use crate::endpoint::{WholeResponse, end_to_end};
use dial::dial;
use http1::Http1Connection;
use peer::reuse_key;
use pool::Pool;
use pooled::PooledConnect;

pub(crate) use chunks::Chunks;
pub(crate) use coding::{Coding, CodingError, Decoder};
pub(crate) use failure::Failure;
#[cfg(test)]
pub(crate) use lent::offered;
pub(crate) use lent::{LentStream, Next};
pub(crate) use peer::{Dialling, Reuse, Target};
pub(crate) use pooled::{LostConnection, PooledHandle};
pub(crate) use response_head::{Head, reject as reject_head};
pub(crate) use tls::{Trust, pool_roots};

/// How often a request without legs may be sent, counting repetitions because the worker had closed the pooled
/// connection.
///
/// Each repetition takes one more connection out of the pool. The pool checks a connection before it hands it out,
/// so more than one or two repetitions are unusual already.
const STALE_ATTEMPTS: usize = 8;

/// Sends requests to any number of workers over one pool of connections.
pub(crate) struct Client {
    pool: Arc<Pool>,
    dialling: Arc<Dialling>,
}

impl Client {
    /// A client with an empty pool of the size in `conf`.
    pub(crate) fn new(conf: &ServerConf, dialling: Dialling) -> Self {
        Self {
            pool: Arc::new(Pool::new(conf)),
            dialling: Arc::new(dialling),
        }
    }

    /// How many connections to these addresses are idle.
    pub(crate) fn idle_connections(
        &self,
        addresses: &Addresses,
        server_name: Option<&str>,
    ) -> usize {
        let all = addresses.all();
        let keys = all.iter().map(|address| reuse_key(*address, server_name));
        keys.map(|key| self.pool.idle(key)).sum()
    }

    /// The peer for an exchange that Pingora makes over a connection of this client's pool, and the handle of that
    /// connection. `None` where there is no address.
    pub(crate) fn pooled_peer(
        &self,
        addresses: &Arc<Addresses>,
        server_name: Option<&str>,
        chunks: Chunks,
        reuse: Reuse,
    ) -> Option<(HttpPeer, PooledHandle)> {
        // Without TLS, which the connection has already where the worker uses it.
        let mut peer = self.dialling.peer(addresses.first()?, None);
        let handle = PooledHandle::default();
        let connect = PooledConnect {
            pool: self.pool.clone(),
            handle: handle.clone(),
            chunks,
            reuse,
            addresses: addresses.clone(),
            dialling: self.dialling.clone(),
            server_name: server_name.map(Box::from),
        };
        connect.attach(&mut peer);
        Some((peer, handle))
    }

    /// Sends a request and waits for the head of the response. `Host` and `Content-Length` are added here. The request is
    /// sent again where a worker had closed a pooled connection, so that it may reach the worker more than once.
    ///
    /// # Errors
    /// [`Failure`]: no connection, or no response head that can be used. A target without an address is unreachable.
    pub(crate) async fn send(
        &self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &Bytes,
    ) -> Result<Reply, Failure> {
        for _ in 1..STALE_ATTEMPTS {
            match self.send_once(to, head, body, Reuse::Pooled).await {
                Err(Failure::Stale(_)) => {}
                sent => return sent,
            }
        }
        self.send_once(to, head, body, Reuse::Never).await
    }

    /// As [`Self::send`], for a request that must not reach the worker twice.
    ///
    /// # Errors
    /// [`Failure`], also [`Failure::Stale`].
    pub(crate) async fn send_once(
        &self,
        to: Target<'_>,
        head: &RequestHeader,
        body: &Bytes,
        reuse: Reuse,
    ) -> Result<Reply, Failure> {
        let unresolved = || Failure::Unreachable("its name has no address".into());
        let address = to.addresses.first().ok_or_else(unresolved)?;
        let mut key = reuse_key(address, to.server_name);
        let mut pooled = match reuse {
            Reuse::Pooled => self.pool.take(key),
            Reuse::Never => None,
        };
        loop {
            let reused = pooled.is_some();
            let stream = match pooled.take() {
                Some(stream) => stream,
                None => {
                    let dialled = dial(&self.pool, &self.dialling, to.addresses, to.server_name);
                    // Boxed because it is large and rarely needed: inline, every exchange would carry its size.
                    let dialled = Box::pin(dialled).await;
                    let (address, stream) =
                        dialled.map_err(|error| Failure::from_pingora(&error))?;
                    key = reuse_key(address, to.server_name);
                    stream
                }
            };
            let mut connection = Http1Connection::new(stream);
            match exchange_heads(&mut connection, to, head, body).await {
                Ok(head) => {
                    let reply = Reply {
                        pool: self.pool.clone(),
                        key,
                        head,
                        connection: Some(connection),
                    };
                    let head = reply.head();
                    let rejected = reject_head(head.status, &head.headers, head.is_http_11);
                    return rejected.map_or(Ok(reply), Err);
                }
                // The worker had closed the connection: the next one is new.
                Err(Failure::Lost(_)) if reused && !connection.has_written() => {}
                Err(Failure::Lost(why)) if reused && !connection.has_received() => {
                    return Err(Failure::Stale(why));
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The response to a GET of this path by a server that is no worker, at `HOST:PORT`: no key and no TLS.
    ///
    /// # Errors
    /// [`Failure`]; a name that is not found is unreachable.
    pub(crate) async fn get_at(
        &self,
        server: &str,
        path: &str,
        limit: usize,
    ) -> Result<WholeResponse, Failure> {
        let unreachable = |error: &dyn std::fmt::Display| Failure::Unreachable(error.to_string());
        let head = RequestHeader::build_no_case(Method::GET, path.as_bytes(), None)
            .map_err(|error| unreachable(&error))?;
        let host = HeaderValue::try_from(server).map_err(|error| unreachable(&error))?;
        let found = lookup_host(server).await;
        let addresses = Arc::new(Addresses::new(None));
        addresses.set(found.map_err(|error| unreachable(&error))?.collect());
        let to = Target {
            addresses: &addresses,
            server_name: None,
            host: &host,
            authorization: None,
        };
        self.fetch(to, &head, &Bytes::new(), limit).await
    }

    /// Sends a request and reads the whole response, at most `limit` bytes of body.
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
        let headers = end_to_end(&head.headers);
        let body = reply.collect(limit).await?;
        Ok(WholeResponse {
            status,
            headers,
            body,
            error: None,
        })
    }
}

/// The body of a response as it was before it was compressed; at most `limit` bytes where it is.
///
/// # Errors
/// [`Failure::Encoded`], [`Failure::TooLong`].
pub(crate) fn readable(response: &WholeResponse, limit: usize) -> Result<Bytes, Failure> {
    Ok(match Coding::of(&response.headers)? {
        None => response.body.clone(),
        Some(coding) => coding.decode(&response.body, limit)?,
    })
}

/// A response whose head has arrived and whose body can be read.
pub(crate) struct Reply {
    pool: Arc<Pool>,
    key: u64,
    head: Head,
    /// `None` once the body has ended.
    connection: Option<Http1Connection>,
}

impl Reply {
    pub(crate) fn head(&self) -> &Head {
        &self.head
    }

    /// The next piece of the body as it arrives; `None` at its end, where the connection returns to the pool.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(connection) = self.connection.as_mut() else {
            return Ok(None);
        };
        let chunk = connection.body().await;
        let chunk = chunk.map_err(|error| Failure::from_pingora(&error))?;
        if chunk.is_none()
            && let Some(stream) = self
                .connection
                .take()
                .and_then(Http1Connection::into_reusable)
        {
            self.pool.put(self.key, stream);
        }
        Ok(chunk)
    }

    /// The rest of the body, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) async fn collect(&mut self, limit: usize) -> Result<Bytes, Failure> {
        let mut whole = BytesMut::new();
        // Most bodies are one chunk, which needs no copy.
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
    connection: &mut Http1Connection,
    to: Target<'_>,
    head: &RequestHeader,
    body: &Bytes,
) -> Result<Head, Failure> {
    let written = connection.send(to, head, body).await;
    // Read even when the write has failed: a worker may refuse a request and close before it has read all of it, and
    // then its response says more than the failed write.
    let received = connection.head(&head.method).await;
    match (written, received) {
        (_, Ok(head)) => Ok(head),
        (Err(error), Err(_)) | (Ok(()), Err(error)) => Err(Failure::from_pingora(&error)),
    }
}

#[cfg(test)]
mod tests;
