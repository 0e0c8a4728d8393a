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
use http::{HeaderValue, Method, Version};

use super::trace::{LegSpans, Trace};
use crate::fleet::{Forecast, Spread, Worker};
use crate::pd::{Leg, Route};

/// One request, with legs or without.
#[derive(Clone)]
pub(crate) struct Record {
    /// Tells requests apart that have the same id, where it is followed while it is live. 0 before that; samples have that of
    /// their request.
    pub(crate) number: u64,
    /// The client's `x-request-id`, or one that the proxy made.
    pub(crate) request_id: HeaderValue,
    /// The address of the client; `None` where it is not to be logged.
    pub(crate) client: Option<SocketAddr>,
    /// The name of the key that let the request in; `None` where it needed none.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) method: Method,
    /// The version of HTTP that the client spoke.
    pub(crate) version: Version,
    /// `None` where the request target has no path. The query is kept out of every sink: it may hold a key.
    pub(crate) target: Option<PathAndQuery>,
    /// Whether the path is one for health checks.
    pub(crate) is_probe: bool,
    /// `None` for an endpoint that is answered without legs.
    pub(crate) route: Option<Route>,
    /// The workers of the last attempt; `None` before the first.
    pub(crate) pair: Option<Pair>,
    /// The ranks of the prefill worker that the prompts of the last attempt are on; `None` where none was chosen.
    pub(crate) spread: Option<Spread>,
    /// What the policy expected of the prefill worker of the last attempt, and what came; `None` where it does not learn.
    pub(crate) forecast: Option<Arc<Forecast>>,
    /// Whether decode computes the prompt in the last attempt, so that its pair is one worker.
    pub(crate) alone: bool,
    /// Samples per prompt, where they are more than one: each has a pair of its own, and a record. 0 for any other request.
    pub(crate) samples: usize,
    /// How far the legs of the last attempt came.
    pub(crate) legs: Legs,
    /// The sample that this is the record of, from 0; `None` for a request.
    pub(crate) sample: Option<usize>,
    /// The records of the samples that have ended.
    pub(crate) sampled: Vec<Arc<Record>>,
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
    /// The ids of its spans; `None` without tracing.
    pub(crate) trace: Option<Box<Trace>>,
}

/// What the loss of a worker means for a request that was, or may have been, the reason.
///
/// The graver comes last: a request for samples has that of the sample that fared worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suspect {
    /// It was tried again, apart from other suspects.
    Tried,
    /// A worker was lost with it.
    Lost,
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
    pub(crate) pair: Pair,
    pub(crate) legs: Legs,
    /// Its steps; it ended when the next attempt began.
    pub(crate) times: Times,
    /// The ids of the spans of its legs.
    #[cfg_attr(not(feature = "otel"), allow(dead_code, reason = "nothing is traced"))]
    pub(crate) spans: LegSpans,
}

/// How far the legs of an attempt came. One that still runs when the attempt ends is cancelled, but for prefill's leg of a
/// request that was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Legs {
    pub(crate) prefill: Leg,
    /// Served from the head of decode's response on.
    pub(crate) decode: Leg,
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
    /// The first byte of its body arrived.
    pub(crate) decode_first: Option<Instant>,
    /// The first byte of the response's body went to the client.
    pub(crate) first_byte: Option<Instant>,
    /// The request was over: its last byte was sent, or it failed.
    pub(crate) ended: Option<Instant>,
}

/// The time to the first byte of a stream, step by step. The parts add up to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts([Duration; Part::ALL.len()]);

/// One step of the time to the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// From the head of the request to the end of its body.
    Read,
    /// Until a pair was selected.
    Queue,
    /// Attempts that failed, with the pauses between them.
    Retry,
    /// Until both legs were sent.
    Send,
    /// Until prefill had responded.
    Prefill,
    /// Until the first byte of decode's body: the transfer of the KV cache and decode's first step.
    Decode,
    /// Until the first byte went to the client.
    Relay,
}

impl Part {
    /// All of them, in their order.
    pub(crate) const ALL: [Part; 7] = [
        Part::Read,
        Part::Queue,
        Part::Retry,
        Part::Send,
        Part::Prefill,
        Part::Decode,
        Part::Relay,
    ];

    /// The name of the part in every sink.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Part::Read => "read",
            Part::Queue => "queue",
            Part::Retry => "retry",
            Part::Send => "send",
            Part::Prefill => "prefill",
            Part::Decode => "decode",
            Part::Relay => "relay",
        }
    }
}

impl Parts {
    /// Each part with its time.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Part, Duration)> + '_ {
        Part::ALL.into_iter().zip(self.0)
    }
}

impl Record {
    /// The record of a request that begins now.
    pub(crate) fn new(started: Instant) -> Self {
        Self {
            number: 0,
            request_id: HeaderValue::from_static("-"),
            client: None,
            key: None,
            method: Method::default(),
            version: Version::HTTP_11,
            target: None,
            is_probe: false,
            route: None,
            pair: None,
            spread: None,
            forecast: None,
            alone: false,
            samples: 0,
            legs: Legs {
                prefill: Leg::Running,
                decode: Leg::Running,
            },
            sample: None,
            sampled: Vec::new(),
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
            trace: None,
        }
    }

    /// Where the time to the first byte of a stream went; `None` where the response is no stream, or has not begun.
    pub(crate) fn parts(&self) -> Option<Parts> {
        let end = self.times.first_byte.filter(|_| self.streamed)?;
        let (parts, _) = self.times.split(self.queued, self.attempts, Some(end));
        Some(parts)
    }

    /// The parts that are over already, of any response: until its first byte goes to the client, all but the last one.
    pub(crate) fn parts_over(&self) -> impl Iterator<Item = (Part, Duration)> {
        let (parts, over) = self.times.split(self.queued, self.attempts, None);
        let parts = Part::ALL.into_iter().zip(parts.0);
        parts.filter(move |(part, _)| over[*part as usize])
    }

    /// The version of HTTP that the client spoke, as it is in every sink.
    pub(crate) fn version(&self) -> &'static str {
        match self.version {
            Version::HTTP_2 => "2",
            Version::HTTP_10 => "1.0",
            _ => "1.1",
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
            decode_first: None,
            first_byte: None,
            ended: None,
        }
    }

    /// The parts of the time until `end`, and which of them are over. Without an end, those that are not over have no time.
    pub(super) fn split(
        &self,
        queued: Duration,
        attempts: u32,
        end: Option<Instant>,
    ) -> (Parts, [bool; Part::ALL.len()]) {
        let times = self;
        let selected = times.selected.or(times.read);
        // Prefill may end after decode has begun: the time from there on is not its own.
        let prefill_end = times.prefill_end.or(times.decode_first);
        let steps = [
            (Part::Read, times.read),
            (Part::Queue, selected),
            (Part::Send, times.sent),
            (
                Part::Prefill,
                prefill_end.map(|at| at.min(times.decode_first.or(end).unwrap_or(at))),
            ),
            (Part::Decode, times.decode_first),
            (Part::Relay, end),
        ];
        let mut parts = Parts::default();
        let mut over = [false; Part::ALL.len()];
        let mut before = times.started;
        for (part, at) in steps {
            over[part as usize] = at.is_some();
            let at = at.map_or(before, |at| at.min(end.unwrap_or(at)));
            let at = at.max(before);
            parts.0[part as usize] = at - before;
            before = at;
        }
        over[Part::Queue as usize] = times.selected.is_some();
        let waited = parts.0[Part::Queue as usize];
        let queued = waited.min(queued);
        if attempts > 1 {
            parts.0[Part::Queue as usize] = queued;
            parts.0[Part::Retry as usize] = waited - queued;
            over[Part::Retry as usize] = times.selected.is_some();
        }
        (parts, over)
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

#[cfg(test)]
mod tests;
