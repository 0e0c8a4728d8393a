//! Decode's response on its way to the client: join prefill where a merge needs it, decide, pass each chunk on.

use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, Version};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::Proxy;
use super::decide::{Decision, rejected};
use super::request::RequestContext;
use crate::client;
use crate::endpoint::{REQUEST_ID, WARNING};
use crate::error::{self, Fault};
use crate::fleet::Role;
use crate::legs::{self, Rejection, ResponseError, evidence, no_document};
use crate::net::reject_head;
use crate::pd::Leg;

/// The warning where hidden states are asked for. Neither worker returns those of the prompt and of the first token.
const HIDDEN_STATES: HeaderValue = HeaderValue::from_static(
    "hidden states of the prompt and of the first token are missing: prefill/decode workers do not return them",
);

impl Proxy {
    /// The head of decode's response has arrived.
    ///
    /// # Errors
    /// The attempt is over: with a fault that is in the context, or with a retry.
    pub(super) async fn decode_responded(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let is_http_11 = head.version == Version::HTTP_11;
        let unusable = reject_head(head.status, &head.headers, is_http_11);
        if let Some(failure) = unusable.or_else(|| no_document(head.status)) {
            let no_legs = || Error::explain(ErrorType::InternalError, "a response without legs");
            return Err(self.decode_failed(ctx, failure).unwrap_or_else(no_legs));
        }
        if head.status.is_informational() {
            return Ok(());
        }
        ctx.record.times.decode_head = Some(Instant::now());
        let asked = || client::takes_trailers(session.req_header());
        legs::drop_hop_by_hop(head, || ctx.seat.is_none() && asked());
        head.insert_header(REQUEST_ID, &ctx.record.request_id)?;
        let leg = if head.status.is_success() {
            ctx.attempt()?.join(client::interrupted(session)).await?;
            Leg::Served
        } else {
            Leg::Rejected(head.status.as_u16())
        };
        ctx.state.decode(leg);
        ctx.decode_cause = rejected(leg);
        match self.decide(ctx)? {
            Decision::End(retry) => return Err(retry),
            Decision::Fail(Role::Prefill) => return Err(self.fail_with_prefill(ctx)),
            Decision::Fail(Role::Decode) => {
                self.pass_rejection(head, ctx, leg)?;
                if ctx.head_is_out() {
                    return Err(
                        ctx.fail(Fault::Rejected(Role::Decode, Rejection::bare(head.status)))
                    );
                }
            }
            Decision::Proceed => {
                let max_event_bytes = ctx.rules.limits.max_body_bytes;
                if let Err(error) = ctx.attempt()?.begin_response(head, max_event_bytes) {
                    return Err(ctx.fail(error.into()));
                }
                if ctx
                    .request
                    .as_ref()
                    .is_some_and(|request| request.facts.hidden_states)
                {
                    head.insert_header(WARNING, HIDDEN_STATES)?;
                }
            }
        }
        ctx.rules.cors.apply(&session.req_header().headers, head)?;
        ctx.record.status = head.status.as_u16();
        if !head.status.is_success() {
            ctx.record.ended = error::rejected(Role::Decode, head.status).into();
            ctx.record.error = Some(error::rejection_message(Role::Decode, head.status));
        }
        ctx.note_timing();
        Ok(())
    }

    /// Decode's error is the client's response, unless it concerns the proxy's own key.
    fn pass_rejection(
        &self,
        head: &mut ResponseHeader,
        ctx: &mut RequestContext,
        leg: Leg,
    ) -> Result<()> {
        let rules = ctx.rules.clone();
        let attempt = ctx.attempt()?;
        attempt.cancel_prefill();
        let begun = attempt.begin_rejection(head);
        attempt.report_decode(evidence(leg));
        Self::note_pair(attempt, leg);
        match Self::wrong_key(&rules, attempt.decode(), leg) {
            Some(error) => Err(ctx.refuse(error)),
            None => begun.map_err(|error| ctx.fail(error.into())),
        }
    }

    /// The client's bytes for a chunk of decode's body; `end` says that no chunk follows.
    ///
    /// # Errors
    /// The attempt is over: with a fault that is in the context, or with a retry.
    pub(super) fn pass(&self, ctx: &mut RequestContext, chunk: Bytes, end: bool) -> Result<Bytes> {
        if !chunk.is_empty() && ctx.record.times.decode_first.is_none() {
            ctx.record.times.decode_first = Some(Instant::now());
            ctx.record.streamed = ctx.attempt()?.streams();
            ctx.show();
            if ctx.record.status < 300 && self.may_be_late(ctx) {
                // As vLLM answers where it notices that blocks are gone.
                let rejection = Rejection::bare(StatusCode::INTERNAL_SERVER_ERROR);
                return Err(self.not_passed(ctx, ResponseError::Rejected(rejection)));
            }
        }
        if ctx.response_id.is_some() {
            ctx.note_response_id(&chunk, self);
        }
        let passed = ctx.attempt()?.pass(chunk, end);
        let passed = passed.map_err(|error| self.not_passed(ctx, error))?;
        if end
            && let (Some(attempt), Some(installed)) = (&ctx.attempt, &ctx.installed)
            && let Some(trailers) = attempt.trailers()
        {
            installed.note_trailers(trailers);
        }
        let is_first = !ctx.has_begun() && (!passed.is_empty() || end);
        if is_first && ctx.record.status < 300 {
            ctx.state.begin();
            // Decode cannot generate from a KV cache that did not come: where prefill has failed, this is no response.
            match self.decide(ctx)? {
                Decision::End(retry) => return Err(retry),
                Decision::Fail(Role::Prefill) => return Err(self.fail_with_prefill(ctx)),
                Decision::Fail(Role::Decode) | Decision::Proceed => {}
            }
        }
        if is_first {
            ctx.note_timing();
        }
        if let (true, Some(suspicion)) = (is_first, &ctx.suspicion) {
            suspicion.note_first_byte(&passed);
        }
        ctx.relay();
        Ok(passed)
    }
}
