//! From a request to two legs on their way: READ, PARSE, then SELECT, INJECT and DISPATCH, once for each attempt.
//! How a request waits for its pair is `queue.rs`'s.

use std::sync::Arc;
use std::time::Instant;

use pingora_core::Result;
use pingora_http::RequestHeader;
use pingora_proxy::Session;

use super::request::{Body, Request, RequestContext};
use super::{Proxy, session as replaced};
use crate::client;
use crate::error::ProxyError;
use crate::fleet::{Lease, Rooms};
use crate::legs::{self, Attempt, Ids, Keep, Plan, PrefillLeg, PrefillRequest};
use crate::pd::{self, Batch, Bootstrap, Facts, Fields, Injected, Merge, RequestId, Rid, Route};

/// The most prompts of one batch. Each costs some hundred bytes of fields on top of the client's few.
const MAX_PROMPTS: usize = 1 << 16;

/// What an attempt sends, and under which names.
struct Prepared {
    head: Arc<RequestHeader>,
    injected: Injected,
    rooms: Arc<Rooms>,
    ids: Ids,
}

impl Proxy {
    /// READ and PARSE, and SELECT for the first attempt: whoever is refused then keeps the connection.
    pub(super) async fn understand(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        route: Route,
    ) -> Result<()> {
        if legs::is_encoded(&session.req_header().headers) {
            return Err(ctx.refuse(ProxyError::Encoded));
        }
        let limits = &self.limits;
        let share = ctx.share.insert(self.buffered.share());
        let reserve = pd::tail_reserve(1);
        let body = match client::read(session, limits.max_body_bytes, limits.body, reserve, share)
            .await?
        {
            Ok(body) => body,
            Err(error) => return Err(ctx.refuse(error.into())),
        };
        let facts = match pd::parse(route, &body).map_err(ProxyError::Invalid) {
            Ok(facts) if facts.n > 1 => return Err(ctx.refuse(ProxyError::Samples(facts.n))),
            Ok(facts) if facts.batch.prompts() > MAX_PROMPTS => {
                return Err(ctx.refuse(ProxyError::BatchTooLarge(MAX_PROMPTS)));
            }
            Ok(facts) => facts,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let head = legs::for_legs(session.req_header(), route.path(), &ctx.request_id)?;
        ctx.lease = Some(self.lease(session, ctx, facts.stream).await?);
        self.budget().note_request(Instant::now());
        ctx.request = Some(Request {
            route,
            facts,
            head: Arc::new(head),
            body: Body::Read(body),
        });
        Ok(())
    }

    /// Begins an attempt: with another pair than before where there is one, and with new rooms and ids, because
    /// a worker may still know the old ones.
    pub(super) async fn attempt(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
    ) -> Result<()> {
        // The session of an earlier attempt is over.
        ctx.restore(session);
        let lease = match ctx.lease.take() {
            Some(lease) => lease,
            None => {
                let stream = ctx.request.as_ref().is_some_and(|r| r.facts.stream);
                self.lease(session, ctx, stream).await?
            }
        };
        let Some(bootstrap) = lease.prefill.bootstrap() else {
            let error = ProxyError::Internal("a prefill worker without a bootstrap host".into());
            return Err(ctx.refuse(error));
        };
        ctx.note_legs(lease.prefill.url(), lease.decode.url());
        // Not before there is a pair: a request that is refused here is one that has been read.
        let Some(Request {
            route,
            facts,
            head,
            body,
        }) = ctx.request.take()
        else {
            return Err(ctx.refuse(ProxyError::Internal("a request that was not read".into())));
        };
        let parcel = self.prepare(route, &facts, &head, body, bootstrap);
        let injected = parcel.injected.clone();
        let (exchange, leg_failed) = self.dispatch(route, &facts, parcel, lease);
        ctx.exchange = Some(exchange);
        let deadlines = self.limits.deadlines(facts.stream, ctx.started());
        let whole = injected.body.clone();
        ctx.installed = Some(replaced::install(
            session,
            whole,
            leg_failed,
            deadlines,
            self.departure.clone(),
        )?);
        ctx.request = Some(Request {
            route,
            facts,
            head,
            body: Body::Sent(injected),
        });
        Ok(())
    }

    /// INJECT.
    fn prepare(
        &self,
        route: Route,
        facts: &Facts,
        head: &Arc<RequestHeader>,
        body: Body,
        bootstrap: &Bootstrap,
    ) -> Prepared {
        let rooms = Arc::new(self.rooms.take(facts.batch.prompts(), rand::random));
        let ids = ids(route, facts);
        let fields = Fields {
            bootstrap,
            rooms: rooms.as_slice(),
            rids: match &ids {
                Ids::Ours(ids) => Some(ids),
                Ids::Clients(_) | Ids::Unknown => None,
            },
        };
        let injected = match body {
            Body::Read(body) => pd::inject(body, facts, &fields),
            Body::Sent(injected) => injected.again(&fields),
        };
        Prepared {
            head: head.clone(),
            injected,
            rooms,
            ids,
        }
    }

    /// DISPATCH: prefill's leg is on its way, and resolves the interrupt when it fails. Decode's is Pingora's.
    fn dispatch(
        &self,
        route: Route,
        facts: &Facts,
        parcel: Prepared,
        lease: Lease,
    ) -> (Attempt, replaced::Interrupt) {
        let prefill = lease.prefill.clone();
        let leg = PrefillLeg::spawn(PrefillRequest {
            client: self.client.clone(),
            worker: lease.prefill,
            rooms: parcel.rooms.clone(),
            route,
            head: parcel.head.clone(),
            body: parcel.injected.body.clone(),
            keep: match facts.merge {
                Merge::None => Keep::Nothing,
                Merge::InputLogprobs | Merge::Echo => Keep::Body(self.limits.max_body_bytes),
            },
            fleet: self.fleet.clone(),
        });
        let failed = Box::pin(leg.failure());
        let plan = Plan {
            route,
            stream: facts.stream,
            merge: facts.merge,
            batch: facts.batch,
            head: parcel.head,
            body: parcel.injected.body,
            ids: Arc::new(parcel.ids),
            fleet: self.fleet.clone(),
            aborter: self.aborter.clone(),
        };
        let exchange = Attempt::new(plan, prefill, leg, lease.decode, parcel.rooms);
        (exchange, failed)
    }
}

/// Under which ids the workers know the request. `/v1/responses` and `/v1/messages` take none.
///
/// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`; a batch with one id names its items `id_0` and
/// so on: `srt/managers/io_struct.py` (`_normalize_rid`).
fn ids(route: Route, facts: &Facts) -> Ids {
    let prompts = facts.batch.prompts();
    match (&facts.rid, route) {
        (Some(Rid::One(id)), _) => Ids::Clients(match facts.batch {
            Batch::Single => vec![id.clone()],
            Batch::Of(_) => (0..prompts).map(|item| format!("{id}_{item}")).collect(),
        }),
        (Some(Rid::Many(_)), _) | (None, Route::Responses | Route::Messages) => Ids::Unknown,
        (None, Route::Generate | Route::ChatCompletions | Route::Completions) => {
            Ids::Ours((0..prompts).map(|_| RequestId(rand::random())).collect())
        }
    }
}
