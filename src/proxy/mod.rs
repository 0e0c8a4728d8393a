//! The proxy: Pingora's `ProxyHttp`, whose hooks are the life of a request with two legs.
//!
//! | hook | step | file |
//! |---|---|---|
//! | `new_ctx`, `on_connection_reuse` | the record begins; the listener of the connection, and whether it is above the limit | `request.rs`, `client/connection.rs` |
//! | `early_request_filter` | let in: the head, the key, the limits | `admission.rs` |
//! | `request_filter` | read and parse the body; select a pair, or wait for one | `dispatch.rs`, `reading.rs`, `wait.rs`, `suspects.rs` |
//! | `upstream_peer` | once for each attempt: select, unless it is the first; prepare the body; send prefill's leg, and wait for its end where decode's body depends on it; install the session whose body is the prepared one | `dispatch.rs`, `turns.rs`, `session.rs` |
//! | `upstream_request_filter` | decode's head; Pingora sends decode's leg | `legs/attempt.rs` |
//! | `response_filter` | decode has responded: join prefill where a merge needs it, decide | `respond.rs`, `decide.rs`, `timing.rs` |
//! | `response_body_filter` | pass a chunk of decode's body on, merged or as it is | `respond.rs` |
//! | (no hook) `ReplacedSession::response_duplex_vec` | hold the head, note the first byte, write to the client | `session.rs` |
//! | (no hook) the relay | an unmerged stream behind its first event, from socket to socket | `session/relay.rs` |
//! | `fail_to_connect`, `error_while_proxy` | decide what follows from a failure: another pair, or an error | `decide.rs` |
//! | `fail_to_proxy` | respond with the error | `finish.rs` |
//! | `logging` | restore the client's session, let prefill finish, record | `finish.rs` |
//!
//! A request for several samples per prompt (`n > 1`) becomes as many requests for one, each of which passes through the
//! same hooks: `samples/`.
//!
//! Requests to other paths are served without legs in `request_filter`, by `endpoints.rs`. The state that a request
//! carries between hooks is `request.rs`'s.

mod admission;
mod affinity;
mod deadlines;
mod decide;
mod dispatch;
mod endpoints;
mod finish;
mod live;
mod mooncake;
mod reading;
mod request;
mod respond;
mod rules;
mod samples;
mod session;
mod suspects;
mod targets;
mod timing;
mod turns;
mod wait;

use std::any::Any;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};

use crate::client::{self, BodyMemory, Inflight, ShutdownWatcher};
use crate::endpoint::Endpoints;
use crate::fleet::{Fleet, LiveRooms, RetryBudget, Suspects};
use crate::legs::Aborter;
use crate::net::Client;
use crate::pd::Engine;
use crate::telemetry::Telemetry;
pub(crate) use admission::refused_head;
pub(crate) use affinity::Affinity;
use request::RequestContext;
pub(crate) use rules::Rules;
use samples::Sample;

/// The proxy of one balancer. The listeners share it.
pub(crate) struct Proxy {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) rooms: Arc<LiveRooms>,
    pub(crate) client: Arc<Client>,
    /// Serves the paths without legs.
    pub(crate) endpoints: Arc<dyn Endpoints>,
    pub(crate) aborter: Arc<Aborter>,
    pub(crate) budget: Mutex<RetryBudget>,
    /// Requests that a worker was lost with.
    pub(crate) suspects: Arc<Suspects>,
    pub(crate) inflight: Arc<Inflight>,
    /// Pages for observers that are being sent.
    pub(crate) pages: Arc<Inflight>,
    pub(crate) body_memory: Arc<BodyMemory>,
    /// Whether administration has a listener of its own.
    pub(crate) has_admin_listener: bool,
    pub(crate) shutdown: ShutdownWatcher,
    pub(crate) telemetry: Arc<Telemetry>,
    /// What applies to the next request.
    pub(crate) rules: Arc<ArcSwap<Rules>>,
}

impl Proxy {
    /// The engine of the workers. While it is not known no request with legs comes here.
    fn engine(&self) -> Engine {
        self.fleet.engine().unwrap_or_default()
    }
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed, because each of Pingora's layers keeps it in its future, and moves it to the next one.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Box<RequestContext> {
        Box::new(RequestContext::new(self.rules.load_full()))
    }

    fn on_connection_reuse(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
        context: Box<dyn Any + Send + Sync>,
    ) {
        if let Some(origin) = client::head_received(session, context) {
            ctx.begin_at(origin);
        }
    }

    /// No modules: responses are neither compressed nor changed.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        if let Some(sample) = Sample::of(session) {
            // Let in with the client's request.
            ctx.begin_sample(sample);
            ctx.live = self.telemetry.requests.begin(&mut ctx.record);
            return Ok(());
        }
        if let Some(origin) = client::origin(session) {
            ctx.begin_at(origin.clone());
        }
        self.note_request(session, ctx);
        self.admit(session, ctx)?;
        ctx.live = self.telemetry.requests.begin(&mut ctx.record);
        Ok(())
    }

    fn allow_spawning_subrequest(&self, _session: &Session, ctx: &Box<RequestContext>) -> bool {
        Self::has_samples(ctx.record.route)
    }

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<bool> {
        let Some(route) = ctx.record.route else {
            self.serve_endpoint(session, ctx).await?;
            return Ok(true);
        };
        // The request of a sample has been read.
        if ctx.request.is_none() {
            self.read(session, ctx, route).await?;
        }
        if ctx.asks_for_samples() {
            // Boxed, because it is large and rare: the future of every request would carry it.
            Box::pin(self.fan_out(session, ctx)).await?;
            return Ok(true);
        }
        self.select(session, ctx).await?;
        Ok(false)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Box<HttpPeer>> {
        // There is an attempt already when Pingora only replaces a connection to decode that took no byte.
        if ctx.attempt.is_none() {
            ctx.restore(session);
            self.select(session, ctx).await?;
            if self.engine().prefill_is_first() {
                // Boxed, because it is large: the future of every request would carry it.
                Box::pin(self.send_in_turn(session, ctx)).await?;
            } else {
                self.send(session, ctx)?;
            }
        }
        Ok(Box::new(ctx.attempt()?.connect(&self.client)?))
    }

    async fn upstream_request_filter(
        &self,
        _session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        *upstream_request = ctx.attempt()?.decode_head()?;
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        head: &mut ResponseHeader,
        ctx: &mut Box<RequestContext>,
    ) -> Result<()> {
        self.decode_responded(session, head, ctx).await
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<RequestContext>,
    ) -> Result<Option<Duration>> {
        let chunk = body.take().unwrap_or_default();
        *body = Some(self.pass(ctx, chunk, end_of_stream)?);
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<RequestContext>,
        error: Box<Error>,
    ) -> Box<Error> {
        self.decode_broke(ctx, error)
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        _session: &mut Session,
        error: Box<Error>,
        ctx: &mut Box<RequestContext>,
        _client_reused: bool,
    ) -> Box<Error> {
        self.decode_ended_early(ctx, error)
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Box<RequestContext>,
    ) -> FailToProxy {
        self.respond_with_error(session, error, ctx).await
    }

    async fn logging(
        &self,
        session: &mut Session,
        error: Option<&Error>,
        ctx: &mut Box<RequestContext>,
    ) {
        self.finish(session, error, ctx).await;
    }

    /// The record has the error: it is logged once.
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
