//! `/pd_role_switch`: workers get the other role while requests run.
//!
//! Each is drained, its engine is switched, it is probed, and serves in the other list. A worker whose engine refuses
//! serves again as it was, where the engine says that nothing has changed. The last worker of a role is not switched,
//! because requests would find none meanwhile.
//!
//! Source: SGLang main, sgl-model-gateway `mini_lb.py` (`pd_role_switch`); SGLang 0.5.23 `entrypoints/http_server.py`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, StatusCode};
use pingora::http::RequestHeader;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{respond, settle, unknown, wanted};
use crate::discovery::{Life, Registry, Shown};
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::{Role, Worker};
use crate::net::{Client, Failure, Target};
use crate::ops::{Ops, error};

const PATH: &str = "/pd_role_switch";

/// How long requests may still run on the worker where the call does not say. Source: `mini_lb.py`.
const DRAIN_TIME: Duration = Duration::from_secs(300);

/// The longest that a call may ask for, in seconds.
const MAX_DRAIN_SECONDS: f64 = 86_400.0;

/// Between two calls of an engine that has work left after its last request, such as a transfer.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long an engine may take for a switch: decode captures its graphs anew.
const SWITCH_TIME: Duration = Duration::from_secs(1800);

/// How long the response waits for the first probe in the new role.
const PROBE_TIME: Duration = Duration::from_secs(120);

/// The longest response of an engine, in bytes.
const RESPONSE_LIMIT: usize = 1 << 20;

/// The fields of a call that are the engine's.
const PASSED_ON: [&str; 2] = ["decode_cuda_graph_bs", "decode_cuda_graph_memory_gb"];

/// Switches the roles of workers. Clones share which workers are being switched.
#[derive(Clone)]
pub(in crate::ops) struct Switches {
    registry: Arc<Registry>,
    client: Arc<Client>,
    /// The ids of the workers that are being switched.
    under_way: Arc<Mutex<HashSet<String>>>,
}

/// A call, checked.
struct Wanted {
    workers: Vec<String>,
    /// Whether the call names one worker, and gets the response for one.
    is_one: bool,
    role: Role,
    bootstrap_port: Option<u16>,
    drains: bool,
    drain_time: Duration,
    /// Whether the last worker of a role may be switched.
    force: bool,
    /// For the engine.
    body: Value,
}

/// What has become of one worker: the status of the response, and its body.
type Outcome = (StatusCode, Value);

impl Ops {
    /// The response to a call that switches roles.
    pub(in crate::ops) async fn switch_roles(&self, request: &WholeRequest) -> WholeResponse {
        let wanted = match Wanted::of(&request.body) {
            Ok(wanted) => wanted,
            Err(message) => return error::error(PATH, Code::InvalidWorker, &message),
        };
        for worker in &wanted.workers {
            if self.registry.find(worker).is_none() {
                let (code, message) = unknown(worker);
                return error::error(PATH, code, &message);
            }
        }
        let switches = self.switches.clone();
        // A client that leaves does not leave a worker half switched. The task ends by itself: every wait is bounded.
        let switching = tokio::spawn(async move { switches.run(&wanted).await });
        match switching.await {
            Ok((status, body)) => WholeResponse {
                error: refusal(status, &body),
                ..respond(status, &body)
            },
            Err(_) => error::error(PATH, Code::Internal, "the switch has ended early"),
        }
    }
}

impl Wanted {
    fn of(body: &[u8]) -> Result<Self, String> {
        const EXPECTED: &str =
            "the body is a JSON object with `worker_url` (or `worker_urls`, a list) and `new_role`";
        let body: Value =
            serde_json::from_slice(body).map_err(|error| format!("{EXPECTED}: {error}"))?;
        let Value::Object(body) = body else {
            return Err(EXPECTED.to_owned());
        };
        let one = wanted::text(&body, "worker_url")?;
        let is_one = one.is_some();
        let workers = match (one, body.get("worker_urls")) {
            (Some(one), None) => vec![one],
            (None, Some(Value::Array(list))) if !list.is_empty() => {
                let texts: Option<_> = list
                    .iter()
                    .map(|url| url.as_str().map(str::to_owned))
                    .collect();
                texts.ok_or("`worker_urls` is a list of texts")?
            }
            _ => return Err(EXPECTED.to_owned()),
        };
        Ok(Self {
            workers,
            is_one,
            role: wanted::role(&body, "new_role")?.ok_or(EXPECTED)?,
            bootstrap_port: wanted::port(&body, "bootstrap_port")?,
            drains: flag(&body, "drain", true)?,
            drain_time: drain_time(&body)?,
            force: flag(&body, "force", false)?,
            body: passed_on(&body),
        })
    }
}

fn flag(body: &Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("`{name}` is true or false")),
    }
}

fn drain_time(body: &Map<String, Value>) -> Result<Duration, String> {
    let seconds = match body.get("drain_timeout_secs") {
        None | Some(Value::Null) => return Ok(DRAIN_TIME),
        Some(seconds) => seconds
            .as_f64()
            .filter(|seconds| *seconds <= MAX_DRAIN_SECONDS),
    };
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| "`drain_timeout_secs` is a number of seconds up to a day".to_owned())
}

fn passed_on(body: &Map<String, Value>) -> Value {
    let mut passed = json!({"new_role": body.get("new_role")});
    for name in PASSED_ON {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            passed[name] = value.clone();
        }
    }
    passed
}

/// A worker that is being switched, until this is dropped.
struct UnderWay<'a>(&'a Switches, String);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way().remove(&self.1);
    }
}

impl Switches {
    pub(in crate::ops) fn new(registry: Arc<Registry>, client: Arc<Client>) -> Self {
        Self {
            registry,
            client,
            under_way: Arc::default(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashSet<String>> {
        // Nothing panics while the lock is held.
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One worker after the other, up to the first that is not switched.
    async fn run(&self, wanted: &Wanted) -> Outcome {
        let mut results = Vec::new();
        let mut status = StatusCode::OK;
        for name in &wanted.workers {
            if status != StatusCode::OK {
                results.push(json!({"worker_url": name, "success": false, "message": "not tried, because another worker was not switched"}));
                continue;
            }
            let (its_status, result) = self.switch(name, wanted).await;
            status = its_status;
            results.push(result);
        }
        match results.pop() {
            Some(only) if wanted.is_one => (status, only),
            last => {
                results.extend(last);
                let body = json!({"success": status == StatusCode::OK, "results": results});
                (status, body)
            }
        }
    }

    async fn switch(&self, name: &str, wanted: &Wanted) -> Outcome {
        let Some(before) = self.registry.find(name) else {
            return refused(name, StatusCode::NOT_FOUND, "it was removed meanwhile");
        };
        let url = before.worker.url().to_owned();
        if before.worker.role() == wanted.role {
            let message = format!("it is {} already", wanted.role);
            return (StatusCode::OK, result(&url, true, &message));
        }
        if !self.under_way().insert(before.id.clone()) {
            return refused(&url, StatusCode::CONFLICT, "it is being switched already");
        }
        let _under_way = UnderWay(self, before.id.clone());
        if before.life == Life::Serving && !wanted.force && self.is_last(&before) {
            let message = format!(
                "it is the last {} worker that serves, so that requests would find none: add another one first, or send \"force\": true",
                before.worker.role()
            );
            return refused(&url, StatusCode::CONFLICT, &message);
        }
        log::info!(
            "switch of a role begins worker={url} from={} to={}",
            before.worker.role(),
            wanted.role
        );
        self.registry.drain(&before.id);
        let deadline = Instant::now() + wanted.drain_time;
        if wanted.drains
            && tokio::time::timeout_at(deadline, before.worker.drained())
                .await
                .is_err()
        {
            self.restore(&before);
            let message = format!(
                "{} requests still run, so it is as it was",
                before.worker.in_flight()
            );
            return refused(&url, StatusCode::GATEWAY_TIMEOUT, &message);
        }
        let (status, mut told) = self.ask_until(&before.worker, wanted, deadline).await;
        told["worker_url"] = url.as_str().into();
        if status != StatusCode::OK || told["success"] != true {
            self.refuse(&before, &mut told);
            let status = if status.is_success() {
                StatusCode::BAD_GATEWAY
            } else {
                status
            };
            return (status, told);
        }
        self.serve(&before, wanted, told).await
    }

    /// The worker in its new role, once it is probed.
    async fn serve(&self, before: &Shown, wanted: &Wanted, mut told: Value) -> Outcome {
        self.registry
            .switch(&before.id, wanted.role, wanted.bootstrap_port);
        let settled = |worker: &Shown| worker.life == Life::Serving;
        let now = settle(&self.registry, &before.id, PROBE_TIME, settled).await;
        if let Some(now) = now {
            told["state"] = now.life.name().into();
            if let Some(problem) = now.problem {
                told["problem"] = problem.into();
            }
        }
        (StatusCode::OK, told)
    }

    /// Whether no other worker of its role serves.
    fn is_last(&self, worker: &Shown) -> bool {
        let others = self.registry.workers();
        !others.iter().any(|other| {
            other.id != worker.id
                && other.life == Life::Serving
                && other.worker.role() == worker.worker.role()
        })
    }

    /// Asks the engine until it has no work left that keeps it from the switch.
    async fn ask_until(&self, worker: &Worker, wanted: &Wanted, deadline: Instant) -> Outcome {
        loop {
            let (status, told) = self.ask(worker, &wanted.body).await;
            let message = told["message"].as_str().unwrap_or_default();
            let is_busy = message.to_ascii_lowercase().contains("not idle");
            let ends = Instant::now() + RETRY_INTERVAL > deadline;
            if told["success"] == true || !is_busy || !wanted.drains || ends {
                return (status, told);
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    async fn ask(&self, worker: &Worker, body: &Value) -> Outcome {
        let head = RequestHeader::build_no_case(Method::POST, PATH.as_bytes(), None);
        let body = Bytes::from(body.to_string());
        let asking = async {
            let mut head = head.map_err(|error| Failure::NotHttp(error.to_string()))?;
            let json = HeaderValue::from_static("application/json");
            head.insert_header(CONTENT_TYPE, json)
                .map_err(|error| Failure::NotHttp(error.to_string()))?;
            let to = Target {
                addresses: worker.addresses(),
                server_name: worker.server_name(),
                host: worker.host(),
                authorization: worker.admin_authorization(),
            };
            self.client.fetch(to, &head, &body, RESPONSE_LIMIT).await
        };
        let lost = |message: String| {
            let told = json!({"success": false, "message": message, "safe_to_restore": null});
            (StatusCode::BAD_GATEWAY, told)
        };
        match tokio::time::timeout(SWITCH_TIME, asking).await {
            Err(_) => lost("the engine did not answer in time".to_owned()),
            Ok(Err(failure)) => lost(failure.to_string()),
            Ok(Ok(response)) => {
                let told = serde_json::from_slice(&response.body)
                    .ok()
                    .filter(Value::is_object);
                // Nothing has changed where the engine has no such endpoint, or wants another key.
                let unknown = || {
                    let message = format!(
                        "the engine answers {}: it has no {PATH}, or refuses the key",
                        response.status
                    );
                    json!({"success": false, "message": message, "safe_to_restore": response.status.is_client_error()})
                };
                (
                    response.status,
                    told.filter(|told| told.get("success").is_some())
                        .unwrap_or_else(unknown),
                )
            }
        }
    }

    /// What becomes of a worker whose engine was not switched.
    fn refuse(&self, before: &Shown, told: &mut Value) {
        let url = before.worker.url();
        match &told["safe_to_restore"] {
            Value::Bool(true) => self.restore(before),
            // It is not known what the engine did: it serves as it was once a probe says that it has the old role.
            Value::Null => {
                self.registry.probe(&before.id);
            }
            _ => log::error!(
                "engine may be half switched, and gets no request until it is restarted and said to serve worker={url}"
            ),
        }
        let state = self.registry.find(&before.id).map(|now| now.life.name());
        told["state"] = state.into();
        let why = told["message"].as_str().unwrap_or_default();
        log::warn!("role of a worker is not switched worker={url} why=\"{why}\"");
    }

    /// The worker is as it was before.
    fn restore(&self, before: &Shown) {
        if before.life == Life::Serving {
            self.registry.serve(&before.id);
        }
    }
}

/// Why a switch is not made, for the log; `None` where it is.
fn refusal(status: StatusCode, body: &Value) -> Option<String> {
    let results = body["results"].as_array();
    let mut results = results
        .map_or(std::slice::from_ref(body), Vec::as_slice)
        .iter();
    let failed = results.find(|result| result["success"] != true)?;
    let (url, why) = (failed["worker_url"].as_str()?, failed["message"].as_str());
    let why = why.unwrap_or("the engine does not say why");
    (status != StatusCode::OK).then(|| format!("the role of {url} is not switched: {why}"))
}

fn result(url: &str, success: bool, message: &str) -> Value {
    json!({"worker_url": url, "success": success, "message": message})
}

fn refused(url: &str, status: StatusCode, message: &str) -> Outcome {
    (status, result(url, false, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_the_worker_and_the_reason_of_a_switch_that_is_not_made() {
        let last =
            json!({"worker_url": "http://w", "success": false, "message": "it is the last one"});
        let done = json!({"worker_url": "http://v", "success": true, "message": "done"});
        let why = Some("the role of http://w is not switched: it is the last one".to_owned());
        assert_eq!(refusal(StatusCode::CONFLICT, &last), why);
        let list = json!({"success": false, "results": [done, last]});
        assert_eq!(refusal(StatusCode::CONFLICT, &list), why);
        let list = json!({"success": true, "results": [done]});
        assert_eq!(refusal(StatusCode::OK, &list), None);
        assert_eq!(refusal(StatusCode::OK, &done), None);
    }
}
