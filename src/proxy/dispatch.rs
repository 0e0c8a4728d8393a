//! From a request to two legs on their way: read and parse once; prepare and send for each attempt.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use pingora_core::Result;
use pingora_proxy::Session;

use super::request::{Body, Request, RequestContext};
use super::session::{Deadlines, Interrupt, install};
use super::{Limits, Proxy};
use crate::client;
use crate::error::ProxyError;
use crate::fleet::{Lease, Rooms};
use crate::legs::{self, Attempt, Ids, Keep, Plan, PrefillLeg, PrefillRequest};
use crate::pd::{self, Batch, Bootstrap, Facts, Fields, Merge, RequestId, Rid, Route, RoutingKey};

/// The most prompts of one batch. Each adds some hundred bytes of fields to the client's few.
const MAX_PROMPTS: usize = 1 << 16;

/// The parts of an attempt that no other attempt shares.
struct Prepared {
    body: Bytes,
    rooms: Arc<Rooms>,
    ids: Ids,
}

impl Proxy {
    /// Reads and parses a request with legs.
    ///
    /// # Errors
    /// The request is refused, or the client has left.
    pub(super) async fn read(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        route: Route,
    ) -> Result<()> {
        if legs::is_encoded(&session.req_header().headers) {
            return Err(ctx.refuse(ProxyError::Encoded));
        }
        let (limit, timeout) = (self.limits.max_body_bytes, self.limits.body_timeout);
        // With room for the fields of one prompt, so that preparing it moves no byte.
        let reserve = pd::tail_reserve(1);
        let share = ctx.share.insert(self.body_memory.share());
        let body = match client::read_body(session, limit, timeout, reserve, share).await? {
            Ok(body) => body,
            Err(error) => return Err(ctx.refuse(error.into())),
        };
        let facts = match parse(route, &body) {
            Ok(facts) => facts,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let head = legs::for_legs(session.req_header(), route.path(), &ctx.record.request_id)?;
        ctx.record.times.read = Some(Instant::now());
        ctx.record.request_bytes = body.len();
        let key = RoutingKey::new(route, &facts, body.len());
        ctx.request = Some(Request {
            route,
            facts,
            key,
            head: Arc::new(head),
            body: Body::Read(body),
        });
        Ok(())
    }

    /// Sends both legs of an attempt to the pair that was selected: prefill's in a task of its own, decode's through
    /// Pingora, which takes the body from the session that is installed here.
    ///
    /// # Errors
    /// A defect: there is no request, or no pair.
    pub(super) fn send(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        let (Some(request), Some(lease)) = (ctx.request.take(), ctx.lease.take()) else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send".into())));
        };
        let Some(bootstrap) = lease.prefill.bootstrap() else {
            let error = ProxyError::Internal("a prefill worker without a bootstrap host".into());
            return Err(ctx.refuse(error));
        };
        if ctx.state.attempt() == 1 {
            self.budget().note_request(Instant::now());
        }
        let (request, prepared) = self.prepare(request, bootstrap);
        let deadlines = self
            .limits
            .deadlines(request.facts.stream, ctx.record.times.started);
        let body = prepared.body.clone();
        let rooms = prepared.rooms.as_slice().len();
        let (attempt, prefill_failed) = self.dispatch(&request, prepared, lease);
        ctx.request = Some(request);
        ctx.note_attempt(attempt, rooms);
        let shutdown = self.shutdown.clone();
        ctx.installed = Some(install(session, body, prefill_failed, deadlines, shutdown)?);
        Ok(())
    }

    /// Gives the request new rooms and ids, because a worker may still know those of an earlier attempt, and writes the
    /// bootstrap fields into its body.
    fn prepare(&self, request: Request, bootstrap: &Bootstrap) -> (Request, Prepared) {
        let (route, facts) = (request.route, &request.facts);
        let rooms = Arc::new(self.rooms.take(facts.batch.prompts(), rand::random));
        let ids = ids(route, facts);
        let fields = Fields {
            bootstrap,
            rooms: rooms.as_slice(),
            rids: match &ids {
                Ids::Proxy(ids) => Some(ids),
                Ids::Client(_) | Ids::Unknown => None,
            },
        };
        let injected = match request.body {
            Body::Read(body) => pd::inject(body, facts, &fields),
            Body::Sent(injected) => injected.again(&fields),
        };
        let body = injected.body.clone();
        let request = Request {
            body: Body::Sent(injected),
            ..request
        };
        (request, Prepared { body, rooms, ids })
    }

    /// Spawns prefill's leg. The attempt, and what resolves when prefill's leg fails.
    fn dispatch(
        &self,
        request: &Request,
        prepared: Prepared,
        lease: Lease,
    ) -> (Attempt, Interrupt) {
        let facts = &request.facts;
        let prefill = lease.prefill.clone();
        let leg = PrefillLeg::spawn(PrefillRequest {
            client: self.client.clone(),
            worker: lease.prefill,
            rooms: prepared.rooms.clone(),
            route: request.route,
            head: request.head.clone(),
            body: prepared.body.clone(),
            keep: match facts.merge {
                Merge::None => Keep::Nothing,
                Merge::InputLogprobs | Merge::Echo => Keep::Body(self.limits.max_body_bytes),
            },
            fleet: self.fleet.clone(),
        });
        let prefill_failed = Box::pin(leg.failure());
        let plan = Plan {
            route: request.route,
            stream: facts.stream,
            merge: facts.merge,
            batch: facts.batch,
            head: request.head.clone(),
            body_len: prepared.body.len(),
            ids: Arc::new(prepared.ids),
            fleet: self.fleet.clone(),
            aborter: self.aborter.clone(),
        };
        let attempt = Attempt::new(plan, prefill, leg, lease.decode, prepared.rooms);
        (attempt, prefill_failed)
    }
}

impl Limits {
    /// The deadlines of the response to a request that began at `started`.
    pub(super) fn deadlines(&self, stream: bool, started: Instant) -> Deadlines {
        if stream {
            Deadlines {
                first_token: Some(started + self.first_token_timeout),
                stream_idle: Some(self.stream_idle_timeout),
                total: self.stream_timeout.map(|limit| started + limit),
            }
        } else {
            Deadlines {
                total: Some(started + self.request_timeout),
                ..Deadlines::default()
            }
        }
    }
}

/// The facts of a request that a pair can serve.
fn parse(route: Route, body: &[u8]) -> std::result::Result<Facts, ProxyError> {
    let facts = pd::parse(route, body).map_err(ProxyError::Invalid)?;
    if facts.n > 1 {
        return Err(ProxyError::Samples(facts.n));
    }
    if facts.batch.prompts() > MAX_PROMPTS {
        return Err(ProxyError::BatchTooLarge(MAX_PROMPTS));
    }
    Ok(facts)
}

/// The ids under which the workers know the request. `/v1/responses` and `/v1/messages` take none.
///
/// Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py`; a batch with one id names its items `id_0` and
/// so on: `srt/managers/io_struct.py` (`_normalize_rid`).
fn ids(route: Route, facts: &Facts) -> Ids {
    let prompts = facts.batch.prompts();
    match (&facts.rid, route) {
        (Some(Rid::One(id)), _) => Ids::Client(match facts.batch {
            Batch::Single => vec![id.clone()],
            Batch::Of(_) => (0..prompts).map(|item| format!("{id}_{item}")).collect(),
        }),
        (Some(Rid::Many(_)), _) | (None, Route::Responses | Route::Messages) => Ids::Unknown,
        (None, Route::Generate | Route::ChatCompletions | Route::Completions) => {
            Ids::Proxy((0..prompts).map(|_| RequestId(rand::random())).collect())
        }
    }
}
