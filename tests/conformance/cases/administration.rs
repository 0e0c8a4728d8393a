//! Administration that the CPU engine has, in an order that leaves the servers as they were; and stored responses, which no
//! server keeps by default.

use serde_json::json;

use super::{Case, Material};

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in ["in_place", "retract", "abort"] {
        let body = json!({ "mode": mode });
        cases.push(told(mode, "/pause_generation", &body));
        // Named after the pause too, so that a filter never leaves the servers paused.
        let after = format!("{mode}, after pause_generation");
        cases.push(told(&after, "/continue_generation", &json!({})));
    }
    let known = json!({ "server_args": { "pp_max_micro_batch_size": 8 } });
    let unknown = json!({ "server_args": { "no_such_knob": 8 } });
    let version = json!({ "new_version": "a", "abort_all_requests": false });
    let adapter = json!({ "lora_name": "a", "lora_path": "/a" });
    let named = json!({ "lora_name": "a" });
    cases.extend([
        told("a version", "/update_weight_version", &version),
        told("a known knob", "/set_internal_state", &known),
        told("an unknown knob", "/set_internal_state", &unknown),
        told(
            "full speed",
            "/slow_down",
            &json!({ "forward_sleep_time": null }),
        ),
        told("begin", "/begin_weight_update", &json!({})),
        told("end", "/end_weight_update", &json!({})),
        told("no group", "/destroy_weights_update_group", &json!({})).status(400),
        told("no LoRA", "/load_lora_adapter", &adapter).status(400),
        told("no LoRA", "/unload_lora_adapter", &named).status(400),
    ]);
    let base = json!({ "model": material.model, "input": "Hello" });
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("background", json!(true)),
    ] {
        let mut body = base.clone();
        body[field] = value;
        cases.push(Case::post(field, "/v1/responses", &body).status(400));
    }
    cases.push(Case::get("/v1/responses/resp_1").status(400));
    cases
}

fn told(name: &str, path: &str, body: &serde_json::Value) -> Case {
    Case::post(format!("administration, {name}"), path, body)
}
