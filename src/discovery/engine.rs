//! The engine of the workers, asked of them.
//!
//! What lives here: the question to one worker, and the rounds of questions where the configuration leaves the engine to the
//! workers. What follows from the answers is the fleet's.
//!
//! A worker of SGLang has `/model_info`, which tells its role as well; one of vLLM has `/version`. Neither has the other's, and
//! neither needs computation. Source: SGLang 0.5.23 `entrypoints/http_server.py`, vLLM 0.32.0 `entrypoints/serve/`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::Value;
use tokio::sync::watch;

use super::probe::{MODEL_INFO, ProbeRules, fetch, told_role};
use crate::fleet::{Fleet, Role, UnknownEngine, Worker};
use crate::net::Client;
use crate::pd::Engine;

/// Between two rounds of questions, unless the members change.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the start waits for the first round.
const START_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest response, in bytes. That to [`MODEL_INFO`] has 1.3 KB.
const RESPONSE_LIMIT: usize = 64 << 10;

const VERSION: &str = "/version";

/// What a worker has told of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// `None` where neither engine answers so.
    pub(super) engine: Option<Engine>,
    /// `None` where it has none, or its engine does not tell.
    pub(super) role: Option<Role>,
}

/// Asks a worker, first as one of this engine. `None` where it has not responded, or needs another key.
pub(super) async fn ask(
    client: &Client,
    worker: &Worker,
    first: Engine,
    timeout: Duration,
) -> Option<Identity> {
    let second = match first {
        Engine::Sglang => Engine::Vllm,
        Engine::Vllm => Engine::Sglang,
    };
    match ask_as(client, worker, first, timeout).await? {
        Some(identity) => Some(identity),
        None => {
            let told = ask_as(client, worker, second, timeout).await;
            Some(told.flatten().unwrap_or_default())
        }
    }
}

/// The answer of a worker of this engine. `Some(None)` where there is no such path, `None` where there is no answer.
async fn ask_as(
    client: &Client,
    worker: &Worker,
    engine: Engine,
    timeout: Duration,
) -> Option<Option<Identity>> {
    let path = match engine {
        Engine::Sglang => MODEL_INFO,
        Engine::Vllm => VERSION,
    };
    let response = fetch(client, worker, path, timeout, RESPONSE_LIMIT).await;
    match response.ok()?.ok()? {
        (status, body) if status.is_success() => Some(Some(read(engine, &body))),
        (StatusCode::NOT_FOUND, _) => Some(None),
        _ => None,
    }
}

fn read(engine: Engine, body: &Bytes) -> Identity {
    let told: Value = serde_json::from_slice(body).unwrap_or_default();
    let tells = match engine {
        Engine::Sglang => ["model_path", "disaggregation_mode"]
            .iter()
            .any(|field| told.get(field).is_some()),
        Engine::Vllm => told["version"].is_string(),
    };
    Identity {
        engine: tells.then_some(engine),
        role: (engine == Engine::Sglang)
            .then(|| told_role(body))
            .flatten(),
    }
}

/// Asks the members for their engine until they have told it.
pub(crate) struct EngineQuestion {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) client: Arc<Client>,
    pub(crate) rules: watch::Receiver<Arc<ProbeRules>>,
}

impl EngineQuestion {
    /// The first round, so that the first requests do not come too early.
    pub(crate) async fn begin(&self) {
        if self.fleet.engine().is_none() {
            // Workers that have not answered by then are asked again by `run`.
            let _ = tokio::time::timeout(START_TIMEOUT, self.round()).await;
        }
    }

    /// Asks until the engine is known, and waits for ever then.
    pub(crate) async fn run(&self) {
        let mut members = self.fleet.subscribe();
        let mut logged = None;
        while self.fleet.engine().is_none() {
            members.mark_unchanged();
            let told = self.round().await;
            if let Some(why) = self.fleet.unknown_engine()
                && logged.as_ref() != Some(&(why, told.clone()))
            {
                log(why, &told);
                logged = Some((why, told));
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                _ = members.changed() => {}
            }
        }
        std::future::pending().await
    }

    /// Asks all members, and gives the fleet what they have told: each URL with its engine.
    async fn round(&self) -> BTreeSet<(&'static str, String)> {
        let timeout = self.rules.borrow().timeout;
        let members = self.fleet.members();
        let all = members.workers().map(|worker| async move {
            let told = ask(&self.client, worker, Engine::default(), timeout).await;
            let engine = told?.engine?;
            Some((engine.name(), worker.url().to_owned()))
        });
        let told: BTreeSet<_> = join_all(all).await.into_iter().flatten().collect();
        let count = |engine: Engine| {
            let of_engine = told.iter().filter(|(name, _)| *name == engine.name());
            of_engine.count()
        };
        self.fleet
            .note_engines(count(Engine::Sglang), count(Engine::Vllm));
        told
    }
}

fn log(why: UnknownEngine, told: &BTreeSet<(&'static str, String)>) {
    match why {
        UnknownEngine::NotTold => {
            log::warn!("no worker has told its engine, requests get 503 until one has");
        }
        UnknownEngine::Mixed { .. } => {
            let all: Vec<_> = told
                .iter()
                .map(|(engine, url)| format!("{engine}={url}"))
                .collect();
            let workers = all.join(",");
            log::error!(
                "workers are of different engines, requests get 503 until those of one are removed workers={workers}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_has_an_answer_that_the_other_has_not() {
        let of = |engine, role| Identity { engine, role };
        for (engine, body, expected) in [
            (
                Engine::Sglang,
                r#"{"model_path":"/m","disaggregation_mode":"decode"}"#,
                of(Some(Engine::Sglang), Some(Role::Decode)),
            ),
            (
                Engine::Sglang,
                r#"{"model_path":"/m"}"#,
                of(Some(Engine::Sglang), None),
            ),
            (Engine::Sglang, "{}", of(None, None)),
            (
                Engine::Vllm,
                r#"{"version":"0.32.0"}"#,
                of(Some(Engine::Vllm), None),
            ),
            (Engine::Vllm, r#"{"version":1}"#, of(None, None)),
            (Engine::Vllm, "<html>", of(None, None)),
        ] {
            assert_eq!(read(engine, &Bytes::from(body)), expected, "{body}");
        }
    }
}
