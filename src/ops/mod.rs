//! The endpoints without legs: probes, what the workers say about themselves, and what all of them must do.
//!
//! They have a door of their own ([`Endpoints`]): a whole request in, a whole answer out. [`table`] says who answers
//! a path; here it is only carried out. No header, body or status of a worker is made up: what the proxy adds
//! stands beside it.
//!
//! Source: SGLang 0.5.23 `entrypoints/http_server.py`.

mod ask;
mod error;
mod fanout;
mod loads;
mod redact;
mod server_info;
mod single;
mod table;

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderValue, Method, StatusCode};
use tokio::sync::watch;

use crate::endpoint::{Access, Endpoints, WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::Fleet;
use crate::net::Client;
use ask::{Asked, Key, Question};
use table::{Kind, Row};

const NO_TEXT: &str = "the load balancer has no Prometheus text for several workers; leave format=prometheus away for \
     JSON, or ask each worker";

/// The room's door.
pub(crate) struct Ops {
    fleet: Arc<Fleet>,
    client: Arc<Client>,
    max_body_bytes: usize,
    keys_stay: bool,
    leaving: watch::Receiver<bool>,
}

impl Ops {
    /// The endpoints of this fleet. Bodies that go to workers have at most `max_body_bytes`; clients' keys end at
    /// this proxy when `keys_stay`; nothing is ready any more when `leaving` is true.
    pub(crate) fn new(
        fleet: Arc<Fleet>,
        client: Arc<Client>,
        max_body_bytes: usize,
        keys_stay: bool,
        leaving: watch::Receiver<bool>,
    ) -> Self {
        Self {
            fleet,
            client,
            max_body_bytes,
            keys_stay,
            leaving,
        }
    }
}

#[async_trait]
impl Endpoints for Ops {
    fn body_limit(&self, method: &Method, path: &str) -> usize {
        match table::find(path) {
            Some(row) if row.reads_body(method) => self.max_body_bytes,
            _ => 0,
        }
    }

    fn access(&self, path: &str) -> Access {
        table::find(path).map_or(Access::Clients, Row::access)
    }

    async fn respond(&self, request: WholeRequest, request_id: &HeaderValue) -> WholeResponse {
        let path = request.path.clone();
        let Some(row) = table::find(&path) else {
            let message = format!("there is no {path}");
            return error::error(&path, Code::NotFound, &message);
        };
        if let Kind::NotServed(why) = row.kind {
            let message = format!("{path} is not served: {why}");
            return error::error(&path, Code::NotServedByPd, &message);
        }
        let preflight = row.is_for_pages() && is_preflight(&request);
        if !preflight && (row.kind == Kind::Legs || !row.methods.contains(&request.method)) {
            return error::method_not_allowed(&path, row);
        }
        match row.kind {
            Kind::Alive => nothing(),
            Kind::Ready => self.readiness(&path),
            _ => self.workers_answer(request, row, request_id).await,
        }
    }
}

/// Whether anybody answers a raw path with anything but 404.
pub fn is_served(path: &str) -> bool {
    table::find(path).is_some()
}

impl Ops {
    /// 200 while a pair can be made of workers that are not set aside, and the process stays.
    fn readiness(&self, path: &str) -> WholeResponse {
        if *self.leaving.borrow() {
            let message = "the load balancer is shutting down";
            return error::error(path, Code::ShuttingDown, message);
        }
        if self.fleet.has_pair(Instant::now()) {
            return nothing();
        }
        let message = "no pair of a prefill and a decode worker is available";
        error::error(path, Code::NoWorker, message)
    }

    async fn workers_answer(
        &self,
        request: WholeRequest,
        row: &Row,
        request_id: &HeaderValue,
    ) -> WholeResponse {
        let path = request.path.clone();
        if row.kind == Kind::Loads && loads::wants_text(request.query.as_deref()) {
            return error::error(&path, Code::NotServedByPd, NO_TEXT);
        }
        let (at, wait) = errand(row, &request);
        let key = match row.access() {
            Access::Admins => Key::Admins,
            Access::Open | Access::Clients if self.keys_stay => Key::Nobodys,
            Access::Open | Access::Clients => Key::Clients,
        };
        let target = at.unwrap_or(&path);
        let question = match Question::new(request, target, request_id, wait, key) {
            Ok(question) => question,
            Err(why) => {
                let message = format!("the target cannot be sent to a worker: {why}");
                return error::error(&path, Code::BadTarget, &message);
            }
        };
        if row.is_for_pages() {
            return single::ask_one(&self.client, &self.fleet, &question, &path).await;
        }
        let asked = fanout::ask_all(&self.client, &self.fleet, &question).await;
        match row.kind {
            Kind::HealthGenerate => fanout::one_of_each(&path, &asked),
            Kind::ServerInfo if asked.iter().any(Asked::passed) => {
                fanout::json_answer(&server_info::merged(&asked))
            }
            Kind::Loads if asked.iter().any(Asked::passed) => {
                fanout::json_answer(&loads::merged(&asked))
            }
            _ => fanout::all_or_report(&path, asked),
        }
    }
}

/// Where the workers are asked, if not on the client's path, and how long each gets.
fn errand(row: &Row, request: &WholeRequest) -> (Option<&'static str>, Duration) {
    let query = request.query.as_deref();
    match row.kind {
        Kind::Every { at, wait } => (Some(at), wait.of(query)),
        Kind::One { wait } => (None, wait.of(query)),
        Kind::HealthGenerate => (None, table::HEALTH),
        _ => (None, table::PROMPTLY),
    }
}

/// A browser asks before it sends JSON to another origin. SGLang answers that, and a plain OPTIONS with 405.
/// Source: SGLang 0.5.23 `entrypoints/http_server.py`, `CORSMiddleware`.
fn is_preflight(request: &WholeRequest) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// SGLang's probes answer without a body.
fn nothing() -> WholeResponse {
    WholeResponse::new(StatusCode::OK, "", "")
}
