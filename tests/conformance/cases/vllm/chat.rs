//! `/v1/chat/completions`, and a batch of chats, which is decode's alone.

use serde_json::{Value, json};

use super::super::conversations::{conversations, said, usage_of_streams};
use super::super::{Case, FEW, Material, with};
use super::both_ways;

const PATH: &str = "/v1/chat/completions";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({
        "model": material.model, "temperature": 0, "max_tokens": FEW, "messages": said("Hello there"),
    });
    let mut cases = both_ways(PATH, &base, &options());
    for case in &mut cases {
        if case.name.ends_with("stream, prompt logprobs") {
            case.status = 400;
        }
    }
    cases.extend(both_ways(PATH, &base, &conversations(material)));
    for (name, more) in usage_of_streams() {
        cases.push(Case::post(name, PATH, &with(&base, &more)));
    }
    let batch = json!({ "messages": [said("Hello there"), said("and to you")] });
    cases.push(Case::post(
        "whole, two chats",
        "/v1/chat/completions/batch",
        &with(&base, &batch),
    ));
    cases
}

fn options() -> Vec<(&'static str, Value)> {
    vec![
        ("plain", json!({})),
        ("logprobs", json!({ "logprobs": true })),
        (
            "logprobs, top 5",
            json!({ "logprobs": true, "top_logprobs": 5 }),
        ),
        (
            "one token",
            json!({ "max_tokens": 1, "logprobs": true, "top_logprobs": 2 }),
        ),
        ("32 tokens", json!({ "max_tokens": 32 })),
        (
            "max_completion_tokens",
            json!({ "max_tokens": null, "max_completion_tokens": 5 }),
        ),
        (
            "both limits",
            json!({ "max_tokens": 3, "max_completion_tokens": 5 }),
        ),
        (
            "at least three tokens",
            json!({ "min_tokens": 3, "ignore_eos": true }),
        ),
        (
            "a stop string",
            json!({ "stop": ["e", "o"], "max_tokens": 16 }),
        ),
        (
            "stop ids",
            json!({ "stop_token_ids": [100, 200, 300, 400] }),
        ),
        ("prompt logprobs", json!({ "prompt_logprobs": 2 })),
        ("n of one", json!({ "n": 1 })),
        (
            "two samples",
            json!({ "n": 2, "temperature": 0.8, "seed": 3 }),
        ),
        (
            "a seed",
            json!({ "temperature": 0.8, "seed": 5, "top_k": 40 }),
        ),
        ("token ids", json!({ "return_token_ids": true })),
        (
            "a text format",
            json!({ "response_format": { "type": "text" } }),
        ),
        (
            "a JSON format",
            json!({ "response_format": { "type": "json_object" }, "max_tokens": 24 }),
        ),
        (
            "a schema",
            json!({ "max_tokens": 24, "response_format": { "type": "json_schema", "json_schema": {
                "name": "answer",
                "schema": { "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] },
            } } }),
        ),
        (
            "a request id",
            json!({ "request_id": "conformance-chat", "user": "somebody" }),
        ),
        (
            "a client's transfer parameters",
            json!({ "kv_transfer_params": { "do_remote_decode": true }, "kv_transfer_params\u{20}": 1 }),
        ),
        (
            "no new prompt",
            json!({ "add_generation_prompt": false, "no_such_field": { "stream": true } }),
        ),
        ("echo", json!({ "echo": true })),
    ]
}
