//! The two legs of an attempt one after the other, for an engine whose prefill worker gives the parameters of the transfer
//! with its response.
//!
//! Prefill's leg has the request until it ends: the wait is here, with what ends it (the client, a deadline, the end of
//! the process), and so is what follows from a leg that has failed. Decode's leg then goes the way of every engine. Its
//! place is taken with prefill's: the lease of the blocks would run out while the request waited for one.
//!
//! Parameters go to one decode worker. One that got the request may have fetched the blocks, and the end of the fetch
//! frees them: another worker that came for them would compute with whatever is there by then. So only parameters that no
//! worker has seen are handed over to the next attempt. The same holds for a worker that comes too late, so that the response
//! of a decode worker that stood still for that long is not passed on.
//!
//! Source: vLLM 0.32.0, `distributed/kv_transfer/kv_connector/v1/nixl/` (`kv_lease_duration`, and what frees the blocks).

use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pingora::proxy::Session;
use pingora::{Error, Result};

use super::Proxy;
use super::decide::Decision;
use super::dispatch::Terms;
use super::request::{Body, Request, RequestContext};
use crate::client;
use crate::error::ProxyError;
use crate::fleet::{Lease, Worker};
use crate::legs::{Attempt, Keep, Plan, PrefillLeg, PrefillRequest};
use crate::pd::{Params, RequestIds, Route};

/// The part of the lease within which another attempt may begin with prefill's response: decode has to be connected to, to read
/// and to tokenize the request, and to ask for the blocks in the rest of it. To compute the prompt again is cheap beside blocks
/// that another prompt has by then.
const HANDOVER: f64 = 1.0 / 3.0;

/// The parts of the lease between which a decode worker that answers no probe has not asked for the blocks either.
const STALL: [f64; 2] = [2.0 / 3.0, 5.0 / 6.0];

/// A response of prefill whose parameters no decode worker has seen.
pub(super) struct Handover {
    prefill: Arc<Worker>,
    leg: PrefillLeg,
    until: Instant,
}

impl Proxy {
    /// Sends prefill's leg of an attempt, waits for its end, and makes decode's ready, which Pingora sends.
    ///
    /// # Errors
    /// The attempt is over: with a fault that is in the context, or with a retry. Or the client has left.
    pub(super) async fn send_in_turn(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        let body = self.send_prefill(ctx)?;
        let params = self.await_prefill(session, ctx).await?;
        self.prepare_decode(session, ctx, &body, params.as_ref())
    }

    /// Sends prefill's leg, unless an earlier one is handed over or decode computes the prompt. The client's body.
    fn send_prefill(&self, ctx: &mut RequestContext) -> Result<Bytes> {
        let (Some(request), Some(lease)) = (ctx.request.take(), ctx.lease.take()) else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send".into())));
        };
        self.note_first(ctx);
        ctx.note_choice(&lease);
        let body = match request.body {
            Body::Read(body) => body.freeze(),
            Body::Kept(body) => body,
            Body::Sent(sent) => sent.body,
        };
        let request = Request {
            body: Body::Kept(body.clone()),
            ..request
        };
        let handover = ctx.handover.take();
        let handover = handover.filter(|handover| Instant::now() < handover.until);
        // There is no prefill worker, or the last attempt has shown that decode must not wait for one.
        let alone = std::mem::take(&mut ctx.goes_alone) || lease.prefill.id().is_absent();
        if handover.is_none() {
            ctx.transfer = ctx.new_transfer();
        }
        let (route, transfer) = (request.route, ctx.transfer.as_deref());
        let prefill_body = match alone || handover.is_some() {
            true => None,
            false => self
                .engine()
                .prefill_body(route, &body, &request.facts, transfer),
        };
        let terms = Terms::of(ctx, &request.head);
        let attempt = self.attempt_in_turn(&request, &body, prefill_body, lease, handover, terms);
        let is_alone = attempt.prefill_report().is_none();
        ctx.request = Some(request);
        ctx.note_attempt(attempt, 0);
        if is_alone {
            ctx.go_alone();
        }
        ctx.show_legs();
        Ok(body)
    }

    /// An attempt whose prefill leg is on its way or has ended.
    fn attempt_in_turn(
        &self,
        request: &Request,
        body: &Bytes,
        prefill_body: Option<Bytes>,
        lease: Lease,
        handover: Option<Box<Handover>>,
        terms: Terms<'_>,
    ) -> Attempt {
        let facts = &request.facts;
        let [prefill_head, decode_head] = terms.heads;
        let rooms = Arc::new(self.rooms.take(0, None, rand::random));
        let (prefill, leg) = match (handover, prefill_body) {
            (Some(handover), _) => (handover.prefill, Some(handover.leg)),
            // Decode computes the prompt, so that the load on prefill ends here.
            (None, None) => (lease.prefill.clone(), None),
            (None, Some(body)) => (
                lease.prefill.clone(),
                Some(PrefillLeg::spawn(PrefillRequest {
                    engine: self.engine(),
                    client: self.client.clone(),
                    worker: lease.prefill,
                    rooms: rooms.clone(),
                    route: request.route,
                    head: prefill_head,
                    body,
                    reuse: terms.reuse,
                    keep: Keep::Body(terms.most_kept),
                    fleet: self.fleet.clone(),
                    trial: terms.trial,
                })),
            ),
        };
        let plan = Plan {
            engine: self.engine(),
            route: request.route,
            merge: facts.merge,
            batch: facts.batch,
            head: decode_head,
            body: self.engine().decode_body(body, facts, None),
            ids: Arc::new(RequestIds::Unknown),
            fleet: self.fleet.clone(),
            aborter: self.aborter.clone(),
        };
        Attempt::new(plan, prefill, leg, lease.decode, rooms, terms.reuse)
    }

    /// Waits for prefill's response. The parameters of the transfer; `None` where decode computes the prompt.
    async fn await_prefill(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<Option<Params>> {
        if ctx.attempt()?.prefill_report().is_none() {
            return Ok(None);
        }
        self.watch_prefill(session, ctx).await?;
        match self.decide(ctx)? {
            Decision::End(retry) => return Err(retry),
            Decision::Fail(_) => return self.go_on_alone(ctx).map(|()| None),
            Decision::Proceed => {}
        }
        if let Some(transfer) = ctx.transfer.clone() {
            return self.params_of_transfer(ctx, &transfer).await;
        }
        let attempt = ctx.attempt()?;
        let document = attempt.prefill_document();
        match document.and_then(|document| self.engine().params(document)) {
            Some(params) => Ok(Some(params)),
            None => {
                let url = attempt.prefill().url().to_owned();
                Err(ctx.refuse(ProxyError::NoParams(url)))
            }
        }
    }

    /// Waits until prefill's leg has ended. A stream that is silent for long gets comments meanwhile, where the
    /// configuration asks for them.
    async fn watch_prefill(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        let every = ctx.rules.limits.stream_keepalive;
        let takes_comments =
            |request: &Request| request.facts.stream && request.route != Route::Generate;
        let every = every.filter(|_| ctx.request.as_ref().is_some_and(takes_comments));
        let mut due = ctx.record.times.started + every.unwrap_or_default();
        let deadline = self.response_deadline(ctx);
        let cut_off = self.shutdown.cut_off();
        tokio::pin!(cut_off);
        loop {
            let late = async {
                match deadline {
                    Some((at, late)) => {
                        tokio::time::sleep_until(at.into()).await;
                        late
                    }
                    None => pending().await,
                }
            };
            let attempt = ctx.attempt()?;
            tokio::select! {
                // In this order, so that no leg is sent when the wait ends in the moment of prefill's response.
                biased;
                left = client::interrupted(session) => return Err(left),
                () = &mut cut_off => return Err(ctx.refuse(ProxyError::ShuttingDown)),
                () = attempt.prefill_ended() => return Ok(()),
                late = late => return Err(ctx.refuse(ProxyError::Timeout(late))),
                () = tokio::time::sleep_until(due.into()), if every.is_some() => {}
            }
            self.write_comment(session, ctx).await?;
            due = Instant::now() + every.unwrap_or_default();
        }
    }

    /// Prefill's leg has failed, and there is no other worker to try: decode computes the prompt, where it may.
    fn go_on_alone(&self, ctx: &mut RequestContext) -> Result<()> {
        let leg = ctx.attempt()?.prefill_state();
        if !ctx.rules.limits.vllm_decode_alone || leg.is_request_fault() {
            return Err(self.fail_with_prefill(ctx));
        }
        ctx.go_alone();
        Ok(())
    }

    /// Ends an attempt in which decode may have come too late for prefill's blocks. The next one is the same decode's alone.
    pub(super) fn begin_alone(&self, ctx: &mut RequestContext) -> Result<Box<Error>> {
        let (Some(request), Some(attempt)) = (&ctx.request, &ctx.attempt) else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send again".into())));
        };
        let decode = attempt.decode().clone();
        let lease =
            self.fleet
                .lease_again(attempt.prefill(), ctx.record.spread, &decode, &request.key);
        let retry = ctx.retry(decode);
        ctx.lease = Some(lease);
        ctx.goes_alone = true;
        Ok(retry)
    }

    /// Whether decode may have fetched the blocks after their lease, when another prompt could have them: it stood still while
    /// the lease ran out. vLLM does not notice, and generates from whatever it has read. A request that only waits in decode's
    /// queue keeps its lease, because decode renews it. With Mooncake prefill sends the blocks, and sends none that it has freed.
    ///
    /// Source: vLLM 0.32.0 with NIXL 1.5.1, a decode worker that was stopped for 37 s.
    pub(super) fn may_be_late(&self, ctx: &RequestContext) -> bool {
        let ended = ctx.attempt.as_ref().map(Attempt::prefill_times);
        let (true, false, Some(ended), Some(attempt)) = (
            self.engine().prefill_is_first() && ctx.transfer.is_none(),
            ctx.record.alone,
            ended.and_then(|times| times.end),
            &ctx.attempt,
        ) else {
            return false;
        };
        let lease = ctx.rules.limits.vllm_kv_lease;
        let [from, until] = STALL.map(|part| ended + lease.mul_f64(part));
        Instant::now() >= until && attempt.decode().was_silent(from, until)
    }

    /// Makes decode's leg ready.
    fn prepare_decode(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        body: &Bytes,
        params: Option<&Params>,
    ) -> Result<()> {
        let Some(request) = &ctx.request else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send".into())));
        };
        let sent = self.engine().decode_body(body, &request.facts, params);
        let bytes = sent.body.clone();
        ctx.attempt()?.set_body(sent);
        // Prefill's leg is over, so that its failure ends nothing any more.
        self.install(session, ctx, bytes, Box::pin(pending()))
    }
}

impl RequestContext {
    /// Decode computes the prompt in this attempt.
    pub(super) fn go_alone(&mut self) {
        self.state.go_alone();
        self.record.alone = true;
    }

    /// Keeps prefill's response of this attempt, which no decode worker has seen, for the next one.
    pub(super) fn hand_over(&mut self) {
        let Some(attempt) = self.attempt.as_mut() else {
            return;
        };
        let served = attempt.prefill_document().is_some();
        let ended = attempt.prefill_times().end.filter(|_| served);
        let taken = self.attempt.as_mut().and_then(Attempt::take_prefill);
        self.handover = ended.zip(taken).map(|(ended, (prefill, leg))| {
            Box::new(Handover {
                prefill,
                leg,
                until: ended + self.rules.limits.vllm_kv_lease.mul_f64(HANDOVER),
            })
        });
    }
}
