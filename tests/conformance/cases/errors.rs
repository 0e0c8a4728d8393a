//! Requests that a worker refuses: the client of mini-lb sees the worker's refusal.

use serde_json::json;

use super::{Case, Material, greedy, ids, way, with};

/// In bytes; longer than any buffer on the way.
const BIG: usize = 1 << 20;

/// Too many tokens for the context of any model that this suite runs against.
const TOO_MANY: usize = 5000;

pub(super) fn cases(material: &Material) -> Vec<Case> {
    [not_json(), generate(), chat(material), others(material)].concat()
}

fn not_json() -> Vec<Case> {
    let bodies = [
        ("nothing", ""),
        ("a cut body", r#"{"text": "a","#),
        ("no JSON", "hello"),
        ("a list", "[1, 2]"),
        ("a number", "5"),
        ("two bodies", r#"{"text":"a"} {"text":"b"}"#),
        ("a trailing comma", r#"{"text":"a",}"#),
        ("single quotes", "{'text':'a'}"),
        ("a raw line break in a text", "{\"text\":\"a\nb\"}"),
    ];
    let mut cases = Vec::new();
    for (path, bodies) in [
        ("/generate", &bodies[..]),
        // SGLang responds 500 to a chat that is not an object.
        ("/v1/chat/completions", &bodies[..3]),
        ("/v1/completions", &bodies[..4]),
        ("/v1/responses", &bodies[..4]),
        ("/v1/messages", &bodies[..4]),
    ] {
        for (name, body) in bodies {
            cases.push(Case::raw(format!("refused, {name}"), path, *body).status(400));
        }
    }
    cases
}

fn generate() -> Vec<Case> {
    let few = greedy(4);
    let text = json!({ "text": "Hello there", "sampling_params": few });
    let refused = [
        ("no prompt", json!({ "sampling_params": few })),
        ("a number as text", json!({ "text": 5 })),
        ("a mixed list", json!({ "text": ["a", 5] })),
        ("texts as ids", json!({ "input_ids": ["a", "b"] })),
        (
            "a negative temperature",
            json!({ "text": "a", "sampling_params": { "temperature": -1 } }),
        ),
        (
            "an unknown sampling parameter",
            json!({ "text": "a", "sampling_params": { "no_such": 1 } }),
        ),
        (
            "a text as max_new_tokens",
            json!({ "text": "a", "sampling_params": { "max_new_tokens": "x" } }),
        ),
        (
            "a start behind the prompt",
            with(
                &text,
                &json!({ "return_logprob": true, "logprob_start_len": 500 }),
            ),
        ),
        (
            "a text as flag",
            with(&text, &json!({ "return_logprob": "yes" })),
        ),
        (
            "too many ids",
            json!({ "input_ids": ids(TOO_MANY, 1), "sampling_params": few }),
        ),
        (
            "too long a text",
            json!({ "text": "word ".repeat(BIG / 5), "sampling_params": few }),
        ),
    ];
    let mut cases = Vec::new();
    for (name, body) in refused {
        for stream in [false, true] {
            let body = with(&body, &json!({ "stream": stream }));
            let case = Case::post(
                format!("refused, {}, {name}", way(stream)),
                "/generate",
                &body,
            );
            cases.push(case.status(400));
        }
    }
    let short = json!({ "text": ["a", "b"], "return_logprob": [true], "sampling_params": few });
    cases.push(Case::post("refused, whole, too short a list", "/generate", &short).status(500));
    cases
}

fn chat(material: &Material) -> Vec<Case> {
    let path = "/v1/chat/completions";
    let base = json!({
        "model": material.model, "temperature": 0, "max_tokens": 4,
        "messages": [{ "role": "user", "content": "Hello there" }],
    });
    let refused = [
        ("no messages", json!({ "messages": null })),
        ("a text as messages", json!({ "messages": "hello" })),
        ("a negative temperature", json!({ "temperature": -3 })),
        ("a text as max_tokens", json!({ "max_tokens": "x" })),
        ("too many tokens wanted", json!({ "max_tokens": 1_000_000 })),
        (
            "an unknown role",
            json!({ "messages": [{ "role": "nobody", "content": "a" }] }),
        ),
        (
            "too long",
            json!({ "messages": [{ "role": "user", "content": "word ".repeat(BIG / 5) }] }),
        ),
        (
            "top_logprobs without logprobs",
            json!({ "top_logprobs": "x" }),
        ),
    ];
    let mut cases = Vec::new();
    for (name, more) in refused {
        for stream in [false, true] {
            let body = with(&with(&base, &more), &json!({ "stream": stream }));
            let case = Case::post(format!("refused, {}, {name}", way(stream)), path, &body);
            cases.push(case.status(400));
        }
    }
    cases
}

fn others(material: &Material) -> Vec<Case> {
    let model = json!({ "model": material.model });
    let long = "word ".repeat(BIG / 5);
    let refused = [
        ("/v1/completions", "no prompt", json!({})),
        (
            "/v1/completions",
            "a mixed list",
            json!({ "prompt": [50, "a"] }),
        ),
        (
            "/v1/completions",
            "too long",
            json!({ "prompt": long, "max_tokens": 4 }),
        ),
        (
            "/v1/completions",
            "a text as max_tokens",
            json!({ "prompt": "a", "max_tokens": "x" }),
        ),
        ("/v1/responses", "no input", json!({})),
        ("/v1/messages", "no messages", json!({ "max_tokens": 4 })),
        (
            "/v1/messages",
            "no max_tokens",
            json!({ "messages": [{ "role": "user", "content": "a" }] }),
        ),
        (
            "/v1/messages",
            "too long",
            json!({
                "max_tokens": 4, "messages": [{ "role": "user", "content": long }],
            }),
        ),
    ];
    let mut cases = Vec::new();
    for (path, name, more) in refused {
        for stream in [false, true] {
            let body = with(&with(&model, &more), &json!({ "stream": stream }));
            let case = Case::post(format!("refused, {}, {name}", way(stream)), path, &body);
            cases.push(case.status(400));
        }
    }
    cases.push(Case::post("refused, no prompt", "/tokenize", &model).status(400));
    cases
}
