//! `/v1/completions`: forms of the prompt by streaming by options; echo with logprobs is merged.
//!
//! Source: SGLang 0.5.23, `srt/entrypoints/openai/protocol.py` (`CompletionRequest`).

use serde_json::{Value, json};

use super::{Case, FEW, Material, ids, way, with};

const PATH: &str = "/v1/completions";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": FEW });
    let case = |name: &str, stream: bool, more: &Value| {
        let body = with(&with(&base, &json!({ "stream": stream })), more);
        Case::post(format!("{}, {name}", way(stream)), PATH, &body)
    };
    let mut cases = Vec::new();
    for (form, prompt) in forms(material) {
        for (option, more) in options() {
            for stream in [false, true] {
                let more = with(&more, &json!({ "prompt": prompt }));
                cases.push(case(&format!("{form}: {option}"), stream, &more));
            }
        }
    }
    for stream in [false, true] {
        let more = json!({ "prompt": material.few().text, "n": 2 });
        cases.push(case("two samples", stream, &more));
    }
    let echo = json!({ "echo": true, "logprobs": 1 });
    for text in &material.texts {
        let more = with(&echo, &json!({ "prompt": text.text }));
        for stream in [false, true] {
            cases.push(case(
                &format!("{}: echo, logprobs 1", text.name),
                stream,
                &more,
            ));
        }
    }
    for (option, options) in [
        ("usage", json!({ "include_usage": true })),
        (
            "continuous usage",
            json!({ "include_usage": true, "continuous_usage_stats": true }),
        ),
    ] {
        for (form, prompt) in forms(material) {
            let more = with(
                &echo,
                &json!({ "prompt": prompt, "stream_options": options }),
            );
            cases.push(case(
                &format!("{form}: echo, logprobs 1, {option}"),
                true,
                &more,
            ));
        }
    }
    cases
}

fn forms(material: &Material) -> [(&'static str, Value); 6] {
    let few = &material.few().text;
    [
        ("text", json!(few)),
        ("ids", json!(ids(9, 1))),
        ("texts", json!([few, "another one", "and a third"])),
        ("list of one text", json!([few])),
        ("lists of ids", json!([ids(5, 1), ids(12, 2)])),
        ("list of one list of ids", json!([ids(9, 4)])),
    ]
}

fn options() -> [(&'static str, Value); 10] {
    [
        ("plain", json!({})),
        ("logprobs 1", json!({ "logprobs": 1 })),
        ("logprobs 5", json!({ "logprobs": 5 })),
        ("echo", json!({ "echo": true })),
        ("echo, logprobs 0", json!({ "echo": true, "logprobs": 0 })),
        ("echo, logprobs 1", json!({ "echo": true, "logprobs": 1 })),
        ("echo, logprobs 5", json!({ "echo": true, "logprobs": 5 })),
        (
            "echo, logprobs 1, one token",
            json!({ "echo": true, "logprobs": 1, "max_tokens": 1 }),
        ),
        (
            "a stop string",
            json!({ "stop": ["e", "o"], "max_tokens": 16 }),
        ),
        (
            "a suffix and a user",
            json!({ "user": "somebody", "no_such_field": [1], "seed": 3 }),
        ),
    ]
}
