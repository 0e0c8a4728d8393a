//! One connection of a client: whether there is room for it, TLS, its requests one after the other, and how long
//! it may take to ask.
//!
//! Pingora's own loop bounds each read, so that a client that sends a byte at a time holds a connection for
//! ever, and gives every handshake a minute and a line in the log. Here the handshake and the first head together
//! have one deadline, and each further head has it from its first byte on. What happens once the head is there is
//! the corridor's.
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

use async_trait::async_trait;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora_core::apps::{HttpServerApp, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream as Socket;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::Session;

use super::connection_limit::{ConnectionLimit, Permit};
use super::counted::{CountedStream, ReadCounter};
use super::inflight::Inflight;

/// Pingora keeps a connection between two requests for as long as its task does, which has a timer of its own.
pub(crate) const WITHOUT_TIMER: u64 = 0;

/// Whose connections a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Those of clients, of whom there are at most so many.
    Clients,
    /// Those of who administers the workers.
    Admins,
}

/// The application of one listener.
pub(crate) struct Connections<A> {
    pub(crate) app: Arc<A>,
    pub(crate) listener: Listener,
    /// `None` is plain HTTP.
    pub(crate) tls: Option<Arc<Acceptor>>,
    /// From the opening of a connection to the end of its first head, and from the first byte of each further
    /// head to its end.
    pub(crate) head_timeout: Duration,
    /// From the end of a request to the first byte of the next.
    pub(crate) idle_timeout: Duration,
    /// `None` lets in everybody.
    pub(crate) crowd: Option<Arc<ConnectionLimit>>,
    /// Who is connected. Pingora closes idle connections as soon as it stops listening; here they stay for a
    /// last request, until the process has left.
    pub(crate) open: Arc<Inflight>,
}

impl<A: HttpServerApp + Send + Sync + 'static> Connections<A> {
    /// One request. The connection, when another one may follow.
    async fn request(
        &self,
        mut session: ServerSession,
        heard: &Arc<ReadCounter>,
        patience: HeadDeadline,
        spare: bool,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        session.set_connection_user_context(Some(Box::new(Arrival {
            heard: heard.clone(),
            listener: self.listener,
            spare,
        })));
        tokio::select! {
            // The first one reads, the second one looks at what it has read: all within one task.
            biased;
            next = self.app.process_new_http(session, shutdown) => next,
            () = patience.ends(heard) => {
                log::debug!("connection closed, no request arrived in time");
                None
            }
        }
    }

    /// The connection as HTTP is spoken on it. A client that fails at this concerns nobody else.
    async fn accept_tls(&self, stream: Stream) -> Option<Stream> {
        let Some(tls) = &self.tls else {
            return Some(stream);
        };
        let socket = stream.into_any().downcast::<Socket>().ok()?;
        // Boxed, because it is large: a plain connection would carry its room as long as it lives.
        let handshake = Box::pin(tls.tls_handshake(*socket));
        match tokio::time::timeout(self.head_timeout, handshake).await {
            Ok(Ok(stream)) => Some(Box::new(stream)),
            Ok(Err(error)) => {
                log::debug!("connection closed, no TLS handshake error={error}");
                None
            }
            Err(_) => {
                log::debug!("connection closed, the TLS handshake did not end in time");
                None
            }
        }
    }
}

/// How long is waited for the head of a request.
struct HeadDeadline {
    /// Until its first byte.
    idle: Duration,
    /// From then on.
    head: Duration,
    /// Whether that byte is there.
    begun: bool,
}

impl HeadDeadline {
    /// Resolves when the head is overdue, and never once it is there. To be polled after every read: nothing else
    /// wakes it.
    async fn ends(self, heard: &ReadCounter) {
        let before = heard.received();
        let mut begun = self.begun;
        let wait = if begun { self.head } else { self.idle };
        let mut overdue = pin!(Some(tokio::time::sleep(wait)));
        poll_fn(|cx| {
            if heard.is_answered() {
                overdue.set(None);
            } else if !begun && heard.received() > before {
                begun = true;
                overdue.set(Some(tokio::time::sleep(self.head)));
            }
            match overdue.as_mut().as_pin_mut() {
                Some(overdue) => overdue.poll(cx),
                None => Poll::Pending,
            }
        })
        .await;
    }
}

/// What the corridor is told of the connection of a request. Pingora hands it over as the context of the
/// connection, or drops it when there is no request.
struct Arrival {
    heard: Arc<ReadCounter>,
    listener: Listener,
    spare: bool,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        // Arrived, or refused by Pingora's parser: either way it is being answered.
        self.heard.answer();
    }
}

/// The corridor has a head. Whose connection it came on, and whether that is one too many.
pub(crate) fn note_head(
    session: &Session,
    context: Box<dyn Any + Send + Sync>,
) -> Option<(Listener, bool)> {
    let arrival = context.downcast::<Arrival>().ok()?;
    let head = session.downstream_session.as_http1()?;
    let bytes = head.get_headers_raw_bytes().len() as u64;
    let headers = &session.req_header().headers;
    let body = match headers.get(CONTENT_LENGTH) {
        Some(length) => length
            .to_str()
            .ok()
            .and_then(|text| text.parse::<u64>().ok()),
        None => (!headers.contains_key(TRANSFER_ENCODING)).then_some(0),
    };
    arrival
        .heard
        .claim(body.map(|body| bytes.saturating_add(body)));
    Some((arrival.listener, arrival.spare))
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
        let place = match &self.crowd {
            Some(crowd) => Some(crowd.enter(|| address(&stream), opened)?),
            None => None,
        };
        let spare = place.as_ref().is_some_and(Permit::is_overflow);
        let _connected = self.open.enter();
        let stream = self.accept_tls(stream).await?;
        let heard = Arc::<ReadCounter>::default();
        let mut session =
            ServerSession::new_http1(Box::new(CountedStream::new(stream, heard.clone())));
        let open = !*shutdown.borrow() && !spare;
        session.set_keepalive(open.then_some(WITHOUT_TIMER));
        // The first head is awaited from the opening on.
        let mut patience = HeadDeadline {
            idle: self.head_timeout,
            head: self.head_timeout.saturating_sub(opened.elapsed()),
            begun: true,
        };
        while let Some(next) = self
            .request(session, &heard, patience, spare, shutdown)
            .await
        {
            let (stream, settings) = next.consume();
            session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            patience = HeadDeadline {
                idle: self.idle_timeout,
                head: self.head_timeout,
                begun: heard.next(),
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    fn patience(begun: bool) -> HeadDeadline {
        HeadDeadline {
            idle: IDLE,
            head: HEAD,
            begun,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_of_a_head_begins_with_its_first_byte() {
        let heard = ReadCounter::default();
        heard.next();
        let begun = tokio::time::Instant::now();
        let mut ends = pin!(patience(false).ends(&heard));
        tokio::time::advance(IDLE / 3).await;
        assert!(futures_util::poll!(&mut ends).is_pending());
        heard.hear(1);
        assert!(futures_util::poll!(&mut ends).is_pending());
        ends.await;
        assert_eq!(begun.elapsed(), IDLE / 3 + HEAD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_there_has_no_deadline() {
        let heard = ReadCounter::default();
        let mut ends = pin!(patience(true).ends(&heard));
        assert!(futures_util::poll!(&mut ends).is_pending());
        heard.answer();
        assert!(futures_util::poll!(&mut ends).is_pending());
        tokio::time::advance(IDLE * 2).await;
        assert!(futures_util::poll!(&mut ends).is_pending());
    }

    #[test]
    fn what_came_along_with_the_request_before_is_the_beginning_of_the_next() {
        let heard = ReadCounter::default();
        assert!(!heard.next());
        heard.hear(120);
        heard.claim(Some(100));
        assert!(heard.next(), "20 bytes belong to nobody yet");
        heard.hear(80);
        heard.claim(Some(100));
        assert!(!heard.next());
        heard.hear(300);
        heard.claim(None);
        assert!(!heard.next(), "nobody knows, so it is not assumed");
    }
}
