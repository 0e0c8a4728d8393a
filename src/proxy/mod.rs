//! The corridor: Pingora's `ProxyHttp`, phase by phase. Each phase is a few lines that call the rooms.
//!
//! The life of a request with two legs:
//!
//! | phase | verb |
//! |---|---|
//! | `request_filter` | read, parse, select, inject, dispatch prefill; install the new body |
//! | `upstream_peer`, `upstream_request_filter` | dispatch decode |
//! | `response_filter` | decode has spoken: reject, or join prefill where a merge needs it |
//! | `response_body_filter` | merge, or pass on |
//! | `fail_to_proxy` | the one place that turns a failure into an answer |
//! | `logging` | give the client's session back, let prefill finish, one line |
//!
//! Every other path goes to the side door: the endpoints without legs.

mod answer;
mod body;
mod ctx;
mod error;
mod headers;
mod inflight;
mod prefill;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::{Method, header};
use pingora_core::modules::http::HttpModules;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

use crate::fleet::{Fleet, LiveRooms};
use crate::net::{Client, Door, WholeRequest};
use crate::pd::{self, Fields, Merge, Route};
pub(crate) use inflight::Inflight;

use ctx::{Ctx, Exchange};
use error::ProxyError;
use prefill::{Keep, Order, PrefillLeg};

/// A client connection without a request is closed after this long.
const CLIENT_IDLE_SECS: u64 = 75;

/// The longest body that is read only to be thrown away, in bytes.
const DRAIN_LIMIT: usize = 16 << 20;

/// The share of a chunked body that is reserved before its length is known, in bytes.
const CHUNKED_RESERVE: usize = 8 << 10;

/// The values that the corridor needs, and the rooms that it calls.
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rooms: Arc<LiveRooms>,
    pub(crate) client: Arc<Client>,
    pub(crate) side_door: Arc<dyn Door>,
    pub(crate) max_body_bytes: usize,
    pub(crate) inflight: Arc<Inflight>,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        Ctx::new(self.inflight.enter())
    }

    /// No modules: answers are neither compressed nor changed.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        session.set_keepalive(Some(CLIENT_IDLE_SECS));
        ctx.request_id = headers::request_id(&session.req_header().headers, rand::random);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Ctx) -> Result<bool> {
        let head = session.req_header();
        ctx.route = Route::find(head.uri.path()).filter(|route| takes(*route, &head.method));
        match ctx.route {
            Some(route) => self.dispatch(session, ctx, route).await.map(|()| false),
            None => self.side_door(session, ctx).await.map(|()| true),
        }
    }

    async fn upstream_peer(&self, _session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let exchange = ctx.exchange()?;
        Ok(Box::new(exchange.decode.peer().clone()))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let exchange = ctx.exchange()?;
        let mut head = exchange.head.clone();
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
        ctx.note_answer(head.status);
        let exchange = ctx.exchange()?;
        let answered = if head.status.is_success() {
            exchange.accepted(session, head, self.max_body_bytes).await
        } else {
            exchange.rejected(head.status)
        };
        answered.map_err(|stop| ctx.stop(stop))
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Ctx,
    ) -> Result<Option<Duration>> {
        let exchange = ctx.exchange()?;
        let piece = body.take().unwrap_or_default();
        match exchange.pass(piece, end_of_stream) {
            Ok(out) => {
                ctx.note_sent(&out);
                *body = Some(out);
                Ok(None)
            }
            Err(fault) => Err(ctx.fail(fault)),
        }
    }

    /// A pooled connection that decode closed before it answered is replaced: the worker has not begun.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        client_reused: bool,
    ) -> Box<Error> {
        let unanswered = ctx.status == 0 && session.response_written().is_none();
        let lost = matches!(
            error.etype(),
            ErrorType::ReadError | ErrorType::WriteError | ErrorType::ConnectionClosed
        );
        let stale = client_reused && lost && *error.esource() == ErrorSource::Upstream;
        error.set_retry(unanswered && stale);
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Ctx,
    ) -> FailToProxy {
        let begun = session.response_written().is_some();
        ctx.restore(session);
        let Some(fault) = ctx.conclude(error) else {
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
        session.set_keepalive(None);
        if let Err(error) = fault.write(session, ctx.route, &ctx.request_id).await {
            log::debug!(
                "answer not written request_id={:?} error={error}",
                ctx.request_id
            );
        }
        FailToProxy {
            error_code: ctx.status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        ctx.restore(session);
        if error.is_none() {
            ctx.let_prefill_finish();
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
    /// READ, PARSE, SELECT, INJECT, and the prefill leg on its way.
    async fn dispatch(&self, session: &mut Session, ctx: &mut Ctx, route: Route) -> Result<()> {
        let body = match read(session, self.max_body_bytes).await? {
            Ok(body) => body,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let facts = match pd::parse(route, &body).map_err(ProxyError::Invalid) {
            Ok(facts) if facts.n > 1 => return Err(ctx.refuse(ProxyError::Samples(facts.n))),
            Ok(facts) => facts,
            Err(error) => return Err(ctx.refuse(error)),
        };
        let lease = match self.fleet.select(rand::random) {
            Ok(lease) => lease,
            Err(error) => return Err(ctx.refuse(ProxyError::NoWorker(error))),
        };
        let rooms = Arc::new(self.rooms.take(facts.batch.prompts(), rand::random));
        let Some(bootstrap) = lease.prefill.bootstrap() else {
            let error = ProxyError::Internal("a prefill worker without a bootstrap host".into());
            return Err(ctx.refuse(error));
        };
        let fields = Fields {
            bootstrap,
            rooms: rooms.as_slice(),
        };
        let body = pd::inject(body, &facts, &fields);
        let head = headers::for_legs(
            session.req_header(),
            route.path(),
            &ctx.request_id,
            body.len(),
        )?;
        let mut prefill_head = head.clone();
        headers::address(&mut prefill_head, &lease.prefill)?;
        let prefill_url = lease.prefill.url().to_owned();
        let prefill = PrefillLeg::fire(Order {
            client: self.client.clone(),
            worker: lease.prefill,
            rooms: rooms.clone(),
            route,
            head: prefill_head,
            body: body.clone(),
            keep: match facts.merge {
                Merge::None => Keep::Nothing,
                Merge::InputLogprobs | Merge::Echo => Keep::Body(self.max_body_bytes),
            },
        });
        let interrupt = Box::pin(prefill.failure());
        ctx.installed = Some(body::install(session, body, interrupt)?);
        ctx.exchange = Some(Exchange::new(
            route,
            facts,
            head,
            prefill_url,
            prefill,
            lease.decode,
            rooms,
        ));
        Ok(())
    }

    /// The endpoints without legs: a whole request in, a whole answer out.
    async fn side_door(&self, session: &mut Session, ctx: &mut Ctx) -> Result<()> {
        let head = session.req_header();
        let limit = self
            .side_door
            .body_limit(&head.method, head.uri.path())
            .min(self.max_body_bytes);
        let request = WholeRequest {
            method: head.method.clone(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers.clone(),
            body: Bytes::new(),
        };
        let (body, at_end) = match limit {
            0 => (Bytes::new(), drain(session).await?),
            limit => match read(session, limit).await? {
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
        ctx.status = answer.status.as_u16();
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

/// SGLang takes PUT on `/generate` too.
fn takes(route: Route, method: &Method) -> bool {
    method == Method::POST || (route == Route::Generate && method == Method::PUT)
}

fn gone() -> FailToProxy {
    FailToProxy {
        error_code: 0,
        can_reuse_downstream: false,
    }
}

/// Reads a body that nobody wants, so that its sender gets to read the answer. Whether its end was reached:
/// a longer one is cut off with the connection, and one that the client holds back is not asked for.
async fn drain(session: &mut Session) -> Result<bool> {
    if expects_continue(session) {
        return Ok(false);
    }
    let mut drained = 0;
    while let Some(piece) = session.downstream_session.read_request_body().await? {
        drained += piece.len();
        if drained > DRAIN_LIMIT {
            return Ok(false);
        }
    }
    Ok(true)
}

fn expects_continue(session: &Session) -> bool {
    session
        .req_header()
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The whole body of a request, with spare room for what is injected.
///
/// The outer error is the client's connection, the inner one is the body.
async fn read(session: &mut Session, limit: usize) -> Result<Result<BytesMut, ProxyError>> {
    let headers = &session.req_header().headers;
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Ok(Err(ProxyError::BodyTooLarge(limit)));
    }
    if expects_continue(session) {
        session.downstream_session.write_continue_response().await?;
    }
    let expected = length.unwrap_or(CHUNKED_RESERVE);
    let mut body = BytesMut::with_capacity(expected + pd::tail_reserve(1));
    loop {
        match session.downstream_session.read_request_body().await {
            Ok(Some(piece)) if body.len() + piece.len() > limit => {
                return Ok(Err(ProxyError::BodyTooLarge(limit)));
            }
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Ok(Ok(body)),
            Err(error) => match error.etype() {
                ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error => {
                    return Err(error.into_down());
                }
                ErrorType::ReadTimedout => return Ok(Err(ProxyError::BodyTimeout)),
                _ => return Ok(Err(ProxyError::BadFraming(error.root_cause().to_string()))),
            },
        }
    }
}
