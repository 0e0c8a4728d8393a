//! Requests that a worker refuses: the client of mini-lb sees the worker's refusal, of whichever leg.

use serde_json::{Value, json};

use super::super::conversations::said;
use super::super::{Case, Material, ids, with};
use super::both_ways;

/// Too many tokens for the context of any model that this suite runs against.
const TOO_MANY: usize = 5000;

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let refused = [
        chat(material),
        completions(material),
        generate(material),
        others(material),
    ];
    let refused = refused.concat().into_iter();
    let named = refused.map(|mut case| {
        case.name = case.name.replacen(' ', " refused, ", 1);
        case
    });
    unreadable().into_iter().chain(named).collect()
}

fn unreadable() -> Vec<Case> {
    let mut cases = Vec::new();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/inference/v1/generate",
    ] {
        for (name, body) in [
            ("nothing", ""),
            ("a cut body", r#"{"prompt": "a","#),
            ("no JSON", "hello"),
            ("a list", "[1, 2]"),
        ] {
            cases.push(Case::raw(format!("refused, {name}"), path, body).status(400));
        }
    }
    cases
}

/// Both ways, each with this status.
fn all(path: &str, base: &Value, options: &[(&str, Value)], status: u16) -> Vec<Case> {
    let cases = both_ways(path, base, options).into_iter();
    cases.map(|case| case.status(status)).collect()
}

fn chat(material: &Material) -> Vec<Case> {
    let path = "/v1/chat/completions";
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": 4, "messages": said("Hello there") });
    let bad = [
        ("no messages", json!({ "messages": null })),
        ("empty messages", json!({ "messages": [] })),
        ("a text as messages", json!({ "messages": "hello" })),
        ("a negative temperature", json!({ "temperature": -3 })),
        ("a text as max_tokens", json!({ "max_tokens": "x" })),
        (
            "a context of tokens wanted",
            json!({ "max_tokens": 1_000_000 }),
        ),
        ("no token wanted", json!({ "max_tokens": 0 })),
        (
            "more tokens at least than at most",
            json!({ "min_tokens": 9 }),
        ),
        ("greedy samples", json!({ "n": 2 })),
        (
            "too many logprobs",
            json!({ "logprobs": true, "top_logprobs": 1000 }),
        ),
        (
            "top_logprobs without logprobs",
            json!({ "top_logprobs": 2, "logprobs": false }),
        ),
        (
            "an unknown format",
            json!({ "response_format": { "type": "nope" } }),
        ),
        (
            "too long",
            json!({ "messages": said(&"word ".repeat(TOO_MANY)) }),
        ),
    ];
    let mut cases = all(path, &base, &bad, 400);
    let options = with(
        &base,
        &json!({ "stream_options": { "include_usage": true } }),
    );
    cases.push(Case::post("whole, options of a stream", path, &options).status(400));
    let unknown = [("an unknown model", json!({ "model": "no-such-model" }))];
    cases.extend(all(path, &base, &unknown, 404));
    cases
}

fn completions(material: &Material) -> Vec<Case> {
    let path = "/v1/completions";
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": 4, "prompt": "Hello there" });
    let bad = [
        ("an empty prompt", json!({ "prompt": "" })),
        ("an empty list", json!({ "prompt": [] })),
        ("no prompt", json!({ "prompt": null })),
        ("a number as prompt", json!({ "prompt": 5 })),
        ("ids out of range", json!({ "prompt": [1, 2, 10_000_000] })),
        ("too many ids", json!({ "prompt": ids(TOO_MANY, 1) })),
        ("too many logprobs", json!({ "logprobs": 1000 })),
        ("a top_p out of range", json!({ "top_p": 7 })),
        ("a suffix", json!({ "suffix": "end" })),
    ];
    let mut cases = all(path, &base, &bad, 400);
    let unknown = [("an unknown model", json!({ "model": "no-such-model" }))];
    cases.extend(all(path, &base, &unknown, 404));
    cases
}

fn generate(material: &Material) -> Vec<Case> {
    let base = json!({
        "model": material.model, "token_ids": ids(9, 1), "sampling_params": { "max_tokens": 4, "temperature": 0 },
    });
    let bad = [
        ("no ids", json!({ "token_ids": null })),
        ("texts as ids", json!({ "token_ids": ["a"] })),
        ("too many ids", json!({ "token_ids": ids(TOO_MANY, 1) })),
        (
            "a negative temperature",
            json!({ "sampling_params": { "temperature": -1 } }),
        ),
    ];
    all("/inference/v1/generate", &base, &bad, 400)
}

fn others(material: &Material) -> Vec<Case> {
    let model = &material.model;
    let responses = json!({ "model": model, "input": "Hello there", "max_output_tokens": 4 });
    let messages = json!({ "model": model, "messages": said("Hello there"), "max_tokens": 4 });
    [
        all(
            "/v1/responses",
            &responses,
            &[
                ("no input", json!({ "input": null })),
                ("a text as limit", json!({ "max_output_tokens": "x" })),
            ],
            400,
        ),
        all(
            "/v1/responses",
            &responses,
            &[("an unknown model", json!({ "model": "no-such-model" }))],
            404,
        ),
        all(
            "/v1/messages",
            &messages,
            &[
                ("no limit", json!({ "max_tokens": null })),
                ("a text as messages", json!({ "messages": "hello" })),
            ],
            400,
        ),
        all(
            "/v1/messages",
            &messages,
            &[("an unknown model", json!({ "model": "no-such-model" }))],
            404,
        ),
    ]
    .concat()
}
