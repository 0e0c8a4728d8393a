//! HTTP/2 to workers that are configured for it: one connection for many exchanges.
//!
//! Everything above this file speaks HTTP/1.1 over a stream of bytes: the exchanges that this crate makes, those that Pingora
//! makes, and the relay of events between them. So a worker of HTTP/2 is such a stream too, whose other end is here: each
//! request that is written to it becomes a stream of the worker's connection, and the response is written back, chunk by
//! chunk. To drop it resets the stream, as it would close a connection. That costs two copies of each byte, which only
//! workers with `http2: true` pay.
//!
//! Source: h2 0.4.20 `client.rs`; RFC 9113. SGLang 0.5.23 serves HTTP/2 by Granian with `--enable-http2`.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use pingora::protocols::Stream;
use pingora::{ErrorType, OrErr, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::response_head::MAX_HEAD_BYTES;
use crate::endpoint::write_fields;

/// What waits between the two ends of a stream, in each direction, in bytes.
const PIPE: usize = 64 << 10;

/// What a worker may send of one response before it is read here, in bytes. The connection's window is that of all its
/// streams, so that a client that reads slowly holds back its own response alone.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1024 * STREAM_WINDOW;

/// How much small frames may cost that are not read here, as h2 reckons it: 256 bytes for each, less its data. Windows that
/// are full of events of 50 bytes cost four times their size. By h2's own measure, half of the connection's window, the clients of
/// a hundred such streams that do not read would end those of all others. Source: h2 0.4.20 `proto/streams/counts.rs`.
const SMALL_FRAMES: usize = 4 * CONNECTION_WINDOW as usize;

/// The most fields of a head that is written here.
const MAX_FIELDS: usize = 256;

/// How long a connection without an exchange is kept.
const IDLE: Duration = Duration::from_secs(60);

/// The open connections, by the key of their worker.
#[derive(Default)]
pub(super) struct Http2Connections(Mutex<HashMap<u64, Vec<Link>>>);

/// One connection. Its clones are counted: one is in the map, one drives it, and each stream over it has one.
#[derive(Clone)]
struct Link {
    requests: SendRequest<Bytes>,
    clones: Arc<()>,
}

impl Link {
    /// The streams over this connection.
    fn streams(&self) -> usize {
        Arc::strong_count(&self.clones).saturating_sub(2)
    }

    /// Whether the worker takes one more exchange over this connection now.
    fn has_room(&self) -> bool {
        self.streams() < self.requests.current_max_send_streams()
    }

    /// Whether the connection has ended, or will take no more requests.
    fn is_closed(&self) -> bool {
        let ready = self.requests.clone().ready().now_or_never();
        ready.is_some_and(|ready| ready.is_err())
    }

    /// Resolves when the connection has been without a stream for a while.
    async fn unused(&self) {
        loop {
            tokio::time::sleep(IDLE).await;
            if self.streams() == 0 {
                return;
            }
        }
    }
}

impl Http2Connections {
    /// A stream to the worker with this key, over a connection that is open.
    pub(super) fn open(&self, key: u64) -> Option<Stream> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let links = all.get_mut(&key)?;
        links.retain(|link| !link.is_closed());
        let link = links.iter().find(|link| link.has_room())?.clone();
        drop(all);
        Some(link.stream())
    }

    /// A stream over a connection that has just been opened.
    ///
    /// # Errors
    /// `HandshakeError`.
    pub(super) async fn begin(self: &Arc<Self>, key: u64, socket: Stream) -> Result<Stream> {
        let mut options = Builder::new();
        options
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .data_frame_budget(SMALL_FRAMES)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
        let begun = options.handshake(socket).await;
        let (requests, connection) = begun.or_err(ErrorType::HandshakeError, "HTTP/2")?;
        let link = Link {
            requests,
            clones: Arc::default(),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key).or_default().push(link.clone());
        drop(all);
        let (connections, driven) = (self.clone(), link.clone());
        // Not joined: it ends with the connection, or when that has been without a stream.
        tokio::spawn(async move {
            tokio::select! {
                ended = connection => {
                    if let Err(error) = ended {
                        log::debug!("connection to a worker ended error={error}");
                    }
                }
                () = driven.unused() => {}
            }
            connections.remove(key, &driven);
        });
        Ok(link.stream())
    }

    fn remove(&self, key: u64, gone: &Link) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(links) = all.get_mut(&key) {
            links.retain(|link| !Arc::ptr_eq(&link.clones, &gone.clones));
            if links.is_empty() {
                all.remove(&key);
            }
        }
    }
}

impl Link {
    /// A stream of bytes of HTTP/1.1, whose exchanges go over this connection one after the other.
    fn stream(self) -> Stream {
        let (near, far) = tokio::io::duplex(PIPE);
        // Not joined: it ends when the near end is dropped, or with the connection.
        tokio::spawn(async move {
            let (from, mut to) = tokio::io::split(far);
            let mut from = Requests {
                from,
                read: BytesMut::new(),
            };
            while exchange(&self, &mut from, &mut to).await.is_some() {}
        });
        Box::new(near)
    }
}

/// One exchange. `None` where it has failed or is cancelled, so that the near end must see a close.
async fn exchange(
    link: &Link,
    from: &mut Requests,
    to: &mut WriteHalf<DuplexStream>,
) -> Option<()> {
    let (request, length) = from.head().await?;
    let is_head = request.method() == Method::HEAD;
    let mut requests = link.requests.clone().ready().await.ok()?;
    let (response, mut body) = requests.send_request(request, length == 0).ok()?;
    let mut is_sent = false;
    let answered = {
        let answering = respond(response, to, is_head);
        tokio::pin!(answering);
        tokio::select! {
            answered = &mut answering => answered,
            () = from.forward(length, &mut body, &mut is_sent) => {
                body.send_reset(Reason::CANCEL);
                None
            }
        }
    };
    // A worker may respond before it has the whole request. The rest of it is none of the next one's.
    answered.filter(|()| is_sent)
}

/// Writes a response as HTTP/1.1. `None` where it is cut short.
async fn respond(
    response: ResponseFuture,
    to: &mut WriteHalf<DuplexStream>,
    is_head: bool,
) -> Option<()> {
    // Interim responses are skipped by h2.
    let (head, mut body) = response.await.ok()?.into_parts();
    let mut text = BytesMut::with_capacity(512);
    text.extend_from_slice(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
    write_fields(&mut text, &head.headers);
    let has_no_body = is_head || matches!(head.status.as_u16(), 204 | 304);
    let is_chunked = !has_no_body && !head.headers.contains_key(CONTENT_LENGTH);
    if is_chunked {
        text.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    text.extend_from_slice(b"\r\n");
    to.write_all(&text).await.ok()?;
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        text.clear();
        if is_chunked && !data.is_empty() {
            text.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        }
        text.extend_from_slice(&data);
        if is_chunked && !data.is_empty() {
            text.extend_from_slice(b"\r\n");
        }
        to.write_all(&text).await.ok()?;
        // Fails only where the stream has ended.
        let _ = body.flow_control().release_capacity(data.len());
    }
    if is_chunked {
        let trailers = body.trailers().await.ok()?.unwrap_or_default();
        text.clear();
        text.extend_from_slice(b"0\r\n");
        write_fields(&mut text, &trailers);
        text.extend_from_slice(b"\r\n");
        to.write_all(&text).await.ok()?;
    }
    Some(())
}

/// The requests that are written to the near end.
struct Requests {
    from: ReadHalf<DuplexStream>,
    read: BytesMut,
}

impl Requests {
    /// Reads more; `None` when the near end is dropped. May be dropped and called again.
    async fn fill(&mut self) -> Option<()> {
        let read = self.from.read_buf(&mut self.read).await.ok()?;
        (read > 0).then_some(())
    }

    /// The next head, and the length of the body behind it in bytes. Requests of this process have one.
    async fn head(&mut self) -> Option<(Request<()>, usize)> {
        loop {
            let end = memchr::memmem::find(&self.read, b"\r\n\r\n");
            match end {
                Some(end) => return parse(&self.read.split_to(end + 4)),
                None => self.fill().await?,
            }
        }
    }

    /// Sends the body as it comes, says when it is sent, and resolves when the near end is dropped.
    async fn forward(&mut self, length: usize, to: &mut SendStream<Bytes>, is_sent: &mut bool) {
        // The worker may want no more of it: then its response follows.
        *is_sent = self.send(length, to).await.is_some();
        while self.fill().await.is_some() {}
    }

    async fn send(&mut self, mut left: usize, to: &mut SendStream<Bytes>) -> Option<()> {
        while left > 0 {
            if self.read.is_empty() {
                self.fill().await?;
            }
            let mut piece = self.read.split_to(left.min(self.read.len())).freeze();
            left -= piece.len();
            while piece.has_remaining() {
                to.reserve_capacity(piece.len());
                if to.capacity() == 0 {
                    poll_fn(|cx| to.poll_capacity(cx)).await?.ok()?;
                }
                let part = piece.split_to(piece.len().min(to.capacity()));
                let is_last = left == 0 && piece.is_empty();
                to.send_data(part, is_last).ok()?;
            }
        }
        Some(())
    }
}

fn parse(head: &[u8]) -> Option<(Request<()>, usize)> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(head).ok()?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    for field in parsed.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    let length = match headers.get(CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok()?,
        None => 0,
    };
    let host = headers.remove(HOST)?;
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    let mut uri = Uri::default().into_parts();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(Authority::try_from(host.as_bytes()).ok()?);
    uri.path_and_query = Some(PathAndQuery::try_from(parsed.path?).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.headers_mut() = headers;
    Some((request, length))
}

#[cfg(test)]
mod tests;
