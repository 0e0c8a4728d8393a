//! `/v1/messages` and its token counter.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/anthropic/protocol.py`.

use serde_json::{Value, json};

use super::conversations::said;
use super::{Case, FEW, Material, way, with};

const PATH: &str = "/v1/messages";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let model = json!({ "model": material.model });
    let base = with(&model, &json!({ "temperature": 0, "max_tokens": FEW }));
    let mut cases = Vec::new();
    for (name, more) in conversations() {
        for stream in [false, true] {
            let body = with(&with(&base, &json!({ "stream": stream })), &more);
            cases.push(Case::post(format!("{}, {name}", way(stream)), PATH, &body));
        }
        let counted = format!("{PATH}/count_tokens");
        cases.push(Case::post(name, &counted, &with(&model, &more)));
    }
    for (name, more) in [
        (
            "stop sequences",
            json!({ "stop_sequences": ["e", "o"], "max_tokens": 16 }),
        ),
        ("one token", json!({ "max_tokens": 1 })),
        ("32 tokens", json!({ "max_tokens": 32 })),
        (
            "metadata",
            json!({ "metadata": { "user_id": "somebody" }, "bootstrap_room": 0 }),
        ),
    ] {
        for stream in [false, true] {
            let said = json!({ "messages": said("Hello there"), "stream": stream });
            let body = with(&with(&base, &said), &more);
            cases.push(Case::post(format!("{}, {name}", way(stream)), PATH, &body));
        }
    }
    cases
}

fn conversations() -> [(&'static str, Value); 5] {
    [
        ("plain", json!({ "messages": said("Hello there") })),
        (
            "system",
            json!({ "messages": said("Hello there"), "system": "Be brief." }),
        ),
        (
            "turns",
            json!({ "messages": [
            { "role": "user", "content": "What is one and one?" },
            { "role": "assistant", "content": "Two" },
            { "role": "user", "content": "And two and two?" },
        ] }),
        ),
        (
            "blocks",
            json!({ "messages": [{ "role": "user", "content": [
            { "type": "text", "text": "first" }, { "type": "text", "text": "second" },
        ] }] }),
        ),
        (
            "unicode",
            json!({ "messages": said("é 語 😀 \"quoted\" \\") }),
        ),
    ]
}
