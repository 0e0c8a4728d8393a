//! The endpoints without generation. Source: transcript 30; vLLM 0.32.0, `entrypoints/serve`, `entrypoints/rl`.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use http::request::Parts;
use serde_json::{Value, json};

use super::api::json_of;
use super::errors;
use super::routes::Management;
use crate::sim::engine::{Engine, Phase, Stage};
use crate::sim::errors::{Failure, Family};
use crate::sim::request::chat_text;
use crate::sim::request::fields::token_ids;
use crate::sim::stream::refusal;
use crate::sim::wire::{self, SimResponse};
use crate::sim::{Role, model};

pub(super) fn respond(
    engine: &Engine,
    endpoint: Management,
    head: &Parts,
    body: &[u8],
) -> SimResponse {
    let answered = match endpoint {
        Management::Health | Management::Ping => return health(engine),
        Management::Metrics => return wire::metrics(metrics(engine)),
        Management::ResetMmCache => return wire::bare(200, ""),
        Management::Load => Ok(json!({"server_load":0})),
        Management::Version => Ok(json!({"version":engine.options.reported.version})),
        Management::KvEventSources => Ok(json!({})),
        Management::ScalingElasticEp => Ok(json!({"is_scaling_elastic_ep":false})),
        Management::Models => Ok(models(engine)),
        Management::Tokenize => json_of(head, body).and_then(|body| tokenize(engine, &body)),
        Management::Detokenize => json_of(head, body).and_then(|body| detokenize(&body)),
        Management::CountTokens => json_of(head, body).map(|body| count_tokens(&body)),
        Management::AbortThese => return abort_these(engine, body),
        Management::Abort => Ok(abort(engine, body)),
        Management::ServerInfo => Ok(server_info(engine)),
        Management::ResetPrefixCache => {
            engine.flush();
            Ok(json!({"success":true}))
        }
        Management::Sleep => Ok(sleep(engine, head.uri.query().unwrap_or_default())),
        Management::WakeUp => {
            engine.sleeping.store(false, Ordering::Relaxed);
            Ok(json!({"status":"awake","tags":null}))
        }
        Management::IsSleeping => {
            Ok(json!({"is_sleeping":engine.sleeping.load(Ordering::Relaxed)}))
        }
        Management::Pause => Ok(pause(engine, head.uri.query().unwrap_or_default())),
        Management::Resume => {
            engine.paused.send_replace(false);
            Ok(json!({"status":"resumed"}))
        }
        Management::IsPaused => Ok(json!({"is_paused":*engine.paused.borrow()})),
        Management::WorldSize => Ok(json!({"world_size":engine.options.reported.tp_size})),
    };
    match answered {
        Ok(body) => wire::json(200, body.to_string()),
        Err(failure) => refusal(&failure, Family::Vllm),
    }
}

fn health(engine: &Engine) -> SimResponse {
    match engine.phase() {
        Phase::Serving => wire::bare(200, ""),
        _ => wire::bare(503, ""),
    }
}

fn models(engine: &Engine) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let options = &engine.options;
    let id = format!("modelperm-{:016x}", rand::random::<u64>());
    json!({"object":"list","data":[{"id":options.model,"object":"model","created":now,"owned_by":"vllm",
        "root":options.reported.model_path,"parent":null,"max_model_len":options.context_length,
        "permission":[{"id":id,"object":"model_permission","created":now,"allow_create_engine":false,
            "allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,
            "allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]})
}

fn tokenize(engine: &Engine, body: &Value) -> Result<Value, Failure> {
    let tokens = match (
        body.get("prompt").and_then(Value::as_str),
        body.get("messages"),
    ) {
        (Some(prompt), _) => model::encode(prompt),
        (None, Some(_)) => model::encode(&chat_text(body)),
        (None, None) => return Err(missing("prompt", body)),
    };
    Ok(
        json!({"count":tokens.len(),"max_model_len":engine.options.context_length,"tokens":tokens,
        "token_strs":null}),
    )
}

fn detokenize(body: &Value) -> Result<Value, Failure> {
    let tokens = body.get("tokens").filter(|tokens| tokens.is_array());
    let tokens = tokens.ok_or_else(|| missing("tokens", body))?;
    Ok(json!({"prompt":model::text_of(&token_ids(tokens))}))
}

fn missing(name: &str, body: &Value) -> Failure {
    let place = format!("body.{name}");
    let entry = errors::entry("missing", &place, "Field required", body);
    errors::validation(&[entry], &place)
}

fn count_tokens(body: &Value) -> Value {
    let tokens = model::encode(&chat_text(body)).len();
    json!({"input_tokens":tokens,"context_management":{"original_input_tokens":tokens}})
}

/// `/inference/v1/abort_requests`: 200 whether or not the requests live.
fn abort_these(engine: &Engine, body: &[u8]) -> SimResponse {
    let ids = ids(body);
    if ids.is_empty() {
        let message = "Missing 'request_ids' in request body".to_owned();
        return refusal(&errors::bad_request(None, message), Family::Vllm);
    }
    abort_named(engine, &ids);
    wire::bare(200, "")
}

fn abort(engine: &Engine, body: &[u8]) -> Value {
    let ids = ids(body);
    let aborted = match ids.is_empty() {
        true => engine.abort_those(|_| true),
        false => {
            abort_named(engine, &ids);
            ids.len()
        }
    };
    json!({"status":"aborted","aborted":aborted})
}

fn ids(body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let ids = body.get("request_ids").and_then(Value::as_array);
    let ids = ids.into_iter().flatten().filter_map(Value::as_str);
    ids.map(str::to_owned).collect()
}

/// Aborts the items of these requests, whose ids are those of responses: an item's has a random end, and the number of a
/// sample before it.
fn abort_named(engine: &Engine, ids: &[String]) -> usize {
    engine.abort_those(|rid| {
        ids.iter().any(|id| {
            let at = rid.find(id.as_str());
            at.is_some_and(|at| at == 0 || rid[..at].ends_with('_'))
        })
    })
}

fn server_info(engine: &Engine) -> Value {
    let options = &engine.options;
    let transfer = match engine.role() {
        Role::Ordinary => Value::Null,
        role => json!({"kv_connector":options.reported.transfer_backend,
            "kv_role":match role {
                Role::Prefill => "kv_producer",
                _ => "kv_consumer",
            },
            "engine_id":engine.nixl.as_ref().map(|nixl| &nixl.engine_id)}),
    };
    json!({"vllm_config":{
            "model_config":{"model":options.reported.model_path,"served_model_name":options.model,
                "max_model_len":options.context_length},
            "cache_config":{"block_size":options.reported.page_size,
                "enable_prefix_caching":options.prefix_cache},
            "parallel_config":{"data_parallel_size":options.dp_size,
                "tensor_parallel_size":options.reported.tp_size},
            "kv_transfer_config":transfer},
        "vllm_env":{"VLLM_SERVER_DEV_MODE":true},"system_env":{}})
}

fn sleep(engine: &Engine, query: &str) -> Value {
    engine.sleeping.store(true, Ordering::Relaxed);
    let level = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("level="));
    let level = level.and_then(|level| level.parse::<u8>().ok());
    json!({"status":"sleeping","level":level.unwrap_or(1)})
}

/// Nothing new is scheduled. What runs is aborted unless the query says otherwise.
fn pause(engine: &Engine, query: &str) -> Value {
    engine.paused.send_replace(true);
    let goes_on = |pair: &str| matches!(pair, "mode=wait" | "mode=keep");
    if !query.split('&').any(goes_on) {
        engine.abort_those(|_| true);
    }
    json!({"status":"paused"})
}

/// The series that balancers read.
fn metrics(engine: &Engine) -> String {
    let model = &engine.options.model;
    let labels = format!("engine=\"0\",model_name=\"{model}\"");
    let running = [Stage::Computing, Stage::Running];
    let running: usize = running.map(|stage| engine.stages.count(stage)).iter().sum();
    let deferred =
        engine.stages.count(Stage::Preallocating) + engine.stages.count(Stage::Receiving);
    let capacity = engine.stages.count(Stage::Queued) + engine.stages.count(Stage::Ready);
    let mut out = String::new();
    let mut series = |name: &str, kind: &str, help: &str, rows: &[(&str, f64)]| {
        out.push_str(&format!(
            "# HELP vllm:{name} {help}\n# TYPE vllm:{name} {kind}\n"
        ));
        for (label, value) in rows {
            out.push_str(&format!("vllm:{name}{{{labels}{label}}} {value:?}\n"));
        }
    };
    let gauge = "gauge";
    series(
        "num_requests_running",
        gauge,
        "Number of requests in model execution batches.",
        &[("", running as f64)],
    );
    series(
        "num_requests_waiting",
        gauge,
        "Number of requests waiting to be processed.",
        &[("", (capacity + deferred) as f64)],
    );
    series(
        "num_requests_waiting_by_reason",
        gauge,
        "Number of requests waiting to be processed, by reason.",
        &[
            (",reason=\"capacity\"", capacity as f64),
            (",reason=\"deferred\"", deferred as f64),
        ],
    );
    let held = engine.nixl.as_ref().map_or(0.0, |nixl| nixl.leases.usage());
    let slots = engine.options.kv_slots.max(1) as f64;
    let own = (running + engine.stages.count(Stage::Receiving) + engine.stages.count(Stage::Ready))
        as f64;
    let usage = (held + own / slots).min(1.0);
    series(
        "kv_cache_usage_perc",
        gauge,
        "KV-cache usage. 1 means 100 percent usage.",
        &[("", usage)],
    );
    if let Some(nixl) = &engine.nixl {
        series(
            "nixl_num_failed_transfers_total",
            "counter",
            "Number of failed NIXL KV Cache transfers.",
            &[("", nixl.failed.load(Ordering::Relaxed) as f64)],
        );
        series(
            "nixl_num_kv_expired_reqs_total",
            "counter",
            "Number of requests that had their KV expire.",
            &[("", nixl.leases.expired() as f64)],
        );
    }
    out
}
