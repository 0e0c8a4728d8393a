//! Administration: what a worker is told besides requests, as far as tests need it.
//!
//! Source: responses of prefill and decode workers of SGLang 0.5.23 on the CPU; the rules of a pause from
//! `managers/tokenizer_manager.py` (`pause_generation`, `is_pause_cond`) and `managers/scheduler.py` (`_engine_paused`).

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::engine::Engine;
use super::errors::{Failure, Family};
use super::stream::refusal;
use super::wire::{self, SimResponse};

/// Whether a worker is paused.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// New requests wait.
    closed: watch::Sender<bool>,
    /// Live items stand still. Not set by a pause that has aborted them.
    still: watch::Sender<bool>,
    /// Whether it ever stood still: until then no item looks.
    was_still: AtomicBool,
}

impl Pause {
    pub(crate) fn is_paused(&self) -> bool {
        *self.closed.borrow()
    }

    /// Completes while new requests may enter.
    pub(crate) async fn entrance(&self) {
        let _ = self.closed.subscribe().wait_for(|closed| !closed).await;
    }

    /// Completes while items are computed.
    pub(crate) async fn moves(&self) {
        if self.was_still.load(Ordering::Acquire) {
            let _ = self.still.subscribe().wait_for(|still| !still).await;
        }
    }
}

/// The endpoints of administration that have an answer of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Pause,
    Continue,
    UpdateWeights,
    WeightVersion,
    WeightSession,
    Adapter,
    InternalState,
    DestroyGroup,
    /// Does nothing and answers `null`.
    Nothing,
}

/// The answer of an endpoint, after it was done.
pub(crate) async fn answer(engine: &Engine, told: Told, body: &[u8]) -> SimResponse {
    let Ok(body @ Value::Object(_)) = serde_json::from_slice::<Value>(body) else {
        let missing = Failure::Schema("Field required".to_owned());
        return refusal(&missing, Family::OpenAi);
    };
    match told {
        Told::Pause => pause(engine, &body).await,
        Told::Continue => {
            engine.pause.still.send_replace(false);
            engine.pause.closed.send_replace(false);
            done("Generation continued successfully.")
        }
        Told::UpdateWeights => {
            engine.flush();
            let message = "Succeeded to update model weights.";
            let body = json!({"success":true,"message":message,"num_paused_requests":0});
            wire::json(200, body.to_string())
        }
        Told::WeightVersion => {
            let version = &body["new_version"];
            let message = format!(
                "Weight version updated to {}",
                version.as_str().unwrap_or("")
            );
            let body = json!({"success":true,"message":message,"new_version":version});
            wire::json(200, body.to_string())
        }
        Told::WeightSession => {
            wire::json(200, json!({"success":true,"message":"Success"}).to_string())
        }
        Told::Adapter => {
            let message = "LoRA is not enabled. Please set `--enable-lora` to enable LoRA.";
            let body = json!({"rid":null,"http_worker_ipc":null,"success":false,"error_message":message,
                "loaded_adapters":null});
            wire::json(400, body.to_string())
        }
        Told::InternalState => {
            let known = [
                "pp_max_micro_batch_size",
                "speculative_accept_threshold_single",
            ];
            let args = body["server_args"].as_object();
            let all_known = args.is_some_and(|args| args.keys().all(|key| known.contains(&&**key)));
            wire::json(200, json!([all_known]).to_string())
        }
        Told::DestroyGroup => {
            let message = "The group to be destroyed does not exist.";
            wire::json(400, json!({"success":false,"message":message}).to_string())
        }
        Told::Nothing => wire::json(200, "null"),
    }
}

/// Aborts unless the body asks for something else, and answers when the last item has ended then.
async fn pause(engine: &Engine, body: &Value) -> SimResponse {
    let mode = body.get("mode").map_or(Some("abort"), Value::as_str);
    let pause = &engine.pause;
    match mode {
        Some("abort") => {
            pause.closed.send_replace(true);
            engine.abort(None);
            let mut in_flight = engine.in_flight.subscribe();
            let _ = in_flight.wait_for(|items| *items == 0).await;
        }
        Some("in_place" | "retract") => {
            pause.closed.send_replace(true);
            pause.was_still.store(true, Ordering::Release);
            pause.still.send_replace(true);
        }
        _ => {
            let failure = "mode: Input should be 'abort', 'retract' or 'in_place'";
            return refusal(&Failure::Schema(failure.to_owned()), Family::OpenAi);
        }
    }
    done("Generation paused successfully.")
}

fn done(message: &str) -> SimResponse {
    wire::json(200, json!({"message":message,"status":"ok"}).to_string())
}

/// The field by which a request asks for stored responses; `None` where it does not.
pub(crate) fn needs_store(body: &Value) -> Option<&'static str> {
    let continues = body
        .get("previous_response_id")
        .is_some_and(|id| !id.is_null());
    let is_left = body.get("background") == Some(&Value::Bool(true));
    match (continues, is_left) {
        (true, _) => Some("previous_response_id"),
        (_, true) => Some("background"),
        _ => None,
    }
}

/// The answer to what asks for stored responses by this parameter: no worker with a role stores any.
pub(crate) fn store_disabled(param: &str) -> SimResponse {
    let message = "Response store is disabled. Stateful Responses require --enable-response-store on a standalone server; \
         response storage is unavailable in PD mode.";
    let error = json!({"message":message,"type":"invalid_request_error","param":param,"code":400});
    wire::json(400, json!({ "error": error }).to_string())
}
