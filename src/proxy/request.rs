//! The state of one request while it passes through the phases, over all its attempts.
//!
//! Pingora carries it from hook to hook as the request's context. Hooks end with Pingora's `Error`, which has no place
//! for the proxy's own errors: the [`Fault`] that a client gets is put aside here, and the returned error only ends the
//! phases.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::Rules;
use super::samples::{Sample, Seat};
use super::session::{Installed, Sent};
use super::suspects::Suspicion;
use super::timing::Timing;
use super::turns::Handover;
use crate::client::{Admitted, Kept, Listener, Origin, Share};
use crate::error::{Fault, ProxyError, STREAM_ERROR};
use crate::fleet::{Lease, Role, Targets, Worker, WorkerId};
use crate::legs::{Attempt, LegError};
use crate::pd::{
    Engine, Facts, Injected, RequestState, ResponseIdSearch, Route, RoutingKey, StreamEnd,
    StreamError, TransferId,
};
use crate::telemetry::{Cause, FailedAttempt, Legs, LiveRequest, Pair, Record, Telemetry};

/// Ends the phases: a fault is in the context.
const FAULT: ErrorType = ErrorType::new("Fault");

/// Ends one attempt: another pair gets the request.
const RETRY: ErrorType = ErrorType::new("Retry");

/// One request, with legs or without.
pub(crate) struct RequestContext {
    pub(super) rules: Arc<Rules>,
    pub(super) record: Record,
    /// The request once it has been read; every attempt is made of it.
    pub(super) request: Option<Request>,
    /// The pair of the next attempt, once one is selected.
    pub(super) lease: Option<Lease>,
    /// The legs of the present attempt.
    pub(super) attempt: Option<Attempt>,
    pub(super) installed: Option<Installed>,
    pub(super) state: RequestState,
    /// Why decode's leg of the present attempt failed, once it has.
    pub(super) decode_cause: Option<Cause>,
    /// When this attempt was sent before it began again: a worker that dies with it has had it since then.
    first_sent: Option<Instant>,
    /// A response of prefill that the next attempt begins with.
    pub(super) handover: Option<Box<Handover>>,
    /// The id of the transfer between the legs, where prefill's response does not name it.
    pub(super) transfer: Option<Box<TransferId>>,
    /// Whether decode computes the prompt in the next attempt.
    pub(super) goes_alone: bool,
    /// Workers that failed in an earlier attempt.
    pub(super) avoid: Vec<WorkerId>,
    /// Set once a worker was lost with the request, now or earlier.
    pub(super) suspicion: Option<Box<Suspicion>>,
    /// The body's share of the memory for bodies.
    pub(super) share: Option<Share>,
    /// The place of this request among the samples of another one, if it is one.
    pub(super) seat: Option<Seat>,
    /// Whether the response is gathered from the streams of samples.
    pub(super) gathers_stream: bool,
    fault: Option<Fault>,
    /// What the client got, once its session has been restored.
    sent: Sent,
    /// The listener that accepted the client's connection.
    pub(super) listener: Listener,
    /// Whether that connection is above `max_connections`, and is served one response.
    pub(super) overflow: bool,
    /// The request among the live ones, where it is followed.
    pub(super) live: Option<LiveRequest>,
    /// The search for the id of decode's response, where that may be asked for later.
    pub(super) response_id: Option<Box<ResponseIdSearch>>,
    /// Where the response says where its time went.
    pub(super) timing: Option<Timing>,
    /// Where that connection may be left for the next request; `None` when it is not one of the listener's.
    pub(super) kept: Option<Arc<Kept>>,
    /// Whether it is left there, because the client got a whole response to a request that has failed.
    pub(super) keeps: bool,
    /// Whether the response is a page for observers, which other origins may not read.
    pub(super) is_page: bool,
    /// Counts the request as live until it is dropped.
    admitted: Option<Admitted>,
}

/// A request that has been read and parsed.
pub(super) struct Request {
    pub(super) route: Route,
    pub(super) facts: Facts,
    /// What the policies may know of the request.
    pub(super) key: RoutingKey,
    /// The workers that it names.
    pub(super) targets: Targets,
    /// The head of the legs, without the fields that differ between attempts and workers.
    pub(super) head: Arc<RequestHeader>,
    pub(super) body: Body,
}

/// The body before and after its first attempt.
pub(super) enum Body {
    /// As the client sent it.
    Read(BytesMut),
    /// The same, where the body of each leg is made of it anew.
    Kept(Bytes),
    /// As the legs of the last attempt got it.
    Sent(Injected),
}

impl RequestContext {
    /// A request whose head has arrived, with the rules of now.
    pub(super) fn new(rules: Arc<Rules>) -> Self {
        Self {
            rules,
            record: Record::new(Instant::now()),
            request: None,
            lease: None,
            attempt: None,
            installed: None,
            state: RequestState::default(),
            decode_cause: None,
            first_sent: None,
            handover: None,
            transfer: None,
            goes_alone: false,
            avoid: Vec::new(),
            suspicion: None,
            share: None,
            seat: None,
            gathers_stream: false,
            fault: None,
            sent: Sent::default(),
            listener: Listener::Clients,
            overflow: false,
            live: None,
            response_id: None,
            timing: None,
            kept: None,
            keeps: false,
            is_page: false,
            admitted: None,
        }
    }

    /// The request came over a connection of this listener.
    pub(super) fn begin_at(&mut self, origin: Origin) {
        self.listener = origin.listener;
        self.overflow = origin.overflow;
        self.kept = Some(origin.kept);
    }

    /// Makes this the request of a sample, which has been let in, read and parsed.
    pub(super) fn begin_sample(&mut self, sample: Sample) {
        self.timing = sample.timing();
        self.rules = sample.rules();
        let (request, record, seat, admitted) = sample.begin();
        self.request = Some(request);
        self.record = record;
        self.seat = Some(seat);
        self.admitted = admitted;
    }

    /// Whether the request that was read asks for more than one sample per prompt.
    pub(super) fn asks_for_samples(&self) -> bool {
        self.request.as_ref().is_some_and(|r| r.facts.n > 1)
    }

    /// The present attempt.
    ///
    /// # Errors
    /// There is none, although every phase after `upstream_peer` has one: a defect.
    pub(super) fn attempt(&mut self) -> Result<&mut Attempt> {
        self.attempt
            .as_mut()
            .ok_or_else(|| Error::explain(ErrorType::InternalError, "a request without legs"))
    }

    /// Counts the request as live.
    pub(super) fn count(&mut self, admitted: Admitted) {
        self.admitted = Some(admitted);
    }

    /// Puts the fault aside for the response, and ends the phases.
    pub(super) fn fail(&mut self, fault: Fault) -> Box<Error> {
        self.fault = Some(fault);
        Error::new_in(FAULT)
    }

    /// [`Self::fail`] with an error of the proxy.
    pub(super) fn refuse(&mut self, error: ProxyError) -> Box<Error> {
        self.fail(Fault::Own(error))
    }

    /// Ends both legs of this attempt. Pingora's loop begins the next one, without the worker that is to blame.
    pub(super) fn retry(&mut self, blamed: Arc<Worker>) -> Box<Error> {
        self.avoid.push(blamed.id());
        let decode_cause = self.decode_cause.take();
        let cause = match blamed.role() {
            Role::Prefill => self.prefill_cause(),
            Role::Decode => decode_cause,
        };
        self.note_legs();
        if let (Some(cause), Some(pair)) = (cause, self.record.pair.clone()) {
            let (legs, mut times) = (self.record.legs, self.record.times);
            times.ended = Some(Instant::now());
            let trace = self.record.trace.as_mut();
            let spans = trace.map(|trace| trace.end_attempt()).unwrap_or_default();
            self.record.failed.push(FailedAttempt {
                worker: blamed,
                cause,
                pair,
                legs,
                times,
                spans,
            });
        }
        self.state.retry();
        self.next_attempt()
    }

    /// Ends both legs of this attempt, because the worker of this role had closed the connection of its leg. Pingora's
    /// loop begins it again with this lease.
    pub(super) fn begin_again(&mut self, stale: Role, lease: Lease) -> Box<Error> {
        self.decode_cause = None;
        // A suspect waits for its turn.
        self.lease = self.suspicion.is_none().then_some(lease);
        self.first_sent = self.record.times.sent;
        self.state.begin_again(stale);
        self.next_attempt()
    }

    fn next_attempt(&mut self) -> Box<Error> {
        self.attempt = None;
        if let Some(suspicion) = &mut self.suspicion {
            suspicion.trial = None;
        }
        self.record.alone = false;
        self.record.status = 0;
        self.record.ended = "ok".into();
        self.record.error = None;
        self.record.times.prefill_head = None;
        self.record.times.prefill_end = None;
        self.record.times.decode_head = None;
        self.record.times.decode_first = None;
        self.show_retry();
        let mut error = Error::new_in(RETRY);
        error.set_retry(true);
        error
    }

    /// Whether this error is [`Self::fail`]'s or [`Self::retry`]'s, so that nothing is left to decide.
    pub(super) fn is_decided(&self, error: &Error) -> bool {
        self.fault.is_some() || *error.etype() == RETRY
    }

    /// The failure of prefill's leg in this attempt.
    pub(super) fn prefill_error(&self) -> Option<LegError> {
        let error = self.attempt.as_ref()?.prefill_error()?;
        Some(match error {
            LegError::Failed(role, url, failure) if self.state.is_lost(role) => {
                LegError::Failed(role, url, failure.after_loss())
            }
            error => error,
        })
    }

    fn prefill_cause(&self) -> Option<Cause> {
        Some(match Fault::from(self.prefill_error()?) {
            Fault::Rejected(_, rejection) => Cause::Rejected(rejection.status.as_u16()),
            Fault::Own(error) => Cause::Code(error.code().name()),
        })
    }

    /// Whether the first byte of the response has gone to the client.
    pub(super) fn has_begun(&self) -> bool {
        match &self.installed {
            Some(installed) => installed.has_begun(),
            None => self.sent.first_byte.is_some(),
        }
    }

    /// Whether the head of the response has gone to the client, so that there is no other status.
    pub(super) fn head_is_out(&self) -> bool {
        match &self.installed {
            Some(installed) => installed.has_begun() || installed.head_is_out(),
            None => self.sent.first_byte.is_some() || self.sent.head_is_out,
        }
    }

    /// Gives the client's own session back to Pingora. Does nothing when it is there already.
    pub(super) fn restore(&mut self, session: &mut Session) {
        if let Some(installed) = self.installed.take() {
            self.sent = installed.restore(session);
        }
    }

    /// The fault that the client gets; `None` when the client has left.
    pub(super) fn take_fault(&mut self, error: &Error) -> Option<Fault> {
        let fault = self.fault.take();
        let record = &mut self.record;
        record.ended = match (&fault, error.etype()) {
            (Some(fault), _) => fault.name(),
            (None, ErrorType::WriteTimedout) => "client_stalled",
            (None, _) => "client_left",
        }
        .into();
        record.error = fault.as_ref().map(Fault::message);
        fault
    }

    /// Records what was chosen for an attempt, and what the policy expects of it.
    pub(super) fn note_choice(&mut self, lease: &Lease) {
        self.record.forecast.clone_from(&lease.forecast);
        self.record.spread = lease.prefill.spread();
    }

    /// Records the legs of an attempt that begins.
    pub(super) fn note_attempt(&mut self, attempt: Attempt, rooms: usize) {
        self.record.attempts = self.state.attempt();
        self.record.rooms = rooms;
        self.record.pair = Some(Pair {
            prefill: attempt.prefill().clone(),
            decode: attempt.decode().clone(),
        });
        self.record.times.sent = self.first_sent.take().or_else(|| Some(Instant::now()));
        self.attempt = Some(attempt);
    }

    /// The response will be a stream that is gathered, and followed by `events`.
    pub(super) fn gather_stream(&mut self, events: StreamEnd) {
        self.gathers_stream = true;
        self.sent.events = events;
    }

    /// Notes that bytes of a gathered response go to the client now. They are whole events, which each sample has followed
    /// already.
    pub(super) fn note_sent(&mut self) {
        self.sent.first_byte.get_or_insert_with(Instant::now);
    }

    /// Notes that the last bytes of a gathered stream report the error of a worker.
    pub(super) fn note_failed_end(&mut self, bytes: &[u8]) {
        self.sent.events.update(bytes);
    }

    /// Notes that a comment goes to the client now, with the head before the first byte.
    pub(super) fn note_comment(&mut self) {
        self.sent.head_is_out = true;
    }

    /// Whether the client has the whole response, so that no failure concerns it any more.
    pub(super) fn is_delivered(&self) -> bool {
        self.sent.delivered
    }

    /// The error that decode has reported in a stream that was passed on.
    pub(super) fn stream_error(&self) -> Option<StreamError> {
        self.sent.events.error()
    }

    /// The last event of a stream that ends with this fault, behind a half-sent one if need be. `None` where the response
    /// is not a stream: it can only be cut.
    pub(super) fn error_event(&self, fault: &Fault, engine: Engine) -> Option<Bytes> {
        let route = self
            .record
            .route
            .filter(|_| self.streams() && !self.sent.is_cut)?;
        let json = fault.event(engine.error_shape(Some(route)));
        let event = engine.error_event(route, &json);
        let blank = if self.sent.events.is_at_event_end() {
            ""
        } else {
            "\n\n"
        };
        Some([blank, &event].concat().into())
    }

    /// Lets decode's stream pass from socket to socket, where nothing is left to be done with its bytes.
    pub(super) fn relay(&self) {
        if let (None, Some(attempt), Some(installed)) =
            (&self.response_id, &self.attempt, &self.installed)
            && let Some(decode) = attempt.unchanged_stream()
        {
            installed.relay(decode);
        }
    }

    fn streams(&self) -> bool {
        self.gathers_stream
            || self.sent.head_is_out
            || self.attempt.as_ref().is_some_and(Attempt::streams)
    }

    /// Records an error that decode has reported in its stream, unless the request ended otherwise.
    fn note_stream_error(&mut self, error: StreamError) {
        if self.record.ended != "ok" {
            return;
        }
        let url = self
            .record
            .pair
            .as_ref()
            .map_or("", |pair| pair.decode.url());
        let status = error
            .status
            .map(|status| format!(" {status}"))
            .unwrap_or_default();
        self.record.error = Some(format!(
            "the decode worker {url} reported an error{status} in its stream"
        ));
        self.record.ended = STREAM_ERROR.into();
    }

    /// Records how far the legs of this attempt came.
    pub(super) fn note_legs(&mut self) {
        if let Some(attempt) = &self.attempt {
            let times = &mut self.record.times;
            let prefill = attempt.prefill_times();
            times.prefill_head = prefill.head;
            times.prefill_end = prefill.end;
            self.record.legs = Legs {
                prefill: attempt.prefill_state(),
                decode: self.state.decode_leg(),
            };
        }
    }

    /// Has the head that goes to the client next say where the time went so far.
    pub(super) fn note_timing(&mut self) {
        if let Some(fields) = self.timing_fields()
            && let Some(installed) = &self.installed
        {
            installed.note_timing(fields);
        }
    }

    /// Completes the record and hands it to the sinks, or a sample's to its request.
    pub(super) fn finish(&mut self, response_bytes: usize, telemetry: &Telemetry) {
        self.note_legs();
        let times = &mut self.record.times;
        times.ended = Some(Instant::now());
        times.first_byte = self.sent.first_byte;
        self.record.streamed = self.streams();
        if !self.gathers_stream {
            self.record.events = self.sent.events.events();
        }
        self.record.response_bytes = response_bytes + self.sent.relayed;
        if let Some(error) = self.stream_error() {
            self.note_stream_error(error);
        }
        match &self.seat {
            None => telemetry.finished(&self.record),
            Some(seat) => seat.report(&self.record, telemetry),
        }
        self.live = None;
    }
}
