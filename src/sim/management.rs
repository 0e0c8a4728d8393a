//! The endpoints without generation: health, models, loads, metrics, cache, abort, tokenizer.
//!
//! Source: transcripts `d_get_*`, `d_post_*`, and responses of a SGLang 0.5.23 server for the rest.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::engine::{Engine, Phase, Queued, Stage};
use super::errors::{Failure, Family};
use super::server_info::token_capacity;
use super::stream::refusal;
use super::wire::{self, SimResponse};
use super::{Role, model, request};

/// The ports of a worker, which `/server_info` shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) api: u16,
    pub(crate) bootstrap: u16,
}

/// How long a health check waits for its generation. Source: SGLang 0.5.23 `entrypoints/http_server.py`,
/// `HEALTH_CHECK_TIMEOUT`.
const HEALTH_SECONDS: f64 = 20.0;

/// `/health`, `/health_generate`: takes the time of a generation of one token.
pub(crate) async fn health(engine: &Engine) -> SimResponse {
    // A generation, which waits while the worker is paused.
    let patience = engine.options.timer(HEALTH_SECONDS);
    if tokio::time::timeout(patience, engine.pause.entrance())
        .await
        .is_err()
    {
        return wire::bare(503, "");
    }
    let time = engine.options.health_time;
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
    wire::bare(
        if engine.phase() == Phase::Serving {
            200
        } else {
            503
        },
        "",
    )
}

/// `/v1/models`.
pub(crate) fn models(engine: &Engine) -> SimResponse {
    wire::json(
        200,
        json!({"object":"list","data":[card(engine)]}).to_string(),
    )
}

/// `/v1/models/{id}`.
pub(crate) fn model_card(engine: &Engine, id: &str) -> SimResponse {
    if id == engine.options.model {
        return wire::json(200, card(engine).to_string());
    }
    let message = format!("The model '{id}' does not exist");
    let body = json!({"error":{"message":message,"type":"invalid_request_error","param":"model",
        "code":"model_not_found"}});
    wire::json(404, body.to_string())
}

/// `/flush_cache`: waits for running items up to the query's `timeout` (seconds), and is refused if there are any left.
pub(crate) async fn flush_cache(engine: &Engine, query: &str) -> SimResponse {
    let seconds = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeout=")?.parse::<f64>().ok());
    let patience = Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default();
    let mut in_flight = engine.in_flight.subscribe();
    let idle = in_flight.wait_for(|items| *items == 0);
    if tokio::time::timeout(patience, idle).await.is_err() {
        return wire::bare(400, "Flush cache failed.\n");
    }
    engine.flush();
    wire::bare(
        200,
        "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, \
         the operation will not be performed.)\n",
    )
}

/// `/abort_request`: 200 in any case.
pub(crate) fn abort_request(engine: &Engine, body: &[u8]) -> SimResponse {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match (
        body.get("rid").and_then(Value::as_str),
        body.get("abort_all"),
    ) {
        (_, Some(Value::Bool(true))) => engine.abort(None),
        // SGLang ignores an empty request id.
        (Some(rid), _) if !rid.is_empty() => engine.abort(Some(rid)),
        _ => {}
    }
    wire::bare(200, "")
}

/// `/pd_role_switch`: where it is switched on and nothing runs. Source: SGLang 0.5.23, `managers/scheduler.py`.
pub(crate) fn switch_role(engine: &Engine, body: &[u8]) -> SimResponse {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let new = body.get("new_role").and_then(Value::as_str);
    let old = engine.role();
    let wanted = [Role::Prefill, Role::Decode]
        .into_iter()
        .find(|role| Some(role.mode()) == new);
    let refusal = match wanted {
        None => Some("new_role must be prefill or decode"),
        Some(_) if !engine.options.role_switch => {
            Some("PD role switch is not enabled: start with --enable-pd-role-switch")
        }
        Some(new) if !engine.switch(new) => Some("Cannot switch the PD role: server is not idle"),
        Some(_) => None,
    };
    let body = json!({"success":refusal.is_none(),"message":refusal.unwrap_or("PD role switched"),
        "old_role":old.mode(),"new_role":engine.role().mode(),"safe_to_restore":refusal.is_some()});
    wire::json(if refusal.is_none() { 200 } else { 400 }, body.to_string())
}

/// `/v1/loads`, an entry for each rank. Only what waits for a pass of chunked prefill is counted by rank: of the rest each
/// rank has a share.
pub(crate) fn loads(engine: &Engine) -> SimResponse {
    let (now, version) = (unix_seconds(), &engine.options.reported.version);
    let queued = engine.queued();
    let ranks = queued.len();
    let loads: Vec<Value> = queued
        .into_iter()
        .enumerate()
        .map(|(rank, queued)| load(engine, now, (rank, ranks), queued))
        .collect();
    let body = json!({"timestamp":rfc3339(now),"version":version,"accelerator":null,"num_accelerators":1,
        "loads":loads});
    wire::json(200, body.to_string())
}

/// What waits for the other role counts as waiting as well. Source: SGLang 0.5.23, responses of a leg without its peer.
fn load(engine: &Engine, now: f64, (rank, ranks): (usize, usize), queued: Queued) -> Value {
    let share = |stage| {
        let all = engine.stages.count(stage);
        all / ranks + usize::from(rank < all % ranks)
    };
    let (bootstrap, prealloc) = (share(Stage::Bootstrap), share(Stage::Preallocating));
    let transfer = share(Stage::Receiving);
    let for_a_pass = match engine.options.chunked_prefill_tokens {
        0 => share(Stage::Queued),
        _ => queued.prompts,
    };
    let scheduled = for_a_pass + share(Stage::Ready);
    let running = share(Stage::Computing) + share(Stage::Running);
    let slots = engine.options.kv_slots.max(1);
    let held = transfer + share(Stage::Ready) + share(Stage::Running);
    let usage = match engine.role() {
        Role::Decode => held as f64 * ranks as f64 / slots as f64,
        _ => 0.0,
    };
    let capacity = token_capacity(&engine.options);
    json!({"timestamp":now,"dp_rank":rank,"num_running_reqs":running,
        "num_waiting_reqs":scheduled + bootstrap + prealloc + transfer,
        "num_waiting_uncached_tokens":queued.tokens,"num_used_tokens":queued.held,"num_total_tokens":0,
        "num_active_tokens":0,
        "num_prealloc_ready_tokens":0,"max_total_num_tokens":capacity,
        "max_running_requests":engine.options.max_running,"token_usage":usage.min(1.0),"gen_throughput":0.0,
        "cache_hit_rate":0.0,"utilization":-1.0,"total_prefill_uncached_tokens":0,"total_prefill_busy_us":0,
        "decode_moments":null,
        "memory":{"weight_gb":0.0,"kv_cache_gb":0.004,"graph_gb":0.0,"token_capacity":capacity},
        "disaggregation":{"mode":engine.role().mode(),"prefill_bootstrap_queue_reqs":bootstrap,
            "prefill_inflight_queue_reqs":share(Stage::Sending),"decode_prealloc_queue_reqs":prealloc,
            "decode_transfer_queue_reqs":transfer,"decode_retracted_queue_reqs":0,
            "kv_transfer_speed_gb_s":0.0,"kv_transfer_latency_ms":0.0},
        "queues":{"waiting":scheduled,"grammar":0,"paused":0,"retracted":0,"prealloc_ready":0}})
}

/// `/metrics`: two of SGLang's series.
pub(crate) fn metrics(engine: &Engine) -> SimResponse {
    let labels = format!(
        "{{engine_type=\"{}\",model_name=\"{}\"}}",
        engine.role().mode(),
        engine.options.model
    );
    let in_flight = *engine.in_flight.borrow();
    let rooms = engine.journal.open_rooms();
    wire::metrics(format!(
        "# HELP sglang:num_running_reqs The number of running requests.\n\
         # TYPE sglang:num_running_reqs gauge\nsglang:num_running_reqs{labels} {in_flight}.0\n\
         # HELP sglang:num_transfer_queue_reqs The number of requests in the rendezvous.\n\
         # TYPE sglang:num_transfer_queue_reqs gauge\nsglang:num_transfer_queue_reqs{labels} {rooms}.0\n"
    ))
}

/// `/tokenize`.
pub(crate) fn tokenize(engine: &Engine, body: &[u8]) -> SimResponse {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let (prompts, list) = match request::tokenize(&body) {
        Ok(prompts) => prompts,
        Err(failure) => return refusal(&failure, Family::OpenAi),
    };
    let counts: Vec<usize> = prompts.iter().map(Vec::len).collect();
    let (tokens, count) = match (list, prompts.first()) {
        (false, Some(only)) => (json!(only), json!(only.len())),
        _ => (json!(prompts), json!(counts)),
    };
    let limit = engine.options.context_length;
    wire::json(
        200,
        json!({"tokens":tokens,"count":count,"max_model_len":limit}).to_string(),
    )
}

/// `/detokenize`.
pub(crate) fn detokenize(body: &[u8]) -> SimResponse {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(tokens) = body.get("tokens").and_then(Value::as_array) else {
        return refusal(
            &Failure::Schema("tokens: Field required".to_owned()),
            Family::OpenAi,
        );
    };
    let tokens: Vec<u32> = tokens
        .iter()
        .map(|token| {
            token
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or(u32::MAX)
        })
        .collect();
    wire::json(200, json!({"text":model::text_of(&tokens)}).to_string())
}

/// `/v1/messages/count_tokens`.
pub(crate) fn count_tokens(body: &[u8]) -> SimResponse {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    if !body.get("messages").is_some_and(Value::is_array) {
        let failure = Failure::Schema("messages: Field required".to_owned());
        return refusal(&failure, Family::Messages);
    }
    let tokens = model::encode(&request::chat_text(&body)).len();
    wire::json(200, json!({"input_tokens":tokens}).to_string())
}

fn card(engine: &Engine) -> Value {
    let options = &engine.options;
    json!({"id":options.model,"object":"model","created":unix_seconds() as u64,"owned_by":"sglang",
        "root":options.model,"parent":null,"max_model_len":options.context_length})
}

fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// `2026-11-21T02:18:14.163702+00:00`.
fn rfc3339(unix: f64) -> String {
    let seconds = unix as u64;
    let (year, month, day) = wire::civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = (unix.fract() * 1e6) as u32;
    format!(
        "{year}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00",
        month + 1
    )
}
