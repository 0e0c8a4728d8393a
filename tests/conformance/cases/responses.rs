//! `/v1/responses`.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py` (`ResponsesRequest`).

use serde_json::json;

use super::{Case, FEW, Material, way, with};

const PATH: &str = "/v1/responses";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_output_tokens": FEW });
    let options = [
        ("a text", json!({ "input": "Hello there" })),
        (
            "messages",
            json!({ "input": [
            { "role": "user", "content": "What is one and one?" },
            { "role": "assistant", "content": "Two" },
            { "role": "user", "content": "And two and two?" },
        ] }),
        ),
        (
            "instructions",
            json!({ "input": "Hello there", "instructions": "Be brief." }),
        ),
        ("unicode", json!({ "input": "é 語 😀 \"quoted\" \\" })),
        (
            "32 tokens",
            json!({ "input": "Hello there", "max_output_tokens": 32 }),
        ),
        (
            "metadata",
            json!({ "input": "Hello there", "metadata": { "a": "b" }, "user": "somebody" }),
        ),
    ];
    let mut cases = Vec::new();
    for (name, more) in options {
        for stream in [false, true] {
            let body = with(&with(&base, &json!({ "stream": stream })), &more);
            cases.push(Case::post(format!("{}, {name}", way(stream)), PATH, &body));
        }
    }
    cases
}
