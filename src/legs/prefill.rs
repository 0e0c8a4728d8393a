//! The prefill leg: a side task that sends the request, reads the answer to its end and says how it went.
//!
//! The task belongs to the request: given up with it, and then its connection is closed, which is what
//! tells SGLang to abort. A request that ended well lets the leg finish on its own, for [`LINGER`] at most.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::task::AtomicWaker;
use http::{HeaderMap, StatusCode, header};
use pingora_http::RequestHeader;

use crate::fleet::{Evidence, Fleet, Load, Rooms};
use crate::net::{Client, Failure, Reply, Target};
use crate::pd::{self, Leg, Route};

use super::first_event::{FIRST_EVENT_LIMIT, FirstEvent, Rejection};

/// How long prefill may still talk after decode's answer has ended. Its answer is due before decode's first
/// token, so this only bounds what is already wrong.
const LINGER: Duration = Duration::from_secs(5);

/// How much of a rejection is kept to be passed on, in bytes. SGLang's are a few hundred.
const REJECTION_LIMIT: usize = 1 << 20;

/// How the prefill leg ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// With the answer of a prompt that was computed and handed over. The body where it was asked for, else
    /// empty.
    Served(Bytes),
    /// With an answer that the client should see instead of decode's.
    Rejected(Rejection),
    /// With no answer.
    Failed(Failure),
}

/// What the request needs from prefill's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The whole body, for the merge: at most this many bytes.
    Body(usize),
    /// Nothing but the knowledge that it went well.
    Nothing,
}

/// A request's hold on its prefill leg.
///
/// Nothing of the task itself: a handle would keep 1.5 KB of it for as long as the answer streams.
pub(crate) struct PrefillLeg(Arc<Report>);

/// Where the leg says how it ended, and the request when it does not wait for it any more.
#[derive(Default)]
struct Report {
    outcome: OnceLock<Outcome>,
    /// The request. Whatever of it waits for the leg does so in one task.
    request: AtomicWaker,
    let_go: AtomicBool,
    given_up: AtomicBool,
    leg: AtomicWaker,
}

/// What the leg sends, and to whom.
pub(crate) struct PrefillRequest {
    pub(crate) client: Arc<Client>,
    pub(crate) worker: Load,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) route: Route,
    pub(crate) head: Arc<RequestHeader>,
    pub(crate) body: Bytes,
    pub(crate) keep: Keep,
    pub(crate) fleet: Arc<Fleet>,
}

impl PrefillLeg {
    /// Starts the leg.
    pub(crate) fn spawn(order: PrefillRequest) -> Self {
        let report = Arc::<Report>::default();
        let end = ReportOnDrop(report.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = order.run() => ended,
                () = end.0.unwanted() => return,
            };
            end.reported(ended);
        });
        Self(report)
    }

    /// How the leg ended, if it has.
    pub(crate) fn peek(&self) -> Option<&Outcome> {
        self.0.outcome.get()
    }

    /// Waits for the end of the leg.
    pub(crate) async fn ended(&self) {
        poll_fn(|cx| self.0.poll_ended(cx).map(drop)).await;
    }

    /// Resolves when the leg has ended badly, and never otherwise. One that was given up has not: decode's answer had
    /// made it useless.
    pub(crate) fn failure(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let report = self.0.clone();
        poll_fn(move |cx| match ready!(report.poll_ended(cx)).state() {
            state if state.is_failure() && !report.is_given_up() => Poll::Ready(()),
            _ => Poll::Pending,
        })
    }

    /// Lets the leg come to its end without the request, for [`LINGER`] at most.
    pub(crate) fn let_finish(self) {
        self.0.let_go.store(true, Ordering::Release);
        self.0.leg.wake();
    }
}

impl Drop for PrefillLeg {
    fn drop(&mut self) {
        if !self.0.let_go.load(Ordering::Acquire) {
            self.0.given_up.store(true, Ordering::Release);
            self.0.leg.wake();
        }
    }
}

impl Report {
    fn poll_ended(&self, cx: &Context<'_>) -> Poll<&Outcome> {
        if self.outcome.get().is_none() {
            self.request.register(cx.waker());
        }
        match self.outcome.get() {
            Some(outcome) => Poll::Ready(outcome),
            None => Poll::Pending,
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Resolves when nobody wants the leg any more: it was given up, or let go for too long.
    async fn unwanted(&self) {
        let given_up = poll_fn(|cx| {
            self.leg.register(cx.waker());
            match self.is_given_up() {
                false if !self.let_go.load(Ordering::Acquire) => Poll::Pending,
                given_up => Poll::Ready(given_up),
            }
        });
        if !given_up.await {
            tokio::time::sleep(LINGER).await;
        }
    }
}

/// The leg's end of the report, which says something in any case: a task that is given up or panics is dropped.
struct ReportOnDrop(Arc<Report>);

impl ReportOnDrop {
    fn reported(&self, outcome: Outcome) {
        // The first word counts.
        let _ = self.0.outcome.set(outcome);
        self.0.request.wake();
    }
}

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        let unsaid = self.0.outcome.get().is_none();
        if unsaid {
            self.reported(Outcome::Failed(Failure::Lost(
                "the leg was given up".into(),
            )));
        }
    }
}

impl Outcome {
    /// What the leg has come to.
    pub(crate) fn state(&self) -> Leg {
        match self {
            Outcome::Served(_) => Leg::Served,
            Outcome::Rejected(rejection) => Leg::Rejected(rejection.status.as_u16()),
            Outcome::Failed(failure) => failed(failure),
        }
    }
}

/// What a leg has come to that ended without an answer.
pub(crate) fn failed(failure: &Failure) -> Leg {
    match failure {
        Failure::Unreachable(_) | Failure::ConnectTimeout => Leg::Unsent,
        // As if the worker were full: it says nothing about the worker, and is over soon.
        Failure::NoSocket(_) => Leg::Rejected(503),
        Failure::Lost(_) => Leg::Lost,
        Failure::NotHttp(_) | Failure::TooLong(_) | Failure::Unusable(_) => Leg::Failed,
    }
}

/// A success without a document answers no request for tokens.
pub(crate) fn no_document(status: StatusCode) -> Option<Failure> {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
    )
    .then_some(Failure::Unusable(status))
}

/// What the end of a leg says about its worker.
pub(crate) fn evidence(leg: Leg) -> Evidence {
    match leg {
        Leg::Served => Evidence::Good,
        Leg::Unsent => Evidence::Absent,
        // The request or the load, not the worker.
        Leg::Running | Leg::Rejected(..=499 | 503) => Evidence::Neutral,
        Leg::Rejected(_) | Leg::Lost | Leg::Failed => Evidence::Bad,
    }
}

impl PrefillRequest {
    async fn run(self) -> Outcome {
        let to = Target {
            address: self.worker.address(),
            server_name: self.worker.server_name(),
            host: self.worker.host(),
            authorization: self.worker.authorization(),
        };
        let ended = match self.client.send(to, &self.head, &self.body).await {
            Ok(reply) => self.read(reply).await,
            Err(failure) => Err(failure),
        };
        let ended = ended.unwrap_or_else(Outcome::Failed);
        let evidence = evidence(ended.state());
        self.fleet.note(&self.worker, evidence, Instant::now());
        // The rooms stay taken for as long as a worker may still know them.
        drop(self.rooms);
        ended
    }

    async fn read(&self, mut reply: Reply) -> Result<Outcome, Failure> {
        let status = reply.head().status;
        if let Some(failure) = no_document(status) {
            return Err(failure);
        }
        if !status.is_success() {
            let content_type = reply.head().headers.get(header::CONTENT_TYPE).cloned();
            let body = reply.collect(REJECTION_LIMIT).await?;
            return Ok(Outcome::Rejected(Rejection {
                status,
                content_type,
                body,
            }));
        }
        let streams = is_event_stream(&reply.head().headers);
        let body = match self.keep {
            Keep::Body(limit) => reply.collect(limit).await?,
            Keep::Nothing => drain(&mut reply).await?,
        };
        let error = match streams {
            true => match FirstEvent::read(self.route, &body) {
                FirstEvent::Error(error) => Some(error),
                FirstEvent::Content | FirstEvent::Incomplete => None,
            },
            false => pd::document_error(self.route, &body),
        };
        Ok(match (error, self.keep) {
            (Some(error), _) => Outcome::Rejected(error.into()),
            (None, Keep::Body(_)) => Outcome::Served(body),
            (None, Keep::Nothing) => Outcome::Served(Bytes::new()),
        })
    }
}

/// Reads to the end, keeping the beginning: it may tell of an error. Most answers are one piece, which is not
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

/// Whether this answer is a stream of server-sent events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
