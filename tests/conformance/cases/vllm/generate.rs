//! `/inference/v1/generate`, whose limits stand in `sampling_params`.

use serde_json::{Value, json};

use super::super::{Case, FEW, Material, ids, with};
use super::both_ways;

const PATH: &str = "/inference/v1/generate";

pub(super) fn cases(material: &Material) -> Vec<Case> {
    let base = json!({ "model": material.model, "token_ids": ids(70, 3) });
    let parameters = json!({ "temperature": 0, "max_tokens": FEW });
    let of = |more: Value| json!({ "sampling_params": with(&parameters, &more) });
    let options = [
        ("plain", of(json!({}))),
        ("logprobs", of(json!({ "logprobs": 2 }))),
        ("prompt logprobs", of(json!({ "prompt_logprobs": 1 }))),
        ("one token", of(json!({ "max_tokens": 1 }))),
        (
            "at least three tokens",
            of(json!({ "min_tokens": 3, "ignore_eos": true })),
        ),
        ("stop ids", of(json!({ "stop_token_ids": [100, 200, 300] }))),
        ("a seed", of(json!({ "temperature": 0.9, "seed": 4 }))),
        (
            "two samples",
            of(json!({ "temperature": 0.9, "seed": 4, "n": 2 })),
        ),
        (
            "few ids",
            with(&of(json!({})), &json!({ "token_ids": ids(3, 9) })),
        ),
        (
            "many ids",
            with(&of(json!({})), &json!({ "token_ids": ids(1500, 9) })),
        ),
        (
            "a client's transfer parameters",
            of(json!({ "extra_args": { "kv_transfer_params": { "do_remote_prefill": true } } })),
        ),
    ];
    both_ways(PATH, &base, &options)
}
