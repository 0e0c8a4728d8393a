//! One attempt: a prefill leg and a decode leg with their rooms, and what becomes of decode's answer.
//!
//! Dropping it cancels whatever still runs: the connections close, and the workers are told by id.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora_core::Error;
use pingora_http::{RequestHeader, ResponseHeader};

use super::abort::{Aborter, Ids};
use super::first_event::Rejection;
use super::headers::{self, is_encoded};
use super::prefill::{Outcome, PrefillLeg, is_event_stream};
use super::response::{HELD_LIMIT, Response, ResponseError};
use crate::fleet::{Evidence, Fleet, Load, Role, Rooms, Worker};
use crate::net::{Chunks, Failure, PooledHandle};
use crate::pd::{self, Batch, Leg, Merge, MergeError, PrefillData, Route};

/// Why an attempt gives no response.
#[derive(Debug, Clone)]
pub(crate) enum LegError {
    /// The worker's own error response.
    Rejected(Role, Rejection),
    /// The worker at this URL gave no response.
    Failed(Role, String, Failure),
    /// Prefill's response and decode's do not fit together.
    Merge(MergeError),
    /// A defect of the proxy.
    Internal(&'static str),
}

/// What an attempt is made of.
pub(crate) struct Plan {
    pub(crate) route: Route,
    pub(crate) stream: bool,
    pub(crate) merge: Merge,
    pub(crate) batch: Batch,
    /// The head that both legs share, without what is each worker's own.
    pub(crate) head: Arc<RequestHeader>,
    /// The body that both legs get.
    pub(crate) body: Bytes,
    /// Under which ids the workers know the request.
    pub(crate) ids: Arc<Ids>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) aborter: Arc<Aborter>,
}

/// The two legs of one attempt.
pub(crate) struct Attempt {
    plan: Plan,
    prefill: Arc<Worker>,
    /// `None` once the leg has been cancelled or let go.
    leg: Option<PrefillLeg>,
    pub(crate) decode: Load,
    /// Decode's connection, which is Pingora's until the answer has ended.
    pub(crate) loan: PooledHandle,
    decode_ended: bool,
    answer: Response,
    streams: bool,
    /// Taken until both legs have ended: the prefill leg holds the other reference.
    _rooms: Arc<Rooms>,
}

impl Attempt {
    pub(crate) fn new(
        plan: Plan,
        prefill: Arc<Worker>,
        leg: PrefillLeg,
        decode: Load,
        rooms: Arc<Rooms>,
    ) -> Self {
        Self {
            plan,
            prefill,
            leg: Some(leg),
            decode,
            loan: PooledHandle::default(),
            decode_ended: false,
            answer: Response::Passed,
            streams: false,
            _rooms: rooms,
        }
    }

    /// The head of decode's leg.
    ///
    /// # Errors
    /// None in practice: see [`headers::address`].
    pub(crate) fn decode_head(&self) -> Result<RequestHeader, Box<Error>> {
        let mut head = RequestHeader::clone(&self.plan.head);
        headers::address(&mut head, &self.decode, &self.plan.body)?;
        Ok(head)
    }

    /// Who computes the prompt.
    pub(crate) fn prefill(&self) -> &Worker {
        &self.prefill
    }

    /// The worker whose leg has failed; where prefill's has, decode's is a symptom.
    pub(crate) fn blamed(&self) -> &Arc<Worker> {
        if self.prefill_state().is_failure() {
            &self.prefill
        } else {
            &self.decode
        }
    }

    /// How decode's chunks are wanted: a merge adds all logprobs of the prompt to each event.
    pub(crate) fn chunks(&self) -> Chunks {
        match self.plan.merge {
            Merge::None => Chunks::Joined,
            Merge::InputLogprobs | Merge::Echo => Chunks::Separate,
        }
    }

    /// Whether decode's answer is a stream of events.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// What prefill's leg has come to.
    pub(crate) fn prefill_state(&self) -> Leg {
        match self.leg.as_ref().and_then(PrefillLeg::peek) {
            None => Leg::Running,
            Some(outcome) => outcome.state(),
        }
    }

    /// The error of a prefill leg that has failed.
    pub(crate) fn prefill_error(&self) -> Option<LegError> {
        match self.leg.as_ref()?.peek()? {
            Outcome::Served(_) => None,
            Outcome::Rejected(rejection) => {
                Some(LegError::Rejected(Role::Prefill, rejection.clone()))
            }
            Outcome::Failed(failure) => Some(LegError::Failed(
                Role::Prefill,
                self.prefill.url().to_owned(),
                failure.clone(),
            )),
        }
    }

    /// JOIN, where the answer needs what prefill knows: waits until its leg has ended, well or badly. The client
    /// is watched meanwhile.
    pub(crate) async fn join(
        &self,
        left: impl Future<Output = Box<Error>>,
    ) -> Result<(), Box<Error>> {
        let Some(leg) = self.leg.as_ref().filter(|_| self.plan.merge != Merge::None) else {
            return Ok(());
        };
        tokio::select! {
            () = leg.ended() => Ok(()),
            left = left => Err(left),
        }
    }

    /// Decode has taken the request: prepares what becomes of its body. [`Self::join`] came before.
    pub(crate) fn accepted(
        &mut self,
        head: &mut ResponseHeader,
        max_event_bytes: usize,
    ) -> Result<(), LegError> {
        self.streams = is_event_stream(&head.headers);
        let encoded = is_encoded(&head.headers);
        let length = length(head);
        if self.plan.merge == Merge::None {
            self.answer = match (self.streams, length) {
                (true, _) if encoded => Response::Passed,
                (true, _) => Response::first_event(self.plan.route),
                (false, Some(HELD_LIMIT..)) => Response::Passed,
                (false, _) => Response::whole(),
            };
            return Ok(());
        }
        if encoded {
            let leg = Role::Decode;
            return Err(LegError::Merge(MergeError::Encoded { leg }));
        }
        let Some(Outcome::Served(body)) = self.leg.as_ref().and_then(PrefillLeg::peek).cloned()
        else {
            return Err(LegError::Internal("nothing to merge"));
        };
        let (merge, batch) = (self.plan.merge, self.plan.batch);
        let side = if self.plan.stream {
            PrefillData::from_stream(merge, batch, body)
        } else {
            PrefillData::from_body(merge, batch, body)
        };
        let side = side.map_err(LegError::Merge)?;
        if length == Some(0) {
            // No piece of a body will come that could be merged.
            let error = pd::merge::body(&side, Bytes::new()).err();
            return error.map_or(Ok(()), |error| Err(LegError::Merge(error)));
        }
        self.answer = if self.streams {
            Response::events(self.plan.route, side, max_event_bytes)
        } else {
            Response::Document(side, BytesMut::new())
        };
        // The length changes: the session frames the answer anew.
        head.remove_header(&CONTENT_LENGTH);
        head.remove_header(&TRANSFER_ENCODING);
        Ok(())
    }

    /// The client's bytes for a piece of decode's body.
    pub(crate) fn pass(
        &mut self,
        piece: Bytes,
        end: bool,
        begun: bool,
    ) -> Result<Bytes, ResponseError> {
        let out = self.answer.pass(piece, end, begun)?;
        if end {
            self.decode_ended = true;
            self.loan.end_response();
        }
        Ok(out)
    }

    /// Decode's answer is an error that goes to the client: prefill has nothing to wait for.
    pub(crate) fn end_prefill(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.cancel_prefill(&leg);
        }
    }

    /// What decode's leg says about its worker, once.
    pub(crate) fn decode_ended(&mut self, evidence: Evidence) {
        self.decode_ended = true;
        self.plan.fleet.note(&self.decode, evidence, Instant::now());
    }

    /// Both legs have done what they should.
    pub(crate) fn ended_well(&mut self) {
        self.decode_ended(Evidence::Good);
        self.plan.fleet.note_pair_good(&self.prefill, &self.decode);
        if let Some(leg) = self.leg.take() {
            leg.let_finish();
        }
    }

    /// Each worker is there, and together they have failed.
    pub(crate) fn ended_together_badly(&self) {
        self.plan
            .fleet
            .note_pair_bad(&self.prefill, &self.decode, Instant::now());
    }

    fn abort(&self, worker: &Arc<Worker>) {
        let authorization = self.plan.head.headers.get(AUTHORIZATION);
        self.plan
            .aborter
            .send(worker, &self.plan.ids, authorization);
    }

    fn cancel_prefill(&self, leg: &PrefillLeg) {
        if leg.peek().is_none() {
            self.plan
                .fleet
                .note(&self.prefill, Evidence::Neutral, Instant::now());
            self.abort(&self.prefill);
        }
    }
}

/// How long the body will be, where that is known.
fn length(head: &ResponseHeader) -> Option<usize> {
    head.headers
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.cancel_prefill(&leg);
        }
        if !self.decode_ended {
            self.plan
                .fleet
                .note(&self.decode, Evidence::Neutral, Instant::now());
            self.abort(&self.decode);
        }
    }
}
