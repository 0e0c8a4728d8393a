//! One connection of a client: the connection limit, TLS, which protocol it speaks, its requests one after the other where
//! that is HTTP/1.1, and the time that each request head may take.
//!
//! Pingora has a timeout for each read and none for a whole head, and gives a TLS handshake one minute. Here the handshake and the first head share one deadline, and each
//! further head has one from its first byte on. What happens once a head has been received is decided in `proxy`.
//!
//! Source: pingora-core 0.9.1 `apps/mod.rs` (`process_new`), `services/listening.rs` (`run_endpoint`),
//! pingora-proxy 0.9.1 `lib.rs` (`process_new_http`).

use std::any::Any;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream as Socket;
use pingora::protocols::{ALPN, Stream};
use pingora::proxy::Session;
use pingora::server::ShutdownWatch;

use super::connection_limit::{ConnectionLimit, Permit};
use super::counted::{ClientWriter, CountedStream};
use super::http2::{Beginning, Http2, Rewound};
use super::inflight::Inflight;
use super::kept::Kept;
use super::read_counter::ReadCounter;
use super::refusal::Refusal;
use super::shutdown::ShutdownWatcher;
use crate::endpoint::content_length;

/// Keep-alive without Pingora's timer for idle connections: [`HeadDeadline`] has the time.
pub(crate) const NO_IDLE_TIMER: u64 = 0;

/// The listeners of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// The main listener.
    Clients,
    /// The admin listener.
    Admins,
    /// The listener for metrics alone.
    Metrics,
}

/// Where a request comes from.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) listener: Listener,
    /// Whether its connection is over the connection limit, and gets one response.
    pub(crate) overflow: bool,
    /// Where its connection may be left for the next request.
    pub(crate) kept: Arc<Kept>,
}

/// The settings of connections that a reload of the configuration replaces. A connection keeps those that it began with.
pub(crate) struct ConnectionRules {
    /// `None` for plain HTTP. The listener for metrics has plain HTTP: scrapers are configured for that.
    pub(crate) tls: Option<Arc<Acceptor>>,
    /// From the opening of a connection to the end of its first head, and from the first byte of each further head to
    /// its end.
    pub(crate) head_timeout: Duration,
    /// From the end of a request to the first byte of the next.
    pub(crate) idle_timeout: Duration,
    /// Makes the response to a head that Pingora refuses.
    pub(crate) refusal: Arc<Refusal>,
    /// Whether a connection without TLS may speak HTTP/2. With TLS its protocol is negotiated.
    pub(crate) http2: bool,
}

/// The connections of one listener, as an application for Pingora.
pub(crate) struct Connections<A> {
    pub(crate) app: Arc<A>,
    pub(crate) listener: Listener,
    /// What applies to the next connection. All listeners have the same.
    pub(crate) rules: Arc<ArcSwap<ConnectionRules>>,
    /// `None` for no limit.
    pub(crate) limit: Option<Arc<ConnectionLimit>>,
    /// The open connections. Pingora would close idle ones as soon as it stops listening; here they stay open for one
    /// more request until the shutdown is complete.
    pub(crate) open: Arc<Inflight>,
    /// Those of them that speak HTTP/2.
    pub(crate) open_http2: Arc<Inflight>,
    /// When a connection of HTTP/2 must end.
    pub(crate) shutdown: ShutdownWatcher,
}

impl<A: HttpServerApp + Send + Sync + 'static> Connections<A> {
    /// Serves one request. Returns the connection when another request may follow.
    async fn serve(
        &self,
        next: Next,
        counter: &Arc<ReadCounter>,
        deadline: HeadDeadline,
        origin: Origin,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let kept = origin.kept.clone();
        let awaited = Awaited {
            counter: counter.clone(),
            origin,
        };
        // Here and not in the loop of the connection: a session has two kilobytes, and is copied each time it is moved.
        let mut session = next.session();
        session.set_connection_user_context(Some(Box::new(awaited)));
        tokio::select! {
            // In this order: the first branch reads, and the second one compares what has been read by then.
            biased;
            next = self.app.process_new_http(session, shutdown) => next.or_else(|| kept.take()),
            () = deadline.expired(counter) => {
                if !counter.is_http2() {
                    log::debug!("connection closed, no request head arrived in time");
                }
                None
            }
        }
    }

    /// Serves a connection that speaks HTTP/2. Boxed because it is large.
    async fn serve_http2(
        &self,
        stream: Rewound,
        rules: &ConnectionRules,
        origin: Origin,
        opened: Instant,
        shutdown: &ShutdownWatch,
    ) {
        let _open = self.open_http2.enter();
        let connection = Http2 {
            app: &self.app,
            rules,
            origin,
            opened,
            shutdown: self.shutdown.clone(),
            stopped: shutdown,
        };
        Box::pin(connection.serve(stream)).await;
    }

    /// Completes the TLS handshake, if any. A failure affects this client only.
    async fn accept_tls(&self, rules: &ConnectionRules, stream: Stream) -> Option<Stream> {
        let tls = rules.tls.as_ref();
        let Some(tls) = tls.filter(|_| self.listener != Listener::Metrics) else {
            return Some(stream);
        };
        let socket = stream.into_any().downcast::<Socket>().ok()?;
        // Boxed because it is large: inline, each connection would reserve its size for as long as it is open.
        let handshake = Box::pin(tls.tls_handshake(*socket));
        match tokio::time::timeout(rules.head_timeout, handshake).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                log::debug!("connection closed, TLS handshake failed error={error}");
                None
            }
            Err(_) => {
                log::debug!("connection closed, TLS handshake did not end in time");
                None
            }
        }
    }
}

/// What the session of the next request is made of.
enum Next {
    /// The first of a connection, and whether another may follow it.
    First(Stream, bool),
    Further(ReusedHttpStream),
}

impl Next {
    fn session(self) -> ServerSession {
        match self {
            Next::First(stream, keep_alive) => {
                let mut session = ServerSession::new_http1(stream);
                session.set_keepalive(keep_alive.then_some(NO_IDLE_TIMER));
                session
            }
            Next::Further(connection) => {
                let (stream, settings) = connection.consume();
                let mut session = ServerSession::new_http1(stream);
                if let Some(settings) = settings {
                    settings.apply_to_session(&mut session);
                }
                session
            }
        }
    }
}

/// The deadline of one request head.
struct HeadDeadline {
    /// The time until its first byte.
    idle: Duration,
    /// The time from then on.
    head: Duration,
    /// Whether its first byte has already been read.
    begun: bool,
}

impl HeadDeadline {
    /// Resolves when the head is overdue, or is none because the connection speaks HTTP/2; pending for ever once it has been
    /// received.
    ///
    /// Must be polled after each read, because a read does not wake it.
    async fn expired(self, counter: &ReadCounter) {
        let before = counter.bytes_read();
        let mut begun = self.begun;
        let wait = if begun { self.head } else { self.idle };
        let mut timer = pin!(Some(tokio::time::sleep(wait)));
        poll_fn(|cx| {
            if counter.is_head_finished() {
                timer.set(None);
            } else if counter.is_http2() {
                return Poll::Ready(());
            } else if !begun && counter.bytes_read() > before {
                begun = true;
                timer.set(Some(tokio::time::sleep(self.head)));
            }
            match timer.as_mut().as_pin_mut() {
                Some(timer) => timer.poll(cx),
                None => Poll::Pending,
            }
        })
        .await;
    }
}

/// A request whose head is awaited. Pingora returns it with the head, or drops it when there is no valid one.
struct Awaited {
    counter: Arc<ReadCounter>,
    origin: Origin,
}

impl Drop for Awaited {
    fn drop(&mut self) {
        // In both cases a response follows, and the deadline of the head is over.
        self.counter.finish_head();
    }
}

/// The writing side of the connection of this session; `None` where it is not HTTP/1.1 on one of [`Connections`].
pub(crate) fn writer(session: &ServerSession) -> Option<ClientWriter> {
    counted(session).map(CountedStream::writer)
}

/// The connection of this session; `None` where it is not HTTP/1.1 on one of [`Connections`].
pub(super) fn counted(session: &ServerSession) -> Option<&CountedStream> {
    let stream = session.as_http1()?.stream();
    (**stream).as_any().downcast_ref()
}

/// Notes that the head of a request has been received. `context` is what Pingora has kept with the connection; `None`
/// when it is not one of [`Connections`].
pub(crate) fn head_received(
    session: &Session,
    context: Box<dyn Any + Send + Sync>,
) -> Option<Origin> {
    let awaited = context.downcast::<Awaited>().ok()?;
    let head = session.downstream_session.as_http1()?;
    let head_bytes = head.get_headers_raw_bytes().len() as u64;
    let body_bytes = body_length(&session.req_header().headers);
    awaited
        .counter
        .attribute(body_bytes.map(|body_bytes| head_bytes.saturating_add(body_bytes)));
    Some(awaited.origin.clone())
}

/// The length of the body that follows this head, in bytes; `None` when it is chunked or not a number.
fn body_length(headers: &HeaderMap) -> Option<u64> {
    if headers.contains_key(CONTENT_LENGTH) {
        return content_length(headers).map(|length| length as u64);
    }
    (!headers.contains_key(TRANSFER_ENCODING)).then_some(0)
}

fn address(stream: &Stream) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> ServerApp for Connections<A> {
    async fn process_new(
        self: &Arc<Self>,
        stream: Stream,
        shutdown: &ShutdownWatch,
    ) -> Option<Stream> {
        let opened = Instant::now();
        let permit = match &self.limit {
            Some(limit) => Some(limit.acquire(|| address(&stream), opened)?),
            None => None,
        };
        let overflow = permit.as_ref().is_some_and(Permit::is_overflow);
        let _open = self.open.enter();
        let rules = self.rules.load_full();
        let stream = self.accept_tls(&rules, stream).await?;
        let counter = Arc::<ReadCounter>::default();
        // A connection over the limit must free its place after one response.
        let origin = Origin {
            listener: self.listener,
            overflow,
            kept: Arc::default(),
        };
        let http2 = |stream| self.serve_http2(stream, &rules, origin.clone(), opened, shutdown);
        if matches!(stream.selected_alpn_proto(), Some(ALPN::H2)) {
            http2(Rewound::new(Bytes::new(), stream)).await;
            return None;
        }
        let beginning = match rules.http2 && stream.get_ssl_digest().is_none() {
            true => Beginning::Equal(0),
            false => Beginning::Http1,
        };
        let refusal = rules.refusal.clone();
        let stream = CountedStream::new(stream, counter.clone(), refusal, beginning);
        let keep_alive = !*shutdown.borrow() && !overflow;
        let mut next = Next::First(Box::new(stream), keep_alive);
        let mut deadline = HeadDeadline {
            idle: rules.head_timeout,
            // The first head shares its time with the handshake, which is over by now.
            head: rules.head_timeout.saturating_sub(opened.elapsed()),
            begun: true,
        };
        while let Some(connection) = self
            .serve(next, &counter, deadline, origin.clone(), shutdown)
            .await
        {
            next = Next::Further(connection);
            deadline = HeadDeadline {
                idle: rules.idle_timeout,
                head: rules.head_timeout,
                begun: counter.next_request(),
            };
        }
        if let Some(stream) = counter.take_http2() {
            http2(stream).await;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn deadline(begun: bool) -> HeadDeadline {
        HeadDeadline {
            idle: IDLE,
            head: HEAD,
            begun,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_of_a_head_begins_with_its_first_byte() {
        let counter = ReadCounter::default();
        counter.next_request();
        let begun = tokio::time::Instant::now();
        let mut expired = pin!(deadline(false).expired(&counter));
        tokio::time::advance(IDLE / 3).await;
        assert!(futures_util::poll!(&mut expired).is_pending());
        counter.record_read(1);
        assert!(futures_util::poll!(&mut expired).is_pending());
        expired.await;
        assert_eq!(begun.elapsed(), IDLE / 3 + HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_byte_ends_with_the_idle_time() {
        let counter = ReadCounter::default();
        let begun = tokio::time::Instant::now();
        deadline(false).expired(&counter).await;
        assert_eq!(begun.elapsed(), IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_already_begun_has_no_idle_time() {
        let counter = ReadCounter::default();
        let begun = tokio::time::Instant::now();
        deadline(true).expired(&counter).await;
        assert_eq!(begun.elapsed(), HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_been_received_has_no_deadline() {
        let counter = ReadCounter::default();
        let mut expired = pin!(deadline(true).expired(&counter));
        assert!(futures_util::poll!(&mut expired).is_pending());
        counter.finish_head();
        assert!(futures_util::poll!(&mut expired).is_pending());
        tokio::time::advance(IDLE * 2).await;
        assert!(futures_util::poll!(&mut expired).is_pending());
    }

    #[test]
    fn an_awaited_head_is_finished_when_pingora_drops_it() {
        let counter = Arc::<ReadCounter>::default();
        let awaited = Awaited {
            counter: counter.clone(),
            origin: Origin {
                listener: Listener::Clients,
                overflow: false,
                kept: Arc::default(),
            },
        };
        assert!(!counter.is_head_finished());
        drop(awaited);
        assert!(counter.is_head_finished());
    }

    #[test]
    fn the_length_of_a_body_is_known_unless_it_is_chunked() {
        for (name, value, length) in [
            (CONTENT_LENGTH, "17", Some(17)),
            (CONTENT_LENGTH, "x", None),
            (TRANSFER_ENCODING, "chunked", None),
        ] {
            let headers = HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
            assert_eq!(body_length(&headers), length, "{value}");
        }
        assert_eq!(body_length(&HeaderMap::new()), Some(0));
    }
}
