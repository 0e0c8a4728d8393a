//! The client's session with its body replaced by the one that the workers get.
//!
//! Pingora streams the client's body to decode as it arrives. A leg needs the whole body first, because the bootstrap
//! fields are written into it and prefill gets the same bytes. So the proxy reads the body and installs a
//! [`ReplacedSession`] in place of the client's session: it hands out the new body once (and again when Pingora repeats
//! the request on another connection), and delegates everything else. It adds what only the session can do:
//!
//! * it ends decode's leg when prefill's fails before the first byte goes to the client, when a deadline passes, and when
//!   the grace period of a shutdown is over;
//! * it holds the head of the response until the first byte of the body, so that a failure in between is still a status,
//!   and head and first byte leave in one write;
//! * it knows when that first byte leaves, and whether the bytes that were sent end with a whole event;
//! * it knows the end marker of a stream: a stream that ends without it is cut short, and once it has been written the
//!   client may leave, see [`tail`];
//! * it lets a stream pass from socket to socket once nothing is left to be decided about it, see [`relay`];
//! * it writes comments into a silent stream, where the configuration asks for them, see [`keepalive`];
//! * it ends a response with decode's trailers, see [`trailers`];
//! * it closes the client's connection after this response when the process is shutting down;
//! * it frames a response whose framing a filter has removed: a Content-Length where it arrives whole, else chunks, but
//!   none for a client of HTTP/1.0.
//!
//! [`custom`] is the only file that touches Pingora's hidden trait, for which the version is pinned.
//! Source: pingora-core 0.9.1 `protocols/http/custom/server.rs`, pingora-proxy 0.9.1 `proxy_h1.rs`.

mod custom;
mod keepalive;
mod relay;
mod tail;
mod trailers;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Version};
use pingora::http::ResponseHeader;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

pub(super) use self::keepalive::{COMMENT, Keepalive};
use self::relay::{Relay, note_gaps};
use self::tail::Tail;
use super::deadlines::{Clock, Deadlines};
use super::timing::{self, TimingFields};
use crate::client::{CutOff, ShutdownWatcher};
use crate::legs;
use crate::net::PooledHandle;
use crate::pd::StreamEnd;
use crate::telemetry::Gaps;

/// Ends decode's leg: prefill's has failed.
pub(super) const PREFILL_FAILED: ErrorType = ErrorType::new("PrefillFailed");
/// Ends decode's leg: the grace period of the shutdown is over.
pub(super) const SHUTTING_DOWN: ErrorType = ErrorType::new("ShuttingDown");

/// Ends decode's leg: the stream has ended without its end marker.
pub(super) const END_MISSING: ErrorType = ErrorType::new("EndMissing");

/// Ends decode's leg: the head of a stream is out, and decode's response is none.
pub(super) const HEAD_IS_OUT: ErrorType = ErrorType::new("HeadIsOut");

/// Resolves when decode's leg must end, because prefill's has failed.
pub(super) type PrefillFailed = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// The proxy's end of an installed session.
pub(super) struct Installed(Arc<Shared>);

/// The state that the proxy and the installed session share.
#[derive(Default)]
pub(super) struct Shared {
    /// When the first byte of the response has gone to the client.
    first_byte: OnceLock<Instant>,
    /// Whole events that have gone to the client.
    events: AtomicU64,
    /// Whether the head of the response has gone to the client before that.
    head_is_out: AtomicBool,
    /// What the head says of the time, where it says so.
    timing: Mutex<Option<TimingFields>>,
    /// Decode's connection, once its stream passes unchanged.
    decode: OnceLock<PooledHandle>,
    /// The trailers of decode's response.
    trailers: OnceLock<Box<HeaderMap>>,
    /// The session leaves its parts here when Pingora drops it: Pingora owns it as a trait object.
    left: Mutex<Option<(Box<ServerSession>, Sent)>>,
}

/// What the client got of a response.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// When the first byte went out.
    pub(super) first_byte: Option<Instant>,
    /// Follows the events of a stream.
    pub(super) events: StreamEnd,
    /// Whether the head went out before the first byte, with a comment.
    pub(super) head_is_out: bool,
    /// Whether the end marker of a stream has been written: the client has the whole response.
    pub(super) delivered: bool,
    /// Bytes of the body that went out past Pingora.
    pub(super) relayed: usize,
    /// Whether a part of a chunk has gone out, so that nothing can follow.
    pub(super) is_cut: bool,
}

/// What follows the response where it is a stream.
pub(super) struct Follower {
    pub(super) events: StreamEnd,
    pub(super) gaps: Gaps,
}

/// Installs a session with this body in place of the client's, whose own body has been read to its end.
///
/// The client's head gets the new Content-Length, because Pingora frames decode's leg by it.
///
/// # Errors
/// None in practice: a number is a header value.
pub(super) fn install(
    session: &mut Session,
    body: Bytes,
    follower: Follower,
    prefill_failed: PrefillFailed,
    deadlines: Deadlines,
    shutdown: ShutdownWatcher,
    keepalive: Option<Keepalive>,
) -> Result<Installed> {
    let head = session.req_header_mut();
    head.remove_header(&TRANSFER_ENCODING);
    // Connection has been applied to the heads of the legs, and must not be applied to them again.
    head.remove_header(&CONNECTION);
    // Removed before: an insertion into a map that is full makes it grow, even where it only replaces.
    head.remove_header(&CONTENT_LENGTH);
    head.insert_header(CONTENT_LENGTH, body.len())?;
    let head_is_out = keepalive.as_ref().is_some_and(|kept| kept.head_is_out);
    let shared = Arc::new(Shared {
        head_is_out: head_is_out.into(),
        ..Shared::default()
    });
    let placeholder = Box::new(ServerSession::new_custom(Box::new(())));
    let client = std::mem::replace(&mut session.downstream_session, placeholder);
    *session.downstream_session = ServerSession::new_custom(Box::new(ReplacedSession {
        client: Some(client),
        shared: shared.clone(),
        body,
        taken: false,
        prefill_failed: Some(prefill_failed),
        cut_off: shutdown.cut_off(),
        shutdown,
        held: None,
        is_stream: head_is_out,
        gaps: Some(follower.gaps),
        passed: 0,
        relay: None,
        sent: Sent {
            events: follower.events,
            head_is_out,
            ..Sent::default()
        },
        clock: Clock::new(deadlines),
        keepalive,
        tail: Tail::default(),
    }));
    Ok(Installed(shared))
}

impl Shared {
    /// When the first byte of the response has gone to the client.
    pub(super) fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get().copied()
    }

    /// Whole events that have gone to the client.
    pub(super) fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    fn note_events(&self, events: u64) {
        self.events.store(events, Ordering::Relaxed);
    }
}

impl Installed {
    /// What tells of the response while it is sent.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Whether the first byte of the response has gone to the client: from then on there is no other status and no other
    /// pair.
    pub(super) fn has_begun(&self) -> bool {
        self.0.first_byte().is_some()
    }

    /// Whether the head of the response has gone to the client before its first byte: from then on there is no other status.
    pub(super) fn head_is_out(&self) -> bool {
        self.0.head_is_out.load(Ordering::Relaxed)
    }

    /// Lets the stream that comes over this connection pass from socket to socket: its bytes go to the client as they are.
    pub(super) fn relay(&self, decode: &PooledHandle) {
        self.0.decode.get_or_init(|| decode.clone());
    }

    /// Has the head say this of the time, if it has not gone out.
    pub(super) fn note_timing(&self, fields: TimingFields) {
        *lock(&self.0.timing) = Some(fields);
    }

    /// Puts the client's own session back, and gives what was sent. Pingora keeps a client's connection only when it finds
    /// the original session.
    pub(super) fn restore(self, session: &mut Session) -> Sent {
        // Dropping the installed session makes it leave its parts.
        *session.downstream_session = ServerSession::new_custom(Box::new(()));
        let Some((client, sent)) = lock(&self.0.left).take() else {
            return Sent::default();
        };
        session.downstream_session = client;
        sent
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a lock is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct ReplacedSession {
    /// `Some` until the drop.
    client: Option<Box<ServerSession>>,
    shared: Arc<Shared>,
    body: Bytes,
    /// Whether Pingora has taken the body.
    taken: bool,
    /// Prefill's failure; `None` once the first byte is gone, when it no longer matters.
    prefill_failed: Option<PrefillFailed>,
    shutdown: ShutdownWatcher,
    cut_off: CutOff,
    /// The head of the response, until the first byte of its body.
    held: Option<Box<ResponseHeader>>,
    /// Whether the response is a stream of events.
    is_stream: bool,
    /// The time between the events of a stream. The relay has it while there is one, as it has [`Sent::events`].
    gaps: Option<Gaps>,
    /// Bytes of the body that have gone to the client.
    passed: u64,
    relay: Option<Relay>,
    sent: Sent,
    clock: Clock,
    /// `None` where no comments are written.
    keepalive: Option<Keepalive>,
    tail: Tail,
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

    /// Notes that these tasks go to the client now.
    fn note_sent(&mut self, tasks: &[HttpTask]) {
        let begins = |task: &HttpTask| matches!(task, HttpTask::Header(..) | HttpTask::Body(..));
        if self.sent.first_byte.is_none() && tasks.iter().any(begins) {
            let now = Instant::now();
            self.sent.first_byte = Some(now);
            let _ = self.shared.first_byte.set(now);
            self.prefill_failed = None;
            if self.shutdown.has_begun() {
                self.client_mut().set_keepalive(None);
            }
        }
    }

    /// Follows the events in these tasks. The failure where the stream ends without its marker: then the end is taken out,
    /// so that the client sees a broken response.
    fn follow(&mut self, tasks: &mut Vec<HttpTask>) -> Option<Box<Error>> {
        for task in tasks.iter() {
            if let HttpTask::Body(Some(chunk), _) = task {
                self.passed += chunk.len() as u64;
                self.sent.events.update(chunk);
            }
        }
        self.shared.note_events(self.sent.events.events());
        if !tasks.iter().any(is_end) || !self.sent.events.lacks_end() {
            return None;
        }
        if self.sent.first_byte.is_none() {
            // Nothing has gone out, so that another status or another pair is still possible.
            tasks.clear();
            self.sent.events = StreamEnd::unread();
        }
        for task in tasks {
            match task {
                HttpTask::Body(_, end) => *end = false,
                task if is_end(task) => *task = HttpTask::Body(None, false),
                _ => {}
            }
        }
        Some(Error::new(END_MISSING))
    }

    /// Has the head, which goes out now, say where the time went.
    fn add_timing(&self, head: &mut ResponseHeader) {
        if let Some(fields) = lock(&self.shared.timing).take() {
            let added = timing::add(head, &fields);
            debug_assert!(added.is_ok(), "names and values are valid");
        }
    }

    #[inline]
    fn note_gaps(&mut self, at: Instant) {
        if let Some(gaps) = self.gaps.as_mut().filter(|_| self.is_stream) {
            note_gaps(gaps, &self.sent.events, at);
        }
    }

    /// Notes what the head says of the response.
    fn note_head(&mut self, head: &ResponseHeader) {
        if head.status.is_informational() {
            return;
        }
        self.is_stream = legs::is_event_stream(&head.headers);
        if legs::is_encoded(&head.headers) || !head.status.is_success() {
            self.sent.events = StreamEnd::unread();
        }
    }

    /// The tasks that may go to the client now, and the failure that ends the response before its first byte.
    fn release(&mut self, tasks: Vec<HttpTask>) -> (Vec<HttpTask>, Option<Box<Error>>) {
        // Every event of a stream takes this branch.
        let concerns = |task: &HttpTask| matches!(task, HttpTask::Header(..)) || is_held(task);
        if self.held.is_none() && !tasks.iter().any(concerns) {
            return (tasks, None);
        }
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            match task {
                HttpTask::Header(mut head, end) => {
                    self.note_head(&head);
                    if end {
                        self.add_timing(&mut head);
                    }
                    match end {
                        false => self.held = Some(head),
                        true => out.push(HttpTask::Header(head, true)),
                    }
                }
                empty if is_held(&empty) => {}
                HttpTask::Failed(error) if self.held.is_some() => return (out, Some(error)),
                task => {
                    if let Some(head) = self.held.take() {
                        let old = self.client().req_header().version == Version::HTTP_10;
                        let mut head = framed(head, &task, old);
                        self.add_timing(&mut head);
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

/// Whether no task follows this one.
fn is_end(task: &HttpTask) -> bool {
    match task {
        HttpTask::Header(_, end) | HttpTask::Body(_, end) => *end,
        HttpTask::Done | HttpTask::Trailer(_) => true,
        _ => false,
    }
}

/// Whether this task waits for the first byte: a head, or an empty chunk.
fn is_held(task: &HttpTask) -> bool {
    match task {
        HttpTask::Header(_, end) => !end,
        HttpTask::Body(Some(chunk), false) => chunk.is_empty(),
        _ => false,
    }
}

/// Frames a response whose head has lost its framing, by the first task of its body. HTTP/1.0 has no chunks: there the
/// close of the connection ends a body without a length.
pub(super) fn framed(
    mut head: Box<ResponseHeader>,
    next: &HttpTask,
    is_http_1_0: bool,
) -> Box<ResponseHeader> {
    if is_http_1_0 {
        head.remove_header(&TRANSFER_ENCODING);
    }
    if !head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING) {
        let framing = match next {
            HttpTask::Body(chunk, true) => {
                head.insert_header(CONTENT_LENGTH, chunk.as_ref().map_or(0, Bytes::len))
            }
            _ if is_http_1_0 => Ok(()),
            _ => head.insert_header(TRANSFER_ENCODING, "chunked"),
        };
        debug_assert!(framing.is_ok(), "a number and a token are header values");
    }
    head
}

impl Drop for ReplacedSession {
    fn drop(&mut self) {
        self.end_relay();
        if let Some(client) = self.client.take() {
            let left = (client, std::mem::take(&mut self.sent));
            *lock(&self.shared.left) = Some(left);
        }
    }
}

#[cfg(test)]
mod tests;
