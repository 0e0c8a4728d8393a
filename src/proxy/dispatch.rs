//! From a request to two legs on their way: read and parse once; prepare and send for each attempt.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use super::Proxy;
use super::deadlines::Deadlines;
use super::reading::Reading;
use super::request::{Body, Request, RequestContext};
use super::samples::Seat;
use super::session::{Follower, Keepalive, PrefillFailed, install};
use crate::client;
use crate::endpoint::{EVENT_STREAM, REQUEST_ID};
use crate::error::ProxyError;
use crate::fleet::suspects::Progress;
use crate::fleet::{Lease, Rooms, Spread};
use crate::legs::{self, Attempt, Keep, Plan, PrefillLeg, PrefillRequest};
use crate::net::Reuse;
use crate::pd::{Bootstrap, Fields, Injected, Merge, RequestIds, Route};

/// The parts of an attempt that no other attempt shares.
struct Prepared {
    body: Injected,
    rooms: Arc<Rooms>,
    ids: RequestIds,
}

/// What an attempt has besides its request and its pair.
pub(super) struct Terms<'a> {
    /// `Some` for one of several samples.
    seat: Option<&'a Seat>,
    /// `Some` for a suspect.
    pub(super) trial: Option<Progress>,
    pub(super) reuse: Reuse,
    /// The longest body of prefill's leg that is kept, in bytes.
    pub(super) most_kept: usize,
    /// The head of prefill's leg and of decode's, without the fields of one worker.
    pub(super) heads: [Arc<RequestHeader>; 2],
}

impl<'a> Terms<'a> {
    /// The terms of the next attempt, whose legs share this head.
    pub(super) fn of(ctx: &'a mut RequestContext, head: &Arc<RequestHeader>) -> Self {
        // A suspect that is lost must not be taken for one whose idle connection was closed.
        let reuse = match ctx.state.needs_new_connections() || ctx.suspicion.is_some() {
            true => Reuse::Never,
            false => Reuse::Pooled,
        };
        // Without tracing both have the same.
        let heads = match &mut ctx.record.trace {
            None => [head.clone(), head.clone()],
            Some(trace) => trace.legs().map(|span| legs::traced(head, span)),
        };
        Self {
            seat: ctx.seat.as_ref(),
            trial: ctx.suspicion.as_ref().and_then(|found| found.progress()),
            reuse,
            most_kept: ctx.rules.limits.max_body_bytes,
            heads,
        }
    }
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
        let (limit, timeout) = (
            ctx.rules.limits.max_body_bytes,
            ctx.rules.limits.body_timeout,
        );
        // With space for the fields of one prompt, so that preparing it moves no byte.
        let reserve = self.engine().tail_reserve(1);
        let share = ctx.share.insert(self.body_memory.share());
        let body = match client::read_body(session, limit, timeout, reserve, share).await? {
            Ok(body) => body,
            Err(error) => return Err(ctx.refuse(error.into())),
        };
        let reading = Reading {
            engine: self.engine(),
            route,
            rules: ctx.rules.clone(),
            has_ranks: self.fleet.has_ranks(),
        };
        let headers = &session.req_header().headers;
        let (body, parsed) = match reading.read(headers, body).await {
            Ok((body, Ok(parsed))) => (body, parsed),
            Ok((_, Err(error))) | Err(error) => return Err(ctx.refuse(error)),
        };
        // Without the query.
        let path = session.req_header().uri.path();
        let head = legs::for_legs(session.req_header(), path, &ctx.record.request_id)?;
        ctx.record.times.read = Some(Instant::now());
        ctx.record.request_bytes = body.len();
        let headers = &session.req_header().headers;
        let targets = match self.targets_of(&ctx.rules, headers, parsed.previous) {
            Ok(targets) => targets,
            Err(error) => return Err(ctx.refuse(error)),
        };
        ctx.request = Some(Request {
            route,
            facts: parsed.facts,
            key: parsed.key,
            targets,
            head: Arc::new(head),
            body: Body::Read(body),
        });
        ctx.show();
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
        self.note_first(ctx);
        ctx.note_choice(&lease);
        let (request, prepared) = self.prepare(request, bootstrap, lease.prefill.spread());
        let body = prepared.body.body.clone();
        let rooms = prepared.rooms.as_slice().len();
        let terms = Terms::of(ctx, &request.head);
        let (attempt, prefill_failed) = self.spawn_legs(&request, prepared, lease, terms);
        ctx.request = Some(request);
        ctx.note_attempt(attempt, rooms);
        self.install(session, ctx, body, prefill_failed)
    }

    /// The first attempt of a request pays for retries.
    pub(super) fn note_first(&self, ctx: &RequestContext) {
        if ctx.state.attempt() == 1 && !ctx.state.needs_new_connections() {
            self.budget().note_request(Instant::now());
        }
    }

    /// Installs the session that gives Pingora this body for decode's leg.
    pub(super) fn install(
        &self,
        session: &mut Session,
        ctx: &mut RequestContext,
        body: Bytes,
        prefill_failed: PrefillFailed,
    ) -> Result<()> {
        let Some(request) = &ctx.request else {
            return Err(ctx.refuse(ProxyError::Internal("nothing to send".into())));
        };
        let (stream, started) = (request.facts.stream, ctx.record.times.started);
        let deadlines = Deadlines {
            fleet: Some(self.fleet.clone()),
            ..Deadlines::new(&ctx.rules.limits, stream, started)
        };
        let follower = Follower {
            events: self.engine().stream_end(request.route),
            gaps: self.telemetry.metrics.gaps(request.route),
        };
        ctx.look_for_id(request.route);
        let keepalive = self.keepalive(session, ctx)?;
        let shutdown = self.shutdown.clone();
        ctx.installed = Some(install(
            session,
            body,
            follower,
            prefill_failed,
            deadlines,
            shutdown,
            keepalive,
        )?);
        ctx.show_legs();
        Ok(())
    }

    /// The comments of the response, where the configuration asks for them and its clients expect events of a name or of
    /// OpenAI's: those of `/generate` take every line for data. A sample's events are gathered before they go out.
    fn keepalive(&self, session: &Session, ctx: &mut RequestContext) -> Result<Option<Keepalive>> {
        let (Some(every), Some(request)) = (ctx.rules.limits.stream_keepalive, &ctx.request) else {
            return Ok(None);
        };
        if !request.facts.stream || request.route == Route::Generate || ctx.seat.is_some() {
            return Ok(None);
        }
        // A merge can still fail when decode's head is there.
        let head = match request.facts.merge {
            Merge::None => Some(self.stream_head(session, ctx)?),
            Merge::InputLogprobs | Merge::Echo => None,
        };
        Ok(Some(match ctx.head_is_out() {
            false => Keepalive::new(every, ctx.record.times.started, head),
            true => Keepalive::after_head(every, Instant::now()),
        }))
    }

    /// The head of a stream before a worker has sent one.
    pub(super) fn stream_head(
        &self,
        session: &Session,
        ctx: &mut RequestContext,
    ) -> Result<Box<ResponseHeader>> {
        let mut head = ResponseHeader::build(StatusCode::OK, Some(8))?;
        head.insert_header(CONTENT_TYPE, EVENT_STREAM)?;
        head.insert_header(REQUEST_ID, &ctx.record.request_id)?;
        ctx.rules
            .cors
            .apply(&session.req_header().headers, &mut head)?;
        ctx.add_timing(&mut head)?;
        Ok(Box::new(head))
    }

    /// Gives the request new rooms and ids, because a worker may still know those of an earlier attempt, and writes the
    /// bootstrap fields into its body. The rooms put its prompts on these ranks of the prefill worker.
    fn prepare(
        &self,
        request: Request,
        bootstrap: &Bootstrap,
        spread: Option<Spread>,
    ) -> (Request, Prepared) {
        let (route, facts) = (request.route, &request.facts);
        let prompts = facts.batch.prompts();
        let rooms = Arc::new(self.rooms.take(prompts, spread, rand::random));
        let ids = self.engine().request_ids(route, facts, rand::random);
        let fields = Fields {
            bootstrap,
            rooms: rooms.as_slice(),
            rank: rooms.rank(),
            rids: ids.to_inject(),
        };
        let injected = match request.body {
            Body::Read(body) => self.engine().inject(body, facts, &fields),
            Body::Kept(body) => self.engine().inject(body.into(), facts, &fields),
            Body::Sent(injected) => self.engine().inject_again(&injected, &fields),
        };
        let body = injected.clone();
        let request = Request {
            body: Body::Sent(injected),
            ..request
        };
        (request, Prepared { body, rooms, ids })
    }

    /// Spawns prefill's leg. The attempt, and what resolves when prefill's leg fails.
    fn spawn_legs(
        &self,
        request: &Request,
        prepared: Prepared,
        lease: Lease,
        terms: Terms<'_>,
    ) -> (Attempt, PrefillFailed) {
        let facts = &request.facts;
        let [prefill_head, decode_head] = terms.heads;
        let prefill = lease.prefill.clone();
        let leg = PrefillLeg::spawn(PrefillRequest {
            engine: self.engine(),
            client: self.client.clone(),
            worker: lease.prefill,
            rooms: prepared.rooms.clone(),
            route: request.route,
            head: prefill_head,
            body: prepared.body.body.clone(),
            reuse: terms.reuse,
            keep: match facts.merge {
                Merge::None => Keep::Nothing,
                Merge::InputLogprobs | Merge::Echo => Keep::Body(terms.most_kept),
            },
            fleet: self.fleet.clone(),
            trial: terms.trial,
        });
        let prefill_failed: PrefillFailed = match terms.seat {
            None => Box::pin(leg.failure()),
            Some(seat) => seat.watch(&leg),
        };
        let plan = Plan {
            engine: self.engine(),
            route: request.route,
            merge: facts.merge,
            batch: facts.batch,
            head: decode_head,
            body: prepared.body,
            ids: Arc::new(prepared.ids),
            fleet: self.fleet.clone(),
            aborter: self.aborter.clone(),
        };
        let (rooms, reuse) = (prepared.rooms, terms.reuse);
        let attempt = Attempt::new(plan, prefill, Some(leg), lease.decode, rooms, reuse);
        (attempt, prefill_failed)
    }
}
