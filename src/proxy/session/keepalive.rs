//! Comments that keep a silent stream alive, where the configuration asks for them: balancers in front of this one cut a
//! connection that carries nothing for a minute.
//!
//! A comment goes out only between two events. Before the first byte the head goes out with it, and the status is given
//! up: whatever fails from then on is an error event. SGLang sends the head of a chat with its first token, so that the
//! head is then the balancer's own, and decode's is dropped when it comes. Comments count for nothing else: not as the
//! first byte, not as progress for a deadline.
//!
//! A write that waits is resumed, not repeated: Pingora drops the future that watches the client whenever a worker sends
//! something. Source: pingora-core 0.9.1 `protocols/http/v1/server.rs` (`write_proxy_tasks`).

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Version;
use http::header::CONTENT_LENGTH;
use pingora::Error;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use tokio::time::Sleep;

use super::{HEAD_IS_OUT, ReplacedSession, framed};
use crate::legs;

/// A comment is a line that begins with a colon, and clients drop it. The blank line ends it as it ends an event.
/// Source: the HTML standard, "Server-sent events".
pub(in super::super) const COMMENT: Bytes = Bytes::from_static(b": keepalive\n\n");

/// When the next comment is due, and the head that goes out with the first one.
pub(in super::super) struct Keepalive {
    /// The longest silence.
    every: Duration,
    /// When something last went to the client; before that, when the request began.
    last: tokio::time::Instant,
    timer: Pin<Box<Sleep>>,
    /// The balancer's own head. `None` where the head must be decode's.
    head: Option<Box<ResponseHeader>>,
    /// Whether that has gone out already, while prefill had the request.
    pub(super) head_is_out: bool,
}

impl Keepalive {
    /// Comments after each silence of this length. `head` goes out before decode's has come.
    pub(in super::super) fn new(
        every: Duration,
        started: Instant,
        head: Option<Box<ResponseHeader>>,
    ) -> Self {
        let last = tokio::time::Instant::from_std(started);
        Self {
            every,
            last,
            timer: Box::pin(tokio::time::sleep_until(last + every)),
            head,
            head_is_out: false,
        }
    }

    /// The same where the balancer's own head went out with a comment at `last`.
    pub(in super::super) fn after_head(every: Duration, last: Instant) -> Self {
        Self {
            head_is_out: true,
            ..Self::new(every, last, None)
        }
    }

    /// Notes that something goes to the client.
    pub(super) fn note_sent(&mut self) {
        self.last = tokio::time::Instant::now();
    }

    /// Notes that something went to the client at this time.
    pub(super) fn note_sent_at(&mut self, at: tokio::time::Instant) {
        self.last = self.last.max(at);
    }

    /// Whether the silence has lasted.
    pub(super) fn is_due(&self) -> bool {
        self.last + self.every <= tokio::time::Instant::now()
    }

    /// Ready when the silence has lasted.
    pub(super) fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            if self.is_due() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(self.last + self.every);
        }
    }
}

impl ReplacedSession {
    /// Queues a comment for the client, where one may stand now.
    pub(super) fn keep_alive(&mut self) {
        self.note_relayed();
        if self.keepalive.as_ref().is_none_or(|kept| !kept.is_due()) {
            return;
        }
        if self.relay.as_ref().is_some_and(|relay| relay.pause()) {
            self.end_relay();
        }
        let Some(keepalive) = &mut self.keepalive else {
            return;
        };
        keepalive.note_sent();
        let comment = HttpTask::Body(Some(COMMENT), false);
        if !self.sent.head_is_out && self.sent.first_byte.is_none() {
            let decodes = self.held.take_if(|head| carries_comments(head));
            let own = || keepalive.head.take_if(|_| self.held.is_none());
            let Some(head) = decodes.or_else(own) else {
                return;
            };
            self.is_stream = true;
            let old = self.client().req_header().version == Version::HTTP_10;
            let mut head = framed(head, &comment, old);
            self.add_timing(&mut head);
            if old && !head.headers.contains_key(CONTENT_LENGTH) || self.shutdown.has_begun() {
                self.client_mut().set_keepalive(None);
            }
            self.sent.head_is_out = true;
            self.shared.head_is_out.store(true, Ordering::Relaxed);
            self.client_mut()
                .send_downstream_proxy_task(HttpTask::Header(head, false));
        } else if !self.is_stream
            || self.relay.is_some()
            || self.sent.delivered
            || !self.sent.events.is_read()
            || !self.sent.events.is_at_event_end()
        {
            return;
        }
        self.client_mut().send_downstream_proxy_task(comment);
    }

    /// Whether a comment is queued whose write has not ended.
    pub(super) fn has_comments(&self) -> bool {
        self.keepalive.is_some() && self.client().has_pending_downstream_proxy_tasks()
    }

    /// Takes decode's head out of the tasks: another one is out. The failure where the response does not fit to it.
    pub(super) fn drop_head(&self, tasks: &mut Vec<HttpTask>) -> Option<Box<Error>> {
        let index = tasks
            .iter()
            .position(|task| matches!(task, HttpTask::Header(..)))?;
        if let HttpTask::Header(head, end) = &tasks[index] {
            if !head.status.is_informational() && !is_readable_stream(head) {
                return Some(Error::new(HEAD_IS_OUT));
            }
            match end {
                true => tasks[index] = HttpTask::Body(None, true),
                false => drop(tasks.remove(index)),
            }
        }
        None
    }
}

/// Whether a comment can go out behind this head.
fn carries_comments(head: &ResponseHeader) -> bool {
    is_readable_stream(head) && !head.headers.contains_key(CONTENT_LENGTH)
}

/// Whether this is the head of a stream whose events can be read.
fn is_readable_stream(head: &ResponseHeader) -> bool {
    head.status.is_success()
        && legs::is_event_stream(&head.headers)
        && !legs::is_encoded(&head.headers)
}
