//! Let in: the checks that need no more than the head of a request.

use http::{HeaderMap, Method, StatusCode};
use pingora::Result;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;

use super::request::RequestContext;
use super::{Proxy, Rules};
use crate::client::{self, KeyRefused, Listener, NO_IDLE_TIMER};
use crate::endpoint::{Access, METRICS_PATH, REQUEST_ID, WholeResponse};
use crate::error::{Code, Exhausted, PausedWait, ProxyError, error_response};
use crate::legs;
use crate::pd::{ErrorShape, Route};
use crate::telemetry::Head;

/// Pages for observers that are rendered and sent at once. Each is a response in memory until its client has read it;
/// scrapers and dashboards ask every few seconds and read within milliseconds.
const MAX_PAGES: usize = 32;

impl Proxy {
    /// Sets the options of the client's session and fills in the record.
    pub(super) fn note_request(&self, session: &mut Session, ctx: &mut RequestContext) {
        let keeps = session.get_keepalive().is_some();
        // The bytes behind an upgrade request that is not granted may be no HTTP.
        let upgrades = session.is_upgrade_req();
        session.set_keepalive((keeps && !upgrades && !ctx.overflow).then_some(NO_IDLE_TIMER));
        self.announce_shutdown(session);
        session.set_write_timeout(Some(ctx.rules.limits.client_stall_timeout));
        // Allows pipelined requests. The price: Pingora reads no further, so that it notices by the next write alone that
        // such a client has left.
        session.downstream_session.set_pipelining_enabled(true);
        if ctx.rules.logs_client_addresses {
            let client = session.client_addr().and_then(SocketAddr::as_inet);
            ctx.record.client = client.copied();
        }
        let head = session.req_header();
        let record = &mut ctx.record;
        record.request_id = legs::request_id(&head.headers, rand::random);
        record.method = head.method.clone();
        record.version = head.version;
        record.target = head.uri.path_and_query().cloned();
        // While the engine is not known, the endpoints respond that it is not.
        let engine = self.fleet.engine();
        let route = engine.and_then(|engine| engine.route(head.uri.path()));
        record.route = route.filter(|route| takes(*route, &head.method));
        self.begin_trace(session, ctx);
    }

    /// Gives the request a trace: that of its client, or a new one.
    fn begin_trace(&self, session: &mut Session, ctx: &mut RequestContext) {
        let head = || {
            let digest = session.digest();
            let head = session.req_header();
            Head {
                headers: &head.headers,
                tls: digest.is_some_and(|digest| digest.ssl_digest.is_some()),
            }
        };
        let started = ctx.record.times.started;
        ctx.record.trace = self.telemetry.begin_trace(head, started);
        if let Some(trace) = &ctx.record.trace
            && !trace.is_continued()
        {
            // It belongs to the trace of a traceparent that is missing or not valid.
            session.req_header_mut().remove_header("tracestate");
        }
    }

    /// Refuses a request that its head alone, its key, or the load forbids.
    ///
    /// # Errors
    /// The request is refused; the context has the error.
    pub(super) fn admit(&self, session: &mut Session, ctx: &mut RequestContext) -> Result<()> {
        let access = self.endpoints.access(session.req_header().uri.path());
        self.count(access, ctx);
        let checked = match session.downstream_session.as_http1() {
            Some(session) => client::check(&session.get_headers_raw_bytes()),
            None => {
                let head = session.req_header();
                client::check_parsed(head.raw_path(), &head.headers)
            }
        };
        if let Err(why) = checked {
            return Err(ctx.refuse(ProxyError::BadHead(why)));
        }
        let head = session.req_header();
        if ctx.listener == Listener::Metrics {
            return self.admit_scraper(head.uri.path() == METRICS_PATH, ctx);
        }
        let by_clients = ctx.listener == Listener::Clients;
        if by_clients && self.needs_admin_listener(&ctx.rules, access) {
            return Err(ctx.refuse(ProxyError::AdminsOnly));
        }
        // Answered by this process at any load, as health checks are, for what this listener serves.
        if ctx.rules.cors.is_preflight(head) {
            return Ok(());
        }
        let probes = [Access::Open, Access::Probers, Access::Observers];
        ctx.record.is_probe = probes.contains(&access);
        // The listener for administration is as good as a key for what only makes workers generate.
        if by_clients || access != Access::Probers {
            match ctx.rules.keys.check(access, head) {
                Ok(key) => ctx.record.key = key.cloned(),
                Err(KeyRefused) => {
                    let is_admins = ctx.rules.keys.needs_admin_key(access);
                    return Err(ctx.refuse(match access {
                        Access::Observers => ProxyError::LoginNeeded(is_admins),
                        _ => ProxyError::Unauthorized(is_admins),
                    }));
                }
            }
        }
        if ctx.record.route.is_some() {
            ctx.timing = self.timing(&ctx.rules, head, by_clients);
        }
        ctx.rules.keys.strip(access, session.req_header_mut());
        if ctx.timing.is_some() {
            // No worker gets the key that lets a request know its pair.
            ctx.rules
                .keys
                .strip(Access::Observers, session.req_header_mut());
        }
        self.admit_load(access, ctx)
    }

    /// Lets a request in at the listener for metrics, which asks for no key.
    fn admit_scraper(&self, for_metrics: bool, ctx: &mut RequestContext) -> Result<()> {
        ctx.record.is_probe = true;
        match for_metrics {
            true => self.admit_load(Access::Observers, ctx),
            false => Err(ctx.refuse(ProxyError::MetricsOnly)),
        }
    }

    fn admit_load(&self, access: Access, ctx: &mut RequestContext) -> Result<()> {
        match self.exhausted(access, ctx) {
            Some(error) => Err(ctx.refuse(error)),
            None => Ok(()),
        }
    }

    /// Counts the request as live, unless it is a health check at the admin listener, which must not delay the shutdown
    /// that it watches. Pages for observers are counted apart, for the same reason and so that they take no client's
    /// place.
    fn count(&self, access: Access, ctx: &mut RequestContext) {
        match access {
            Access::Open if ctx.listener == Listener::Admins => {}
            Access::Observers => {
                ctx.is_page = true;
                ctx.count(self.pages.enter());
            }
            _ => ctx.count(self.inflight.enter()),
        }
    }

    /// Whether a path with this access is refused at the clients' listener.
    pub(super) fn needs_admin_listener(&self, rules: &Rules, access: Access) -> bool {
        self.has_admin_listener
            && match access {
                Access::Admins | Access::Observers => true,
                Access::Probers => !rules.keys.has_client_keys(),
                Access::Open | Access::Clients => false,
            }
    }

    /// The limit that leaves no capacity for this request, if there is one.
    fn exhausted(&self, access: Access, ctx: &RequestContext) -> Option<ProxyError> {
        match access {
            Access::Open => return None,
            Access::Observers if self.pages.live() > MAX_PAGES => {
                return Some(ProxyError::Overloaded(Exhausted::Pages));
            }
            Access::Observers => return None,
            _ => {}
        }
        if ctx.overflow {
            return Some(ProxyError::Overloaded(Exhausted::Connections));
        }
        let limit = ctx.rules.limits.max_inflight_requests;
        if limit.is_some_and(|limit| self.inflight.live() > limit) {
            return Some(ProxyError::Overloaded(Exhausted::Requests));
        }
        let is_full = ctx.record.route.is_some() && self.fleet.is_full();
        is_full.then(|| match self.fleet.closed() {
            Some(why) => ProxyError::Paused(Some(why), PausedWait::Full),
            None => ProxyError::QueueFull,
        })
    }

    /// Responses carry `Connection: close` once the process is shutting down.
    pub(super) fn announce_shutdown(&self, session: &mut Session) {
        if self.shutdown.has_begun() {
            session.set_keepalive(None);
        }
    }
}

/// The response to a head that Pingora refuses with this status before any hook sees it: one that it cannot parse, one
/// that names two hosts, or CONNECT.
///
/// Source: pingora-proxy 0.9.1 `lib.rs` (`handle_new_request`), pingora-core 0.9.1 `protocols/http/authority.rs`.
pub(crate) fn refused_head(status: StatusCode) -> WholeResponse {
    let (code, message) = match status {
        StatusCode::METHOD_NOT_ALLOWED => (Code::MethodNotAllowed, "CONNECT is not served"),
        _ => (
            Code::BadRequestHead,
            "the head of the request is not valid HTTP (does the client speak TLS to a port without it?), or its target names \
             another host than Host",
        ),
    };
    let mut response = error_response(code, code.status(), ErrorShape::of(None), message);
    let request_id = legs::request_id(&HeaderMap::new(), rand::random);
    log::info!(
        "request head refused request_id={request_id:?} status={} error={message:?}",
        response.status.as_u16()
    );
    response.headers.insert(REQUEST_ID, request_id);
    response
}

/// SGLang takes PUT on `/generate` too. Source: SGLang 0.5.23 `entrypoints/http_server.py`.
fn takes(route: Route, method: &Method) -> bool {
    method == Method::POST || (route == Route::Generate && method == Method::PUT)
}
