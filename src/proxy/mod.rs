//! The corridor: Pingora's `ProxyHttp`, phase by phase. Each phase is a few lines that call the rooms.
//!
//! The life of a request with two legs:
//!
//! | phase | verb |
//! |---|---|
//! | `early_request_filter` | let in, or not |
//! | `request_filter` | read, parse |
//! | `upstream_peer` | select, inject, dispatch prefill; install the new body. Once for each attempt |
//! | `upstream_request_filter` | dispatch decode |
//! | `response_filter` | decode has spoken: reject, or join prefill where a merge needs it |
//! | `response_body_filter` | merge, or pass on |
//! | `error_while_proxy`, `fail_to_connect` | the verdict: another pair, or whose failure it is |
//! | `fail_to_proxy` | the one place that turns a failure into an answer |
//! | `logging` | give the client's session back, let prefill finish, one line |
//!
//! Every other path goes to the side door: the endpoints without legs.

mod abort;
mod answer;
mod body;
mod connection;
mod ctx;
mod error;
mod exchange;
mod gate;
mod headers;
mod inflight;
mod intake;
mod keys;
mod prefill;

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::fleet::{Fleet, LiveRooms, RetryBudget, Role};
use crate::net::{Access, Client, Door, Failure, WholeRequest};
use crate::pd::{
    self, Allowance, Batch, Facts, Fields, Injected, Leg, Merge, RequestId, Rid, Route, Verdict,
};
use abort::Ids;
use answer::Spoiled;
use body::{Deadlines, INTERRUPTED, LATE, OVERDUE, STALLED};
use ctx::{Body, Ctx, Request};
use error::{Exhausted, Fault, ProxyError};
use exchange::{Exchange, Plan};
use prefill::{Keep, Order, PrefillLeg, evidence};

pub(crate) use abort::Aborter;
pub(crate) use connection::Connections;
pub(crate) use inflight::Inflight;
pub(crate) use intake::Buffered;
pub(crate) use keys::Keys;

/// A client connection without a request is closed after this long.
const CLIENT_IDLE_SECS: u64 = 75;

/// A client that takes nothing of its answer for this long is given up, and its legs with it.
const CLIENT_STALL: Duration = Duration::from_secs(60);

/// The values that the corridor needs, and the rooms that it calls.
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rooms: Arc<LiveRooms>,
    pub(crate) client: Arc<Client>,
    pub(crate) side_door: Arc<dyn Door>,
    pub(crate) aborter: Arc<Aborter>,
    pub(crate) budget: Mutex<RetryBudget>,
    pub(crate) inflight: Arc<Inflight>,
    pub(crate) buffered: Arc<Buffered>,
    pub(crate) keys: Keys,
    pub(crate) limits: Limits,
}

/// The numbers of the corridor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of a request body, in bytes.
    pub(crate) max_body_bytes: usize,
    /// Requests at once, at least 1.
    pub(crate) inflight: usize,
    /// For a request body that is empty; each MiB gets a second more.
    pub(crate) body: Duration,
    /// Attempts that one request has in all, at least 1.
    pub(crate) attempts: u32,
    /// Until the first byte of a streamed answer.
    pub(crate) first_token: Duration,
    /// Between two pieces of a streamed answer.
    pub(crate) silence: Duration,
    /// For a whole answer that is not streamed.
    pub(crate) request: Duration,
    /// For a whole streamed answer; none when it is `None`.
    pub(crate) stream: Option<Duration>,
}

impl Limits {
    fn deadlines(&self, stream: bool, started: Instant) -> Deadlines {
        if stream {
            Deadlines {
                first: Some(started + self.first_token),
                silence: Some(self.silence),
                total: self.stream.map(|limit| started + limit),
            }
        } else {
            Deadlines {
                total: Some(started + self.request),
                ..Deadlines::default()
            }
        }
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.inflight.enter())
    }

    fn on_connection_reuse(
        &self,
        _session: &mut Session,
        _ctx: &mut Ctx,
        context: Box<dyn Any + Send + Sync>,
    ) {
        connection::note_head(context);
    }

    /// No modules: answers are neither compressed nor changed.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let keeps = session.get_keepalive().is_some();
        let upgrades = session.is_upgrade_req();
        // What comes after an upgrade that nobody makes may be no HTTP any more.
        session.set_keepalive((keeps && !upgrades).then_some(CLIENT_IDLE_SECS));
        session.set_write_timeout(Some(CLIENT_STALL));
        // Bytes behind a request are the next one; without this they would end a running answer. The price:
        // Pingora reads no further, so that such a client's leaving is noticed only by the next write to it.
        session.downstream_session.set_pipelining_enabled(true);
        let head = session.req_header();
        ctx.request_id = headers::request_id(&head.headers, rand::random);
        ctx.route = Route::find(head.uri.path()).filter(|route| takes(*route, &head.method));
        let raw = session.downstream_session.as_http1();
        if let Some(Err(why)) = raw.map(|session| gate::admit(&session.get_headers_raw_bytes())) {
            return Err(ctx.refuse(ProxyError::BadHead(why)));
        }
        let access = self.side_door.access(head.uri.path());
        if !self.keys.admit(access, head) {
            return Err(ctx.refuse(ProxyError::Unauthorized));
        }
        self.keys
            .keep_from_workers(access, session.req_header_mut());
        if access != Access::Open && self.inflight.live() > self.limits.inflight {
            return Err(ctx.refuse(ProxyError::Overloaded(Exhausted::Requests)));
        }
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        match ctx.route {
            Some(route) => self.understand(session, ctx, route).await.map(|()| false),
            None => self.side_door(session, ctx).await.map(|()| true),
        }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        // The exchange is still there when Pingora only replaces a stale connection to decode.
        if ctx.exchange.is_none() {
            self.attempt(session, ctx)?;
        }
        Ok(Box::new(ctx.exchange()?.decode.peer().clone()))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let exchange = ctx.exchange()?;
        let mut head = exchange.head().clone();
        headers::address(&mut head, &exchange.decode)?;
        *upstream_request = head;
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        if head.status.is_informational() {
            return Ok(());
        }
        head.insert_header(headers::REQUEST_ID, &ctx.request_id)?;
        let accepted = head.status.is_success();
        let leg = if accepted {
            ctx.exchange()?.join(session).await?;
            Leg::Served
        } else {
            Leg::Rejected(head.status.as_u16())
        };
        ctx.course.decode(leg);
        match self.verdict(ctx)? {
            Verdict::Retry => return Err(self.again(ctx)),
            Verdict::Fail(Role::Prefill) => return Err(Self::fail_with_prefill(ctx)),
            Verdict::Fail(Role::Decode) => {
                let exchange = ctx.exchange()?;
                exchange.end_prefill();
                exchange.decode_ended(evidence(leg));
                Self::note_pair(exchange, leg);
            }
            Verdict::Respond | Verdict::Wait => {
                let max_event_bytes = self.limits.max_body_bytes;
                if let Err(error) = ctx.exchange()?.accepted(head, max_event_bytes) {
                    return Err(ctx.refuse(error));
                }
            }
        }
        ctx.note_answer(head.status);
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let piece = body.take().unwrap_or_default();
        let begun = ctx.course.is_committed();
        if !begun && !piece.is_empty() && ctx.status < 300 {
            // Without prefill's KV cache whatever decode says is not the answer.
            match self.verdict(ctx)? {
                Verdict::Retry => return Err(self.again(ctx)),
                Verdict::Fail(Role::Prefill) => return Err(Self::fail_with_prefill(ctx)),
                Verdict::Fail(Role::Decode) | Verdict::Respond | Verdict::Wait => {}
            }
        }
        match ctx.exchange()?.pass(piece, end_of_stream, begun) {
            Ok(out) => {
                ctx.note_sent(&out);
                *body = Some(out);
                Ok(None)
            }
            Err(spoiled) => Err(self.spoiled(ctx, spoiled)),
        }
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Ctx,
        error: Box<Error>,
    ) -> Box<Error> {
        self.decode_failed(ctx, &error).unwrap_or(error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        if ctx.is_decided(&error) {
            return error;
        }
        error.set_retry(false);
        let fault = match error.etype() {
            etype if *etype == INTERRUPTED => {
                return match self.verdict(ctx) {
                    Ok(Verdict::Retry) => self.again(ctx),
                    _ => Self::fail_with_prefill(ctx),
                };
            }
            etype if *etype == LATE => ProxyError::FirstTokenLate(self.limits.first_token),
            etype if *etype == STALLED => ProxyError::Stalled(self.limits.silence),
            etype if *etype == OVERDUE => ProxyError::Overdue,
            _ if *error.esource() == ErrorSource::Downstream => return error,
            _ => {
                let unanswered = ctx.status == 0 && !has_begun(session);
                if unanswered && client_reused && is_lost(&error) {
                    // The worker closed an idle connection: it has not begun, another one will do.
                    error.set_retry(true);
                    return error;
                }
                return self.decode_failed(ctx, &error).unwrap_or(error);
            }
        };
        ctx.course.decode(Leg::Failed);
        if let Ok(exchange) = ctx.exchange() {
            exchange.ended_together_badly();
        }
        ctx.refuse(fault)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let begun = has_begun(session);
        ctx.restore(session);
        let decided = ctx.is_decided(error) || *error.esource() == ErrorSource::Downstream;
        if !decided {
            ctx.refuse(ProxyError::Internal(error.to_string()));
        }
        let Some(fault) = ctx.conclude() else {
            return gone();
        };
        if begun {
            if let Some(event) = ctx.error_event(&fault) {
                // Best effort: the client may be gone as well.
                let _ = session.write_response_body(Some(event), true).await;
            }
            return gone();
        }
        ctx.status = fault.status().as_u16();
        // Pingora keeps the connection only for a request that never went to a worker.
        let reusable = ctx.request.is_none() && session.is_body_done() && !fault.ends_connection();
        if !reusable {
            session.set_keepalive(None);
        }
        if let Err(error) = fault.write(session, ctx.route, &ctx.request_id).await {
            log::debug!(
                "answer not written request_id={:?} error={error}",
                ctx.request_id
            );
        }
        FailToProxy {
            error_code: ctx.status,
            can_reuse_downstream: reusable,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        ctx.restore(session);
        if error.is_none()
            && ctx.status < 300
            && let Some(exchange) = ctx.exchange.as_mut()
        {
            exchange.ended_well();
        }
        ctx.log_line(session);
    }

    /// [`Ctx::log_line`] says it, once.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Ctx, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Ctx,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

impl Proxy {
    /// READ and PARSE.
    async fn understand(&self, session: &mut Session, ctx: &mut Ctx, route: Route) -> Result<()> {
        let limits = &self.limits;
        let share = ctx.share.insert(self.buffered.share());
        let body = match intake::read(session, limits.max_body_bytes, limits.body, share).await? {
            Ok(body) => body,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let facts = match pd::parse(route, &body).map_err(ProxyError::Invalid) {
            Ok(facts) if facts.n > 1 => return Err(ctx.refuse(ProxyError::Samples(facts.n))),
            Ok(facts) => facts,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let head = headers::for_legs(session.req_header(), route.path(), &ctx.request_id)?;
        self.budget().note_request(Instant::now());
        ctx.request = Some(Request {
            route,
            facts,
            head,
            body: Body::Read(body),
        });
        Ok(())
    }

    /// SELECT, INJECT, and the prefill leg on its way. With new rooms and ids each time: a worker may still know
    /// the old ones.
    fn attempt(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let Some(request) = ctx.request.take() else {
            return Err(ctx.refuse(ProxyError::Internal("a request that was not read".into())));
        };
        let lease = match self.fleet.select(rand::random, Instant::now(), &ctx.avoid) {
            Ok(lease) => lease,
            Err(error) => return Err(ctx.refuse(ProxyError::NoWorker(error))),
        };
        let Some(bootstrap) = lease.prefill.bootstrap() else {
            let error = ProxyError::Internal("a prefill worker without a bootstrap host".into());
            return Err(ctx.refuse(error));
        };
        let Request {
            route,
            facts,
            head: bare_head,
            body,
        } = request;
        let prompts = facts.batch.prompts();
        let rooms = Arc::new(self.rooms.take(prompts, rand::random));
        let ids = ids(route, &facts);
        let injected = inject(
            body,
            &facts,
            &Fields {
                bootstrap,
                rooms: rooms.as_slice(),
                rids: match &ids {
                    Ids::Ours(ids) => Some(ids),
                    Ids::Clients(_) | Ids::Unknown => None,
                },
            },
        );
        let mut head = bare_head.clone();
        head.insert_header(header::CONTENT_LENGTH, injected.body.len())?;
        let mut prefill_head = head.clone();
        headers::address(&mut prefill_head, &lease.prefill)?;
        ctx.note_legs(lease.prefill.url(), lease.decode.url());
        let prefill = lease.prefill.clone();
        let leg = PrefillLeg::fire(Order {
            client: self.client.clone(),
            worker: lease.prefill,
            rooms: rooms.clone(),
            route,
            head: prefill_head,
            body: injected.body.clone(),
            keep: match facts.merge {
                Merge::None => Keep::Nothing,
                Merge::InputLogprobs | Merge::Echo => Keep::Body(self.limits.max_body_bytes),
            },
            fleet: self.fleet.clone(),
        });
        let plan = Plan {
            route,
            stream: facts.stream,
            merge: facts.merge,
            batch: facts.batch,
            head,
            ids: Arc::new(ids),
            fleet: self.fleet.clone(),
            aborter: self.aborter.clone(),
        };
        let interrupt = Box::pin(leg.failure());
        let deadlines = self.limits.deadlines(facts.stream, ctx.started());
        ctx.exchange = Some(Exchange::new(plan, prefill, leg, lease.decode, rooms));
        ctx.restore(session);
        let body = injected.body.clone();
        ctx.installed = Some(body::install(session, body, interrupt, deadlines)?);
        ctx.request = Some(Request {
            route,
            facts,
            head: bare_head,
            body: Body::Sent(injected),
        });
        Ok(())
    }

    /// What follows from what both legs have done. A retry is taken from the budget here.
    fn verdict(&self, ctx: &mut Ctx) -> Result<Verdict> {
        let state = ctx.exchange()?.prefill_state();
        ctx.course.prefill(state);
        let own_rid = ctx.request.as_ref().is_some_and(|r| r.facts.rid.is_some());
        let allowed = Allowance {
            attempts: self.limits.attempts,
            budget: true,
            own_rid,
        };
        Ok(match ctx.course.verdict(allowed) {
            Verdict::Retry if !self.has_another(ctx)? || !self.budget().take(Instant::now()) => {
                ctx.course.verdict(Allowance {
                    budget: false,
                    ..allowed
                })
            }
            verdict => verdict,
        })
    }

    /// Whether a retry would reach another worker than the one that is to blame.
    fn has_another(&self, ctx: &mut Ctx) -> Result<bool> {
        let blamed = ctx.exchange()?.blamed().clone();
        let candidates = self.fleet.of(blamed.role());
        Ok(candidates
            .iter()
            .any(|other| other.id() != blamed.id() && !ctx.avoid.contains(&other.id())))
    }

    /// Decode's leg ended without an answer, or in the middle of one.
    fn decode_failed(&self, ctx: &mut Ctx, error: &Error) -> Option<Box<Error>> {
        let failure = Failure::from_pingora(error);
        let leg = prefill::failed(&failure);
        ctx.course.decode(leg);
        let verdict = self.verdict(ctx).ok()?;
        let exchange = ctx.exchange.as_mut()?;
        exchange.decode_ended(evidence(leg));
        let url = exchange.decode.url().to_owned();
        Some(match verdict {
            Verdict::Retry => self.again(ctx),
            Verdict::Fail(Role::Prefill) => Self::fail_with_prefill(ctx),
            Verdict::Fail(Role::Decode) | Verdict::Respond | Verdict::Wait => {
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
        })
    }

    /// A piece of decode's answer cannot become the client's.
    fn spoiled(&self, ctx: &mut Ctx, spoiled: Spoiled) -> Box<Error> {
        let leg = match &spoiled {
            Spoiled::Rejected(rejection) => Leg::Rejected(rejection.status.as_u16()),
            Spoiled::Merge(_) | Spoiled::TooLong(_) => Leg::Failed,
        };
        ctx.course.decode(leg);
        let verdict = self.verdict(ctx);
        let Ok(exchange) = ctx.exchange() else {
            return ctx.refuse(ProxyError::Internal("an answer without legs".into()));
        };
        exchange.decode_ended(evidence(leg));
        Self::note_pair(exchange, leg);
        let url = exchange.decode.url().to_owned();
        match (verdict, spoiled) {
            (Ok(Verdict::Retry), _) => self.again(ctx),
            (Ok(Verdict::Fail(Role::Prefill)), _) => Self::fail_with_prefill(ctx),
            (_, Spoiled::Rejected(rejection)) => ctx.fail(Fault::Rejected(Role::Decode, rejection)),
            (_, Spoiled::Merge(error)) => ctx.refuse(ProxyError::Merge(error)),
            (_, Spoiled::TooLong(error)) => {
                let failure = Failure::TooLong(error.limit);
                ctx.refuse(ProxyError::Leg(Role::Decode, url, failure))
            }
        }
    }

    /// Another pair gets the request; the worker that is to blame is avoided.
    fn again(&self, ctx: &mut Ctx) -> Box<Error> {
        let Some(exchange) = ctx.exchange.as_ref() else {
            return ctx.refuse(ProxyError::Internal("a retry without legs".into()));
        };
        let avoid = exchange.blamed().id();
        ctx.again(avoid)
    }

    fn fail_with_prefill(ctx: &mut Ctx) -> Box<Error> {
        let exchange = ctx.exchange.as_ref();
        let fault = exchange.and_then(Exchange::prefill_fault);
        if let Some(exchange) = exchange {
            Self::note_pair(exchange, exchange.prefill_state());
        }
        match fault {
            Some(fault) => ctx.fail(fault),
            None => ctx.refuse(ProxyError::Internal(
                "prefill failed without a trace".into(),
            )),
        }
    }

    /// A 500 of one leg is often the other's fault: it counts against the pair as well.
    fn note_pair(exchange: &Exchange, leg: Leg) {
        if matches!(leg, Leg::Rejected(500)) {
            exchange.ended_together_badly();
        }
    }

    fn budget(&self) -> std::sync::MutexGuard<'_, RetryBudget> {
        // Nothing panics while the lock is held.
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoints without legs: a whole request in, a whole answer out.
    async fn side_door(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let head = session.req_header();
        let limit = self
            .side_door
            .body_limit(&head.method, head.uri.path())
            .min(self.limits.max_body_bytes);
        let request = WholeRequest {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers.clone(),
            body: Bytes::new(),
        };
        let share = ctx.share.insert(self.buffered.share());
        let (body, at_end) = match limit {
            0 => (
                Bytes::new(),
                intake::drain(session, self.limits.body).await?,
            ),
            limit => match intake::read(session, limit, self.limits.body, share).await? {
                Ok(body) => (body.freeze(), true),
                Err(error) => return Err(ctx.refuse(error)),
            },
        };
        let answer = self
            .side_door
            .answer(WholeRequest { body, ..request }, &ctx.request_id);
        let answer = tokio::select! {
            answer = answer => answer,
            read = session.downstream_session.read_body_or_idle(true), if at_end => {
                let closed = || Error::new(ErrorType::ConnectionClosed);
                return Err(read.err().unwrap_or_else(closed).into_down());
            }
        };
        ctx.note_side_answer(&answer);
        let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
        for (name, value) in &answer.headers {
            head.append_header(name, value)?;
        }
        head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
        head.insert_header(headers::REQUEST_ID, &ctx.request_id)?;
        session.write_response_header(Box::new(head), false).await?;
        session.write_response_body(Some(answer.body), true).await
    }
}

/// Whether the other side closed the connection.
fn is_lost(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream
        && matches!(
            error.etype(),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
        )
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

fn inject(body: Body, facts: &Facts, fields: &Fields<'_>) -> Injected {
    match body {
        Body::Read(body) => pd::inject(body, facts, fields),
        Body::Sent(injected) => injected.again(fields),
    }
}

/// SGLang takes PUT on `/generate` too.
fn takes(route: Route, method: &Method) -> bool {
    method == Method::POST || (route == Route::Generate && method == Method::PUT)
}

/// Whether an answer has begun; a `100 Continue` is none.
fn has_begun(session: &Session) -> bool {
    session
        .response_written()
        .is_some_and(|head| !head.status.is_informational())
}

fn gone() -> FailToProxy {
    FailToProxy {
        error_code: 0,
        can_reuse_downstream: false,
    }
}
