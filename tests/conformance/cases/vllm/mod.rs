//! The requests for vLLM: each endpoint with two legs in forms and options, whole and streamed, and what stands beside them.
//!
//! Source: vLLM 0.32.0, `vllm/entrypoints/openai/` (the fields of each endpoint), `vllm/entrypoints/serve/`.

mod chat;
mod completions;
mod errors;
mod generate;
mod others;

use serde_json::{Value, json};

use super::{Case, Material, way, with};

/// What the simulated workers take or have not, where real ones refuse or have it: the ends of names.
const NOT_SIMULATED: [&str; 12] = [
    "stream, prompt logprobs",
    "/render 3 members",
    "a negative temperature",
    "no token wanted",
    "too many logprobs",
    "top_logprobs without logprobs",
    "an unknown format",
    "ids out of range",
    "a top_p out of range",
    "a suffix",
    "no input",
    "no limit",
];

/// Every case.
pub(super) fn cases(material: &Material) -> Vec<Case> {
    let mut cases = [
        completions::cases(material),
        chat::cases(material),
        generate::cases(material),
        others::cases(material),
        errors::cases(material),
    ]
    .concat();
    cases.retain(|case| {
        !material.simulated || !NOT_SIMULATED.iter().any(|end| case.name.ends_with(end))
    });
    cases
}

/// A request with each of these options, whole and streamed.
fn both_ways(path: &str, base: &Value, options: &[(&str, Value)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, more) in options {
        for stream in [false, true] {
            let body = with(&with(base, &json!({ "stream": stream })), more);
            cases.push(Case::post(format!("{}, {name}", way(stream)), path, &body));
        }
    }
    cases
}
