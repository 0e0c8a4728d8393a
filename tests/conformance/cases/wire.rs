//! The same request in every framing, and several on one connection.

use serde_json::json;

use super::{Case, Material, greedy, with};
use crate::client::Framing;

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let text = json!({
        "text": material.few().text, "sampling_params": greedy(8),
        "return_logprob": true, "logprob_start_len": 0,
    });
    let chat = json!({
        "model": material.model, "temperature": 0, "max_tokens": 8, "stream": true,
        "messages": [{ "role": "user", "content": material.texts[3].text }],
    });
    let count = json!({ "model": material.model, "prompt": material.texts[3].text });
    let streamed = with(&text, &json!({ "stream": true }));
    let requests = [
        ("whole", "/generate", &text),
        ("stream", "/generate", &streamed),
        ("stream", "/v1/chat/completions", &chat),
        ("whole", "/tokenize", &count),
    ];
    let mut cases = Vec::new();
    for (name, path, body) in requests {
        let case = |how: &str| Case::post(format!("{name}, {how}"), path, body);
        cases.push(case("a chunked body").framing(Framing::Chunked));
        cases.push(case("Expect: 100-continue").framing(Framing::Expect));
        cases.push(case("three on one connection").times(3));
    }
    for (name, body) in [
        ("no JSON", r#"{"text":"#),
        (
            "whole, a negative temperature",
            r#"{"text":"a","sampling_params":{"temperature":-1}}"#,
        ),
        (
            "stream, a negative temperature",
            r#"{"text":"a","stream":true,"sampling_params":{"temperature":-1}}"#,
        ),
    ] {
        let case = |how: &str| Case::raw(format!("refused, {name}, {how}"), "/generate", body);
        cases.push(case("a chunked body").framing(Framing::Chunked).status(400));
        cases.push(
            case("Expect: 100-continue")
                .framing(Framing::Expect)
                .status(400),
        );
    }
    cases.push(charset(Case::post("whole, a charset", "/generate", &text)));
    cases
}

fn charset(mut case: Case) -> Case {
    case.request.content_type = Some("application/json; charset=utf-8");
    case
}
