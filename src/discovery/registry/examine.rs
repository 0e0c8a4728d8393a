//! What a worker is asked before its first request: its health, its engine, its ranks, and its role with the facts that are not
//! known of it.
//!
//! Source: SGLang 0.5.23 `entrypoints/http_server.py` (`server_info`, `model_info`), `server_args.py`
//! (`disaggregation_mode`, `disaggregation_bootstrap_port`).

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use tokio::sync::watch;

use super::super::probe::{Fetched, MODEL_INFO, ProbeRules, Unanswered, fetch, told_role};
use super::super::{engine, layout};
use super::listing::First;
use super::task::{Complaint, Told};
use crate::fleet::{Fleet, Role, Worker};
use crate::net::{Client, Failure};

/// The longest response, in bytes. `/server_info` has 60 KB for each data parallel rank.
const RESPONSE_LIMIT: usize = 64 << 20;

/// The path at which a worker tells how it was started. It may need the key that administration needs.
const SERVER_INFO: &str = "/server_info";

/// Asks workers before their first request.
pub(crate) struct Examiner {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    /// With the path that answers 200 when the worker is well.
    pub(crate) rules: watch::Receiver<Arc<ProbeRules>>,
}

impl Examiner {
    pub(super) async fn examine(
        &self,
        worker: Arc<Worker>,
        first: First,
    ) -> Result<Told, Complaint> {
        if first == First::Serve {
            return Ok(Told::default());
        }
        resolve(&worker).await?;
        let rules = self.rules.borrow().clone();
        let path = &rules.path;
        let health = async { well(path, self.fetch(&worker, path, &rules).await) };
        let facts = self.facts(&worker, first, &rules);
        // Without it the first requests to a replica would not name its rank.
        let layout = async {
            match worker.role() {
                Role::Prefill => layout::of(&self.client, &worker, rules.timeout).await,
                Role::Decode => None,
            }
        };
        let engine = self.engine(&worker, &rules);
        let (engine, health, facts, layout) = tokio::join!(engine, health, facts, layout);
        // What is wrong of these is wrong whatever the health.
        engine?;
        let facts = facts?;
        health?;
        Ok(Told { layout, ..facts })
    }

    /// Whether it is of the engine of the other workers, where that is known and the worker tells its own.
    async fn engine(&self, worker: &Worker, rules: &ProbeRules) -> Result<(), Complaint> {
        let Some(own) = self.fleet.engine() else {
            return Ok(());
        };
        let told = engine::ask(&self.client, worker, own, rules.timeout).await;
        match told.and_then(|told| told.engine) {
            Some(other) if other != own => Err(Complaint::Contradicts(format!(
                "it is a worker of {}, and this balancer has workers of {}",
                other.name(),
                own.name()
            ))),
            _ => Ok(()),
        }
    }

    async fn facts(
        &self,
        worker: &Worker,
        first: First,
        rules: &ProbeRules,
    ) -> Result<Told, Complaint> {
        let told = match first {
            First::Ask { .. } => self.fetch(worker, SERVER_INFO, rules).await,
            _ => self.fetch(worker, MODEL_INFO, rules).await,
        };
        let (path, asks_role) = match first {
            First::Ask { role } => (SERVER_INFO, role),
            _ => (MODEL_INFO, false),
        };
        let body = match told {
            Ok(Ok((status, body))) if status.is_success() => body,
            Ok(Ok((StatusCode::NOT_FOUND, _))) if asks_role => {
                let why =
                    format!("{path} is not found, so it is no SGLang worker: give its worker_type");
                return Err(Complaint::Contradicts(why));
            }
            told if asks_role => return Err(well(path, told).err().unwrap_or_else(no_role)),
            // What is not told contradicts nothing.
            _ => Bytes::new(),
        };
        let role = told_role(&body);
        match role {
            None if asks_role => Err(no_role()),
            Some(own) if !asks_role && own != worker.role() => Err(other_role(own, worker.role())),
            _ => Ok(Told {
                role: role.filter(|_| asks_role),
                bootstrap_port: bootstrap_port(&body),
                layout: None,
            }),
        }
    }

    async fn fetch(&self, worker: &Worker, path: &str, rules: &ProbeRules) -> Fetched {
        fetch(&self.client, worker, path, rules.timeout, RESPONSE_LIMIT).await
    }
}

fn no_role() -> Complaint {
    Complaint::Contradicts(
        "its /server_info has no disaggregation_mode of prefill or decode: start it with --disaggregation-mode, or give its worker_type"
            .to_owned(),
    )
}

fn other_role(own: Role, listed: Role) -> Complaint {
    Complaint::Contradicts(format!(
        "it is listed as {listed} and says that it is {own}: list it as {own}, or start it with --disaggregation-mode {listed}"
    ))
}

/// Looks the worker's name up, where its URL has one. Once it is a member its name is watched.
async fn resolve(worker: &Worker) -> Result<(), Complaint> {
    if worker.address().is_some() {
        return Ok(());
    }
    let origin = worker.origin();
    let found = tokio::net::lookup_host((origin.host.as_str(), origin.port)).await;
    let mut addresses: Vec<_> = found.map(Iterator::collect).unwrap_or_default();
    if addresses.is_empty() {
        let why = format!("the name {} is not found", origin.host);
        return Err(Complaint::ForNow(why));
    }
    // As for members: SGLang listens on IPv4 by default.
    addresses.sort_by_key(std::net::SocketAddr::is_ipv6);
    worker.set_addresses(addresses);
    Ok(())
}

/// Whether the response to a GET on this path is one of success.
fn well(path: &str, response: Fetched) -> Result<(), Complaint> {
    let why = match response {
        Ok(Ok((status, _))) if status.is_success() => return Ok(()),
        Ok(Ok((status, _)))
            if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
        {
            format!(
                "GET {path} is answered {}: see its api_key",
                status.as_u16()
            )
        }
        Ok(Ok((status, _))) => format!("GET {path} is answered {}", status.as_u16()),
        Ok(Err(failure @ (Failure::Unreachable(_) | Failure::ConnectTimeout))) => {
            failure.to_string()
        }
        Ok(Err(failure)) => format!("GET {path}: {failure}"),
        Err(Unanswered) => format!("GET {path} is not answered in time"),
    };
    Err(Complaint::ForNow(why))
}

/// The port in the body of a worker's [`SERVER_INFO`].
fn bootstrap_port(body: &[u8]) -> Option<u16> {
    let info: Value = serde_json::from_slice(body).ok()?;
    let port = info.get("disaggregation_bootstrap_port")?.as_u64()?;
    u16::try_from(port).ok().filter(|port| *port > 0)
}
