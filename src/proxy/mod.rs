//! The corridor: Pingora's `ProxyHttp`, phase by phase. Each phase is a few lines that call the rooms.
//!
//! The life of a request with two legs:
//!
//! | phase | verb |
//! |---|---|
//! | `early_request_filter` | let in, or not |
//! | `request_filter` | read, parse, select: a pair, or a place in the queue until there is one |
//! | `upstream_peer` | inject, dispatch prefill; install the new body. Once for each attempt, later ones select here |
//! | `upstream_request_filter` | dispatch decode |
//! | `response_filter` | decode has spoken: reject, or join prefill where a merge needs it |
//! | `response_body_filter` | merge, or pass on |
//! | `error_while_proxy`, `fail_to_connect` | the verdict: another pair, or whose failure it is |
//! | `fail_to_proxy` | the one place that turns a failure into an answer |
//! | `logging` | give the client's session back, let prefill finish, one line |
//!
//! Every other path goes to the side door: the endpoints without legs.

mod decide;
mod dispatch;
mod request;
mod session;
mod wait;

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::client::{self, BodyMemory, Inflight, Keys, Listener, ShutdownWatcher, WITHOUT_TIMER};
use crate::endpoint::{Access, Endpoints, REQUEST_ID, WholeRequest};
use crate::error::{Exhausted, ProxyError};
use crate::fleet::{Fleet, LiveRooms, RetryBudget, Role};
use crate::legs::{self, Aborter, evidence, no_document};
use crate::net::{Client, Failure, reject_head};
use crate::pd::{Leg, Route, Verdict};
use request::RequestContext;
use session::Deadlines;

/// The values that the corridor needs, and the rooms that it calls.
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rooms: Arc<LiveRooms>,
    pub(crate) client: Arc<Client>,
    pub(crate) side_door: Arc<dyn Endpoints>,
    pub(crate) aborter: Arc<Aborter>,
    pub(crate) budget: Mutex<RetryBudget>,
    pub(crate) inflight: Arc<Inflight>,
    pub(crate) buffered: Arc<BodyMemory>,
    pub(crate) keys: Keys,
    /// Whether workers are administered through another listener than the clients'.
    pub(crate) admins_apart: bool,
    pub(crate) departure: ShutdownWatcher,
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
    /// For a request that waits until a worker has room.
    pub(crate) queue: Duration,
    /// Until a client that takes nothing of its answer is given up, and its legs with it.
    pub(crate) stall: Duration,
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
    /// Boxed, because Pingora keeps it in each of its layers' futures, and moves it from one to the other.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::new(self.inflight.enter()))
    }

    fn on_connection_reuse(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
        context: Box<dyn Any + Send + Sync>,
    ) {
        if let Some((listener, spare)) = client::note_head(session, context) {
            ctx.listener = listener;
            ctx.spare = spare;
        }
    }

    /// No modules: answers are neither compressed nor changed.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        let keeps = session.get_keepalive().is_some();
        let upgrades = session.is_upgrade_req();
        // What comes after an upgrade that nobody makes may be no HTTP any more.
        session.set_keepalive((keeps && !upgrades && !ctx.spare).then_some(WITHOUT_TIMER));
        self.ask_to_move(session);
        session.set_write_timeout(Some(self.limits.stall));
        // Bytes behind a request are the next one; without this they would end a running answer. The price:
        // Pingora reads no further, so that such a client's leaving is noticed only by the next write to it.
        session.downstream_session.set_pipelining_enabled(true);
        let head = session.req_header();
        ctx.request_id = legs::request_id(&head.headers, rand::random);
        ctx.route = Route::find(head.uri.path()).filter(|route| takes(*route, &head.method));
        let raw = session.downstream_session.as_http1();
        if let Some(Err(why)) = raw.map(|session| client::check(&session.get_headers_raw_bytes())) {
            return Err(ctx.refuse(ProxyError::BadHead(why)));
        }
        let access = self.side_door.access(head.uri.path());
        if self.admins_apart && access == Access::Admins && ctx.listener == Listener::Clients {
            return Err(ctx.refuse(ProxyError::AdminsOnly));
        }
        if access == Access::Open && ctx.listener == Listener::Admins {
            ctx.uncount();
        }
        if !self.keys.admit(access, head) {
            return Err(ctx.refuse(ProxyError::Unauthorized));
        }
        self.keys
            .keep_from_workers(access, session.req_header_mut());
        if access != Access::Open && ctx.spare {
            return Err(ctx.refuse(ProxyError::Overloaded(Exhausted::Connections)));
        }
        if access != Access::Open && self.inflight.live() > self.limits.inflight {
            return Err(ctx.refuse(ProxyError::Overloaded(Exhausted::Requests)));
        }
        if ctx.route.is_some() && self.fleet.is_full() {
            return Err(ctx.refuse(ProxyError::QueueFull));
        }
        Ok(())
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<bool> {
        match ctx.route {
            Some(route) => self.understand(session, ctx, route).await.map(|()| false),
            None => self.side_door(session, ctx).await.map(|()| true),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Box<HttpPeer>> {
        // The exchange is still there when Pingora only replaces a stale connection to decode.
        if ctx.exchange.is_none() {
            self.attempt(session, ctx).await?;
        }
        let nowhere = || Error::explain(ErrorType::InternalError, "a lease without an address");
        let exchange = ctx.exchange()?;
        let address = exchange.decode.address().ok_or_else(nowhere)?;
        let name = exchange.decode.server_name();
        let (peer, loan) = self.client.lend(address, name, exchange.chunks());
        exchange.loan = loan;
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        *upstream_request = ctx.exchange()?.decode_head()?;
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        if let Some(failure) =
            reject_head(head.status, &head.headers).or_else(|| no_document(head.status))
        {
            let no_legs = || Error::explain(ErrorType::InternalError, "an answer without legs");
            return Err(self.decode_failed(ctx, failure).unwrap_or_else(no_legs));
        }
        if head.status.is_informational() {
            return Ok(());
        }
        head.insert_header(REQUEST_ID, &ctx.request_id)?;
        let accepted = head.status.is_success();
        let leg = if accepted {
            ctx.exchange()?.join(client::left(session)).await?;
            Leg::Served
        } else {
            Leg::Rejected(head.status.as_u16())
        };
        ctx.course.decode(leg);
        match self.verdict(ctx)? {
            Verdict::Retry => return Err(self.again(ctx)),
            Verdict::Fail(Role::Prefill) => return Err(self.fail_with_prefill(ctx)),
            Verdict::Fail(Role::Decode) => {
                let exchange = ctx.exchange()?;
                exchange.end_prefill();
                exchange.decode_ended(evidence(leg));
                Self::note_pair(exchange, leg);
                if let Some(error) = self.wrong_key(&exchange.decode, leg) {
                    return Err(ctx.refuse(error));
                }
            }
            Verdict::Respond | Verdict::Wait => {
                let max_event_bytes = self.limits.max_body_bytes;
                if let Err(error) = ctx.exchange()?.accepted(head, max_event_bytes) {
                    return Err(ctx.fail(error.into()));
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
        ctx: &mut Box<RequestContext>,
    ) -> Result<Option<Duration>> {
        let piece = body.take().unwrap_or_default();
        let begun = ctx.course.is_committed();
        if !begun && (!piece.is_empty() || end_of_stream) && ctx.status < 300 {
            // Without prefill's KV cache whatever decode says is not the answer.
            match self.verdict(ctx)? {
                Verdict::Retry => return Err(self.again(ctx)),
                Verdict::Fail(Role::Prefill) => return Err(self.fail_with_prefill(ctx)),
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
        ctx: &mut Box<RequestContext>,
        error: Box<Error>,
    ) -> Box<Error> {
        let failure = Failure::from_pingora(&error);
        self.decode_failed(ctx, failure).unwrap_or(error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut Box<RequestContext>,
        client_reused: bool,
    ) -> Box<Error> {
        self.ended_early(session, ctx, error, client_reused)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Box<RequestContext>,
    ) -> FailToProxy {
        let begun = has_begun(session);
        ctx.restore(session);
        let decided = ctx.is_decided(error) || *error.esource() == ErrorSource::Downstream;
        if !decided {
            ctx.refuse(ProxyError::Internal(error.to_string()));
        }
        let Some(fault) = ctx.conclude(error) else {
            return gone();
        };
        if begun {
            if let Some(event) = ctx.error_event(&fault) {
                // Best effort: the client may be gone as well. The body is left without its end, because the connection
                // goes: who took it for whole would send the next request there.
                let _ = session.write_response_body(Some(event), false).await;
            }
            return gone();
        }
        self.ask_to_move(session);
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

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &mut Box<RequestContext>,
    ) {
        ctx.restore(session);
        if error.is_none()
            && ctx.status < 300
            && let Some(exchange) = ctx.exchange.as_mut()
        {
            exchange.ended_well();
        }
        ctx.log_line(session);
    }

    /// [`RequestContext::log_line`] says it, once.
    fn suppress_error_log(
        &self,
        _session: &Session,
        _ctx: &Box<RequestContext>,
        _error: &Error,
    ) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Box<RequestContext>,
        _error: &Error,
        _context: ProxyWarnLogContext,
    ) -> bool {
        true
    }
}

impl Proxy {
    /// A process that is about to leave answers with `Connection: close`.
    fn ask_to_move(&self, session: &mut Session) {
        if self.departure.has_begun() {
            session.set_keepalive(None);
        }
    }

    /// The endpoints without legs: a whole request in, a whole answer out.
    async fn side_door(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
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
                client::drain(session, self.limits.body).await?,
            ),
            limit => match client::read(session, limit, self.limits.body, 0, share).await? {
                Ok(body) => (body.freeze(), true),
                Err(error) => return Err(ctx.refuse(error.into())),
            },
        };
        let answer = self
            .side_door
            .respond(WholeRequest { body, ..request }, &ctx.request_id);
        let answer = tokio::select! {
            answer = answer => answer,
            left = client::left(session), if at_end => return Err(left),
        };
        ctx.note_side_answer(&answer);
        self.ask_to_move(session);
        let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 2))?;
        for (name, value) in &answer.headers {
            head.append_header(name, value)?;
        }
        head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
        head.insert_header(REQUEST_ID, &ctx.request_id)?;
        session.write_response_header(Box::new(head), false).await?;
        session.write_response_body(Some(answer.body), true).await
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
