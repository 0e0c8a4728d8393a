//! One connection of HTTP/2: its requests beside each other, its limits, and its end.
//!
//! What is decided here is the connection; a request is a session of Pingora's, [`session`], and meets the same hooks as
//! one of HTTP/1.1. The limits that HTTP/1.1 has for a connection hold for it as a whole: it counts as one, its first
//! request must come in the time of a head, and without a request it ends after the time between two. A shutdown says
//! GOAWAY, which is what `Connection: close` is there.
//!
//! | what a client may try | the bound |
//! |---|---|
//! | many streams | [`MAX_STREAMS`]; more are refused, and may be sent again |
//! | streams that it resets at once | [`tally`], and [`MAX_PENDING_RESETS`] before they are seen here |
//! | heads without an end, or of many fields | [`MAX_HEADER_LIST`], and h2's number of CONTINUATION frames for it |
//! | bodies that are not read yet | [`STREAM_WINDOW`], [`CONNECTION_WINDOW`]; what is read counts as any body |
//! | a response that it does not read | [`MAX_SEND_BUFFER`], and `client_stall_timeout_secs` |
//! | SETTINGS and PING without an end | h2 has one answer of each waiting, and reads no further until it is sent |
//!
//! Source: h2 0.4.20 `server.rs`, `proto/connection.rs`, `codec/framed_read.rs`; RFC 9113.

mod head;
mod preface;
mod session;
mod tally;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, ORIGIN};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use pingora::apps::HttpServerApp;
use pingora::http::RequestHeader;
use pingora::protocols::Digest;
use pingora::protocols::http::ServerSession;
use pingora::proxy::Session;
use pingora::server::ShutdownWatch;
use tokio::sync::mpsc;

pub(crate) use self::head::check_parsed;
pub(super) use self::preface::{Beginning, Rewound};
use self::session::{Cut, Http2Session};
use self::tally::Tally;
use super::connection::{ConnectionRules, Origin};
use super::inflight::Inflight;
use super::shutdown::ShutdownWatcher;

/// Streams of one connection at once: those of a mesh's proxy, which has one connection for all of its clients.
const MAX_STREAMS: u32 = 1024;

/// The longest head that h2 decodes, in bytes with 32 for each field: twice what is accepted, so that a head of more gets
/// the same response as over HTTP/1.1.
const MAX_HEADER_LIST: u32 = 64 << 10;

/// The bytes of one request body, and of all of one connection, that are sent before the balancer has read them.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// The bytes of one response that wait in h2 for a client that does not read. A chunk of a stream is far shorter.
const MAX_SEND_BUFFER: usize = 32 << 10;

/// Streams that were reset before they were seen here. h2's default, 20, is what one page of a browser may reset.
const MAX_PENDING_RESETS: usize = 128;

/// How long a connection without a stream that has got its GOAWAY may take to close.
const CLOSING_TIME: Duration = Duration::from_secs(5);

/// What a connection of HTTP/2 has from its listener.
pub(super) struct Http2<'a, A> {
    pub(super) app: &'a Arc<A>,
    pub(super) rules: &'a ConnectionRules,
    pub(super) origin: Origin,
    /// When the connection was opened.
    pub(super) opened: Instant,
    pub(super) shutdown: ShutdownWatcher,
    /// Pingora's, for its hooks.
    pub(super) stopped: &'a ShutdownWatch,
}

/// What the streams of one connection share.
struct Streams<'a> {
    digest: &'a Arc<Digest>,
    live: &'a Arc<Inflight>,
    tally: &'a Arc<Tally>,
    cut: &'a Cut,
}

impl<A: HttpServerApp + Send + Sync + 'static> Http2<'_, A> {
    /// What is left of the time until the end of the first head.
    fn head_time(&self) -> Duration {
        let head_timeout = self.rules.head_timeout;
        head_timeout.saturating_sub(self.opened.elapsed())
    }

    /// Serves the connection until it ends.
    pub(super) async fn serve(self, stream: Rewound) {
        let socket = stream.stream();
        let digest = Arc::new(Digest {
            ssl_digest: socket.get_ssl_digest(),
            timing_digest: socket.get_timing_digest(),
            proxy_digest: socket.get_proxy_digest(),
            socket_digest: socket.get_socket_digest(),
        });
        let handshake = options().handshake(stream);
        match tokio::time::timeout(self.head_time(), handshake).await {
            Ok(Ok(connection)) => Box::pin(self.accept(connection, digest)).await,
            Ok(Err(error)) => log::debug!("connection closed, no HTTP/2 error={error}"),
            Err(_) => log::debug!("connection closed, no HTTP/2 in time"),
        }
    }

    async fn accept(self, mut connection: Connection<Rewound, Bytes>, digest: Arc<Digest>) {
        let (live, tally) = (Arc::<Inflight>::default(), Arc::<Tally>::default());
        // Bounded by the streams of the connection: each is there at most once.
        let (cut, mut to_cut) = mpsc::unbounded_channel::<SendResponse<Bytes>>();
        let mut cuts = Vec::<SendResponse<Bytes>>::new();
        let mut idle = self.head_time();
        let mut leaving = false;
        loop {
            let accepted = tokio::select! {
                // In this order, so that a request that has arrived is served. Polled for its own sake too: that drives
                // the connection.
                biased;
                accepted = connection.accept() => accepted,
                // What they had sent before they were cut has been written just now, as far as the client takes it.
                () = std::future::ready(()), if !cuts.is_empty() => {
                    cuts.drain(..).for_each(|mut cut| cut.send_reset(Reason::INTERNAL_ERROR));
                    continue;
                }
                Some(respond) = to_cut.recv() => {
                    cuts.push(respond);
                    continue;
                }
                () = self.must_leave(&live, idle, leaving) => {
                    if leaving {
                        return;
                    }
                    leaving = true;
                    idle = CLOSING_TIME;
                    connection.graceful_shutdown();
                    continue;
                }
            };
            let (request, respond) = match accepted {
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => return log::debug!("connection ended error={error}"),
                None => return,
            };
            tally.note_accepted();
            if tally.is_abusive() {
                return calm(connection).await;
            }
            idle = if leaving {
                CLOSING_TIME
            } else {
                self.rules.idle_timeout
            };
            let streams = Streams {
                digest: &digest,
                live: &live,
                tally: &tally,
                cut: &cut,
            };
            self.begin(request, respond, &streams);
            if self.origin.overflow && !leaving {
                // Such a connection must free its place after one response.
                leaving = true;
                connection.graceful_shutdown();
            }
        }
    }

    /// Resolves when the connection must end: it has been without a request for `idle`, or a shutdown has begun, which
    /// `leaving` says that it knows.
    async fn must_leave(&self, live: &Inflight, idle: Duration, leaving: bool) {
        tokio::select! {
            () = self.shutdown.begun(), if !leaving => {}
            () = live.none_for(idle) => {}
        }
    }

    /// Begins a request, which ends in a task of its own.
    fn begin(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>, of: &Streams<'_>) {
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT {
            return self.refuse(&parts, respond, StatusCode::METHOD_NOT_ALLOWED);
        }
        if head::normalise(&mut parts).is_err() {
            return self.refuse(&parts, respond, StatusCode::BAD_REQUEST);
        }
        parts.extensions.insert(self.origin.clone());
        let head = RequestHeader::from(parts);
        let (digest, tally, cut) = (of.digest.clone(), of.tally.clone(), of.cut.clone());
        let session = Http2Session::new(head, body, respond, digest, tally, cut);
        let session = ServerSession::new_custom(Box::new(session));
        let (app, stopped, live) = (self.app.clone(), self.stopped.clone(), of.live.enter());
        // The runtime's threads share the streams of a connection. Waited for by `live`.
        pingora_runtime::current_handle().spawn(async move {
            app.process_new_http(session, &stopped).await;
            drop(live);
        });
    }

    /// Responds to a head that Pingora would refuse over HTTP/1.1.
    fn refuse(&self, head: &Parts, mut respond: SendResponse<Bytes>, status: StatusCode) {
        let refused = self.rules.refusal.whole(status, head.headers.get(ORIGIN));
        let mut response = Response::new(());
        *response.status_mut() = refused.status;
        *response.headers_mut() = refused.headers;
        let length = refused.body.len().into();
        response.headers_mut().insert(CONTENT_LENGTH, length);
        // Fails only where the client has left.
        if let Ok(mut out) = respond.send_response(response, false) {
            let _ = out.send_data(refused.body, true);
        }
    }
}

/// Ends a connection and all of its streams.
async fn calm(mut connection: Connection<Rewound, Bytes>) {
    log::warn!("connection closed, most of its requests were reset at once");
    connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    // What is left is to write GOAWAY.
    let closing = async { while connection.accept().await.is_some() {} };
    let _ = tokio::time::timeout(CLOSING_TIME, closing).await;
}

fn options() -> Builder {
    let mut options = Builder::new();
    options
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
    options
}

/// Where a request of HTTP/2 comes from; `None` for any other.
pub(crate) fn origin(session: &Session) -> Option<&Origin> {
    session.req_header().extensions.get()
}

#[cfg(test)]
mod tests;
