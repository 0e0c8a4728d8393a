//! The relay: a stream that passes unchanged goes from decode's socket to the client's without Pingora.
//!
//! From the first event on that has gone to the client, nothing is left to be decided about the bytes of a stream that is
//! not merged. Pingora would still take each event through two futures, a channel, its filters and two parsers. The relay
//! borrows decode's connection (`net`) and the writing side of the client's (`client`), and moves bytes in a task of its own,
//! which has no other future to poll: an event costs one read and one write. It follows the events as the session does.
//!
//! Everything else stays where it is: the session, whose futures Pingora polls meanwhile, watches the client, the deadlines
//! and the shutdown, and looks at the relay when a timer fires. The relay ends
//!
//! * with what is Pingora's, to which it gives decode's connection back: the end of the stream, its failure, and what is no
//!   plain chunk;
//! * behind the end marker, so that [`super::tail`] has the rest;
//! * when a write to the client fails or stalls;
//! * when the session stops it, because the request is over. Decode's connection then closes.
//!
//! One read is written before the next one is made, so that a slow client slows decode down.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::Version;
use http::header::TRANSFER_ENCODING;
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType};
use tokio::task::AbortHandle;
use tokio::time::Sleep;

use super::super::deadlines::{Relayed, now};
use super::{ReplacedSession, Shared, lock};
use crate::client::{self, ClientWriter};
use crate::net::{LentStream, Next};
use crate::pd::StreamEnd;
use crate::telemetry::Gaps;

/// A relay that runs, or has ended and waits for the session to notice.
pub(super) struct Relay {
    moving: Arc<Mutex<Moving>>,
    task: AbortHandle,
}

/// What the relay's task and the session share.
struct Moving {
    /// `None` once Pingora has it back, or the relay was stopped.
    decode: Option<LentStream>,
    client: ClientWriter,
    /// Who goes on once that has been written.
    next: Next,
    output: Output,
    followed: Followed,
    /// Why the relay has ended.
    ended: Option<Ended>,
    /// The session, which waits for that.
    waiter: Option<Waker>,
}

/// Bytes on their way to the client.
#[derive(Default)]
struct Output {
    /// Those of the last read that the client's socket did not take at once.
    pending: Vec<u8>,
    /// How many of these have been written.
    written: usize,
    /// Whether something of the last read has not been sent, and may never be.
    is_writing: bool,
    /// The longest time that the write of one read may take.
    timeout: Option<Duration>,
    /// Set while the client's socket takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

/// What went to the client.
struct Followed {
    shared: Arc<Shared>,
    events: StreamEnd,
    gaps: Option<Gaps>,
    /// Bytes of the body that have been sent.
    bytes: usize,
    /// Those of the last read.
    latest: usize,
    /// When something was last sent; `None` before the first.
    last_sent: Option<Instant>,
}

enum Ended {
    /// Decode's connection is Pingora's again.
    GivenBack,
    /// The client is gone, or takes nothing.
    Failed(Box<Error>),
}

impl Relay {
    fn start(moving: Moving) -> Self {
        let moving = Arc::new(Mutex::new(moving));
        let moved = moving.clone();
        // Ends with the stream, or by `stop`.
        let task = tokio::spawn(poll_fn(move |cx| lock(&moved).poll(cx)));
        Self {
            moving,
            task: task.abort_handle(),
        }
    }

    /// Ready once the relay has ended.
    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut moving = lock(&self.moving);
        if moving.ended.is_some() {
            return Poll::Ready(());
        }
        moving.waiter = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What the relay has sent.
    pub(super) fn relayed(&self) -> Relayed {
        let moving = lock(&self.moving);
        match moving.followed.last_sent {
            _ if moving.output.is_writing => Relayed::Writing,
            Some(last) => Relayed::Sent(last),
            None => Relayed::Nothing,
        }
    }

    /// Whether the client has the whole stream.
    pub(super) fn is_delivered(&self) -> bool {
        lock(&self.moving).is_delivered()
    }

    /// Gives decode's connection back between two events. Whether that was possible.
    pub(super) fn pause(&self) -> bool {
        let mut moving = lock(&self.moving);
        let can = moving.followed.events.is_at_event_end() && moving.can_give_back();
        if can {
            moving.give_back();
        }
        can
    }

    /// Ends the relay, and closes decode's connection unless that was given back.
    fn stop(self) {
        self.task.abort();
        let decode = lock(&self.moving).decode.take();
        drop(decode);
    }
}

impl Moving {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended.is_none() {
            match ready!(self.poll_move(cx)) {
                Ok(()) => self.give_back(),
                Err(error) => self.end(Ended::Failed(error.into_down())),
            }
        }
        Poll::Ready(())
    }

    /// Moves bytes until Pingora has to go on.
    fn poll_move(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Box<Error>>> {
        loop {
            if self.output.is_writing {
                ready!(self.output.poll_write(cx, &self.client))?;
                self.followed.note_sent();
            }
            if self.next == Next::Pingora || self.is_delivered() && self.can_give_back() {
                return Poll::Ready(Ok(()));
            }
            let Some(decode) = &mut self.decode else {
                return Poll::Ready(Ok(()));
            };
            let (output, followed, client) = (&mut self.output, &mut self.followed, &self.client);
            let mut begun = Ok(());
            self.next = ready!(decode.poll_next(cx, |cx, payload, chunk| {
                followed.follow(payload);
                begun = output.begin(cx, client, chunk);
            }));
            begun?;
        }
    }

    fn is_delivered(&self) -> bool {
        self.followed.events.is_complete() && !self.output.is_writing
    }

    fn can_give_back(&self) -> bool {
        let decode = self.decode.as_ref();
        !self.output.is_writing && decode.is_some_and(LentStream::can_give_back)
    }

    fn give_back(&mut self) {
        if let Some(decode) = self.decode.take() {
            decode.give_back();
        }
        self.end(Ended::GivenBack);
    }

    fn end(&mut self, ended: Ended) {
        self.decode = None;
        self.ended = Some(ended);
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }
}

impl Output {
    /// Begins to write a chunk, of which the socket may take a part.
    fn begin(
        &mut self,
        cx: &mut Context<'_>,
        client: &ClientWriter,
        chunk: &[u8],
    ) -> Result<(), Box<Error>> {
        self.is_writing = true;
        let taken = match client.poll_write(cx, chunk) {
            Poll::Ready(taken) => taken.map_err(write_error)?,
            Poll::Pending => 0,
        };
        self.pending.extend_from_slice(&chunk[taken..]);
        Ok(())
    }

    /// Writes and sends the rest.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        client: &ClientWriter,
    ) -> Poll<Result<(), Box<Error>>> {
        if let Poll::Ready(sent) = self.poll_send(cx, client) {
            sent.map_err(write_error)?;
            // Most streams never need it again.
            self.pending = Vec::new();
            self.written = 0;
            self.stall = None;
            self.is_writing = false;
            return Poll::Ready(Ok(()));
        }
        let Some(timeout) = self.timeout else {
            return Poll::Pending;
        };
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(Error::e_explain(
            ErrorType::WriteTimedout,
            "writing a stream",
        ))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, client: &ClientWriter) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            match ready!(client.poll_write(cx, &self.pending[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        client.poll_flush(cx)
    }
}

fn write_error(error: io::Error) -> Box<Error> {
    Error::because(ErrorType::WriteError, "while writing a stream", error)
}

impl Followed {
    /// Follows the events in bytes that go to the client now.
    fn follow(&mut self, payload: &[u8]) {
        self.latest = payload.len();
        self.events.update(payload);
        let events = self.events.events();
        self.shared.note_events(events);
    }

    /// Notes that these bytes have been sent.
    fn note_sent(&mut self) {
        let now = now();
        self.last_sent = Some(now);
        self.bytes += std::mem::take(&mut self.latest);
        if let Some(gaps) = &mut self.gaps {
            note_gaps(gaps, &self.events, now);
        }
    }
}

/// Notes that the events that were followed have left at this moment. The end marker is none.
#[inline]
pub(super) fn note_gaps(gaps: &mut Gaps, events: &StreamEnd, at: Instant) {
    if events.is_read() {
        let marker = u64::from(events.is_complete());
        gaps.note(events.events().saturating_sub(marker), at);
    }
}

impl ReplacedSession {
    /// Starts the relay if it may move what comes next.
    pub(super) fn begin_relay(&mut self) {
        let Some(decode) = self.shared.decode.get() else {
            return;
        };
        if self.relay.is_some() || self.sent.first_byte.is_none() || self.sent.delivered {
            return;
        }
        let client = self.client();
        if !self.is_stream
            || !self.sent.events.is_read()
            || !writes_chunks(client)
            || client.has_pending_downstream_proxy_tasks()
        {
            return;
        }
        // All that Pingora has read must have gone out.
        if let Some(writer) = client::writer(client)
            && let Some(decode) = decode.borrow(self.passed)
        {
            self.relay = Some(Relay::start(Moving {
                decode: Some(decode),
                client: writer,
                next: Next::More,
                output: Output {
                    timeout: client.get_write_timeout(),
                    ..Output::default()
                },
                followed: Followed {
                    shared: self.shared.clone(),
                    events: std::mem::take(&mut self.sent.events),
                    gaps: self.gaps.take(),
                    bytes: 0,
                    latest: 0,
                    last_sent: None,
                },
                ended: None,
                waiter: None,
            }));
        }
    }

    /// Ends the relay, if there is one, and takes back what it has followed. The error if the client is gone.
    pub(super) fn end_relay(&mut self) -> Option<Box<Error>> {
        let relay = self.relay.take()?;
        let moving = relay.moving.clone();
        relay.stop();
        let mut moving = lock(&moving);
        let followed = &mut moving.followed;
        self.sent.events = std::mem::take(&mut followed.events);
        self.gaps = followed.gaps.take();
        self.sent.relayed += followed.bytes;
        self.passed += followed.bytes as u64;
        if let Some(last) = followed.last_sent {
            self.clock.note_sent_at(last);
        }
        self.sent.is_cut = moving.output.is_writing;
        if self.sent.events.is_complete() && !moving.output.is_writing {
            self.sent.delivered = true;
            self.clock.begin_tail();
        }
        match moving.ended.take() {
            Some(Ended::Failed(error)) => Some(error),
            Some(Ended::GivenBack) | None => None,
        }
    }

    /// Notes what the relay has sent, for the next comment.
    pub(super) fn note_relayed(&mut self) {
        if let Some(relay) = &self.relay
            && let Relayed::Sent(last) = relay.relayed()
            && let Some(keepalive) = &mut self.keepalive
        {
            keepalive.note_sent_at(last.into());
        }
    }
}

/// Whether the body of this session's response goes out in chunks.
fn writes_chunks(client: &ServerSession) -> bool {
    client.req_header().version == Version::HTTP_11
        && client
            .response_written()
            .is_some_and(|head| head.headers.contains_key(TRANSFER_ENCODING))
}

#[cfg(test)]
mod tests;
