//! The endpoints without legs: health, information about the workers, and actions of all workers.
//!
//! [`Ops`] implements [`Endpoints`] for `proxy`: a whole request in, a whole response out. [`table`] decides how a path is
//! answered. A worker's status, headers and body are never invented or changed, except that secrets are masked; the
//! proxy's own data stands beside them.
//!
//! | file | what it holds |
//! |---|---|
//! | `table.rs` | every path, its methods, and how it is answered |
//! | `call.rs` | one request to one worker, and its result |
//! | `fanout.rs` | a call to all workers |
//! | `broadcast/` | administration of several workers: order, roll back, and new requests meanwhile |
//! | `single.rs` | a call to the first worker that responds |
//! | `stored.rs` | a call to the worker that has a stored response |
//! | `loads.rs`, `server_info.rs`, `redact.rs` | responses merged from those of all workers |
//! | `pages.rs` | the pages for observers: metrics |
//! | `dashboard/` | the dashboard, and the data that it shows |
//! | `requests.rs` | the page that shows single requests |
//! | `workers/` | the workers themselves: listed, added, changed, removed, switched |
//! | `paths.rs` | what a path that is not in the table may have meant |
//! | `error.rs` | the error responses |
//!
//! Source: SGLang 0.5.23 `entrypoints/http_server.py`, vLLM 0.32.0 `entrypoints/`.

mod broadcast;
mod call;
mod dashboard;
mod error;
mod fanout;
mod loads;
mod pages;
mod paths;
mod redact;
mod requests;
mod server_info;
mod single;
mod stored;
mod table;
mod workers;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode, header};
use tokio::sync::watch;

use crate::discovery::Registry;
use crate::endpoint::{Access, Endpoints, WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::{Fleet, Mismatch, Role};
use crate::net::Client;
use crate::pd::Engine;
use crate::telemetry::Telemetry;
use broadcast::Broadcaster;
use call::{Call, CallResult, Key};
use dashboard::Dashboard;
use table::{Kind, Row};
use workers::Switches;

/// The error where Prometheus text is asked for.
const NO_TEXT: &str = "the load balancer does not merge the Prometheus text of several workers; omit format=prometheus to \
     get JSON, or ask each worker";

/// The response to a request that came before the engine of the workers was known.
const ENGINE_TOLD: &str =
    "the workers have told their engine in this moment (engine: auto); try again";

/// What a fleet is that is ready without a prefill worker.
const ALONE: &str =
    "no prefill worker is available, and decode computes the prompts (vllm_decode_alone)\n";

/// The endpoints without legs of one fleet.
pub(crate) struct Ops {
    fleet: Arc<Fleet>,
    registry: Arc<Registry>,
    switches: Switches,
    client: Arc<Client>,
    broadcaster: Arc<Broadcaster>,
    /// What the pages for observers show.
    telemetry: Arc<Telemetry>,
    dashboard: Dashboard,
    /// Whether the process is shutting down, so that it is not ready any more.
    shutting_down: watch::Receiver<bool>,
}

impl Ops {
    /// The endpoints of this fleet. The fields of [`Ops`] say what each argument is.
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        registry: Arc<Registry>,
        client: Arc<Client>,
        telemetry: Arc<Telemetry>,
        shutting_down: watch::Receiver<bool>,
    ) -> Self {
        Self {
            dashboard: Dashboard::new(fleet.clone(), registry.clone(), telemetry.clone()),
            broadcaster: Arc::new(Broadcaster::new(fleet.clone(), client.clone())),
            switches: Switches::new(registry.clone(), client.clone()),
            fleet,
            registry,
            client,
            telemetry,
            shutting_down,
        }
    }
}

#[async_trait]
impl Endpoints for Ops {
    fn body_limit(&self, method: &Method, path: &str) -> usize {
        match self.row(path) {
            Some(row) if row.reads_body(method) => usize::MAX,
            _ => 0,
        }
    }

    fn access(&self, path: &str) -> Access {
        self.row(path).map_or(Access::Clients, Row::access)
    }

    async fn respond(&self, request: WholeRequest, request_id: &HeaderValue) -> WholeResponse {
        let path = request.path.clone();
        let Some(row) = self.row(&path) else {
            return not_in_table(self.fleet.engine().unwrap_or_default(), &request);
        };
        if let Kind::NotServed(why) = row.kind {
            let message = format!("{path} is not served: {why}");
            return error::error(&path, Code::NotServedByPd, &message);
        }
        // Load balancers ask whether this one is alive with OPTIONS on the root as well.
        if row.kind == Kind::Alive && path == "/" && request.method == Method::OPTIONS {
            return options(&row.allow());
        }
        if let Kind::Stored { .. } = row.kind
            && let Some(refused) = stored::refusal(&path, &request.method)
        {
            return refused;
        }
        if !row.methods.contains(&request.method) {
            return error::method_not_allowed(&path, row);
        }
        if row.kind.needs_worker()
            && let Some(why) = self.fleet.unknown_engine()
        {
            return error::error(&path, Code::UnknownEngine, &why.to_string());
        }
        match row.kind {
            Kind::Alive => empty_ok(),
            // A request with legs comes here only before the engine is known.
            Kind::Legs => error::error(&path, Code::UnknownEngine, ENGINE_TOLD),
            Kind::Ready => self.readiness(&path),
            Kind::Page(page) => self.page(page, &request),
            Kind::Broadcast(plan) => self.broadcaster.respond(plan, request, request_id).await,
            Kind::Workers => self.workers(&request).await,
            Kind::RoleSwitch => self.switch_roles(&request).await,
            _ => self.call_workers(request, row, request_id).await,
        }
    }
}

/// Whether a raw path is in the table of SGLang, so that it is not 404.
pub fn is_served(path: &str) -> bool {
    table::find(Engine::Sglang, path).is_some()
}

impl Ops {
    /// The row of a path. While the engine is not known, that of either engine.
    fn row(&self, path: &str) -> Option<&'static Row> {
        match self.fleet.engine() {
            Some(engine) => table::find(engine, path),
            None => Engine::ALL
                .into_iter()
                .find_map(|engine| table::find(engine, path)),
        }
    }

    /// 200 while a pair is available and the process is not shutting down.
    fn readiness(&self, path: &str) -> WholeResponse {
        if *self.shutting_down.borrow() {
            let message = "the load balancer is shutting down";
            return error::error(path, Code::ShuttingDown, message);
        }
        if let Some(why) = self.fleet.unknown_engine() {
            return error::error(path, Code::UnknownEngine, &why.to_string());
        }
        if self.fleet.has_pair(Instant::now()) {
            return match self.fleet.goes_alone() {
                true => WholeResponse::new(StatusCode::OK, "text/plain", ALONE),
                false => empty_ok(),
            };
        }
        let mut message = "no pair of a prefill and a decode worker is available".to_owned();
        for role in [Role::Prefill, Role::Decode] {
            // Without addresses, because this needs no key. The log has them.
            let count = |mismatch| self.fleet.mismatched(role, mismatch);
            for (of_them, what) in [
                (
                    count(Mismatch::Role),
                    "whose /model_info has the other role",
                ),
                (count(Mismatch::Engine), "that are of another engine"),
            ] {
                if of_them > 0 {
                    message += &format!("; workers listed as {role} {what}: {of_them}");
                }
            }
        }
        error::error(path, Code::NoWorker, &message)
    }

    /// Calls one worker or all of them, and makes the response of the result.
    async fn call_workers(
        &self,
        request: WholeRequest,
        row: &Row,
        request_id: &HeaderValue,
    ) -> WholeResponse {
        let path = request.path.clone();
        if row.kind == Kind::Loads && loads::wants_text(request.query.as_deref()) {
            return error::error(&path, Code::NotServedByPd, NO_TEXT);
        }
        let (worker_path, timeout) = target(row, &request);
        let key = match row.access() {
            Access::Admins => Key::Admin,
            _ if request.is_keyed => Key::None,
            _ => Key::Client,
        };
        let worker_path = worker_path.unwrap_or(&path);
        let is_trusted = request.is_trusted;
        let call = match Call::new(request, worker_path, request_id, timeout, key) {
            Ok(call) => call,
            Err(why) => {
                let message = format!("the target cannot be sent to a worker: {why}");
                return error::error(&path, Code::BadTarget, &message);
            }
        };
        if let Kind::Stored { .. } = row.kind {
            return stored::of_owner(&self.client, &self.fleet, &call, &path).await;
        }
        if matches!(row.kind, Kind::One { .. }) {
            return single::first_response(&self.client, &self.fleet, &call, &path).await;
        }
        let results = fanout::call_all(&self.client, &self.fleet, &call).await;
        if row.empties_caches() {
            let succeeded = results.iter().filter(|result| result.succeeded());
            succeeded.for_each(|result| self.fleet.note_flushed(&result.worker));
        }
        let any_succeeded = results.iter().any(CallResult::succeeded);
        match row.kind {
            Kind::HealthGenerate if is_trusted => fanout::one_of_each(&path, &results),
            Kind::HealthGenerate => fanout::one_of_each_unnamed(&path, &results),
            Kind::ServerInfo if any_succeeded => {
                fanout::json_response(&server_info::merged(&results))
            }
            Kind::Loads if any_succeeded => fanout::json_response(&loads::merged(&results)),
            _ => fanout::all_or_report(&path, results),
        }
    }
}

/// The path at the workers, `None` for the client's, and the time that each worker has.
fn target(row: &Row, request: &WholeRequest) -> (Option<&'static str>, Duration) {
    let query = request.query.as_deref();
    match row.kind {
        Kind::Every { path, timeout } => (Some(path), timeout.of(query)),
        Kind::One { timeout } | Kind::Stored { timeout } => (None, timeout.of(query)),
        Kind::HealthGenerate => (None, table::HEALTH),
        _ => (None, table::SHORT),
    }
}

/// The response where no row has this path.
fn not_in_table(engine: Engine, request: &WholeRequest) -> WholeResponse {
    let path = request.path.as_str();
    // The request about the server itself. Source: RFC 9110, section 9.3.7.
    if path == "*" && request.method == Method::OPTIONS {
        return options("GET, HEAD, OPTIONS, POST, PUT");
    }
    if let Some(redirect) = paths::redirect(engine, path, request.query.as_deref()) {
        return redirect;
    }
    let hint = paths::meant(engine, path).map(|meant| format!("; did you mean {meant}?"));
    let message = format!("there is no endpoint {path}{}", hint.unwrap_or_default());
    error::error(path, Code::NotFound, &message)
}

/// The response to OPTIONS: these methods.
fn options(allow: &str) -> WholeResponse {
    let mut response = empty_ok();
    if let Ok(allow) = HeaderValue::try_from(allow) {
        response.headers.insert(header::ALLOW, allow);
    }
    response
}

/// A response with status 200 and no body, as SGLang's health endpoints have.
fn empty_ok() -> WholeResponse {
    WholeResponse::new(StatusCode::OK, "", "")
}
