//! `/v1/responses`, `/v1/messages`, what one worker answers, and the same request in every framing.

use serde_json::json;

use super::super::conversations::said;
use super::super::{Case, FEW, Material, with};
use super::both_ways;
use crate::client::Framing;

pub(super) fn cases(material: &Material) -> Vec<Case> {
    [
        responses(material),
        messages(material),
        single(material),
        wire(material),
    ]
    .concat()
}

fn responses(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_output_tokens": FEW, "input": "Hello there" });
    let options = [
        ("a text", json!({})),
        (
            "messages",
            json!({ "input": [
            { "role": "user", "content": "What is one and one?" },
            { "role": "assistant", "content": "Two" },
            { "role": "user", "content": "And two and two?" },
        ] }),
        ),
        ("instructions", json!({ "instructions": "Be brief." })),
        ("unicode", json!({ "input": "é 語 😀 \"quoted\" \\" })),
        ("32 tokens", json!({ "max_output_tokens": 32 })),
        ("a long prompt", json!({ "input": material.texts[2].text })),
        (
            "metadata",
            json!({ "metadata": { "a": "b" }, "user": "somebody", "store": false }),
        ),
        (
            "a client's transfer parameters",
            json!({ "kv_transfer_params": { "do_remote_prefill": true } }),
        ),
    ];
    both_ways("/v1/responses", &base, &options)
}

fn messages(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": FEW, "messages": said("Hello there") });
    let options = [
        ("plain", json!({})),
        (
            "a system prompt",
            json!({ "system": "Answer in one word." }),
        ),
        (
            "turns",
            json!({ "messages": [
            { "role": "user", "content": "What is one and one?" },
            { "role": "assistant", "content": [{ "type": "text", "text": "Two" }] },
            { "role": "user", "content": [{ "type": "text", "text": "And two and two?" }] },
        ] }),
        ),
        (
            "a long prompt",
            json!({ "messages": said(&material.texts[2].text) }),
        ),
        (
            "a stop sequence",
            json!({ "stop_sequences": ["e", "o"], "max_tokens": 16 }),
        ),
        ("one token", json!({ "max_tokens": 1 })),
        (
            "top_k",
            json!({ "top_k": 1, "metadata": { "user_id": "u" } }),
        ),
    ];
    both_ways("/v1/messages", &base, &options)
}

fn single(material: &Material) -> Vec<Case> {
    let model = &material.model;
    let few = &material.few().text;
    let mut cases = vec![
        Case::get("/v1/models"),
        Case::get("/version"),
        Case::get("/health"),
        Case::get("/no/such/path").status(404),
    ];
    let chat = json!({ "model": model, "messages": said(few), "max_tokens": 4 });
    for (path, body) in [
        ("/tokenize", json!({ "model": model, "prompt": few })),
        (
            "/tokenize",
            json!({ "model": model, "messages": said(few) }),
        ),
        (
            "/tokenize",
            json!({ "model": model, "prompt": few, "return_token_strs": true }),
        ),
        (
            "/detokenize",
            json!({ "model": model, "tokens": [50, 60, 70] }),
        ),
        ("/v1/messages/count_tokens", chat.clone()),
        ("/v1/chat/completions/render", chat),
        (
            "/v1/completions/render",
            json!({ "model": model, "prompt": few, "max_tokens": 4 }),
        ),
    ] {
        cases.push(Case::post(
            format!("{} members", body.as_object().map_or(0, |body| body.len())),
            path,
            &body,
        ));
    }
    for path in ["/load", "/is_paused", "/is_sleeping", "/kv_event_sources"] {
        let mut case = Case::get(path);
        case.name = format!("{} administration, GET", path.trim_start_matches('/'));
        cases.push(case);
    }
    cases
}

fn wire(material: &Material) -> Vec<Case> {
    let chat = json!({
        "model": material.model, "temperature": 0, "max_tokens": FEW, "messages": said(&material.texts[3].text),
    });
    let streamed = with(&chat, &json!({ "stream": true }));
    let count = json!({ "model": material.model, "prompt": material.texts[3].text });
    let mut cases = Vec::new();
    for (name, path, body) in [
        ("whole", "/v1/chat/completions", &chat),
        ("stream", "/v1/chat/completions", &streamed),
        ("whole", "/tokenize", &count),
    ] {
        let case = |how: &str| Case::post(format!("{name}, {how}"), path, body);
        cases.push(case("a chunked body").framing(Framing::Chunked));
        cases.push(case("Expect: 100-continue").framing(Framing::Expect));
        cases.push(case("three on one connection").times(3));
    }
    cases
}
