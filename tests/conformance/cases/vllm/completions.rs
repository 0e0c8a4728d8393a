//! `/v1/completions`: forms of the prompt by options. A list of prompts and the logprobs of a prompt are decode's alone.

use serde_json::{Value, json};

use super::super::{Case, FEW, Material, ids, with};
use super::both_ways;

const PATH: &str = "/v1/completions";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "temperature": 0, "max_tokens": FEW });
    let mut cases = Vec::new();
    for (form, prompt) in forms(material) {
        let base = with(&base, &json!({ "prompt": prompt }));
        let named: Vec<_> = options()
            .into_iter()
            .map(|(option, more)| (format!("{form}: {option}"), more))
            .collect();
        let named: Vec<_> = named
            .iter()
            .map(|(name, more)| (name.as_str(), more.clone()))
            .collect();
        cases.extend(both_ways(PATH, &base, &named));
    }
    for text in &material.texts {
        let base = with(&base, &json!({ "prompt": text.text }));
        cases.extend(both_ways(PATH, &base, &[(text.name, json!({}))]));
    }
    cases
}

fn forms(material: &Material) -> [(&'static str, Value); 5] {
    let few = &material.few().text;
    [
        ("text", json!(few)),
        ("ids", json!(ids(70, 1))),
        ("texts", json!([few, "another one", "and a third"])),
        ("list of one text", json!([few])),
        ("lists of ids", json!([ids(5, 1), ids(42, 2)])),
    ]
}

fn options() -> [(&'static str, Value); 16] {
    [
        ("plain", json!({})),
        ("logprobs 1", json!({ "logprobs": 1 })),
        ("logprobs 5", json!({ "logprobs": 5 })),
        ("echo", json!({ "echo": true })),
        ("echo, logprobs 1", json!({ "echo": true, "logprobs": 1 })),
        ("one token", json!({ "max_tokens": 1, "logprobs": 2 })),
        (
            "a stop string",
            json!({ "stop": ["e", "o"], "max_tokens": 16 }),
        ),
        (
            "at least three tokens",
            json!({ "min_tokens": 3, "ignore_eos": true }),
        ),
        (
            "a seed",
            json!({ "temperature": 0.9, "seed": 11, "top_p": 0.9 }),
        ),
        (
            "two samples",
            json!({ "temperature": 0.9, "seed": 7, "n": 2 }),
        ),
        ("token ids", json!({ "return_token_ids": true })),
        (
            "penalties and a bias",
            json!({ "presence_penalty": 0.5, "frequency_penalty": 0.2, "logit_bias": { "100": 3 } }),
        ),
        (
            "unknown fields",
            json!({ "user": "somebody", "no_such_field": [1], "best_of": 1 }),
        ),
        (
            "a client's transfer parameters",
            json!({ "kv_transfer_params": { "do_remote_prefill": true, "remote_host": "192.0.2.1" } }),
        ),
        (
            "a format",
            json!({ "structured_outputs": { "choice": ["yes", "no"] } }),
        ),
        (
            "a cache salt",
            json!({ "cache_salt": "of one user", "priority": 0 }),
        ),
    ]
}
