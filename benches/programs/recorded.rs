//! What real workers said about themselves, for workers that the benchmarks play.
//!
//! Source: SGLang 0.5.23, `tests/fixtures/sglang-0.5.23`; vLLM 0.32.0, `entrypoints/`.

use std::fs;

use memchr::memmem;
use mini_lb::pd::Engine;
use serde_json::{Value, json};

/// A worker's response to a request that is not for tokens; null for an empty one.
pub fn about_the_worker(engine: Engine, path: &str, is_prefill: bool) -> Option<Value> {
    if engine == Engine::Vllm {
        return match path {
            "/health" | "/metrics" => Some(Value::Null),
            "/version" => Some(json!({"version": "0.32.0"})),
            "/v1/models" => {
                Some(json!({"object": "list", "data": [{"id": "tiny", "object": "model"}]}))
            }
            _ => None,
        };
    }
    let name = match path {
        "/server_info" | "/get_server_info" => "d_get_P_server_info",
        "/model_info" | "/get_model_info" => "d_get_P_model_info",
        "/v1/models" => "d_get_P_v1_models",
        "/v1/loads" => "d_get_P_v1_loads",
        "/health" | "/health_generate" | "/abort_request" => return Some(Value::Null),
        _ => return None,
    };
    let reply = file(name, "prefill.http").ok()?;
    let body = memmem::find(&reply, b"\r\n\r\n")? + 4;
    let mut said: Value = serde_json::from_slice(&reply[body..]).ok()?;
    if let Some(mode) = said.get_mut("disaggregation_mode") {
        *mode = if is_prefill { "prefill" } else { "decode" }.into();
    }
    Some(said)
}

/// One recorded file of a directory of SGLang's.
pub fn file(name: &str, part: &str) -> Result<Vec<u8>, String> {
    fixture(&format!("sglang-0.5.23/{name}/{part}"))
}

/// One recorded file.
pub fn fixture(name: &str) -> Result<Vec<u8>, String> {
    let root = env!("CARGO_MANIFEST_DIR");
    let path = format!("{root}/tests/fixtures/{name}");
    fs::read(&path).map_err(|error| format!("{path}: {error}"))
}
