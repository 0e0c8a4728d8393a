//! What is said in chats, and the usage that streams are asked for: the same for every engine.

use serde_json::{Value, json};

use super::{Material, with};

/// A conversation of one turn.
pub(super) fn said(content: &str) -> Value {
    json!([{ "role": "user", "content": content }])
}

/// Conversations of several turns, parts and lengths, each with its name.
pub(super) fn conversations(material: &Material) -> Vec<(&'static str, Value)> {
    vec![
        (
            "system and turns",
            json!({ "messages": [
                { "role": "system", "content": "Answer in one word." },
                { "role": "user", "content": "What is the capital of France?" },
                { "role": "assistant", "content": "Paris" },
                { "role": "user", "content": "And of Italy?" },
            ] }),
        ),
        (
            "parts",
            json!({ "messages": [{ "role": "user", "content": [
                { "type": "text", "text": "first part" }, { "type": "text", "text": "second part" },
            ] }] }),
        ),
        (
            "unicode",
            json!({ "messages": said("é 語 😀 \"quoted\" \\ \u{2028} data: [DONE]\n\n") }),
        ),
        (
            "200 tokens",
            json!({ "messages": said(&material.texts[2].text), "logprobs": true }),
        ),
        (
            "a long prompt",
            json!({ "messages": said(&material.texts[3].text), "logprobs": true }),
        ),
    ]
}

/// The options of streams that ask for usage, with and without logprobs.
pub(super) fn usage_of_streams() -> Vec<(String, Value)> {
    let mut options = Vec::new();
    for (name, usage) in [
        ("usage", json!({ "include_usage": true })),
        (
            "continuous usage",
            json!({ "include_usage": true, "continuous_usage_stats": true }),
        ),
        ("no usage", json!({ "include_usage": false })),
    ] {
        let streamed = json!({ "stream": true, "stream_options": usage });
        for (and, more) in [
            ("", json!({})),
            (", logprobs", json!({ "logprobs": true, "top_logprobs": 2 })),
        ] {
            options.push((format!("stream, {name}{and}"), with(&streamed, &more)));
        }
    }
    options
}
