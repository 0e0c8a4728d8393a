//! Active probes: without a request, they notice that a worker refuses connections, and that it is back.
//!
//! A probe that gets an error says nothing about the worker, and one that is not answered in time makes it the second
//! choice: SGLang's `/health` runs a generation, which waits while the worker is paused, and behind long prompts while
//! real requests are served. A worker that accepts connections is set aside by real requests alone.
//! Source: sgl-project/sglang issues 9198 and 22511; SGLang 0.5.23 with `/pause_generation`.
//!
//! With each probe the worker is asked for its engine and its role: a request on a worker with the other role would wait for
//! minutes, and a role can change while a worker runs (`/pd_role_switch`). Only `prefill` and `decode` are roles: an ordinary
//! server says `null`, and older or other engines say nothing.
//! Source: SGLang 0.5.23 `entrypoints/http_server.py` (`model_info`), `server_args.py` (`disaggregation_mode`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, StatusCode};
use pingora::http::RequestHeader;
use tokio::sync::watch;

use super::engine;
use super::follow::follow;
use super::layout;
use crate::fleet::{Evidence, Fleet, Role, Worker};
use crate::net::{Client, Failure, Target, readable};

/// The longest time between two probes of a worker that gets no requests, or only for want of another.
const SOON: Duration = Duration::from_secs(1);

/// How long the start waits for the roles of the workers, unless it is said. They need no computation.
pub(crate) const START_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest response, in bytes. That to `/health` is empty or a sentence, and that to [`MODEL_INFO`] has 1.3 KB.
const RESPONSE_LIMIT: usize = 64 << 10;

/// The path at which a worker tells its role.
pub(super) const MODEL_INFO: &str = "/model_info";

/// Probes each member of the fleet at an interval.
pub(crate) struct Probe {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    pub(crate) rules: watch::Receiver<Arc<ProbeRules>>,
    /// How long [`Probe::begin`] takes at most.
    pub(crate) start_timeout: Duration,
}

/// How workers are probed. A change takes effect at once, also between two probes.
pub(crate) struct ProbeRules {
    /// `None` where members are not probed.
    pub(crate) interval: Option<Duration>,
    /// Of one probe.
    pub(crate) timeout: Duration,
    /// The path that is asked for.
    pub(crate) path: String,
}

impl Probe {
    /// Asks all members for their engines, roles and layouts, for at most `start_timeout`, so that the first requests do not wait on a
    /// worker in the wrong list, and are on ranks that serve them.
    pub(crate) async fn begin(&self) {
        let rules = self.rules.borrow().clone();
        if rules.interval.is_none() {
            return;
        }
        let members = self.fleet.members();
        let rules = &rules;
        let roles = members.workers().map(|worker| async move {
            tokio::join!(
                self.note_identity(worker, rules),
                self.note_layout(worker, rules)
            );
        });
        // Workers that have not answered by then are asked again by `run`.
        let _ = tokio::time::timeout(self.start_timeout, join_all(roles)).await;
    }

    /// Probes for ever.
    pub(crate) async fn run(&self) {
        follow(&self.fleet, |worker| self.watch(worker.clone())).await;
    }

    async fn watch(&self, worker: Arc<Worker>) {
        let mut is_failing = false;
        let mut changes = self.rules.clone();
        loop {
            let rules = changes.borrow_and_update().clone();
            let Some(interval) = rules.interval else {
                match changes.changed().await {
                    Ok(()) => continue,
                    // No change comes any more: the balancer ends.
                    Err(_) => return,
                }
            };
            // Side by side: a paused worker does not answer the one, and the other must not wait for it.
            tokio::join!(
                self.note_identity(&worker, &rules),
                self.note_layout(&worker, &rules),
                self.note_health(&worker, &rules, &mut is_failing)
            );
            let pause = if worker.admits(Instant::now()) && !worker.is_silent() {
                interval
            } else {
                interval.min(SOON)
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = changes.changed() => {}
            }
        }
    }

    async fn note_health(&self, worker: &Worker, rules: &ProbeRules, is_failing: &mut bool) {
        let response = self.fetch(worker, &rules.path, rules).await;
        log_change(worker, &rules.path, complaint(&response), is_failing);
        let evidence = match response {
            Ok(Ok(_) | Err(Failure::Unusable(_))) => Evidence::Present,
            Ok(Err(Failure::Unreachable(_) | Failure::ConnectTimeout)) => Evidence::Absent,
            Ok(Err(_)) => Evidence::Neutral,
            Err(Unanswered) => Evidence::Silent,
        };
        self.fleet.note(worker, evidence, Instant::now());
    }

    async fn note_identity(&self, worker: &Worker, rules: &ProbeRules) {
        let first = self.fleet.engine().unwrap_or_default();
        // No response, and any other status, such as that of a missing key, says nothing about the worker.
        if let Some(told) = engine::ask(&self.client, worker, first, rules.timeout).await {
            self.fleet.note_identity(worker, told.engine, told.role);
        }
    }

    async fn note_layout(&self, worker: &Worker, rules: &ProbeRules) {
        layout::ask(&self.fleet, &self.client, worker, rules.timeout).await;
    }

    async fn fetch(&self, worker: &Worker, path: &str, rules: &ProbeRules) -> Fetched {
        fetch(&self.client, worker, path, rules.timeout, RESPONSE_LIMIT).await
    }
}

/// Logs when the probe of a worker begins to fail, and when it is well again.
fn log_change(worker: &Worker, path: &str, complaint: Option<Complaint>, is_failing: &mut bool) {
    let Some(complaint) = complaint else { return };
    let fails = complaint.is_some();
    if std::mem::replace(is_failing, fails) == fails {
        return;
    }
    let (role, url) = (worker.role(), worker.url());
    match complaint {
        Some(why) => {
            log::warn!("probe of a worker fails role={role} worker={url} path={path} why=\"{why}\"")
        }
        None => {
            log::info!("probe of a worker is well again role={role} worker={url} path={path}");
        }
    }
}

/// The status and the body of a response.
pub(super) type Fetched = Result<Result<(StatusCode, Bytes), Failure>, Unanswered>;

/// The response of a worker to one GET, with the key of requests.
pub(super) async fn fetch(
    client: &Client,
    worker: &Worker,
    path: &str,
    timeout: Duration,
    limit: usize,
) -> Fetched {
    // A name that is not resolved says nothing about the worker.
    let (Ok(head), Some(_)) = (
        RequestHeader::build_no_case(Method::GET, path.as_bytes(), None),
        worker.address(),
    ) else {
        return Ok(Err(Failure::NoSocket("no address".to_owned())));
    };
    let to = Target {
        addresses: worker.addresses(),
        server_name: worker.server_name(),
        host: worker.host(),
        authorization: worker.authorization(),
    };
    let no_body = Bytes::new();
    let response = client.fetch(to, &head, &no_body, limit);
    match tokio::time::timeout(timeout, response).await {
        Ok(response) => Ok(response.and_then(|response| {
            let body = readable(&response, limit)?;
            Ok((response.status, body))
        })),
        Err(_) => Err(Unanswered),
    }
}

/// No response within the time of a probe.
pub(super) struct Unanswered;

/// Why a probe has failed; `None` where it is well.
type Complaint = Option<String>;

/// The complaint about a response that sets no worker aside; `None` where the fleet logs what follows from it.
fn complaint(response: &Fetched) -> Option<Complaint> {
    match response {
        Ok(Ok((status, _))) if status.is_success() => Some(None),
        Ok(Ok((status, _))) => Some(Some(status.to_string())),
        Ok(Err(Failure::Unreachable(_) | Failure::ConnectTimeout | Failure::NoSocket(_))) => None,
        Ok(Err(failure)) => Some(Some(failure.to_string())),
        Err(Unanswered) => None,
    }
}

/// The role in the body of a worker's [`MODEL_INFO`], or its `/server_info`.
///
/// After a switch of roles the second tells the new one in its internal states alone: beside them it has what the worker was
/// started as. Source: seen with SGLang 0.5.23 (`/pd_role_switch`).
pub(super) fn told_role(body: &[u8]) -> Option<Role> {
    let info: serde_json::Value = serde_json::from_slice(body).ok()?;
    let now = &info["internal_states"][0];
    let mode = [now, &info]
        .into_iter()
        .find_map(|told| told.get("disaggregation_mode"));
    Role::named(mode?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_roles_of_disaggregation_are_roles() {
        for (body, role) in [
            (r#"{"disaggregation_mode":"prefill"}"#, Some(Role::Prefill)),
            (
                r#"{"a":[1],"disaggregation_mode":"decode"}"#,
                Some(Role::Decode),
            ),
            (
                r#"{"disaggregation_mode":"decode","internal_states":[{"disaggregation_mode":"prefill"}]}"#,
                Some(Role::Prefill),
            ),
            (
                r#"{"disaggregation_mode":"decode","internal_states":[]}"#,
                Some(Role::Decode),
            ),
            (r#"{"disaggregation_mode":"null"}"#, None),
            (r#"{"disaggregation_mode":null}"#, None),
            (r#"{"disaggregation_mode":"Prefill"}"#, None),
            (r#"{"model_path":"/m"}"#, None),
            (r#"["disaggregation_mode"]"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(told_role(body.as_bytes()), role, "{body}");
        }
    }
}
