//! `/workers`: the workers of the registry are listed, added, changed and removed. docs/workers.md describes the calls.
//!
//! Bodies and responses have the names of sglang-router and smg. No key of a worker is in a response.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the calls |
//! | `wanted.rs` | what a call wants: its body and its query |
//! | `shown.rs` | a worker as JSON |
//! | `switch.rs` | `/pd_role_switch`: a worker gets the other role |
//!
//! Source: sglang-router 0.3.2 and smg 1.13.0, as they respond.

mod shown;
mod switch;
mod wanted;

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::requests::decoded;
use super::{Ops, error};
use crate::discovery::{Description, First, Leave, Life, Registry, Shown};
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::Role;
pub(super) use shown::pending;
pub(super) use switch::Switches;
use wanted::{Manner, State, Wanted};

const WORKERS: &str = "/workers";

/// Where no field of a change is known: a slip, which would change nothing.
const NOTHING_TO_CHANGE: &str = "the body has no field that can be changed: there are state, weight, labels, bootstrap_host, \
     bootstrap_port, api_key, admin_api_key, model_id, priority and cost";

/// A call that is refused: the code, and a sentence.
type Refused = (Code, String);

impl Ops {
    /// The response to a call on the workers.
    pub(super) async fn workers(&self, request: &WholeRequest) -> WholeResponse {
        match self.call(request).await {
            Ok(response) => response,
            Err((code, message)) => error::error(WORKERS, code, &message),
        }
    }

    async fn call(&self, request: &WholeRequest) -> Result<WholeResponse, Refused> {
        let invalid = |message| (Code::InvalidWorker, message);
        let manner = Manner::of(request.query.as_deref()).map_err(invalid)?;
        let name = match request.path.strip_prefix("/workers/") {
            None => None,
            Some(raw) => {
                Some(decoded(raw).ok_or((Code::InvalidWorker, "the name is no text".to_owned()))?)
            }
        };
        match (name, &request.method) {
            (None, &Method::POST) => {
                let wanted = Wanted::of(&request.body).map_err(invalid)?;
                self.add(&wanted, manner).await
            }
            (None, _) => Ok(self.list()),
            (Some(name), &Method::DELETE) => self.remove(&name, manner).await,
            (Some(name), &Method::PUT | &Method::PATCH) => {
                let wanted = Wanted::of(&request.body).map_err(invalid)?;
                self.change(&name, &wanted, manner).await
            }
            (Some(name), _) => {
                let found = self.registry.find(&name).ok_or_else(|| unknown(&name))?;
                Ok(respond(StatusCode::OK, &shown::worker(&self.fleet, &found)))
            }
        }
    }

    fn list(&self) -> WholeResponse {
        let workers = self.registry.workers();
        let of = |role| {
            workers
                .iter()
                .filter(|worker| worker.role == Some(role))
                .count()
        };
        let conflicts = self.registry.conflicts();
        let conflict = |(source, conflict): &(_, crate::discovery::Conflict)| {
            let others: Vec<_> = conflict.sources.iter().map(ToString::to_string).collect();
            json!({"url": conflict.url, "source": format!("{source}"), "worker_type": conflict.role.name(),
                "sources": others})
        };
        let mut body = json!({
            "workers": workers.iter().map(|worker| shown::worker(&self.fleet, worker)).collect::<Vec<_>>(),
            "total": workers.len(),
            "stats": {"prefill_count": of(Role::Prefill), "decode_count": of(Role::Decode), "regular_count": 0},
        });
        if !conflicts.is_empty() {
            body["conflicts"] = conflicts.iter().map(conflict).collect();
        }
        respond(StatusCode::OK, &body)
    }

    async fn add(&self, wanted: &Wanted, manner: Manner) -> Result<WholeResponse, Refused> {
        let invalid = |message: &str| (Code::InvalidWorker, message.to_owned());
        let Some(url) = wanted.url.clone() else {
            return Err(invalid("`url` is missing: the URL of the worker"));
        };
        let description = wanted.over(Description {
            url,
            ..Description::default()
        });
        let first = match (manner.probe, wanted.role) {
            (true, None) => First::Ask { role: true },
            (true, Some(Role::Prefill)) if wanted.bootstrap_port.is_none() => {
                First::Ask { role: false }
            }
            (true, Some(_)) => First::Probe,
            (false, Some(_)) => First::Serve,
            (false, None) => {
                return Err(invalid(
                    "without a probe the worker is not asked for its role: give `worker_type`",
                ));
            }
        };
        // A placeholder where it is asked, with what a prefill worker has.
        let role = wanted.role.unwrap_or(Role::Prefill);
        let listed = self.registry.listed(role, &description, first);
        let mut listed = listed.map_err(|why| (Code::InvalidWorker, why))?;
        wanted.note(&mut listed.details);
        let url = listed.parts.url.clone();
        match self.registry.add(listed) {
            Err(present) => Err((Code::WorkerConflict, present_already(&present))),
            Ok(id) if manner.wait => self.added(&id, &url, manner.wait_time).await,
            Ok(id) => Ok(accepted(&id, &url, "the worker is being added", json!({}))),
        }
    }

    /// The response once a worker that was added serves, or does not.
    async fn added(&self, id: &str, url: &str, time: Duration) -> Result<WholeResponse, Refused> {
        let settled = |worker: &Shown| worker.life != Life::Pending;
        let worker = settle(&self.registry, id, time, settled).await;
        let Some(worker) = worker else {
            return Err((
                Code::WorkerConflict,
                format!("{url} was removed before it was well"),
            ));
        };
        let why = worker.problem.as_deref().unwrap_or("it has not answered");
        match worker.life {
            Life::Failed => {
                self.registry.remove(id, Leave::Now);
                Err((Code::WorkerMismatch, format!("{url} is not added: {why}")))
            }
            Life::Pending => Err((
                Code::WorkerNotReady,
                format!(
                    "{url} is not well yet: {why}; it serves once it is, and DELETE {WORKERS}/{id} ends that"
                ),
            )),
            _ => Ok(located(
                StatusCode::OK,
                id,
                &shown::worker(&self.fleet, &worker),
            )),
        }
    }

    async fn remove(&self, name: &str, manner: Manner) -> Result<WholeResponse, Refused> {
        let removed = self
            .registry
            .remove(name, manner.leave)
            .ok_or_else(|| unknown(name))?;
        let (id, worker) = (&removed.id, &removed.worker);
        if manner.wait {
            settle(&self.registry, id, manner.wait_time, |_| false).await;
        }
        let left = self
            .registry
            .find(id)
            .filter(|left| left.life == Life::Leaving);
        let in_flight = worker.in_flight();
        let (state, message) = match (left, in_flight) {
            (Some(_), _) => (
                "draining",
                format!("the worker gets no new request, and {in_flight} still run"),
            ),
            (None, 0) => ("removed", "the worker is removed".to_owned()),
            (None, _) => (
                "removed",
                format!("the worker is removed, and {in_flight} requests still run to their end"),
            ),
        };
        let body = json!({"status": state, "worker_id": id, "url": worker.url(), "in_flight": in_flight,
            "message": message});
        let status = if manner.wait {
            StatusCode::OK
        } else {
            StatusCode::ACCEPTED
        };
        Ok(respond(status, &body))
    }

    async fn change(
        &self,
        name: &str,
        wanted: &Wanted,
        manner: Manner,
    ) -> Result<WholeResponse, Refused> {
        let before = self.registry.find(name).ok_or_else(|| unknown(name))?;
        let (id, url) = (before.id.as_str(), before.worker.url());
        if matches!(before.life, Life::Leaving | Life::Failed) {
            let what = if before.life == Life::Failed {
                "was refused"
            } else {
                "is being removed"
            };
            return Err((
                Code::WorkerConflict,
                format!("{url} {what}: add it with POST {WORKERS}"),
            ));
        }
        if wanted.is_foreign {
            return Err((Code::InvalidWorker, NOTHING_TO_CHANGE.to_owned()));
        }
        self.amend(&before, wanted)?;
        match wanted.state {
            None => {}
            Some(State::Draining) => {
                self.registry.drain(id);
            }
            Some(State::Serving) if manner.probe => {
                self.registry.probe(id);
            }
            Some(State::Serving) => {
                self.registry.serve(id);
            }
        }
        if manner.wait {
            return self.changed(id, wanted.state, manner.wait_time).await;
        }
        let now = self.registry.find(id).ok_or_else(|| unknown(name))?;
        let more = json!({"in_flight": now.worker.in_flight(), "worker": shown::worker(&self.fleet, &now)});
        Ok(accepted(id, url, "the worker is changed", more))
    }

    /// The response once a worker is as was wanted, or is not.
    async fn changed(
        &self,
        id: &str,
        state: Option<State>,
        time: Duration,
    ) -> Result<WholeResponse, Refused> {
        let settled = |worker: &Shown| {
            state != Some(State::Serving) || matches!(worker.life, Life::Serving | Life::Failed)
        };
        let worker = settle(&self.registry, id, time, settled)
            .await
            .ok_or_else(|| unknown(id))?;
        let url = worker.worker.url();
        if state == Some(State::Draining) {
            let drained = tokio::time::timeout(time, worker.worker.drained()).await;
            if drained.is_err() {
                let count = worker.worker.in_flight();
                let message = format!("{url} gets no new request, and {count} still run");
                return Err((Code::WorkerNotReady, message));
            }
        }
        if state == Some(State::Serving) && worker.life != Life::Serving {
            let why = worker.problem.as_deref().unwrap_or("its state was changed");
            return Err((
                Code::WorkerNotReady,
                format!("{url} does not serve yet: {why}"),
            ));
        }
        Ok(respond(
            StatusCode::OK,
            &shown::worker(&self.fleet, &worker),
        ))
    }

    /// Changes what is wished of the worker.
    fn amend(&self, before: &Shown, wanted: &Wanted) -> Result<(), Refused> {
        let invalid = |message: String| (Code::InvalidWorker, message);
        let url = before.worker.url().to_owned();
        let role = before.worker.role();
        let described = before.details.described.clone().unwrap_or_default();
        let description = wanted.over(Description {
            url: url.clone(),
            ..described
        });
        let listed = self
            .registry
            .listed(role, &description, First::Probe)
            .map_err(invalid)?;
        if let Some(other) = &wanted.url {
            let names_it = self
                .registry
                .find(other)
                .is_some_and(|found| found.id == before.id);
            if !names_it {
                return Err(invalid(format!(
                    "`url` is {url} and stays so: add another worker with POST {WORKERS}"
                )));
            }
        }
        if wanted.role.is_some() && before.role.is_some() && wanted.role != before.role {
            return Err(invalid(format!(
                "the role is {role} and is switched with POST /pd_role_switch"
            )));
        }
        self.registry.amend(&before.id, |to| {
            let parts = &mut to.parts;
            if wanted.weight.is_some() {
                parts.weight = listed.parts.weight;
            }
            if wanted.api_key.is_some() {
                parts.authorization = listed.parts.authorization;
            }
            if wanted.admin_api_key.is_some() {
                parts.admin_authorization = listed.parts.admin_authorization;
            }
            if wanted.bootstrap_host.is_some() || wanted.bootstrap_port.is_some() {
                parts.bootstrap = listed.parts.bootstrap;
            }
            to.details.described = Some(description);
            wanted.note(&mut to.details);
        });
        Ok(())
    }
}

/// The worker once it is settled, or as it is when the time is over; `None` when it is gone.
async fn settle(
    registry: &Registry,
    id: &str,
    time: Duration,
    settled: impl Fn(&Shown) -> bool,
) -> Option<Shown> {
    let waiting = async {
        while let Some(mut turns) = registry.turns(id) {
            match registry.find(id) {
                Some(worker) if !settled(&worker) => {}
                found => return found,
            }
            // An error when it is forgotten.
            let _ = turns.changed().await;
        }
        None
    };
    match tokio::time::timeout(time, waiting).await {
        Ok(found) => found,
        Err(_) => registry.find(id),
    }
}

fn unknown(name: &str) -> Refused {
    let name: String = name.chars().take(128).collect();
    let message = format!("there is no worker {name}: GET {WORKERS} has their ids and URLs");
    (Code::UnknownWorker, message)
}

fn present_already(present: &Shown) -> String {
    let (id, url) = (&present.id, present.worker.url());
    let role = present.role.map_or("worker", Role::name);
    format!(
        "{url} is listed already, as {role} with the id {id}: change it with PUT {WORKERS}/{id}"
    )
}

/// The response to a call whose result is still to come.
fn accepted(id: &str, url: &str, message: &str, more: Value) -> WholeResponse {
    let mut body = json!({"status": "accepted", "worker_id": id, "url": url,
        "location": format!("{WORKERS}/{id}"), "message": message});
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    located(StatusCode::ACCEPTED, id, &body)
}

fn located(status: StatusCode, id: &str, body: &Value) -> WholeResponse {
    let mut response = respond(status, body);
    if let Ok(location) = HeaderValue::try_from(format!("{WORKERS}/{id}")) {
        response.headers.insert(header::LOCATION, location);
    }
    response
}

fn respond(status: StatusCode, body: &Value) -> WholeResponse {
    WholeResponse::new(status, "application/json", body.to_string())
}
