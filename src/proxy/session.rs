//! The client's session with its body replaced by the one that the workers get.
//!
//! Pingora streams the client's body to decode as it comes; a leg needs the whole body first, because the
//! rendezvous is spliced into it and prefill gets the same bytes. So the corridor reads the body, then
//! puts [`ReplacedSession`] in the place of the client's session: it hands out the new body once (and again when
//! Pingora repeats the request on another connection), and delegates everything else. It adds four things
//! that only the session can do:
//!
//! * it ends the decode leg when `interrupt` resolves before the first byte went to the client, when one of its
//!   deadlines passes, and when the process cannot wait for it any more;
//! * it holds the head of the answer back until the first byte of the body, so that a failure in between is
//!   still a status, and head and first byte leave in one write;
//! * it asks the client for another connection next time, when the process is about to leave;
//! * it gives an answer that arrives whole a Content-Length where a filter has removed the framing, and no chunks
//!   to a client of HTTP/1.0.
//!
//! This is the only file that touches Pingora's hidden trait; the version is pinned for its sake.
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`, pingora-proxy 0.9.1 `proxy_h1.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Version};
use pingora_core::protocols::Digest;
use pingora_core::protocols::http::custom::CustomMessageWrite;
use pingora_core::protocols::http::custom::server::Session as CustomSession;
use pingora_core::protocols::http::{HttpTask, ServerSession};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;
use tokio::time::Sleep;

use crate::client::{CutOff, ShutdownWatcher};

/// The error with which an interrupt ends the decode leg.
pub(super) const INTERRUPTED: ErrorType = ErrorType::new("PrefillFailed");

/// The error with which a deadline ends the decode leg: nothing came before the first byte.
pub(super) const LATE: ErrorType = ErrorType::new("FirstTokenLate");
/// Likewise: nothing came between two events.
pub(super) const STALLED: ErrorType = ErrorType::new("Stalled");
/// Likewise: the whole answer took too long.
pub(super) const OVERDUE: ErrorType = ErrorType::new("Overdue");
/// Likewise: the process leaves.
pub(super) const CUT: ErrorType = ErrorType::new("ShuttingDown");

/// How long decode may take. Absent ones are not watched.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Deadlines {
    /// Until the first byte of the answer.
    pub(super) first: Option<Instant>,
    /// Between two pieces of it.
    pub(super) silence: Option<Duration>,
    /// Until its end.
    pub(super) total: Option<Instant>,
}

/// Resolves when the decode leg must end before its time.
pub(super) type Interrupt = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The way back to the client's own session. See [`install`].
pub(super) struct Installed(Arc<Mutex<Option<Box<ServerSession>>>>);

/// Replaces the body of the request, which must have been read to its end.
///
/// Content-Length of the client's head is set to the new length; the head is what Pingora sends to decode.
///
/// # Errors
/// None in practice: a number is a header value.
pub(super) fn install(
    session: &mut Session,
    body: Bytes,
    interrupt: Interrupt,
    deadlines: Deadlines,
    departure: ShutdownWatcher,
) -> Result<Installed> {
    let head = session.req_header_mut();
    head.remove_header(&TRANSFER_ENCODING);
    // Pingora gives a request up whose Connection names Host, without an answer. The legs' heads have obeyed it.
    head.remove_header(&CONNECTION);
    head.insert_header(CONTENT_LENGTH, body.len())?;
    let slot = Arc::new(Mutex::new(None));
    let placeholder = Box::new(ServerSession::new_custom(Box::new(())));
    let client = std::mem::replace(&mut session.downstream_session, placeholder);
    *session.downstream_session = ServerSession::new_custom(Box::new(ReplacedSession {
        client: Some(client),
        slot: slot.clone(),
        body,
        taken: false,
        interrupt: Some(interrupt),
        cut: departure.over(),
        departure,
        held: None,
        clock: Clock::new(deadlines),
    }));
    Ok(Installed(slot))
}

impl Installed {
    /// Puts the client's own session back. Errors and keep-alive are its business, and Pingora keeps a
    /// connection only when it finds the original there.
    pub(super) fn restore(self, session: &mut Session) {
        // The wrapper is owned as a trait object: it leaves what it wraps in the slot when it is dropped.
        *session.downstream_session = ServerSession::new_custom(Box::new(()));
        if let Some(client) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            session.downstream_session = client;
        }
    }
}

struct ReplacedSession {
    /// `Some` until the drop.
    client: Option<Box<ServerSession>>,
    slot: Arc<Mutex<Option<Box<ServerSession>>>>,
    body: Bytes,
    taken: bool,
    interrupt: Option<Interrupt>,
    departure: ShutdownWatcher,
    cut: CutOff,
    held: Option<Box<ResponseHeader>>,
    clock: Clock,
}

/// Watches the deadlines with one timer, which is set anew only when it expired too early.
struct Clock {
    deadlines: Deadlines,
    /// When the last piece went to the client; `None` before the first.
    moved: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    fn new(deadlines: Deadlines) -> Self {
        let mut clock = Self {
            deadlines,
            moved: None,
            timer: None,
        };
        clock.arm();
        clock
    }

    /// The next deadline, and the error that it is.
    fn next(&self) -> Option<(Instant, ErrorType)> {
        let total = self.deadlines.total.map(|total| (total, OVERDUE));
        let progress = match self.moved {
            None => self.deadlines.first.map(|first| (first, LATE)),
            Some(moved) => {
                let silence = self.deadlines.silence;
                silence.map(|silence| (moved + silence, STALLED))
            }
        };
        [total, progress]
            .into_iter()
            .flatten()
            .min_by_key(|(deadline, _)| *deadline)
    }

    fn arm(&mut self) {
        self.timer = self
            .next()
            .map(|(deadline, _)| Box::pin(tokio::time::sleep_until(deadline.into())));
    }

    /// Resolves when a deadline has passed.
    async fn expired(&mut self) -> ErrorType {
        loop {
            match self.timer.as_mut() {
                Some(timer) => timer.await,
                None => std::future::pending().await,
            }
            match self.next() {
                Some((deadline, error)) if deadline <= Instant::now() => return error,
                _ => self.arm(),
            }
        }
    }
}

impl ReplacedSession {
    #[allow(clippy::expect_used)] // the drop is the only place that takes it
    fn client(&self) -> &ServerSession {
        self.client.as_deref().expect("present until the drop")
    }

    #[allow(clippy::expect_used)]
    fn client_mut(&mut self) -> &mut ServerSession {
        self.client.as_deref_mut().expect("present until the drop")
    }

    /// The tasks that may go to the client now: a head waits for the first byte of its body.
    fn release(&mut self, tasks: Vec<HttpTask>) -> (Vec<HttpTask>, Option<Box<Error>>) {
        // Every event of a stream comes by here.
        if self.held.is_none() && !tasks.iter().any(is_held) {
            return (tasks, None);
        }
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            match task {
                HttpTask::Header(head, false) => self.held = Some(head),
                empty if is_held(&empty) => {}
                HttpTask::Failed(error) if self.held.is_some() => return (out, Some(error)),
                task => {
                    if let Some(head) = self.held.take() {
                        let old = self.client().req_header().version == Version::HTTP_10;
                        let head = framed(head, &task, old);
                        if old && !head.headers.contains_key(CONTENT_LENGTH) {
                            self.client_mut().set_keepalive(None);
                        }
                        out.push(HttpTask::Header(head, false));
                    }
                    out.push(task);
                }
            }
        }
        (out, None)
    }
}

/// A head waits for the first byte, and a piece without one is none.
fn is_held(task: &HttpTask) -> bool {
    match task {
        HttpTask::Header(_, end) => !end,
        HttpTask::Body(Some(piece), false) => piece.is_empty(),
        _ => false,
    }
}

/// A head without framing gets the one that fits what comes next. HTTP/1.0 has no chunks, there the close ends
/// what has no length.
fn framed(mut head: Box<ResponseHeader>, next: &HttpTask, old: bool) -> Box<ResponseHeader> {
    if old {
        head.remove_header(&TRANSFER_ENCODING);
    }
    if !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING) {
        let framing = match next {
            HttpTask::Body(piece, true) => {
                head.insert_header(CONTENT_LENGTH, piece.as_ref().map_or(0, Bytes::len))
            }
            _ if old => Ok(()),
            _ => head.insert_header(TRANSFER_ENCODING, "chunked"),
        };
        debug_assert!(framing.is_ok(), "a number and a token are header values");
    }
    head
}

impl Drop for ReplacedSession {
    fn drop(&mut self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = self.client.take();
    }
}

#[async_trait]
impl CustomSession for ReplacedSession {
    fn req_header(&self) -> &RequestHeader {
        self.client().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.client_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.taken {
            return Ok(None);
        }
        self.taken = true;
        Ok(Some(self.body.clone()))
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.taken = true;
        Ok(())
    }

    async fn write_response_header(&mut self, head: Box<ResponseHeader>, _end: bool) -> Result<()> {
        self.client_mut().write_response_header(head).await
    }

    async fn write_response_header_ref(&mut self, head: &ResponseHeader, _end: bool) -> Result<()> {
        self.client_mut().write_response_header_ref(head).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.client_mut().write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.client_mut().write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let (tasks, failure) = self.release(tasks);
        let mut ended = false;
        if !tasks.is_empty() {
            self.interrupt = None;
            if self.departure.has_begun() && self.client().response_written().is_none() {
                self.client_mut().set_keepalive(None);
            }
            ended = self.client_mut().response_duplex_vec(tasks).await?;
            if self.clock.moved.replace(Instant::now()).is_none() {
                // From the first byte on another deadline counts.
                self.clock.arm();
            }
        }
        failure.map_or(Ok(ended), Err)
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        if !no_body_expected && !self.taken {
            return self.read_body_bytes().await;
        }
        #[allow(clippy::expect_used)] // a field borrow, because others are borrowed too
        let client = self.client.as_mut().expect("present until the drop");
        let interrupted = async {
            match self.interrupt.as_mut() {
                Some(interrupt) => interrupt.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = client.read_body_or_idle(true) => read,
            () = interrupted => {
                // A resolved future must not be polled again.
                self.interrupt = None;
                Error::e_explain(INTERRUPTED, "the prefill leg failed first")
            }
            () = &mut self.cut => Error::e_explain(CUT, "the process leaves"),
            error = self.clock.expired() => Error::e_explain(error, "decode took too long"),
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.taken
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.is_empty()
    }

    /// The whole new body, of any size, once it has been handed out: Pingora sends it again when a pooled
    /// connection turns out to be closed.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.taken.then(|| self.body.clone())
    }

    fn enable_retry_buffering(&mut self) {}

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    async fn finish(&mut self) -> Result<()> {
        self.client_mut().finish_body().await
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.client_mut().shutdown().await;
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.client().get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.client().get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.client_mut().set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.client().get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.client().request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.client().response_written()
    }

    fn body_bytes_sent(&self) -> usize {
        self.client().body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.client().body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.client().digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.client_mut().digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.client().client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.client().server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.client().to_h1_raw()
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
