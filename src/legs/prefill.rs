//! The prefill leg: a side task that sends the request, reads the response to its end and reports the outcome.
//!
//! The task belongs to the request. When the request drops its [`PrefillLeg`], the task ends and its connection closes,
//! from which SGLang learns that the request is aborted. A request that has succeeded lets the leg finish without it,
//! for [`LINGER`] at most.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode, header};
use pingora::http::RequestHeader;

use crate::endpoint::end_to_end;
use crate::fleet::suspects::{Point, Progress};
use crate::fleet::{Evidence, Fleet, Load, Rooms};
use crate::net::{Client, Coding, Failure, Reply, Reuse, Target};
use crate::pd::{Engine, Leg, Route, Usage};

use super::first_event::{FIRST_EVENT_LIMIT, FirstEvent, Rejection};

/// How long the leg may run after decode's response has ended. Prefill responds before decode's first token, so that
/// only a worker that misbehaves reaches this limit.
const LINGER: Duration = Duration::from_secs(5);

/// The longest error response that is passed on, in bytes. SGLang's have a few hundred.
const REJECTION_LIMIT: usize = 1 << 20;

/// How long an error of prefill that tells of decode's end waits for that end. A worker that dies closes its
/// connections within milliseconds.
const CAUSE_GRACE: Duration = Duration::from_secs(1);

/// The outcome of a prefill leg.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// The prompt was computed.
    Served {
        /// The body of the response where [`Keep::Body`] asks for it, else empty.
        body: Bytes,
        /// Whether it is a stream of events.
        streams: bool,
    },
    /// An error response, which the client gets instead of decode's response.
    Rejected(Box<Rejection>),
    /// The same, and it tells of the end of decode's leg.
    Aborted(Box<Rejection>),
    /// No response.
    Failed(Failure),
}

/// The part of prefill's response that the request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The whole body, for the merge: at most this many bytes.
    Body(usize),
    /// The outcome alone.
    Nothing,
}

/// A request's handle of its prefill leg. Dropping it cancels the leg.
///
/// It shares the [`Report`] alone: a `JoinHandle` would keep 1.5 KB of the ended task for as long as the response streams.
pub(crate) struct PrefillLeg(Arc<Report>);

/// The state that the request and the task of its leg share.
#[derive(Default)]
pub(crate) struct Report {
    head_arrived: OnceLock<Instant>,
    ended: OnceLock<(Outcome, Instant)>,
    /// Wakes the request. All of its waits for the leg are in one task, so that one waker is enough.
    request: AtomicWaker,
    /// The request has succeeded: the leg may finish, for [`LINGER`] at most.
    may_finish: AtomicBool,
    cancelled: AtomicBool,
    /// Wakes the task of the leg.
    leg: AtomicWaker,
}

/// When a worker's response arrived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ResponseTimes {
    /// Its head.
    pub(crate) head: Option<Instant>,
    /// Its end, or the failure of the leg.
    pub(crate) end: Option<Instant>,
}

/// The request of a prefill leg.
pub(crate) struct PrefillRequest {
    pub(crate) engine: Engine,
    pub(crate) client: Arc<Client>,
    pub(crate) worker: Load,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) route: Route,
    pub(crate) head: Arc<RequestHeader>,
    pub(crate) body: Bytes,
    pub(crate) reuse: Reuse,
    pub(crate) keep: Keep,
    pub(crate) fleet: Arc<Fleet>,
    /// Where the request is a suspect: what is told that prefill has responded.
    pub(crate) trial: Option<Progress>,
}

impl PrefillLeg {
    /// Sends the request in a task of its own.
    pub(crate) fn spawn(request: PrefillRequest) -> Self {
        let report = Arc::<Report>::default();
        let on_drop = ReportOnDrop(report.clone());
        tokio::spawn(async move {
            let outcome = tokio::select! {
                biased;
                outcome = request.run(&on_drop.0.head_arrived) => outcome,
                () = on_drop.0.cancelled() => return,
            };
            on_drop.report(outcome);
        });
        Self(report)
    }

    /// The outcome of the leg; `None` while it runs.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.0.ended.get().map(|(outcome, _)| outcome)
    }

    /// When prefill's response arrived.
    pub(crate) fn times(&self) -> ResponseTimes {
        self.0.times()
    }

    /// What tells of the leg while it runs, and afterwards.
    pub(crate) fn report(&self) -> &Arc<Report> {
        &self.0
    }

    /// Waits for the end of the leg.
    pub(crate) async fn ended(&self) {
        poll_fn(|cx| self.0.poll_ended(cx).map(drop)).await;
    }

    /// Resolves when the leg has failed, and never otherwise; [`CAUSE_GRACE`] later where its error tells of the end of
    /// decode's leg. A cancelled leg has not failed.
    pub(crate) fn failure(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let report = self.0.clone();
        // Boxed when it is needed: every request carries this future.
        let mut grace = None;
        poll_fn(move |cx| match ready!(report.poll_ended(cx)).state() {
            _ if report.is_cancelled() => Poll::Pending,
            Leg::Aborted(_) => grace
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(CAUSE_GRACE)))
                .as_mut()
                .poll(cx),
            state if state.is_failure() => Poll::Ready(()),
            _ => Poll::Pending,
        })
    }

    /// Tells whether the leg has succeeded.
    pub(crate) fn served(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let report = self.0.clone();
        move || matches!(report.ended.get(), Some((Outcome::Served { .. }, _)))
    }

    /// Lets the leg finish without the request, for [`LINGER`] at most.
    pub(crate) fn let_finish(self) {
        self.0.may_finish.store(true, Ordering::Release);
        self.0.leg.wake();
    }
}

impl Drop for PrefillLeg {
    fn drop(&mut self) {
        if !self.0.may_finish.load(Ordering::Acquire) {
            self.0.cancelled.store(true, Ordering::Release);
            self.0.leg.wake();
        }
    }
}

impl Report {
    /// When the response arrived.
    pub(crate) fn times(&self) -> ResponseTimes {
        ResponseTimes {
            head: self.head_arrived.get().copied(),
            end: self.ended.get().map(|(_, at)| *at),
        }
    }

    fn poll_ended(&self, cx: &Context<'_>) -> Poll<&Outcome> {
        // Registered before the second look: an outcome that is set in between wakes this task again.
        if self.ended.get().is_none() {
            self.request.register(cx.waker());
        }
        match self.ended.get() {
            Some((outcome, _)) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Resolves when the leg is cancelled, or [`LINGER`] after it was allowed to finish.
    async fn cancelled(&self) {
        let cancelled = poll_fn(|cx| {
            self.leg.register(cx.waker());
            match self.is_cancelled() {
                false if !self.may_finish.load(Ordering::Acquire) => Poll::Pending,
                cancelled => Poll::Ready(cancelled),
            }
        });
        if !cancelled.await {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// Reports an outcome in any case: a task that is cancelled or panics is dropped, and the request must not wait for it.
struct ReportOnDrop(Arc<Report>);

impl ReportOnDrop {
    fn report(&self, outcome: Outcome) {
        // The first outcome counts.
        let _ = self.0.ended.set((outcome, Instant::now()));
        self.0.request.wake();
    }
}

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        if self.0.ended.get().is_none() {
            self.report(Outcome::Failed(Failure::Lost(
                "the leg was cancelled".into(),
            )));
        }
    }
}

impl Outcome {
    /// The leg's state for the verdict.
    pub(crate) fn state(&self) -> Leg {
        match self {
            Outcome::Served { .. } => Leg::Served,
            Outcome::Rejected(rejection) => Leg::Rejected(rejection.status.as_u16()),
            Outcome::Aborted(rejection) => Leg::Aborted(rejection.status.as_u16()),
            Outcome::Failed(failure) => failed(failure),
        }
    }
}

/// The state of a leg that ended without a response.
pub(crate) fn failed(failure: &Failure) -> Leg {
    match failure {
        Failure::Unreachable(_) | Failure::ConnectTimeout => Leg::Unsent,
        // As if the worker were full: having no free socket is the proxy's problem, and passes soon.
        Failure::NoSocket(_) => Leg::Rejected(503),
        Failure::Lost(_) => Leg::Lost,
        Failure::Stale(_) => Leg::Stale,
        Failure::Encoded(_) | Failure::NotHttp(_) | Failure::TooLong(_) | Failure::Unusable(_) => {
            Leg::Failed
        }
    }
}

/// The failure of a success without a document, which is no response to a request for tokens.
pub(crate) fn no_document(status: StatusCode) -> Option<Failure> {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
    )
    .then_some(Failure::Unusable(status))
}

/// The evidence that the end of a leg gives about its worker.
pub(crate) fn evidence(leg: Leg) -> Evidence {
    match leg {
        Leg::Served => Evidence::Good,
        Leg::Unsent => Evidence::Absent,
        // These tell of the request, of the load or of the other worker, or of a connection alone.
        Leg::Unused | Leg::Running | Leg::Stale | Leg::Aborted(_) | Leg::Rejected(..=499 | 503) => {
            Evidence::Neutral
        }
        Leg::Rejected(_) | Leg::Lost | Leg::Failed => Evidence::Bad,
    }
}

impl PrefillRequest {
    async fn run(self, head_arrived: &OnceLock<Instant>) -> Outcome {
        let to = Target {
            addresses: self.worker.addresses(),
            server_name: self.worker.server_name(),
            host: self.worker.host(),
            authorization: self.worker.authorization(),
        };
        // Once: a worker that sees a room again waits for a transfer that was cancelled.
        let sent = self
            .client
            .send_once(to, &self.head, &self.body, self.reuse);
        let read = match sent.await {
            Ok(reply) => {
                let _ = head_arrived.set(Instant::now());
                self.read(reply).await
            }
            Err(failure) => Err(failure),
        };
        let outcome = read.unwrap_or_else(Outcome::Failed);
        let evidence = evidence(outcome.state());
        self.fleet.note(&self.worker, evidence, Instant::now());
        if let (Some(trial), Outcome::Served { .. }) = (self.trial, &outcome) {
            trial.reached(Point::Prefilled);
        }
        // The rooms stay in use for as long as a worker may still know them.
        drop(self.rooms);
        outcome
    }

    async fn read(&self, mut reply: Reply) -> Result<Outcome, Failure> {
        let status = reply.head().status;
        if let Some(failure) = no_document(status) {
            return Err(failure);
        }
        if !status.is_success() {
            let mut headers = end_to_end(&reply.head().headers);
            let coding = Coding::of(&headers)?;
            let mut body = reply.collect(REJECTION_LIMIT).await?;
            if let Some(coding) = coding {
                body = coding.decode(&body, REJECTION_LIMIT)?;
                headers.remove(header::CONTENT_ENCODING);
            }
            return Ok(self.rejected(Box::new(Rejection {
                status,
                headers,
                body,
            })));
        }
        let streams = is_event_stream(&reply.head().headers);
        let coding = Coding::of(&reply.head().headers)?;
        let body = match self.keep {
            Keep::Body(limit) => {
                let body = reply.collect(limit).await?;
                match coding {
                    None => body,
                    Some(coding) => coding.decode(&body, limit)?,
                }
            }
            Keep::Nothing => {
                let begin = drain(&mut reply).await?;
                match coding {
                    None => begin,
                    Some(coding) => coding.decode_begin(&begin, FIRST_EVENT_LIMIT)?,
                }
            }
        };
        let error = match streams {
            true => match FirstEvent::read(self.engine, self.route, &body) {
                FirstEvent::Error(error) => Some(error),
                FirstEvent::Content | FirstEvent::Incomplete => None,
            },
            false => self.engine.document_error(self.route, &body),
        };
        if error.is_none() && self.worker.teaches() {
            self.worker.served(self.usage(&body, streams));
        }
        Ok(match (error, self.keep) {
            (Some(error), _) => self.rejected(Rejection::inside(&reply.head().headers, error)),
            (None, Keep::Body(_)) => Outcome::Served { body, streams },
            (None, Keep::Nothing) => Outcome::Served {
                body: Bytes::new(),
                streams,
            },
        })
    }

    /// What the worker reports of the prompt. The events of a batch report one prompt each.
    fn usage(&self, body: &[u8], streams: bool) -> Option<Usage> {
        match (streams, self.rooms.as_slice().len()) {
            (false, _) => Usage::of_document(body),
            (true, 1) => Usage::of_stream(body),
            (true, _) => None,
        }
    }

    fn rejected(&self, rejection: Box<Rejection>) -> Outcome {
        let is_failure = rejection.status.is_server_error();
        match is_failure && self.engine.tells_of_decode(&rejection.body) {
            true => Outcome::Aborted(rejection),
            false => Outcome::Rejected(rejection),
        }
    }
}

/// Reads a body to its end and keeps the beginning, which may be an error. Most bodies are one chunk, which is not
/// copied.
async fn drain(reply: &mut Reply) -> Result<Bytes, Failure> {
    let Some(first) = reply.chunk().await? else {
        return Ok(Bytes::new());
    };
    let mut more = BytesMut::new();
    while let Some(chunk) = reply.chunk().await? {
        if more.is_empty() {
            more.extend_from_slice(&first);
        }
        if more.len() < FIRST_EVENT_LIMIT {
            more.extend_from_slice(&chunk);
        }
    }
    Ok(if more.is_empty() {
        first
    } else {
        more.freeze()
    })
}

/// Whether this is the head of a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
