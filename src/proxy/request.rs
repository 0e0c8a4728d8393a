//! What one request knows about itself while it walks the corridor, over all its attempts.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::session::Installed;
use crate::client::{Admitted, Listener, Share};
use crate::endpoint::{ERROR_CODE, WholeResponse};
use crate::error::{DECODE_REJECTED, Fault, ProxyError};
use crate::fleet::{Lease, WorkerId};
use crate::legs::Attempt;
use crate::pd::{Boundary, ErrorShape, Facts, Injected, RequestState, Route, sse};

/// A fault has been put aside in the context; the error only ends the phases.
const FAULT: ErrorType = ErrorType::new("Fault");
/// How a request without legs ended that a worker answered with an error.
const REJECTED: &str = "rejected";
/// Another pair gets the request; the error only ends this attempt.
const AGAIN: ErrorType = ErrorType::new("Again");

/// One request, with two legs or without.
pub(crate) struct RequestContext {
    started: Instant,
    /// How long it has waited for its pairs.
    queued: Duration,
    first_byte: Option<Instant>,
    pub(super) request_id: HeaderValue,
    pub(super) route: Option<Route>,
    /// What every attempt is made of, once it has been read.
    pub(super) request: Option<Request>,
    /// The pair of the first attempt, until that begins.
    pub(super) lease: Option<Lease>,
    /// The two legs of the attempt that is going on.
    pub(super) exchange: Option<Attempt>,
    pub(super) installed: Option<Installed>,
    pub(super) course: RequestState,
    /// Workers that failed in an earlier attempt.
    pub(super) avoid: Vec<WorkerId>,
    /// What the body holds of the memory for bodies.
    pub(super) share: Option<Share>,
    fault: Option<Fault>,
    sent: Boundary,
    /// The status that the client got, 0 when it got none.
    pub(super) status: u16,
    /// How it ended, in one word: `ok`, `client_left`, `client_stalled`, or the code of a fault.
    ended: Cow<'static, str>,
    /// The fault in a sentence.
    message: Option<String>,
    /// Who served the last attempt, for the log.
    legs: String,
    /// Whose connection it came on.
    pub(super) listener: Listener,
    /// Whether that was one connection too many.
    pub(super) spare: bool,
    /// Counts the request as live until it is dropped.
    admitted: Option<Admitted>,
}

/// A request that has been read and understood.
pub(super) struct Request {
    pub(super) route: Route,
    pub(super) facts: Facts,
    /// The head of the legs, but for what each attempt and each worker adds.
    pub(super) head: Arc<RequestHeader>,
    pub(super) body: Body,
}

/// The body before and after its first attempt.
pub(super) enum Body {
    /// As the client sent it.
    Read(bytes::BytesMut),
    /// As the legs of the last attempt got it.
    Sent(Injected),
}

impl RequestContext {
    pub(super) fn new(admitted: Admitted) -> Self {
        Self {
            started: Instant::now(),
            queued: Duration::ZERO,
            first_byte: None,
            request_id: HeaderValue::from_static("-"),
            route: None,
            request: None,
            lease: None,
            exchange: None,
            installed: None,
            course: RequestState::default(),
            avoid: Vec::new(),
            share: None,
            fault: None,
            sent: Boundary::default(),
            status: 0,
            ended: "ok".into(),
            message: None,
            legs: String::new(),
            listener: Listener::Clients,
            spare: false,
            admitted: Some(admitted),
        }
    }

    /// The two legs, which every phase after `upstream_peer` has.
    pub(super) fn exchange(&mut self) -> Result<&mut Attempt> {
        self.exchange
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request without legs"))
    }

    /// Nobody waits for the end of this request: who looks at a process that leaves does not keep it.
    pub(super) fn uncount(&mut self) {
        self.admitted = None;
    }

    /// When the request came.
    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Puts the fault aside for `fail_to_proxy` and ends the phases.
    pub(super) fn fail(&mut self, fault: Fault) -> Box<Error> {
        self.fault = Some(fault);
        Error::new_in(FAULT)
    }

    /// Likewise for an error of the proxy's own.
    pub(super) fn refuse(&mut self, error: ProxyError) -> Box<Error> {
        self.fail(Fault::Own(error))
    }

    /// Both legs of this attempt end; Pingora's loop begins another one.
    pub(super) fn again(&mut self, avoid: WorkerId) -> Box<Error> {
        self.avoid.push(avoid);
        self.course.again();
        self.exchange = None;
        self.status = 0;
        let mut error = Error::new_in(AGAIN);
        error.set_retry(true);
        error
    }

    /// Whether what happens to the request has been decided already.
    pub(super) fn is_decided(&self, error: &Error) -> bool {
        self.fault.is_some() || *error.etype() == AGAIN
    }

    /// Gives the client's own session back to Pingora. Harmless when it is there already.
    pub(super) fn restore(&mut self, session: &mut Session) {
        if let Some(installed) = self.installed.take() {
            installed.restore(session);
        }
    }

    /// What the client is told; `None` when it has left.
    pub(super) fn conclude(&mut self, error: &Error) -> Option<Fault> {
        let left = match error.etype() {
            ErrorType::WriteTimedout => "client_stalled",
            _ => "client_left",
        };
        let fault = self.fault.take();
        self.ended = fault.as_ref().map_or(left, Fault::code).into();
        self.message = fault.as_ref().map(Fault::message);
        fault
    }

    /// Notes that it has waited for a pair.
    pub(super) fn note_queued(&mut self, waited: Duration) {
        self.queued += waited;
    }

    /// Notes who serves the attempt that begins now.
    pub(super) fn note_legs(&mut self, prefill: &str, decode: &str) {
        if is_logged() {
            self.legs = format!(" prefill={prefill} decode={decode}");
        }
    }

    /// Notes the status of decode's answer.
    pub(super) fn note_answer(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        if !status.is_success() {
            self.ended = DECODE_REJECTED.into();
        }
    }

    /// Notes the answer of an endpoint without legs.
    pub(super) fn note_side_answer(&mut self, answer: &WholeResponse) {
        self.status = answer.status.as_u16();
        if !answer.status.is_success() {
            let code = answer.headers.get(ERROR_CODE);
            let code = code.and_then(|code| code.to_str().ok());
            self.ended = code.unwrap_or(REJECTED).to_owned().into();
        }
    }

    /// Notes what goes to the client now.
    pub(super) fn note_sent(&mut self, piece: &Bytes) {
        if piece.is_empty() {
            return;
        }
        self.course.commit();
        self.first_byte.get_or_insert_with(Instant::now);
        if self.streams() {
            self.sent.update(piece);
        }
    }

    /// The last event of a stream that ends in this fault, separated from a half-sent one; `None` when the
    /// answer is not a stream, whose only honest end is to be cut.
    pub(super) fn error_event(&self, fault: &Fault) -> Option<Bytes> {
        if !self.streams() {
            return None;
        }
        let mut event = String::new();
        if !self.sent.is_at_event_end() {
            event.push_str("\n\n");
        }
        if ErrorShape::of(self.route) == ErrorShape::Anthropic {
            event.push_str("event: error\n");
        }
        event.push_str(&sse::error_event(&fault.event(self.route)));
        Some(event.into())
    }

    fn streams(&self) -> bool {
        self.exchange.as_ref().is_some_and(Attempt::streams)
    }

    /// One line for each finished request.
    pub(super) fn log_line(&self, session: &Session) {
        if !is_logged() {
            return;
        }
        let head = session.req_header();
        let mut more = String::new();
        if self.course.attempt() > 1 {
            let _ = write!(more, " attempts={}", self.course.attempt());
        }
        if !self.queued.is_zero() {
            let _ = write!(more, " queued_ms={:.1}", self.queued.as_secs_f64() * 1e3);
        }
        if let Some(first_byte) = self.first_byte {
            let ttft = first_byte - self.started;
            let _ = write!(more, " ttft_ms={:.1}", ttft.as_secs_f64() * 1e3);
        }
        if let Some(message) = &self.message {
            let _ = write!(more, " error={message:?}");
        }
        log::info!(
            target: "mini_lb::access",
            "request finished request_id={} method={} path={} status={} ended={}{}{more} e2e_ms={:.1} sent_bytes={}",
            self.request_id.to_str().unwrap_or("-"),
            head.method,
            head.uri.path(),
            self.status,
            self.ended,
            self.legs,
            self.started.elapsed().as_secs_f64() * 1e3,
            session.body_bytes_sent(),
        );
    }
}

/// Whether requests have lines in the log.
fn is_logged() -> bool {
    log::log_enabled!(target: "mini_lb::access", log::Level::Info)
}
