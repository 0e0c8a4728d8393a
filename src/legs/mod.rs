//! The two legs of a request: what is sent to the prefill and the decode worker, and what becomes of their
//! responses.
//!
//! Nothing here knows the client's connection. [`attempt`] holds one pair of legs, [`prefill`] is the side task,
//! [`response`] turns decode's body into the client's, [`first_event`] finds an error that comes as the first event of
//! a stream, [`headers`] writes the heads, [`abort`] tells a worker that a leg was cancelled.

mod abort;
mod attempt;
mod first_event;
mod headers;
mod prefill;
mod response;

pub(crate) use abort::Aborter;
pub(crate) use attempt::{Attempt, LegError, Plan};
pub(crate) use first_event::Rejection;
pub(crate) use headers::{drop_hop_by_hop, for_legs, is_encoded, request_id, traced};
pub(crate) use prefill::{
    Keep, PrefillLeg, PrefillRequest, Report, evidence, failed, is_event_stream, no_document,
};
pub(crate) use response::ResponseError;
