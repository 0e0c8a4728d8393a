//! What one request knows about itself while it walks the corridor.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, StatusCode};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::answer::{Answer, Spoiled};
use super::body::{INTERRUPTED, Installed};
use super::error::{DECODE_REJECTED, Fault, ProxyError};
use super::inflight::Admitted;
use super::prefill::{Outcome, PrefillLeg, is_event_stream};
use crate::fleet::{Load, Role, Rooms};
use crate::net::Failure;
use crate::pd::{
    Boundary, ErrorShape, Facts, LegFailure, Merge, PromptSide, Route, prefill_is_shown, sse,
};

/// A fault has been put aside in the context; the error only ends the phases.
const FAULT: ErrorType = ErrorType::new("Fault");

/// One request, with two legs or without.
pub(crate) struct Ctx {
    started: Instant,
    first_byte: Option<Instant>,
    pub(super) request_id: HeaderValue,
    pub(super) route: Option<Route>,
    pub(super) exchange: Option<Exchange>,
    pub(super) installed: Option<Installed>,
    fault: Option<Fault>,
    sent: Boundary,
    /// The status that the client got, 0 when it got none.
    pub(super) status: u16,
    /// How it ended, in one word: `ok`, `client_left`, or the code of a fault.
    ended: &'static str,
    /// The fault in a sentence.
    message: Option<String>,
    /// Counts the request as live until it is dropped.
    _admitted: Admitted,
}

/// The two legs of one request.
pub(super) struct Exchange {
    route: Route,
    facts: Facts,
    prefill_url: String,
    /// `None` once the leg has been cancelled or let go.
    prefill: Option<PrefillLeg>,
    pub(super) decode: Load,
    /// The head that both legs share.
    pub(super) head: RequestHeader,
    answer: Answer,
    streams: bool,
    /// Whether something of decode's body went on to the client.
    begun: bool,
    /// Taken until both legs have ended: the prefill leg holds the other reference.
    _rooms: Arc<Rooms>,
}

/// Why a phase cannot go on.
pub(super) enum Stop {
    /// The client gets this instead.
    Fault(Fault),
    /// The client's session ended: it has left, or the prefill leg interrupted it.
    Session(Box<Error>),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl From<ProxyError> for Stop {
    fn from(error: ProxyError) -> Self {
        Stop::Fault(Fault::Own(error))
    }
}

impl Ctx {
    pub(super) fn new(admitted: Admitted) -> Self {
        Self {
            started: Instant::now(),
            first_byte: None,
            request_id: HeaderValue::from_static("-"),
            route: None,
            exchange: None,
            installed: None,
            fault: None,
            sent: Boundary::default(),
            status: 0,
            ended: "ok",
            message: None,
            _admitted: admitted,
        }
    }

    /// The two legs, which every phase after `request_filter` has.
    pub(super) fn exchange(&mut self) -> Result<&mut Exchange> {
        self.exchange
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request without legs"))
    }

    /// Puts the fault aside for `fail_to_proxy` and ends the phases.
    pub(super) fn fail(&mut self, fault: Fault) -> Box<Error> {
        self.fault = Some(fault);
        Error::new_in(FAULT)
    }

    /// Likewise for whatever stopped a phase.
    pub(super) fn stop(&mut self, stop: Stop) -> Box<Error> {
        match stop {
            Stop::Fault(fault) => self.fail(fault),
            Stop::Session(error) => error,
        }
    }

    /// Likewise for an error of the proxy's own.
    pub(super) fn refuse(&mut self, error: ProxyError) -> Box<Error> {
        self.fail(Fault::Own(error))
    }

    /// Gives the client's own session back to Pingora. Harmless when it is there already.
    pub(super) fn restore(&mut self, session: &mut Session) {
        if let Some(installed) = self.installed.take() {
            installed.restore(session);
        }
    }

    /// What the client is told about the error that ended the phases; `None` when the client has left.
    pub(super) fn conclude(&mut self, error: &Error) -> Option<Fault> {
        let fault = self.fault.take().or_else(|| self.blame(error));
        self.ended = fault.as_ref().map_or("client_left", Fault::code);
        self.message = fault.as_ref().map(Fault::message);
        fault
    }

    fn blame(&self, error: &Error) -> Option<Fault> {
        let prefill = self.exchange.as_ref().and_then(Exchange::prefill_fault);
        if *error.etype() == INTERRUPTED {
            return prefill;
        }
        if *error.esource() == ErrorSource::Downstream {
            return None;
        }
        let Some(exchange) = self.exchange.as_ref() else {
            return Some(Fault::Own(ProxyError::Internal(error.to_string())));
        };
        match prefill {
            Some(fault) if prefill_is_shown(fault.leg_failure(), LegFailure::NoAnswer) => {
                Some(fault)
            }
            _ => Some(Fault::Own(ProxyError::Leg(
                Role::Decode,
                exchange.decode.url().to_owned(),
                Failure::from_pingora(error, exchange.decode.peer()),
            ))),
        }
    }

    /// Notes the status of decode's answer.
    pub(super) fn note_answer(&mut self, status: StatusCode) {
        self.status = status.as_u16();
        if !status.is_success() {
            self.ended = DECODE_REJECTED;
        }
    }

    /// Notes what goes to the client now.
    pub(super) fn note_sent(&mut self, piece: &Bytes) {
        if !piece.is_empty() {
            self.first_byte.get_or_insert_with(Instant::now);
            if self
                .exchange
                .as_ref()
                .is_some_and(|exchange| exchange.streams)
            {
                self.sent.update(piece);
            }
        }
    }

    /// The last event of a stream that ends in this fault, separated from a half-sent one; `None` when the
    /// answer is not a stream, whose only honest end is to be cut.
    pub(super) fn error_event(&self, fault: &Fault) -> Option<Bytes> {
        let exchange = self.exchange.as_ref().filter(|exchange| exchange.streams)?;
        let mut event = String::new();
        if !self.sent.is_at_event_end() {
            event.push_str("\n\n");
        }
        if ErrorShape::of(self.route) == ErrorShape::Anthropic {
            event.push_str("event: error\n");
        }
        event.push_str(&sse::error_event(&fault.event(Some(exchange.route))));
        Some(event.into())
    }

    /// The request has ended well: its prefill leg may come to its own end.
    pub(super) fn let_prefill_finish(&mut self) {
        if let Some(leg) = self
            .exchange
            .as_mut()
            .and_then(|exchange| exchange.prefill.take())
        {
            leg.let_finish();
        }
    }

    /// One line for each finished request.
    pub(super) fn log_line(&self, session: &Session) {
        if !log::log_enabled!(target: "mini_lb::access", log::Level::Info) {
            return;
        }
        let head = session.req_header();
        let mut legs = String::new();
        if let Some(exchange) = &self.exchange {
            let _ = write!(
                legs,
                " prefill={} decode={}",
                exchange.prefill_url,
                exchange.decode.url()
            );
        }
        if let Some(first_byte) = self.first_byte {
            let ttft = first_byte - self.started;
            let _ = write!(legs, " ttft_ms={:.1}", ttft.as_secs_f64() * 1e3);
        }
        if let Some(message) = &self.message {
            let _ = write!(legs, " error={message:?}");
        }
        log::info!(
            target: "mini_lb::access",
            "request finished request_id={} method={} path={} status={} ended={}{legs} e2e_ms={:.1} sent_bytes={}",
            self.request_id.to_str().unwrap_or("-"),
            head.method,
            head.uri.path(),
            self.status,
            self.ended,
            self.started.elapsed().as_secs_f64() * 1e3,
            session.body_bytes_sent(),
        );
    }
}

impl Exchange {
    pub(super) fn new(
        route: Route,
        facts: Facts,
        head: RequestHeader,
        prefill_url: String,
        prefill: PrefillLeg,
        decode: Load,
        rooms: Arc<Rooms>,
    ) -> Self {
        Self {
            route,
            facts,
            prefill_url,
            prefill: Some(prefill),
            decode,
            head,
            answer: Answer::Passed,
            streams: false,
            begun: false,
            _rooms: rooms,
        }
    }

    /// Decode has taken the request. Waits for prefill where the answer needs what prefill knows.
    pub(super) async fn accepted(
        &mut self,
        session: &mut Session,
        head: &mut ResponseHeader,
        limit: usize,
    ) -> Result<(), Stop> {
        self.streams = is_event_stream(&head.headers);
        if self.facts.merge == Merge::None {
            if self.streams {
                self.answer = Answer::first_event(self.route);
            }
            return Ok(());
        }
        let side = self.join(session).await?;
        self.answer = if self.streams {
            Answer::events(self.route, side, limit)
        } else {
            Answer::Document(side, BytesMut::new())
        };
        // The length changes: the session frames the answer anew.
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&TRANSFER_ENCODING);
        Ok(())
    }

    /// Decode has refused with this status: its answer passes, unless prefill's explains more.
    pub(super) fn rejected(&mut self, status: StatusCode) -> Result<(), Stop> {
        let decode = LegFailure::Answered(status.as_u16());
        if let Some(fault) = self.prefill_fault()
            && prefill_is_shown(fault.leg_failure(), decode)
        {
            return Err(fault.into());
        }
        self.prefill = None;
        Ok(())
    }

    /// The client's bytes for a piece of decode's body.
    pub(super) fn pass(&mut self, piece: Bytes, end: bool) -> Result<Bytes, Fault> {
        if !self.begun
            && !piece.is_empty()
            && let Some(fault) = self.prefill_fault()
        {
            // Without prefill's KV cache whatever decode says is not the answer.
            return Err(fault);
        }
        let out = self
            .answer
            .pass(piece, end, self.begun)
            .map_err(|spoiled| match spoiled {
                Spoiled::Rejected(rejection) => Fault::Rejected(Role::Decode, rejection),
                Spoiled::Merge(error) => Fault::Own(ProxyError::Merge(error)),
                Spoiled::TooLong(error) => Fault::Own(ProxyError::Leg(
                    Role::Decode,
                    self.decode.url().to_owned(),
                    Failure::TooLong(error.limit),
                )),
            })?;
        self.begun |= !out.is_empty();
        Ok(out)
    }

    /// JOIN: prefill's side of the prompt. The client is watched meanwhile.
    async fn join(&mut self, session: &mut Session) -> Result<PromptSide, Stop> {
        let Some(leg) = self.prefill.as_ref() else {
            return Err(ProxyError::Internal("prefill was cancelled".into()).into());
        };
        let outcome = tokio::select! {
            outcome = leg.outcome() => outcome,
            ended = session.downstream_session.read_body_or_idle(true) => {
                let closed = || Error::new(ErrorType::ConnectionClosed);
                return Err(Stop::Session(ended.err().unwrap_or_else(closed).into_down()));
            }
        };
        if let Some(fault) = self.fault_of(&outcome) {
            return Err(Stop::Fault(fault));
        }
        let Outcome::Served(body) = outcome else {
            return Err(ProxyError::Internal("no body to merge".into()).into());
        };
        let (merge, batch) = (self.facts.merge, self.facts.batch);
        let side = if self.facts.stream {
            PromptSide::from_stream(merge, batch, body)
        } else {
            PromptSide::from_body(merge, batch, body)
        };
        Ok(side.map_err(ProxyError::Merge)?)
    }

    /// The fault of a prefill leg that has ended badly.
    fn prefill_fault(&self) -> Option<Fault> {
        self.fault_of(&self.prefill.as_ref()?.peek()?)
    }

    fn fault_of(&self, outcome: &Outcome) -> Option<Fault> {
        match outcome {
            Outcome::Served(_) => None,
            Outcome::Rejected(rejection) => Some(Fault::Rejected(Role::Prefill, rejection.clone())),
            Outcome::Failed(failure) => Some(Fault::Own(ProxyError::Leg(
                Role::Prefill,
                self.prefill_url.clone(),
                failure.clone(),
            ))),
        }
    }
}
