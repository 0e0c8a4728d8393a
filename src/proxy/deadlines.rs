//! The deadlines of decode's response, and the clock that watches them while the response goes to the client.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::ErrorType;
use tokio::time::Sleep;

use crate::fleet::Fleet;
use crate::limits::RequestLimits;

/// Ends decode's leg: no byte of a streamed response came in time.
pub(super) const FIRST_TOKEN_TIMEOUT: ErrorType = ErrorType::new("FirstTokenTimeout");
/// Ends decode's leg: the stream was idle for too long.
pub(super) const STREAM_IDLE_TIMEOUT: ErrorType = ErrorType::new("StreamIdleTimeout");
/// Ends decode's leg: the whole response took too long.
pub(super) const REQUEST_TIMEOUT: ErrorType = ErrorType::new("RequestTimeout");

/// Ends decode's leg: the client has the whole stream, and what follows its end marker took too long.
pub(super) const DELIVERED: ErrorType = ErrorType::new("Delivered");

/// How long the end of a stream's body may take after its end marker. Like prefill's leg, which may run as long after
/// the response.
const TAIL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long silence is excused at a time while the workers are paused, and so the time to go on when they are not any more.
const EXCUSED: Duration = Duration::from_secs(60);

/// The deadlines of decode's response. `None` is no deadline.
#[derive(Clone, Default)]
pub(super) struct Deadlines {
    /// For the first byte.
    pub(super) first_token: Option<Instant>,
    /// The longest time between two chunks.
    pub(super) stream_idle: Option<Duration>,
    /// For the end.
    pub(super) total: Option<Instant>,
    /// Workers of this fleet send nothing while it is paused: silence is then no fault.
    pub(super) fleet: Option<Arc<Fleet>>,
}

impl Deadlines {
    /// The deadlines of the response to a request that began at `started`.
    pub(super) fn new(limits: &RequestLimits, stream: bool, started: Instant) -> Self {
        if stream {
            Self {
                first_token: Some(started + limits.first_token_timeout),
                stream_idle: Some(limits.stream_idle_timeout),
                total: limits.stream_timeout.map(|limit| started + limit),
                fleet: None,
            }
        } else {
            Self {
                total: Some(started + limits.request_timeout),
                ..Self::default()
            }
        }
    }
}

/// What goes to the client past the clock.
pub(super) enum Relayed {
    Nothing,
    /// Something was last sent at this time.
    Sent(Instant),
    /// Something is being written: the client may be slow, and decode is not to blame.
    Writing,
}

/// When a deadline that a slow write has held up is looked at again.
const WRITING: Duration = Duration::from_secs(1);

/// The time on the clock of the timers, which tests turn.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Watches the deadlines with one timer, which is not moved with each chunk, but armed again when it expires early.
pub(super) struct Clock {
    deadlines: Deadlines,
    /// When the last chunk went to the client; `None` before the first.
    last_sent: Option<Instant>,
    /// The end of the tail, once the end marker of a stream has gone to the client.
    tail: Option<Instant>,
    /// Until when silence was excused; `None` if it never was.
    excused: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    pub(super) fn new(deadlines: Deadlines) -> Self {
        let mut clock = Self {
            deadlines,
            last_sent: None,
            tail: None,
            excused: None,
            timer: None,
        };
        clock.arm();
        clock
    }

    /// The next deadline, and its error.
    fn next(&self) -> Option<(Instant, ErrorType)> {
        if let Some(tail) = self.tail {
            return Some((tail, DELIVERED));
        }
        let &Deadlines {
            first_token,
            stream_idle,
            total,
            ..
        } = &self.deadlines;
        let total = total.map(|total| (total, REQUEST_TIMEOUT));
        let progress = match self.last_sent {
            None => first_token.map(|at| (self.after_excuse(at), FIRST_TOKEN_TIMEOUT)),
            Some(last) => {
                stream_idle.map(|idle| (self.after_excuse(last + idle), STREAM_IDLE_TIMEOUT))
            }
        };
        [total, progress]
            .into_iter()
            .flatten()
            .min_by_key(|(deadline, _)| *deadline)
    }

    /// Notes that a chunk went to the client, and tells when: now.
    pub(super) fn note_sent(&mut self) -> Instant {
        let now = now();
        if self.last_sent.replace(now).is_none() {
            // Another deadline counts from the first byte on.
            self.arm();
        }
        now
    }

    /// Notes that a chunk went to the client at this time.
    pub(super) fn note_sent_at(&mut self, at: Instant) {
        self.last_sent = self.last_sent.max(Some(at));
    }

    /// Notes that the end marker of a stream went to the client: the tail has the only deadline.
    pub(super) fn begin_tail(&mut self) {
        self.tail = Some(now() + TAIL_TIMEOUT);
        self.arm();
    }

    /// This deadline, or the end of the excuse if that is later.
    fn after_excuse(&self, deadline: Instant) -> Instant {
        self.excused
            .map_or(deadline, |excused| excused.max(deadline))
    }

    /// Whether silence is no fault now: the workers are paused.
    fn excuses(&self, error: &ErrorType) -> bool {
        [FIRST_TOKEN_TIMEOUT, STREAM_IDLE_TIMEOUT].contains(error)
            && self
                .deadlines
                .fleet
                .as_ref()
                .is_some_and(|fleet| fleet.is_closed())
    }

    fn arm(&mut self) {
        self.timer = self
            .next()
            .map(|(deadline, _)| Box::pin(tokio::time::sleep_until(deadline.into())));
    }

    /// Resolves when a deadline has passed.
    pub(super) async fn expired(&mut self, relayed: impl Fn() -> Relayed) -> ErrorType {
        loop {
            match self.timer.as_mut() {
                Some(timer) => timer.await,
                None => std::future::pending().await,
            }
            match relayed() {
                Relayed::Nothing => {}
                Relayed::Sent(at) => self.note_sent_at(at),
                Relayed::Writing => {
                    self.timer = Some(Box::pin(tokio::time::sleep(WRITING)));
                    continue;
                }
            }
            match self.next() {
                Some((deadline, error)) if deadline <= now() => {
                    if !self.excuses(&error) {
                        return error;
                    }
                    self.excused = Some(now() + EXCUSED);
                    self.arm();
                }
                _ => self.arm(),
            }
        }
    }
}
