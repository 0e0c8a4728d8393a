//! Administration requests that go to several workers, with one honest result.
//!
//! `table.rs` has the plan of each path. A broadcast is carried out to its end whether its client stays or not, so that
//! one that leaves does not leave the workers in different states. Where some workers did not do it, those that did are
//! brought back where that is possible, and the response says so for each of them.
//!
//! | file | what it holds |
//! |---|---|
//! | `plan.rs` | the workers that get a request, in which order, and how it is undone |
//! | `only.rs` | the workers that the query names |
//! | `ranks.rs` | a place for each worker in the process group of a trainer |
//! | `pause.rs` | what a broadcast means for new requests |
//! | `report.rs` | one worker's part, and the response |

mod only;
mod pause;
mod plan;
mod ranks;
mod report;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Map, Value};

use super::call::{Call, CallResult, Key};
use super::error::error;
use super::table::SHORT;
use crate::endpoint::{WholeRequest, WholeResponse};
use crate::error::Code;
use crate::fleet::{Fleet, Role, Worker, WorkerId};
use crate::net::Client;
use only::Only;
pub(super) use plan::Plan;
use plan::{Effect, Scope, Undo};
use report::Part;

/// Sends administration requests to the workers of one fleet.
pub(super) struct Broadcaster {
    fleet: Arc<Fleet>,
    client: Arc<Client>,
    /// Held by broadcasts that change what the workers compute.
    turn: tokio::sync::Mutex<()>,
    /// Workers that are told again to continue, each by one task.
    continued: Mutex<HashSet<WorkerId>>,
}

/// A request on its way to several workers.
struct Broadcast {
    plan: Plan,
    request: WholeRequest,
    request_id: HeaderValue,
    /// Prefill first.
    workers: Vec<Arc<Worker>>,
    /// Whether the query leaves workers out.
    is_narrow: bool,
}

impl Broadcaster {
    pub(super) fn new(fleet: Arc<Fleet>, client: Arc<Client>) -> Self {
        Self {
            fleet,
            client,
            turn: tokio::sync::Mutex::default(),
            continued: Mutex::default(),
        }
    }

    /// Carries out a plan, and names every worker in the response.
    pub(super) async fn respond(
        self: &Arc<Self>,
        plan: Plan,
        request: WholeRequest,
        request_id: &HeaderValue,
    ) -> WholeResponse {
        let path = request.path.clone();
        let broadcast = match self.broadcast(plan, request, request_id) {
            Ok(broadcast) => broadcast,
            Err(why) => return error(&path, Code::BadQuery, &why),
        };
        let broadcaster = self.clone();
        // Awaited here, and carried on when the client leaves. Each worker's response has a deadline.
        let task = tokio::spawn(async move { broadcaster.carry_out(&broadcast).await });
        match task.await {
            Ok(Ok(response)) => response,
            Ok(Err((code, why))) => error(&path, code, &why),
            Err(_) => error(&path, Code::Internal, "the broadcast was not carried out"),
        }
    }

    /// # Errors
    /// The query names no worker that the plan may be carried out with.
    fn broadcast(
        &self,
        plan: Plan,
        mut request: WholeRequest,
        request_id: &HeaderValue,
    ) -> Result<Broadcast, String> {
        let only = Only::take(&mut request.query)?;
        let is_narrow = only.is_narrow();
        if plan.scope == Scope::Named && !is_narrow {
            return Err(
                "what this request says holds for one worker: name it with ?worker=URL".to_owned(),
            );
        }
        if is_narrow && !plan.effect.may_be_narrowed() {
            return Err(
                "this request goes to all workers; leave worker and role out of the query"
                    .to_owned(),
            );
        }
        Ok(Broadcast {
            plan,
            request,
            request_id: request_id.clone(),
            workers: only.among(&self.fleet.members())?,
            is_narrow,
        })
    }

    /// # Errors
    /// Nothing was sent.
    async fn carry_out(
        self: &Arc<Self>,
        broadcast: &Broadcast,
    ) -> Result<WholeResponse, (Code, String)> {
        let _turn = match broadcast.plan.effect.takes_turn() {
            true => Some(self.turn.lock().await),
            false => None,
        };
        let calls = self.calls(broadcast).await?;
        let before = self.before(broadcast);
        let mut parts = self.send(broadcast, calls).await;
        if before.undoes && !parts.iter().all(Part::is_done) {
            self.undo(broadcast, &mut parts).await;
        }
        let hint = self.after(broadcast, before, &parts);
        Ok(report::response(&broadcast.request.path, &parts, hint))
    }

    /// The call for each worker, with its first rank where it joins a process group.
    async fn calls(
        &self,
        broadcast: &Broadcast,
    ) -> Result<Vec<(Arc<Worker>, Call, Option<u64>)>, (Code, String)> {
        let call = broadcast.call(broadcast.request.clone())?;
        let offsets = match broadcast.plan.effect {
            Effect::JoinsGroup if broadcast.workers.len() > 1 => {
                self.rank_offsets(broadcast).await?
            }
            _ => None,
        };
        let workers = broadcast.workers.iter().cloned();
        Ok(match offsets {
            None => workers.map(|worker| (worker, call.clone(), None)).collect(),
            Some(offsets) => workers
                .zip(offsets)
                .map(|(worker, (offset, body))| (worker, call.with_body(body), Some(offset)))
                .collect(),
        })
    }

    /// Sends the calls in the order of the plan. A stage with a failure is the last one, unless the effect goes on.
    async fn send(
        &self,
        broadcast: &Broadcast,
        calls: Vec<(Arc<Worker>, Call, Option<u64>)>,
    ) -> Vec<Part> {
        let Plan { scope, effect, .. } = broadcast.plan;
        let (prefill, decode) = calls
            .into_iter()
            .partition(|(worker, ..)| worker.role() == Role::Prefill);
        let stages: Vec<Vec<_>> = match scope {
            Scope::PrefillFirst => vec![prefill, decode],
            Scope::All | Scope::Named => vec![[prefill, decode].concat()],
        };
        let mut parts: Vec<Part> = Vec::new();
        for stage in stages {
            if !effect.goes_on() && !parts.iter().all(Part::is_done) {
                parts.extend(
                    stage
                        .into_iter()
                        .map(|(worker, ..)| Part::not_asked(worker)),
                );
                continue;
            }
            let sent = stage.iter().map(|(worker, call, offset)| async {
                Part::of(call.send(&self.client, worker).await, *offset)
            });
            parts.extend(join_all(sent).await);
        }
        parts
    }

    /// Brings the workers back that did it, or may have.
    async fn undo(&self, broadcast: &Broadcast, parts: &mut [Part]) {
        let Some(call) = broadcast.undo_call() else {
            return;
        };
        let undone = parts.iter_mut().filter(|part| part.may_be_done());
        join_all(undone.map(|part| async {
            let result = call.send(&self.client, &part.worker).await;
            part.note_undone(&result);
        }))
        .await;
    }
}

impl Broadcast {
    fn call(&self, request: WholeRequest) -> Result<Call, (Code, String)> {
        let (path, id) = (self.request.path.clone(), &self.request_id);
        Call::new(request, &path, id, self.plan.timeout, Key::Admin).map_err(|why| {
            (
                Code::BadTarget,
                format!("the target cannot be sent to a worker: {why}"),
            )
        })
    }

    /// The request that undoes this one; `None` where there is none.
    fn undo_call(&self) -> Option<Call> {
        let (method, path, body) = match self.plan.undo {
            Undo::Nothing => return None,
            Undo::Delete if self.request.method != Method::PUT => return None,
            Undo::Delete => (Method::DELETE, self.request.path.as_str(), Bytes::new()),
            Undo::Post(path, field) => {
                let mut body = Map::new();
                if let Some(field) = field {
                    let own: Value = serde_json::from_slice(&self.request.body).ok()?;
                    // Without it the worker takes its default, as it did for the request.
                    if let Some(value) = own.get(field) {
                        body.insert(field.to_owned(), value.clone());
                    }
                }
                (Method::POST, path, Value::Object(body).to_string().into())
            }
        };
        self.own_call(method, path, body)
    }

    /// A request of this proxy's own, with the client's key.
    fn own_call(&self, method: Method, path: &str, body: Bytes) -> Option<Call> {
        let mut headers: HeaderMap = self.request.headers.clone();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let request = WholeRequest {
            method,
            path: path.to_owned(),
            query: None,
            headers,
            body,
            is_trusted: true,
            is_keyed: self.request.is_keyed,
        };
        Call::new(request, path, &self.request_id, SHORT, Key::Admin).ok()
    }

    /// The field of the request's JSON body.
    fn field(&self, name: &str) -> Option<Value> {
        let mut body: Value = serde_json::from_slice(&self.request.body).ok()?;
        body.get_mut(name).map(Value::take)
    }
}

/// Sends one call to several workers at once.
async fn to_each(client: &Client, workers: &[Arc<Worker>], call: &Call) -> Vec<CallResult> {
    join_all(workers.iter().map(|worker| call.send(client, worker))).await
}
