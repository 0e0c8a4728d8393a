//! The engine of a worker against the one of the configuration, and the questions to a worker of vLLM.
//!
//! vLLM tells neither its role nor its connector, except in development mode. So a prefill worker is asked what a request
//! would ask it: one token, and the parameters of the transfer. With Mooncake its bootstrap server is asked for its engine.
//!
//! Source: vLLM 0.32.0, `entrypoints/serve/` (`/version`, which SGLang has not).

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::ask::{Answer, Asker, Visit, key};
use super::facts::Facts;
use super::report::Check;
use crate::config::KvConnector;
use crate::fleet::{Role, Worker};
use crate::pd::{Engine, KvEngines};

const ENGINE: &str = "engine";
const CONNECTOR: &str = "kv_connector";

/// What names the engines of a bootstrap server. Source: vLLM 0.32.0, `kv_connector/v1/mooncake/mooncake_utils.py`.
const QUERY: &str = "/query";
const QUERY_LIMIT: usize = 1 << 20;
const BOOTSTRAP: &str = "give its VLLM_MOONCAKE_BOOTSTRAP_PORT behind the URL, --prefill URL PORT, and start it with \
    --kv-transfer-config '{\"kv_connector\":\"MooncakeConnector\",\"kv_role\":\"kv_producer\"}'";

/// The engine that the workers tell, where the configuration leaves it to them: that of the first one that tells, in their
/// order. A worker of the other one then has a check that fails.
pub(super) async fn told(asker: &Asker, workers: &[Arc<Worker>]) -> Engine {
    for worker in workers {
        if asker.connect(worker).await.is_err() {
            continue;
        }
        let info = asker.get(worker, "/model_info").await;
        if info.is_ok_and(|answer| answer.json().is_some()) {
            return Engine::Sglang;
        }
        if vllm_version(asker, worker).await.is_some() {
            return Engine::Vllm;
        }
    }
    Engine::default()
}

/// The check of a worker of SGLang's configuration that has none of SGLang's endpoints, where it is one of vLLM.
pub(super) async fn mistaken_for_sglang(asker: &Asker, worker: &Worker) -> Option<Check> {
    let version = vllm_version(asker, worker).await?;
    let message = format!("it is vLLM {version}, and this balancer has workers of SGLang");
    Some(Check::fail(
        ENGINE,
        message,
        "start the balancer with --engine vllm",
    ))
}

/// Asks a worker of vLLM's configuration. `answered` is any response that it has given.
pub(super) async fn question_vllm(asker: &Asker, visit: &mut Visit, answered: &Answer) {
    let worker = visit.subject.worker.clone();
    visit.checks.push(key(&visit.subject, answered));
    let Some(version) = vllm_version(asker, &worker).await else {
        let check = Check::fail(
            ENGINE,
            "it has no /version, which every worker of vLLM has",
            "check host and port; workers of SGLang need --engine sglang",
        );
        return visit.checks.push(check);
    };
    visit
        .checks
        .push(Check::ok(ENGINE, format!("vLLM {version}")));
    let models = asker.get(&worker, "/v1/models").await.ok();
    if models.as_ref().is_some_and(Answer::refuses_key) {
        return visit.checks.push(models_key(&models));
    }
    let list = models.and_then(|answer| answer.json());
    visit.facts = Facts::read(None, None, list.as_ref());
    if worker.role() == Role::Prefill {
        let check = match asker.connector {
            KvConnector::Nixl => connector(asker, &worker, list.as_ref()).await,
            KvConnector::Mooncake => bootstrap_server(asker, &worker).await,
        };
        visit.checks.push(check);
    }
    visit.is_usable = true;
}

/// The check of a key that only the endpoints under `/v1` ask for.
fn models_key(answer: &Option<Answer>) -> Check {
    let status = answer.as_ref().map_or(401, |answer| answer.status.as_u16());
    Check::fail(
        "key",
        format!("/v1/models refuses the configured key, or needs one ({status})"),
        "set worker_api_key_file, or the worker's api_key_file, to the value of its --api-key",
    )
}

async fn vllm_version(asker: &Asker, worker: &Worker) -> Option<String> {
    let told = asker.get(worker, "/version").await.ok()?.json()?;
    Some(told["version"].as_str()?.to_owned())
}

/// Whether a prefill worker gives the parameters of a transfer.
async fn connector(asker: &Asker, worker: &Worker, models: Option<&Value>) -> Check {
    let mut body = json!({
        "prompt": "Hello, my name is",
        "max_tokens": 1,
        "kv_transfer_params": {"do_remote_decode": true, "do_remote_prefill": false},
    });
    if let Some(model) = models.and_then(|list| list["data"][0]["id"].as_str()) {
        body["model"] = model.into();
    }
    let body = Bytes::from(body.to_string());
    let key = worker.authorization();
    let path = Engine::Vllm.path(crate::pd::Route::Completions);
    let asked = asker.exchange(worker, Method::POST, path, body, key).await;
    let Ok(answer) = asked else {
        return Check::skip(
            CONNECTOR,
            "the worker did not answer a request for one token",
        );
    };
    if answer.status != StatusCode::OK {
        let message = format!(
            "a request for one token is answered {}",
            answer.status.as_u16()
        );
        return Check::warn(CONNECTOR, message, "see the log of the worker");
    }
    match Engine::Vllm.params(&answer.body) {
        Some(_) => Check::ok(CONNECTOR, "it gives kv_transfer_params"),
        None => Check::fail(
            CONNECTOR,
            "it gives no kv_transfer_params, which decode needs",
            "start it with --kv-transfer-config '{\"kv_connector\":\"NixlConnector\",\"kv_role\":\"kv_producer\"}'",
        ),
    }
}

/// Whether the bootstrap server of a prefill worker with Mooncake's connector names its engine.
async fn bootstrap_server(asker: &Asker, worker: &Worker) -> Check {
    let server = worker.bootstrap_server();
    let asked = asker.client.get_at(&server, QUERY, QUERY_LIMIT);
    let engines = match timeout(asker.patience, asked).await {
        Ok(Ok(response)) => KvEngines::read(&response.body),
        Ok(Err(failure)) => {
            let message = format!("the bootstrap server {server} {failure}");
            return Check::fail(CONNECTOR, message, BOOTSTRAP);
        }
        Err(_) => {
            let message = format!("the bootstrap server {server} does not answer");
            return Check::fail(CONNECTOR, message, BOOTSTRAP);
        }
    };
    match engines {
        Some(_) => Check::ok(CONNECTOR, format!("{server} names its engine")),
        None => Check::fail(
            CONNECTOR,
            format!("{server} is no bootstrap server of MooncakeConnector"),
            BOOTSTRAP,
        ),
    }
}
