//! The record of one request: what it asked for, which pair served it, when each step happened, and how it ended.
//!
//! Times are those of the monotonic clock. A step that a request did not reach has none. Steps that belong to an
//! attempt are those of the last one.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};

use crate::fleet::Worker;
use crate::pd::Route;

/// One request, with legs or without.
#[derive(Clone)]
pub(crate) struct Record {
    /// The client's `x-request-id`, or one that the proxy made.
    pub(crate) request_id: HeaderValue,
    /// The address of the client; `None` where it is not to be logged.
    pub(crate) client: Option<SocketAddr>,
    /// The name of the key that let the request in; `None` where it needed none.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) method: Method,
    /// `None` where the request target has no path. The query is kept out of every sink: it may hold a key.
    pub(crate) target: Option<PathAndQuery>,
    /// Whether the path is one for health checks.
    pub(crate) is_probe: bool,
    /// `None` for an endpoint that is answered without legs.
    pub(crate) route: Option<Route>,
    /// The workers of the last attempt; `None` before the first.
    pub(crate) pair: Option<Pair>,
    /// Samples per prompt, where they are more than one: each has a pair of its own, and a record. 0 for any other request.
    pub(crate) samples: usize,
    /// Attempts so far, from 1.
    pub(crate) attempts: u32,
    /// The attempts that failed and were followed by another one, in their order.
    pub(crate) failed: Vec<FailedAttempt>,
    /// Rooms of the last attempt, one for each prompt; 0 before the first.
    pub(crate) rooms: usize,
    /// Time spent waiting for a pair, over all attempts.
    pub(crate) queued: Duration,
    pub(crate) times: Times,
    /// Whether the response is a stream of events.
    pub(crate) streamed: bool,
    /// Bytes of the request body as the client sent it.
    pub(crate) request_bytes: usize,
    /// Bytes of the response body as the client got it.
    pub(crate) response_bytes: usize,
    /// Whole events of a streamed response that were passed on.
    pub(crate) events: u64,
    /// What the loss of a worker means for the request; `None` where no worker was lost with it.
    pub(crate) suspect: Option<Suspect>,
    /// The status that the client got; 0 when it got none.
    pub(crate) status: u16,
    /// How the request ended: `ok`, `client_left`, `client_stalled`, or the code of an error.
    pub(crate) ended: Cow<'static, str>,
    /// The error in a sentence.
    pub(crate) error: Option<String>,
}

/// What the loss of a worker means for a request that was, or may have been, the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suspect {
    /// A worker was lost with it.
    Lost,
    /// It was tried again, at workers without another suspect.
    Tried,
    /// It was not sent to another worker.
    Refused,
}

impl Suspect {
    /// The word for the log.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Tried => "tried",
            Self::Refused => "refused",
        }
    }
}

/// The two workers of an attempt.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) prefill: Arc<Worker>,
    pub(crate) decode: Arc<Worker>,
}

/// An attempt that was followed by another one.
#[derive(Clone)]
pub(crate) struct FailedAttempt {
    /// The worker to blame.
    pub(crate) worker: Arc<Worker>,
    pub(crate) cause: Cause,
}

/// Why a leg failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The code of the error.
    Code(&'static str),
    /// The worker's own error response with this status.
    Rejected(u16),
}

/// When each step of a request happened, in the order in which they usually do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The head of the request was there.
    pub(crate) started: Instant,
    /// Its body was read and parsed.
    pub(crate) read: Option<Instant>,
    /// A pair was selected.
    pub(crate) selected: Option<Instant>,
    /// Both legs were dispatched.
    pub(crate) sent: Option<Instant>,
    /// The head of prefill's response arrived.
    pub(crate) prefill_head: Option<Instant>,
    /// Prefill's response ended, or its leg failed.
    pub(crate) prefill_end: Option<Instant>,
    /// The head of decode's response arrived.
    pub(crate) decode_head: Option<Instant>,
    /// The first byte of the response's body went to the client.
    pub(crate) first_byte: Option<Instant>,
    /// The request was over: its last byte was sent, or it failed.
    pub(crate) ended: Option<Instant>,
}

impl Record {
    /// The record of a request that begins now.
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            request_id: HeaderValue::from_static("-"),
            client: None,
            key: None,
            method: Method::default(),
            target: None,
            is_probe: false,
            route: None,
            pair: None,
            samples: 0,
            attempts: 1,
            failed: Vec::new(),
            rooms: 0,
            queued: Duration::ZERO,
            times: Times::new(started),
            streamed: false,
            request_bytes: 0,
            response_bytes: 0,
            events: 0,
            suspect: None,
            status: 0,
            ended: "ok".into(),
            error: None,
        }
    }

    /// The path of the request, without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }
}

/// `prefill_lost`, or `rejected_503`.
impl Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Code(code) => f.write_str(code),
            Cause::Rejected(status) => write!(f, "rejected_{status}"),
        }
    }
}

impl Times {
    fn new(started: Instant) -> Self {
        Self {
            started,
            read: None,
            selected: None,
            sent: None,
            prefill_head: None,
            prefill_end: None,
            decode_head: None,
            first_byte: None,
            ended: None,
        }
    }

    /// Time to the first byte of the response's body.
    pub(crate) fn first_byte(&self) -> Option<Duration> {
        Some(self.first_byte?.saturating_duration_since(self.started))
    }

    /// Prefill's part of it: from the dispatch of both legs to the end of prefill's response, or to its failure.
    pub(crate) fn prefill(&self) -> Option<Duration> {
        Some(self.prefill_end?.saturating_duration_since(self.sent?))
    }

    /// Decode's part: from the end of prefill's response to the first byte; zero where that came before.
    pub(crate) fn decode(&self) -> Option<Duration> {
        Some(
            self.first_byte?
                .saturating_duration_since(self.prefill_end?),
        )
    }

    /// Time to the end of the request; zero while it runs.
    pub(crate) fn e2e(&self) -> Duration {
        self.ended
            .map_or(Duration::ZERO, |ended| ended - self.started)
    }
}
