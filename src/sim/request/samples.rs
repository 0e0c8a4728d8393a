//! The number of samples of a request, and what `/generate` refuses only where there is more than one.
//!
//! Source: responses of a SGLang 0.5.23 server; `managers/io_struct.py` (`_determine_parallel_sample_num`,
//! `_handle_parallel_sampling`).

use std::collections::HashSet;

use serde_json::Value;

use super::fields::{boolean, integer};
use crate::sim::errors::Failure;

/// The most samples of a prompt. SGLang has no limit; here one request must not fill the memory of the machine.
const MAX_SAMPLES: usize = 1024;

/// The options of `/generate` that are scalars where there is more than one sample.
const SCALARS: [&str; 5] = [
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "return_sampling_mask",
    "sampling_logprobs_mode",
];

/// The samples per prompt of `/generate`, by the `sampling_params` of each prompt. Zero and less count as one. The
/// contract has refused values that are no integers, but for null.
pub(super) fn native(body: &Value, prompts: usize, list: bool) -> Result<usize, Failure> {
    let of = |parameters: &Value| match parameters.get("n") {
        None => Some(1),
        Some(value) => integer(value),
    };
    let n = match body.get("sampling_params") {
        Some(Value::Array(list)) => {
            let mut all = list.iter().map(of);
            let first = all.next().unwrap_or(Some(1));
            if all.any(|other| other != first) {
                return Err(invalid(
                    "The parallel_sample_num should be the same for all samples in sample params.",
                ));
            }
            first
        }
        Some(parameters) => of(parameters),
        None => Some(1),
    };
    let n = bounded(n.ok_or(Failure::Internal)?);
    match ids(body) {
        Some(_) if !list && n == 1 => {
            check_unique(body)?;
            // A list is no key of a dictionary.
            return Err(Failure::Internal);
        }
        Some(ids) => check_count(ids, prompts)?,
        None => {}
    }
    if n > 1 {
        check_lists(body)?;
    }
    check_unique(body)?;
    Ok(n)
}

fn check_lists(body: &Value) -> Result<(), Failure> {
    let is_list = |name: &str| body.get(name).is_some_and(Value::is_array);
    let rows = body.get("token_ids_logprob").and_then(Value::as_array);
    let has_rows = rows.is_some_and(|rows| rows.first().is_some_and(Value::is_array));
    let list = SCALARS.into_iter().find(|name| is_list(name));
    let list = list
        .or(has_rows.then_some("token_ids_logprob"))
        .or(is_list("custom_logit_processor").then_some("custom_logit_processor"));
    match list {
        Some(name) => Err(invalid(&format!(
            "Cannot use list {name} with parallel_sample_num > 1"
        ))),
        None => Ok(()),
    }
}

fn ids(body: &Value) -> Option<&Vec<Value>> {
    body.get("rid").and_then(Value::as_array)
}

fn check_count(ids: &[Value], prompts: usize) -> Result<(), Failure> {
    if ids.len() == prompts {
        return Ok(());
    }
    Err(invalid(
        "The specified rids length mismatch with the batch_size for batch processing.",
    ))
}

fn check_unique(body: &Value) -> Result<(), Failure> {
    let mut seen = HashSet::new();
    let mut ids = ids(body).into_iter().flatten().filter_map(Value::as_str);
    match ids.find(|rid| !seen.insert(*rid)) {
        Some(rid) => Err(invalid(&format!(
            "Duplicate request IDs detected within the request: ['{rid}']"
        ))),
        None => Ok(()),
    }
}

/// The samples per prompt of the OpenAI endpoints, whose types are lax. The schema has refused other values. `prompts` is
/// their number where they are a list.
pub(super) fn openai(body: &Value, prompts: Option<usize>) -> Result<usize, Failure> {
    let n = match body.get("n") {
        None => 1,
        Some(Value::Bool(n)) => i128::from(*n),
        Some(value) => {
            let whole = value.as_f64().filter(|n| n.fract() == 0.0);
            integer(value).or(whole.map(|n| n as i128)).unwrap_or(1)
        }
    };
    if n == 0 && !boolean(body.get("stream")) {
        return Err(Failure::Value("range() arg 3 must not be zero".to_owned()));
    }
    let n = bounded(n);
    let is_batch = n > 1 || prompts.is_some();
    match ids(body) {
        Some(ids) if is_batch => check_count(ids, prompts.unwrap_or(1))?,
        Some(_) => {
            check_unique(body)?;
            return Err(Failure::Engine {
                status: 500,
                message: "Internal server error: unhashable type: 'list'".to_owned(),
            });
        }
        None => {}
    }
    check_unique(body)?;
    Ok(n)
}

fn bounded(n: i128) -> usize {
    usize::try_from(n).unwrap_or(1).clamp(1, MAX_SAMPLES)
}

fn invalid(message: &str) -> Failure {
    Failure::Invalid(message.to_owned())
}
