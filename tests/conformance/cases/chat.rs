//! `/v1/chat/completions`: nothing is merged, so nothing may be lost either.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py` (`ChatCompletionRequest`).

use serde_json::{Value, json};

use super::conversations::{conversations, said, usage_of_streams};
use super::{Case, FEW, Material, way, with};

const PATH: &str = "/v1/chat/completions";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": FEW });
    let mut cases = Vec::new();
    for (name, more) in [options(), conversations(material)].concat() {
        for stream in [false, true] {
            let body = with(&with(&base, &json!({ "stream": stream })), &more);
            cases.push(Case::post(format!("{}, {name}", way(stream)), PATH, &body));
        }
    }
    let ids = json!({
        "messages": said("Hello there"), "return_token_ids": true, "return_prompt_token_ids": true,
    });
    cases.push(Case::post("whole, token ids", PATH, &with(&base, &ids)));
    for (name, more) in usage_of_streams() {
        let more = with(&more, &json!({ "messages": said("count for me") }));
        cases.push(Case::post(name, PATH, &with(&base, &more)));
    }
    cases
}

fn options() -> Vec<(&'static str, Value)> {
    let messages = json!({ "messages": said("Hello there") });
    let more = |more: Value| with(&messages, &more);
    vec![
        ("plain", messages.clone()),
        ("logprobs", more(json!({ "logprobs": true }))),
        (
            "logprobs, top 1",
            more(json!({ "logprobs": true, "top_logprobs": 1 })),
        ),
        (
            "logprobs, top 5",
            more(json!({ "logprobs": true, "top_logprobs": 5 })),
        ),
        (
            "one token",
            more(json!({ "max_tokens": 1, "logprobs": true, "top_logprobs": 2 })),
        ),
        ("32 tokens", more(json!({ "max_tokens": 32 }))),
        (
            "max_completion_tokens",
            more(json!({ "max_tokens": null, "max_completion_tokens": 5 })),
        ),
        (
            "a stop string",
            more(json!({ "stop": ["e", "o"], "max_tokens": 16 })),
        ),
        ("a rid", more(json!({ "rid": "conformance-chat" }))),
        ("n of one", more(json!({ "n": 1 }))),
        ("two samples", more(json!({ "n": 2 }))),
        (
            "a user",
            more(json!({ "user": "somebody", "seed": 5, "no_such_field": { "stream": true } })),
        ),
        (
            "ignore_eos",
            more(json!({ "ignore_eos": true, "max_tokens": 24 })),
        ),
        (
            "a client's bootstrap fields",
            more(json!({ "bootstrap_host": "192.0.2.1", "bootstrap_room": 0 })),
        ),
        ("another model", more(json!({ "model": "no-such-model" }))),
        (
            "text response_format",
            more(json!({ "response_format": { "type": "text" } })),
        ),
    ]
}
