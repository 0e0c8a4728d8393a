//! One attempt: a prefill leg and a decode leg, their rooms, and the response that the client gets from them.
//!
//! Dropping an attempt cancels each leg that still runs: its connection closes, and the worker is told to abort the
//! request by id.

mod passing;
mod turns;

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};

use super::abort::Aborter;
use super::first_event::Rejection;
use super::headers;
use super::prefill::{Outcome, PrefillLeg, Report, ResponseTimes, evidence};
use super::response::Response;
use crate::fleet::{Evidence, Fleet, Load, Role, Rooms, Worker};
use crate::net::{Chunks, Client, Decoder, Failure, LostConnection, PooledHandle, Reuse};
use crate::pd::{Batch, Engine, Injected, Leg, Merge, MergeError, RequestIds, Route, StreamError};

/// Why an attempt gives no response.
#[derive(Debug, Clone)]
pub(crate) enum LegError {
    /// The worker's own error response.
    Rejected(Role, Box<Rejection>),
    /// The worker at this URL gave no response.
    Failed(Role, String, Failure),
    /// Prefill's response and decode's do not fit together.
    Merge(MergeError),
    /// A defect of the proxy.
    Internal(&'static str),
}

/// The parts of a request that both legs of an attempt share.
pub(crate) struct Plan {
    pub(crate) engine: Engine,
    pub(crate) route: Route,
    pub(crate) merge: Merge,
    pub(crate) batch: Batch,
    /// The head of both legs, without the fields that differ between workers.
    pub(crate) head: Arc<RequestHeader>,
    /// The body of both legs.
    pub(crate) body: Injected,
    /// The ids under which the workers know the request.
    pub(crate) ids: Arc<RequestIds>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) aborter: Arc<Aborter>,
}

/// The two legs of one attempt.
pub(crate) struct Attempt {
    plan: Plan,
    prefill: Arc<Worker>,
    /// `None` once the leg was cancelled, or may finish without the request.
    leg: Option<PrefillLeg>,
    /// Whether the request has no such leg: decode computes the prompt.
    is_alone: bool,
    decode: Load,
    /// Decode's connection, which Pingora holds until the response has ended.
    connection: PooledHandle,
    /// Whether decode's leg may take a connection of the pool.
    reuse: Reuse,
    /// Whether the end of decode's leg was reported to the fleet, or its response has ended.
    decode_ended: bool,
    response: Response,
    /// `Some` for a compressed response that is merged.
    decoder: Option<Box<Decoder>>,
    streams: bool,
    /// Whether decode's response is an error, which may quote the request.
    rejects: bool,
    /// In use until both legs have ended: the prefill leg holds the other reference.
    rooms: Arc<Rooms>,
}

impl Attempt {
    /// An attempt whose prefill leg is on its way, or has ended; `None` where decode computes the prompt. Pingora sends
    /// decode's, to the peer that [`Self::connect`] gives.
    pub(crate) fn new(
        plan: Plan,
        prefill: Arc<Worker>,
        leg: Option<PrefillLeg>,
        decode: Load,
        rooms: Arc<Rooms>,
        reuse: Reuse,
    ) -> Self {
        Self {
            plan,
            prefill,
            is_alone: leg.is_none(),
            leg,
            decode,
            connection: PooledHandle::default(),
            reuse,
            decode_ended: false,
            response: Response::Unchanged,
            decoder: None,
            streams: false,
            rejects: false,
            rooms,
        }
    }

    /// The peer of decode's leg, for Pingora.
    ///
    /// # Errors
    /// The worker has no address, although only workers with one are leased: a defect.
    pub(crate) fn connect(&mut self, client: &Client) -> Result<HttpPeer, Box<Error>> {
        // A merge adds the logprobs of the prompt to each event, so that joined chunks would become much longer.
        let chunks = match self.plan.merge {
            Merge::None => Chunks::Joined,
            Merge::InputLogprobs | Merge::Echo => Chunks::Separate,
        };
        let server_name = self.decode.server_name();
        let addresses = self.decode.addresses();
        let pooled = client.pooled_peer(addresses, server_name, chunks, self.reuse);
        let (peer, connection) = pooled.ok_or_else(|| {
            Error::explain(ErrorType::InternalError, "a lease without an address")
        })?;
        self.connection = connection;
        // Another connection is asked for only where a pooled one had been closed before the request.
        self.reuse = Reuse::Never;
        Ok(peer)
    }

    /// The head of decode's leg.
    ///
    /// # Errors
    /// None in practice: see [`headers::add_worker_fields`].
    pub(crate) fn decode_head(&self) -> Result<RequestHeader, Box<Error>> {
        let mut head = RequestHeader::clone(&self.plan.head);
        headers::add_worker_fields(&mut head, &self.decode, self.plan.body.body.len())?;
        Ok(head)
    }

    /// The prefill worker.
    pub(crate) fn prefill(&self) -> &Arc<Worker> {
        &self.prefill
    }

    /// The decode worker.
    pub(crate) fn decode(&self) -> &Arc<Worker> {
        &self.decode
    }

    /// The worker of this role.
    pub(crate) fn worker(&self, role: Role) -> &Arc<Worker> {
        match role {
            Role::Prefill => &self.prefill,
            Role::Decode => &self.decode,
        }
    }

    /// What the loss of decode's connection says.
    pub(crate) fn decode_lost(&self) -> LostConnection {
        self.connection.lost()
    }

    /// The trailers of decode's response, once it has ended.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.connection.trailers()
    }

    /// Decode's connection, where it brings a stream whose chunks all pass unchanged from here on.
    pub(crate) fn unchanged_stream(&self) -> Option<&PooledHandle> {
        let is_unchanged = matches!(self.response, Response::Unchanged);
        (self.streams && is_unchanged && self.decoder.is_none()).then_some(&self.connection)
    }

    /// Whether decode's response is a stream of events.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// The progress of prefill's leg.
    pub(crate) fn prefill_state(&self) -> Leg {
        match self.leg.as_ref().and_then(PrefillLeg::outcome) {
            None if self.is_alone => Leg::Unused,
            None => Leg::Running,
            Some(outcome) => outcome.state(),
        }
    }

    /// When prefill's response arrived.
    pub(crate) fn prefill_times(&self) -> ResponseTimes {
        self.leg.as_ref().map(PrefillLeg::times).unwrap_or_default()
    }

    /// What tells of prefill's leg; `None` once it was cancelled, or may finish without the request.
    pub(crate) fn prefill_report(&self) -> Option<&Arc<Report>> {
        self.leg.as_ref().map(PrefillLeg::report)
    }

    /// The error of a prefill leg that has failed.
    pub(crate) fn prefill_error(&self) -> Option<LegError> {
        match self.leg.as_ref()?.outcome()? {
            Outcome::Served { .. } => None,
            Outcome::Rejected(rejection) | Outcome::Aborted(rejection) => {
                let rejection = self.conceal_in(rejection.clone());
                Some(LegError::Rejected(Role::Prefill, rejection))
            }
            Outcome::Failed(failure) => Some(LegError::Failed(
                Role::Prefill,
                self.prefill.url().to_owned(),
                failure.clone(),
            )),
        }
    }

    /// JOIN: waits until prefill's leg has ended where the response needs prefill's data, or until the client has
    /// left.
    ///
    /// # Errors
    /// The client has left.
    pub(crate) async fn join(
        &self,
        client_left: impl Future<Output = Box<Error>>,
    ) -> Result<(), Box<Error>> {
        let Some(leg) = self.leg.as_ref().filter(|_| self.plan.merge != Merge::None) else {
            return Ok(());
        };
        tokio::select! {
            () = leg.ended() => Ok(()),
            left = client_left => Err(left),
        }
    }

    /// Cancels prefill's leg, because decode's response is an error that goes to the client.
    pub(crate) fn cancel_prefill(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.abort_prefill(&leg);
        }
    }

    /// Reports the end of decode's leg to the fleet.
    pub(crate) fn report_decode(&mut self, evidence: Evidence) {
        self.decode_ended = true;
        self.plan.fleet.note(&self.decode, evidence, Instant::now());
    }

    /// Reports to the fleet that both legs have succeeded.
    pub(crate) fn report_success(&mut self) {
        self.report_decode(Evidence::Good);
        // Decode that has computed the prompt says nothing of the two workers together.
        let first = self.plan.engine.prefill_is_first();
        if !first || self.prefill_state() == Leg::Served {
            self.plan.fleet.note_pair_good(&self.prefill, &self.decode);
        }
        self.let_prefill_finish();
    }

    /// Reports to the fleet that decode's stream has ended with an error of its own.
    pub(crate) fn report_stream_error(&mut self, error: StreamError) {
        let leg = error.status.map_or(Leg::Running, Leg::Rejected);
        self.report_decode(evidence(leg));
        if leg == Leg::Rejected(500) {
            self.report_pair_failure();
        }
        self.let_prefill_finish();
    }

    fn let_prefill_finish(&mut self) {
        if let Some(leg) = self.leg.take() {
            leg.let_finish();
        }
    }

    /// Reports to the fleet that both workers were there and failed together.
    pub(crate) fn report_pair_failure(&self) {
        self.plan
            .fleet
            .note_pair_bad(&self.prefill, &self.decode, Instant::now());
    }

    fn abort(&self, worker: &Arc<Worker>) {
        let authorization = self.plan.head.headers.get(AUTHORIZATION);
        self.plan
            .aborter
            .send(worker, self.plan.engine, &self.plan.ids, authorization);
    }

    fn abort_prefill(&self, leg: &PrefillLeg) {
        if leg.outcome().is_none() {
            self.plan
                .fleet
                .note(&self.prefill, Evidence::Neutral, Instant::now());
            self.abort(&self.prefill);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.abort_prefill(&leg);
        }
        if !self.decode_ended {
            self.plan
                .fleet
                .note(&self.decode, Evidence::Neutral, Instant::now());
            self.abort(&self.decode);
        }
    }
}
